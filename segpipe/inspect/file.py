"""Detect whether a file is a model, a raster or a volume, and gather its facts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rasterio.errors import RasterioError

from segpipe.errors import InputError, ModelError, SettingsError, SourceError
from segpipe.formats.raster.gdal import DRIVERS, gdal_options, open_raster
from segpipe.formats.registry import RASTER, by_suffix, format_at
from segpipe.formats.scenes.search import is_scene
from segpipe.inspect.facts import Facts
from segpipe.inspect.model import inspect_model
from segpipe.inspect.raster import inspect_grouped, inspect_raster, inspect_scene
from segpipe.inspect.volume import inspect_volume, named_case
from segpipe.network.model_file import read_model
from segpipe.settings import Settings
from segpipe.storage.content import describe
from segpipe.storage.existence import is_file, is_folder
from segpipe.storage.paths import is_remote, plain_path


def inspect_file(settings: Settings) -> Facts:
    """Facts about the one input; ``settings.model`` is the model for it, or the same path if none is given.

    Raises:
        InputError, ModelError, SourceError: the file, or the model for it, cannot be opened.
        SettingsError: a flag has no effect, or lacks another one.
    """
    (file,) = settings.input
    alone = settings.model == (Path(file),)
    if settings.bands_from is not None:
        if alone:
            raise SettingsError("--bands-from groups files by the channels of a model: give --model, too")
        with gdal_options():
            return inspect_grouped(file, settings)
    file = plain_path(file) if is_file(file) else file
    if is_scene(file := file.rstrip("/") or file):
        _refuse_without_model(file, settings, alone, "a scene")
        with gdal_options():
            return inspect_scene(file, settings, alone=alone)
    if _is_volume(file):
        limits = {"--validity": settings.validity, "--aoi": settings.aoi}
        _refuse(file, limits, "a raster is inspected, and this is a volume: leave it out")
        _refuse_without_model(file, settings, alone, "a volume")
        return inspect_volume(file, settings, alone=alone)
    with gdal_options():
        if _is_model(file):
            _refuse_for_model(file, settings, alone)
            return inspect_model(settings)
        _refuse_without_model(file, settings, alone, "a raster")
        return inspect_raster(file, settings, alone=alone)


def _refuse_for_model(file: str, settings: Settings, alone: bool) -> None:
    """Refuse flags that describe pixels, for a file that has none."""
    given = {
        "--model": not alone,
        "--bands": settings.bands,
        "--crs": settings.crs,
        "--nodata": settings.nodata is not None,
        "--ignore-alpha": settings.ignore_alpha,
        "--validity": settings.validity,
        "--aoi": settings.aoi,
    }
    _refuse(file, given, "a raster or a volume is inspected, and this is a model: leave it out")


def _refuse_without_model(file: str, settings: Settings, alone: bool, what: str) -> None:
    if alone:
        flags = {"--contract": settings.contract, "--tile": settings.tile, "--overlap": settings.overlap}
        _refuse(file, flags, f"a model is given, and this is {what} alone: give --model")


def _refuse(file: str, flags: Mapping[str, Any], rule: str) -> None:
    """Refuse flags that would have no effect."""
    for flag, value in flags.items():
        if value:
            raise SettingsError(f"{file}: {flag} counts where {rule}")


def _is_volume(file: str) -> bool:
    """Whether a local file has a format other than raster, or is a folder, which may be a series, or a case of one."""
    path = Path(file)
    return is_folder(path) or (is_file(path) and format_at(file) != RASTER) or named_case(file) is not None


def _is_model(file: str) -> bool:
    """Whether a file is a model: by suffix if conclusive, else by opening it; GDAL first, which reads only a header."""
    path = Path(file)
    suffix = path.suffix.lower()
    if is_remote(file) or suffix == ".onnx" or (is_file(path) and suffix in by_suffix()):
        return suffix == ".onnx"
    if not is_file(path):
        raise InputError(f"inspect takes one file that exists, got {file}")
    return not _opens_as_raster(file) and _opens_as_model(path)


def _opens_as_raster(file: str) -> bool:
    try:
        open_raster(file).close()
    except RasterioError:
        return False
    except SourceError:
        return True  # a VRT with forbidden references, which its inspection reports
    return True


def _opens_as_model(path: Path) -> Literal[True]:
    try:
        read_model(path)
    except ModelError:
        raise InputError(
            f"inspect takes an ONNX model, a raster or a volume, and {path} opens as none of them: "
            + (describe(path) or f"rasters are {', '.join(DRIVERS)}")
        ) from None
    return True
