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
from segpipe.formats.identity import FolderListings, Identity
from segpipe.formats.sink import MapSink, Sink, Target
from segpipe.formats.source import Source
from segpipe.formats.style import Color, Style
from segpipe.geometry.grid import Grid
from segpipe.overrides import Overrides
from segpipe.storage import Store


def open_case(case: Case, contract: Contract, overrides: Overrides) -> Source:
    """Open a raster. Raises ``SourceError``: it cannot be read, or does not fit the contract."""
    from segpipe.formats.raster.source import RasterSource

    return RasterSource(case.path, contract, overrides)


def sink(target: Target) -> Sink:
    """The sink of a GeoTIFF, or of an indexed PNG for a picture."""
    from segpipe.formats.raster.sink import mask_sink

    return mask_sink(target)


def is_own(output: Store, name: str) -> bool:
    """Whether a file of the output is a raster that segpipe wrote."""
    from segpipe.formats.raster.sink import is_own_raster

    return is_own_raster(output, name)


def environment(threads: int) -> AbstractContextManager[object]:
    """GDAL's options for a thread that decodes each window with ``threads`` threads."""
    from segpipe.formats.raster.gdal import gdal_options

    options: AbstractContextManager[object] = gdal_options(threads)
    return options


def read_mask(path: Path) -> tuple[NDArray[Any], Grid]:
    """Bands ``(bands, rows, columns)`` of a mask, and the grid of its file."""
    from segpipe.formats.raster import mask

    return mask.read_mask(path)


def open_mask(path: Path) -> AbstractContextManager[OpenMask]:
    """Open a mask, to read it window by window."""
    from segpipe.formats.raster import mask

    return mask.open_mask(path)


def style_of(path: Path) -> Style:
    """Type, nodata, colours and names of the bands of a mask."""
    from segpipe.formats.raster import mask

    return mask.style_of(path)


def map_sink(output: Store, name: str, grid: Grid, style: Style, share: float) -> MapSink:
    """The sink of a GeoTIFF that joins masks, of which at most a share has data."""
    from segpipe.formats.raster.sparse_sink import map_sink

    return map_sink(output, name, grid, style, share)


def unchanged() -> AbstractContextManager[object]:
    """Restore GDAL's cache and drivers, and the paths of PROJ's data, at the end."""
    from segpipe.formats.raster.gdal import unchanged_gdal

    return unchanged_gdal()


def drafts(elements: float, full: float, packed: float) -> float:
    """Bytes on disk of the draft of a mask and of its final copy."""
    from segpipe.formats.raster.sink import draft_bytes

    return draft_bytes(elements, full, packed)


def cache() -> Cache:
    """GDAL's block cache, one per process."""
    from segpipe.formats.raster.gdal import BlockCache

    return BlockCache()


def style(names: Mapping[int, str], colors: Mapping[int, Color]) -> bytes:
    """A QGIS style file (QML) with names and colours of values."""
    from segpipe.formats.raster.qml import qgis_style

    return qgis_style(names, colors)


def is_same_input(place: str, files: Sequence[Identity], case: Case, listings: FolderListings, remote: bool) -> bool:
    """Whether a raster has the same files as in its record: its own, its sidecars, and those that it refers to."""
    from segpipe.formats.raster import dataset_files

    return dataset_files.is_same_input(place, files, case.path, listings, remote=remote)


def verify(files: Sequence[str]) -> list[str]:
    """Compare pixels with the checksums of their files; a note for each file without one."""
    from segpipe.formats.raster.tiff import verify_files

    return verify_files(files)
