"""Write maps of which little has data: their cost grows with the data, not with the map."""

import math
from contextlib import ExitStack, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.io import DatasetWriter
from rasterio.windows import Window as RasterWindow

from segpipe.errors import OutputError
from segpipe.formats.raster.cog import assemble
from segpipe.formats.raster.gdal import decoding, gdal_errors
from segpipe.formats.raster.sink import (
    BLOCK,
    COG,
    ENCODERS,
    PLAIN_DRAFT_PIXELS,
    DraftSink,
    RasterSink,
    overview_factors,
    raster_sink,
    remove_draft,
)
from segpipe.formats.raster.source import raster_window
from segpipe.formats.raster.tiff import directories
from segpipe.formats.style import UNUSED, Style
from segpipe.geometry.grid import Grid
from segpipe.geometry.raster_grid import RasterGrid
from segpipe.geometry.windows import Window
from segpipe.storage import Store
from segpipe.storage.files import output_errors

SPARSE_SHARE = 0.5
"""Share of a large map below which its blocks without data are worth leaving out."""

STORED = {
    "driver": "GTiff",
    "bigtiff": "YES",
    "sparse_ok": True,
    "tiled": True,
    "blockxsize": BLOCK,
    "blockysize": BLOCK,
    "compress": COG["COMPRESS"],
    "zlevel": COG["LEVEL"],
    "interleave": "pixel",
    "endianness": "LITTLE",
}
"""GDAL's creation options of a draft, whose blocks are those of the final file."""


class SparseSink(DraftSink):
    """A map whose blocks without data are neither written nor read; others write the same pixels."""

    def _begin(self) -> DatasetWriter:
        self._total = 0
        self._drafts: list[Path] = []
        self._overview_sets: dict[int, DatasetWriter] = {}
        whole = self._open_draft(1)
        self._draft = self._drafts[0]
        for factor in overview_factors(self._grid.shape):
            self._overview_sets[factor] = self._open_draft(factor)
            self._color(self._overview_sets[factor])
        return whole

    def _open_draft(self, factor: int) -> DatasetWriter:
        """Begin the draft of a level, which has the first of each ``factor`` by ``factor`` pixels."""
        with output_errors(self.path):
            draft = self._output.draft(str(PurePosixPath(self.name).with_suffix(f".{factor}.draft")))
        self._drafts.append(draft)
        rows, cols = (-(-side // factor) for side in self._grid.shape)
        return rasterio.open(draft, "w", **STORED, **(self._shape | {"height": rows, "width": cols}))

    def _color(self, overview: DatasetWriter) -> None:
        if self._style.colors is not None:
            overview.write_colormap(1, UNUSED | self._style.colors)
            overview.colorinterp = [ColorInterp.palette]

    def write(self, window: Window, values: NDArray[Any]) -> None:
        super().write(window, values)
        with self._unwritable():
            for factor, overview in self._overview_sets.items():
                part = Window(*(tuple(-(-side // factor) for side in ends) for ends in (window.start, window.stop)))
                if 0 not in part.shape:
                    rows, cols = (slice(-start % factor, None, factor) for start in window.start)
                    overview.write(values[:, rows, cols], window=raster_window(part))

    def _convert(self, final: Path) -> None:
        self._close_overviews()
        with output_errors(self.path):
            assemble(self._drafts, final)

    def _check(self, final: Path) -> None:
        """Compare the sum of all pixels, as other sinks do; what has no block has no data.

        Raises:
            OutputError: it cannot be read, or not all of it has reached the disk.
        """
        if stored_sum(final, self.path, self._style.nodata, self._threads) != self._total:
            raise OutputError(f"{self.path} cannot be written: not all of it has reached the disk")

    def _close_overviews(self) -> None:
        with ExitStack() as stack:
            for overview in self._overview_sets.values():
                stack.callback(overview.close)

    def discard(self) -> None:
        with suppress(RasterioError, CPLE_BaseError):
            self._close_overviews()
        super().discard()
        for draft in self._drafts:
            remove_draft(draft)


def map_sink(output: Store, name: str, grid: Grid, style: Style, share: float) -> RasterSink:
    """Choose the sink of a map, of which at most a share has data."""
    assert isinstance(grid, RasterGrid)  # maps of rasters have raster grids
    if math.prod(grid.shape) > PLAIN_DRAFT_PIXELS and share < SPARSE_SHARE:
        return SparseSink(output, name, grid, style, ENCODERS)
    return raster_sink(output, name, grid, style)


def stored_sum(written: Path, path: str, nodata: int, threads: int) -> int:
    """Sum of all pixels of a tiled TIFF, of which only blocks with data are read.

    Raises:
        OutputError: it cannot be read.
    """
    with written.open("rb") as file:
        numbers = np.flatnonzero(next(directories(file)).blocks[1] > 0).tolist()
    found, seen = 0, 0
    with gdal_errors(OutputError, f"{path} cannot be written"), decoding(threads), rasterio.open(written) as dataset:
        across = -(-dataset.width // BLOCK)
        for row, col in (divmod(number, across) for number in numbers):
            values = dataset.read(window=_block(row, col, dataset.shape))
            found, seen = found + int(values.sum(dtype=np.int64)), seen + values.size
        pixels: int = math.prod((dataset.count, *dataset.shape))
        return found + nodata * (pixels - seen)


def _block(row: int, col: int, shape: tuple[int, int]) -> RasterWindow:
    top, left = row * BLOCK, col * BLOCK
    return RasterWindow(left, top, min(BLOCK, shape[1] - left), min(BLOCK, shape[0] - top))
