"""The functions that the table of formats has for rasters; each imports its module when it is called."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.formats.cache import Cache
from segpipe.formats.case import Case
from segpipe.formats.format import OpenMask
from segpipe.formats.identity import Beside, Identity
from segpipe.formats.sink import Sink, Target
from segpipe.formats.source import Source
from segpipe.formats.style import Color, Style
from segpipe.geometry.grid import Grid
from segpipe.overrides import Overrides
from segpipe.storage import Store


def open_case(case: Case, contract: Contract, overrides: Overrides) -> Source:
    from segpipe.formats.raster.source import RasterSource

    return RasterSource(case.path, contract, overrides)


def sink(target: Target) -> Sink:
    from segpipe.formats.raster.sink import mask_sink

    return mask_sink(target)


def is_own(output: Store, name: str) -> bool:
    from segpipe.formats.raster.sink import is_own_raster

    return is_own_raster(output, name)


def environment(threads: int) -> AbstractContextManager[object]:
    from segpipe.formats.raster.gdal import gdal_options

    options: AbstractContextManager[object] = gdal_options(threads)
    return options


def read_mask(path: Path) -> tuple[NDArray[Any], Grid]:
    from segpipe.formats.raster import mask

    return mask.read_mask(path)


def open_mask(path: Path) -> AbstractContextManager[OpenMask]:
    from segpipe.formats.raster import mask

    return mask.open_mask(path)


def style_of(path: Path) -> Style:
    from segpipe.formats.raster import mask

    return mask.style_of(path)


def map_sink(output: Store, name: str, grid: Grid, style: Style) -> Sink:
    from segpipe.formats.raster.sink import raster_sink

    return raster_sink(output, name, grid, style)


def unchanged() -> AbstractContextManager[object]:
    from segpipe.formats.raster.gdal import unchanged_gdal

    return unchanged_gdal()


def drafts(elements: float, full: float, packed: float) -> float:
    from segpipe.formats.raster.sink import draft_bytes

    return draft_bytes(elements, full, packed)


def cache() -> Cache:
    from segpipe.formats.raster.gdal import BlockCache

    return BlockCache()


def style(names: Mapping[int, str], colors: Mapping[int, Color]) -> bytes:
    from segpipe.formats.raster.qml import qgis_style

    return qgis_style(names, colors)


def is_same_input(place: str, files: Sequence[Identity], case: Case, beside: Beside, remote: bool) -> bool:
    from segpipe.formats.raster import dataset_files

    return dataset_files.is_same_input(place, files, case.path, beside, remote=remote)


def verify(files: Sequence[str]) -> list[str]:
    from segpipe.formats.raster.tiff import verify_files

    return verify_files(files)
