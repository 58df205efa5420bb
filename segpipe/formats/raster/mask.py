"""Read raster masks that segpipe wrote: labels, grid and style."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray
from rasterio.io import DatasetReader

from segpipe import __version__
from segpipe.errors import OutputError
from segpipe.formats.raster.gdal import gdal_errors, gdal_options, open_raster
from segpipe.formats.raster.source import raster_window
from segpipe.formats.style import Color, Style
from segpipe.geometry.grid import Grid
from segpipe.geometry.raster_grid import read_grid
from segpipe.geometry.windows import Window
from segpipe.process.machine import return_freed_memory
from segpipe.storage.retry import is_passing

T = TypeVar("T")

TIDY = 64
"""Masks after whose closing freed memory is given back. Each takes a block of 256 kB; of 2,000 masks, every second process
kept up to 500 MB of them (measured)."""

CLASS = "CLASS_"
"""Beginning of the tags with class names."""

_CLOSED = itertools.count(1)


def read_mask(path: Path) -> tuple[NDArray[Any], Grid]:
    """Bands ``(bands, rows, cols)`` of a mask, and its grid.

    Raises:
        OutputError: it cannot be read.
    """
    return _twice(partial(_whole, path))


def _whole(path: Path) -> tuple[NDArray[Any], Grid]:
    with gdal_options(), gdal_errors(OutputError, f"{path} cannot be read"), open_raster(str(path)) as dataset:
        return dataset.read(), read_grid(dataset)


def _twice(read: Callable[[], T]) -> T:
    """Return ``read()``, repeated once if it fails: after a storage fault, GDAL reports damage."""
    try:
        return read()
    except OutputError:
        return read()


@dataclass(frozen=True)
class RasterMask:
    """A mask that is open; for one thread."""

    grid: Grid
    _path: Path
    _dataset: DatasetReader

    @property
    def bands(self) -> int:
        return int(self._dataset.count)

    @property
    def colors(self) -> dict[int, Color]:
        """Its colour table; empty if it has none."""
        with suppress(ValueError):
            return dict(self._dataset.colormap(1))
        return {}

    def read(self, window: Window, band: int = 0) -> NDArray[Any]:
        return _twice(lambda: self._labels(window, band))

    def _labels(self, window: Window, band: int) -> NDArray[Any]:
        with _read_errors(self._path):
            labels: NDArray[Any] = self._dataset.read(band + 1, window=raster_window(window))
        return labels


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """Report damage that only reading shows, with the mend; a storage fault may pass."""
    try:
        with gdal_errors(OutputError, f"{path} cannot be read"):
            yield
    except OutputError as error:
        if is_passing(error) or getattr(
            error.__cause__, "errno", None
        ):  # rasterio's errors are of OSError, without a number
            raise
        raise OutputError(f"{error}: remove the file and run again with the same output") from error


def _opened(path: Path) -> DatasetReader:
    with gdal_errors(OutputError, f"{path} cannot be read"):
        return open_raster(str(path))


@contextmanager
def open_mask(path: Path) -> Iterator[RasterMask]:
    """Open a mask, to be read window by window.

    Raises:
        OutputError: it cannot be opened.
    """
    with gdal_options(), _twice(partial(_opened, path)) as dataset:
        yield RasterMask(read_grid(dataset), path, dataset)
    if next(_CLOSED) % TIDY == 0:
        return_freed_memory()


def style_of(path: Path) -> Style:
    """The style of a mask, as its sink wrote it.

    Raises:
        OutputError: the mask cannot be read.
    """
    with gdal_options(), gdal_errors(OutputError, f"{path} cannot be read"), open_raster(str(path)) as dataset:
        tags = {key: value for key, value in dataset.tags().items() if key.startswith((CLASS, "MODEL_SHA256"))}
        names = {int(key.removeprefix(CLASS)): value for key, value in tags.items() if key.startswith(CLASS)}
        nodata, dtype = int(dataset.nodata), dataset.dtypes[0]
        table: dict[int, Color] = dataset.colormap(1) if names and dtype == "uint8" else {}
        bands = [text or "" for text in dataset.descriptions]
    colors = {value: table[value] for value in (*sorted(names), nodata)} if table else None
    legend = {value: table[value] for value in sorted(names)} if table else {}
    names = dict(sorted(names.items()))
    return Style(
        dtype=dtype,
        nodata=nodata,
        bands=bands,
        colors=colors,
        names=names or None,
        tags={"SEGPIPE": __version__, **tags},
        legend=legend,
    )
