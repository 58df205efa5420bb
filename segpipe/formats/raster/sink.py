"""Write masks as cloud-optimised GeoTIFF, and as indexed PNG for plain pictures."""

import errno
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, DatasetWriter, MemoryFile
from rasterio.windows import Window as RasterWindow

from segpipe.errors import OutputError, of_system
from segpipe.formats.raster.gdal import any_name, decoding, gdal_errors, gdal_options
from segpipe.formats.raster.pam import EMPTY, sidecar
from segpipe.formats.raster.readback import lost
from segpipe.formats.raster.source import RasterTemplate, raster_window
from segpipe.formats.sink import OVERVIEWS, Target
from segpipe.formats.style import UNUSED, Style
from segpipe.geometry.grid import Grid
from segpipe.geometry.raster_grid import RasterGrid
from segpipe.geometry.windows import Window
from segpipe.process.machine import processors
from segpipe.storage import Store
from segpipe.storage.files import is_nearly_full, output_errors, remove
from segpipe.storage.ownership import is_own_sidecar
from segpipe.storage.retry import is_passing, unwritable

BLOCK = 512
PLAIN_DRAFT_PIXELS = 2**30
"""Largest raster whose draft is not compressed: saves 0.15 s per case of 4,096², for at most 1 GB of disk a worker and
band."""

ENCODERS = 4
"""Threads that compress a large mask: at the end of a job everything waits for the last mask."""

ENCODERS_BESIDE = 16
"""The same while the network runs on a device: 0.20 s instead of 0.33 s for 120 Mpx (measured on 16 processors)."""

HELD_BYTES = 2**22
"""Largest raster that is held in memory until it is complete."""

PNG = {
    "driver": "PNG",
    "ZLEVEL": 4,  # 1.3 ms a mask of 256² instead of 2.9 at GDAL's 6, for files that are 9 % larger (measured)
    "WRITE_METADATA_AS_TEXT": "YES",
}
"""PNG stores nodata as a transparent entry of the palette."""

COG = {
    "driver": "COG",
    "COMPRESS": "DEFLATE",
    "LEVEL": 4,  # a third of the time of GDAL's 6, for masks that are 17 % larger (measured)
    "BLOCKSIZE": BLOCK,
    "BIGTIFF": "IF_SAFER",
    "SPARSE_OK": "YES",
    "OVERVIEWS": "FORCE_USE_EXISTING",
    "STATISTICS": "NO",
}

AUX = ".aux.xml"
"""Suffix of GDAL's sidecar, appended to the name of the file."""

READERS = {"COG": "GTiff", "PNG": "PNG"}
"""Driver that reads what a driver has written."""


@contextmanager
def full_disk(output: Store, path: str) -> Iterator[None]:
    """Report a full disk where GDAL only reports that writing failed."""
    try:
        yield
    except OutputError as error:
        if unwritable(error, writing=True) is None and is_nearly_full(output.disk()):
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise OutputError(f"{path} cannot be written: {of_system(full)}") from error
        raise


def _sum(values: NDArray[Any]) -> int:
    """Sum of all values, which does not overflow."""
    return int(values.sum(dtype=np.int64))


def _check_written(written: Path, path: str, expected: int, threads: int = 1) -> None:
    """Read a file back and compare sums: GDAL does not report all errors of closing a file, a full disk above all.

    Raises:
        OutputError: it cannot be read, or the sum of its values is not that of the written ones.
    """
    found, unwritable = 0, gdal_errors(OutputError, f"{path} cannot be written")
    with unwritable, decoding(threads), rasterio.open(written) as dataset:
        for band in dataset.indexes:
            for row in range(0, dataset.height, BLOCK):
                strip = RasterWindow(0, row, dataset.width, min(BLOCK, dataset.height - row))
                found += _sum(dataset.read(band, window=strip))
    if found != expected:
        raise OutputError(f"{path} cannot be written: not all of it has reached the disk")


def _block_sides(rows: int, cols: int) -> dict[str, int]:
    """Block size for a raster: a small case must not occupy the disk space of a full block."""
    return {"blockxsize": min(BLOCK, -(-cols // 16) * 16), "blockysize": min(BLOCK, -(-rows // 16) * 16)}


class RasterSink(ABC):
    """A raster that is written in any order of windows; no file has its final name before ``finish``."""

    def __init__(self, output: Store, name: str, grid: RasterGrid, style: Style, threads: int) -> None:
        self.name, self.path = name, output.path(name)
        self._output = output
        self.size = 0
        """Bytes of the finished file."""
        self._threads = min(threads, processors())
        self._style = style
        self._grid = grid
        with self._unwritable():
            self._dataset = self._begin()
            self._describe()

    @property
    def dtype(self) -> str:
        """Type of its pixels."""
        return self._style.dtype

    def files(self) -> list[str]:
        """Names of all files that ``finish`` may write."""
        return [self.name] if self._form is PNG else [self.name, self.name + AUX]

    @abstractmethod
    def _begin(self) -> DatasetWriter:
        """Open the dataset that takes the pixels."""

    @abstractmethod
    def finish(self) -> list[str]:
        """Write the file in its final form, give it its name, and return the names of all its files."""

    @abstractmethod
    def discard(self) -> None:
        """Remove everything unfinished; safe to call twice."""

    def write(self, window: Window, values: NDArray[Any]) -> None:
        """Write ``(bands, *window.shape)``; every pixel must be written once."""
        with self._unwritable():
            self._dataset.write(values, window=raster_window(window))

    def leave(self, window: Window) -> None:
        """Leave a window without data, as if nodata were written; the style must have it."""
        self.write(window, np.full((len(self._style.bands), *window.shape), self._style.nodata, self.dtype))

    @contextmanager
    def _unwritable(self) -> Iterator[None]:
        with full_disk(self._output, self.path), gdal_errors(OutputError, f"{self.path} cannot be written"):
            yield

    @property
    def _shape(self) -> dict[str, Any]:
        rows, cols = self._grid.shape
        kind = {"count": len(self._style.bands), "dtype": self._style.dtype, "nodata": self._style.nodata}
        return {"height": rows, "width": cols, **kind}

    @property
    def _form(self) -> dict[str, Any]:
        """GDAL's creation options of the final file."""
        return PNG if self.name.endswith(".png") else COG

    def _describe(self) -> None:
        dataset, grid, style = self._dataset, self._grid, self._style
        if grid.gcps:
            dataset.gcps = (list(grid.gcps), grid.gcps_crs)
        if grid.crs is not None:
            dataset.crs = grid.crs
        if grid.transform is not None:
            dataset.transform = grid.transform
        if grid.rpcs is not None:
            dataset.rpcs = grid.rpcs
        for band, name in enumerate(style.bands, 1):
            dataset.set_band_description(band, name)
        if style.colors is not None:
            dataset.write_colormap(1, UNUSED | style.colors)
            dataset.colorinterp = [ColorInterp.palette]
        if style.scale != 1 and self._form is COG:
            dataset.scales = [style.scale] * len(style.bands)
        # other domains go into the sidecar: GDAL's COG driver drops them
        dataset.update_tags(**style.scene.get("", {}), **self._point())
        dataset.update_tags(**(style.tags or {}))

    def _point(self) -> dict[str, str]:
        """The tag AREA_OR_POINT; omitted with control points, which GDAL would move by a pixel for Point."""
        grid = self._grid
        return {"AREA_OR_POINT": grid.area_or_point} if grid.area_or_point and not grid.gcps else {}

    def _overviews(self, dataset: DatasetWriter) -> None:
        if self._form is COG and (factors := overview_factors(self._grid.shape)):
            dataset.build_overviews(factors, Resampling.nearest)

    def _needed_sidecar(self, opened: Callable[[bytes], AbstractContextManager[DatasetReader]]) -> bytes | None:
        """The sidecar with which the file reads back complete; None where it needs none.

        GDAL puts a CRS without GeoTIFF keys into a sidecar of its own, and silently loses others: whatever the file itself
        does not keep goes into ours.

        Raises:
            OutputError: a property is kept neither in the file nor in the sidecar.
        """
        style, picture, gone = self._style, self._form is PNG, list[str]()
        for grid in (None,) if picture else (None, self._grid):
            beside = None if picture else sidecar(style, grid)
            with self._unwritable(), opened(beside or EMPTY) as dataset:
                gone = lost(dataset, self._grid, style, picture=picture)
            if not gone:
                return beside
        raise OutputError(f"{self.path} cannot be written: GDAL does not keep its {' and '.join(gone)}")

    def _write_sidecar(self, beside: bytes | None) -> list[str]:
        if beside is None:
            return []
        name = self.name + AUX
        self._output.write(name, beside)
        return [name]


class DraftSink(RasterSink):
    """A raster that is first written to a draft on disk."""

    def _begin(self) -> DatasetWriter:
        rows, cols = self._grid.shape
        packed = {"compress": "ZSTD", "zstd_level": 1} if rows * cols > PLAIN_DRAFT_PIXELS else {}
        stored = {"tiled": True, **_block_sides(rows, cols), **packed, "interleave": "band"}
        self._total = 0
        with output_errors(self.path):
            self._draft = self._output.draft(str(PurePosixPath(self.name).with_suffix(".draft")))
        kind = {"driver": "GTiff", "bigtiff": "IF_SAFER", "sparse_ok": True}
        return rasterio.open(self._draft, "w", **kind, **self._shape, **stored)

    def write(self, window: Window, values: NDArray[Any]) -> None:
        self._total += _sum(values)
        super().write(window, values)

    def leave(self, window: Window) -> None:
        # the draft is sparse
        self._total += math.prod(window.shape) * len(self._style.bands) * self._style.nodata

    def finish(self) -> list[str]:
        temporary = self._output.draft(self.name)
        try:
            with self._unwritable():
                self._dataset.close()
                self._convert(temporary)
            beside = self._needed_sidecar(lambda data: _opened_beside(temporary, data))
            with full_disk(self._output, self.path):
                self._check(temporary)
            names = self._write_sidecar(beside)
            with output_errors(self.path):
                self.size = temporary.stat().st_size
                self._output.publish(temporary, self.name)
            return [self.name, *names]
        finally:
            remove_draft(temporary)
            self.discard()

    def _convert(self, final: Path) -> None:
        """Write the final form of the closed draft."""
        if self._form is COG:
            with rasterio.open(self._draft, "r+", driver="GTiff") as draft:
                self._overviews(draft)
        # two threads take half the time and write the same bytes
        threads = {"NUM_THREADS": self._threads} if self._form is COG else {}
        rasterio.shutil.copy(self._draft, final, **self._form, **threads)

    def _check(self, final: Path) -> None:
        _check_written(final, self.path, self._total, self._threads)

    def discard(self) -> None:
        with suppress(RasterioError, CPLE_BaseError):  # the case has failed already, and GDAL may report it again
            self._dataset.close()
        remove_draft(self._draft)


class HeldSink(RasterSink):
    """A small raster held in memory until it is complete: the same bytes as from a draft, in a third of the time."""

    def _begin(self) -> DatasetWriter:
        self._file = MemoryFile(ext=PurePosixPath(self.name).suffix)
        self._besides: list[MemoryFile] = []
        return self._file.open(**self._form, **self._shape)

    def finish(self) -> list[str]:
        try:
            with self._unwritable():
                self._overviews(self._dataset)
                self._dataset.close()
                data = self._file.read()
            self.size = len(data)
            beside = self._needed_sidecar(self._opened)
            with self._output.draft_of(self.name) as draft:
                draft.write_bytes(data)  # reports a full disk, as GDAL does not
                names = self._write_sidecar(beside)
            return [self.name, *names]
        finally:
            self.discard()

    @contextmanager
    def _opened(self, beside: bytes) -> Iterator[DatasetReader]:
        """Open the file in memory, with this sidecar only."""
        path = PurePosixPath(self._file.name)
        # closing one of the two removes the other
        self._besides.append(MemoryFile(beside, dirname=path.parent.name, filename=path.name + AUX))
        with self._file.open(driver=READERS[self._form["driver"]]) as dataset:
            yield dataset

    def discard(self) -> None:
        with suppress(RasterioError, CPLE_BaseError):
            self._dataset.close()
        for file in (self._file, *self._besides):
            file.close()


def raster_sink(output: Store, name: str, grid: Grid, style: Style, threads: int = ENCODERS) -> RasterSink:
    """Choose the sink of a raster by its size: its bytes depend neither on that nor on the number of threads."""
    assert isinstance(grid, RasterGrid)  # rasters have raster grids
    size = math.prod(grid.shape) * len(style.bands) * np.dtype(style.dtype).itemsize
    return (HeldSink if size <= HELD_BYTES else DraftSink)(output, name, grid, style, threads)


def mask_sink(target: Target) -> RasterSink:
    """The sink of a mask or a confidence: a PNG for a plain picture if PNG can hold it, else a GeoTIFF."""
    template, grid, style = target.template, target.grid, target.style
    assert isinstance(template, RasterTemplate)
    assert isinstance(grid, RasterGrid)
    picture = template.picture and len(style.bands) == 1 and style.dtype == "uint8"
    name = f"{target.stem}{'.png' if picture else '.tif'}"
    return raster_sink(target.output, name, grid, style, ENCODERS_BESIDE if target.spare else ENCODERS)


def draft_bytes(pixels: float, full: float, packed: float) -> float:
    """Bytes of the draft of a mask and of its final copy with overviews; a small mask has no draft on disk."""
    draft = full if pixels <= PLAIN_DRAFT_PIXELS else packed
    return (draft + packed) * OVERVIEWS if full > HELD_BYTES else packed


def is_own_raster(output: Store, name: str) -> bool:
    """Whether segpipe wrote a raster or a sidecar in the output."""
    if name.endswith(AUX):
        with output_errors(output.path(name)):
            return is_own_sidecar(output.read(name))
    try:
        unreadable = gdal_errors(OutputError, output.path(name))
        with gdal_options(), unreadable, output.local(name) as path, DatasetReader(any_name(str(path))) as dataset:
            return "SEGPIPE" in dataset.tags()
    except OutputError as error:
        if is_passing(error):
            raise
        return False


def _beside(path: Path) -> Path:
    return path.with_name(path.name + AUX)


def remove_draft(path: Path) -> None:
    """Remove a draft, and the sidecar that GDAL writes for some CRSs."""
    remove(path)
    remove(_beside(path))


@contextmanager
def _opened_beside(path: Path, beside: bytes) -> Iterator[DatasetReader]:
    """Open a file with this sidecar only."""
    with output_errors(path):
        _beside(path).write_bytes(beside)
    with rasterio.open(path) as dataset:
        yield dataset


def overview_factors(shape: Sequence[int]) -> list[int]:
    """Overview factors 2, 4, 8 and so on, until the smallest overview fits in one block."""
    factors = []
    factor = 2
    while max(shape) * 2 > BLOCK * factor:
        factors.append(factor)
        factor *= 2
    return factors
