"""Files beside a raster that say which of its pixels are valid and where they lie: GDAL passes over one that is damaged."""

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from rasterio.enums import MaskFlags
from rasterio.io import DatasetReader

from segpipe.pipeline.errors import SourceError
from segpipe.pipeline.identity import world_files
from segpipe.pipeline.sources.tiff import check_tags, is_number
from segpipe.pipeline.stores.bucket import is_remote

MEND = "mend it or take it away"


def check_files(dataset: DatasetReader, path: str, files: Iterable[str]) -> None:
    """A raster of this machine and what lies beside it are whole, as far as GDAL would not tell.

    Raises:
        SourceError: a file that GDAL would take in part, or pass over.
    """
    if is_remote(path) or not Path(path).is_file():
        return
    _check_mask(dataset, path)
    for file in {path, *files}:
        if not file.endswith(".ovr") and not is_remote(file) and Path(file).is_file():
            _check_file(file)
    if dataset.driver != "VRT":
        _check_world_file(dataset, path)


def _check_file(file: str) -> None:
    """By what it begins with."""
    with Path(file).open("rb") as stream:
        head = stream.read(512)
    if head[:2] in (b"II", b"MM"):
        check_tags(file)
    elif file.lower().endswith((".aux.xml", ".vrt")):
        _check_xml(file)


def _check_mask(dataset: DatasetReader, path: str) -> None:
    mask = f"{path}.msk"
    used = any(MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags for flags in dataset.mask_flag_enums)
    if Path(mask).exists() and not used:
        raise SourceError(f"{mask} must be a raster of the size of {path} that masks it, and GDAL cannot use it: {MEND}")


def _check_xml(file: str) -> None:
    """Well formed, and numbers where GDAL looks for some: it takes what it understands of a text."""
    try:
        root = ET.parse(file).getroot()
    except ET.ParseError as error:
        raise SourceError(f"{file} is not well-formed XML, {error}: {MEND}") from error
    values = [e.text for e in root.iter("NoDataValue") if e.text and e.text.strip()]  # an empty one is none
    values += chain.from_iterable((e.text or "").split(",") for e in root.iter("GeoTransform"))
    bad = next((text for text in values if not is_number(text.strip())), None)
    if bad is not None:
        raise SourceError(f"{file}: nodata values and geotransforms must be numbers, got {bad!r}: {MEND}")


def _check_world_file(dataset: DatasetReader, path: str) -> None:
    """Six numbers; looked at where GDAL has used it, or found no place at all."""
    for name in world_files(path):
        file = Path(name)
        if file.is_file() and (name in dataset.files or (dataset.transform.is_identity and not dataset.gcps[0])):
            lines = [line.strip().replace(",", ".") for line in file.read_text(errors="replace").split("\n") if line.strip()]
            if len(lines) < 6 or not all(map(is_number, lines[:6])):
                raise SourceError(f"{file} must be a world file, six numbers on lines of their own: {MEND}")
