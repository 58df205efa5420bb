"""Read labels of a raster on another grid: nearest neighbour, where the grids differ."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterWindow

from segpipe.errors import SourceError
from segpipe.formats.raster.gdal import gdal_errors, gdal_options, open_raster
from segpipe.formats.raster.readback import same_crs, same_transform
from segpipe.geometry.grid import Grid
from segpipe.geometry.raster_grid import RasterGrid, read_grid
from segpipe.geometry.windows import Window

TOLERANCE = 0.01
"""Pixels by which GDAL may be wrong about a place; rasterio does not take 0."""


@dataclass(frozen=True)
class AlignedRaster:
    """Labels of a raster on the grid of another; for one thread."""

    _path: Path
    _dataset: DatasetReader | WarpedVRT
    moved: bool
    """Whether pixels were resampled."""

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Labels of a window, and where they are valid; None: everywhere."""
        (top, left), (bottom, right) = window.start, window.stop
        place = RasterWindow(left, top, right - left, bottom - top)
        with gdal_errors(SourceError, f"{self._path} cannot be read"):
            labels = self._dataset.read(1, window=place)
            if self.moved:  # the mask flags of a warped dataset know the alpha band of some types only
                return labels, self._dataset.read(self._dataset.count, window=place) > 0
            if MaskFlags.all_valid in self._dataset.mask_flag_enums[0]:
                return labels, None
            return labels, self._dataset.read_masks(1, window=place) > 0


@contextmanager
def open_aligned(path: Path, grid: Grid) -> Iterator[AlignedRaster]:
    """Open labels on the grid of a mask.

    Raises:
        SourceError: they cannot be opened, or resampled onto that grid.
    """
    assert isinstance(grid, RasterGrid)
    with gdal_options():
        with gdal_errors(SourceError, f"{path} cannot be read"):
            dataset = open_raster(str(path))
        with dataset:
            _check_bands(path, dataset)
            own = read_grid(dataset)
            if _is_same(own, grid):
                yield AlignedRaster(path, dataset, moved=False)
                return
            if own.crs is None or own.transform is None or grid.crs is None or grid.transform is None:
                sizes = [f"{one.shape[1]} x {one.shape[0]}" for one in (grid, own)]
                raise SourceError(
                    f"{path} must have the size of the mask, {sizes[0]}, or both must have a CRS and a geotransform; "
                    f"it has {sizes[1]} and {own}, the mask has {grid}"
                )
            with gdal_errors(SourceError, f"{path} cannot be read on the grid of the mask"), _warped(dataset, grid) as moved:
                yield AlignedRaster(path, moved, moved=True)


def _check_bands(path: Path, dataset: DatasetReader) -> None:
    alpha = dataset.colorinterp[-1] == ColorInterp.alpha
    if dataset.count - alpha != 1:
        raise SourceError(
            f"{path} must have one band of labels, and has {dataset.count}: extract one with gdal_translate -b"
        )


def _is_same(own: RasterGrid, grid: RasterGrid) -> bool:
    """Whether pixels lie on pixels; of pictures without a place only the size is known."""
    if own.shape != grid.shape:
        return False
    if own.transform is None or grid.transform is None:
        return True
    return same_transform(own.transform, grid.transform, grid.shape) and (own.crs is None or same_crs(own.crs, grid.crs))


def _warped(dataset: DatasetReader, grid: RasterGrid) -> WarpedVRT:
    """Pixels outside the raster, and its nodata, are invalid by an alpha band."""
    alpha = {} if dataset.colorinterp[-1] == ColorInterp.alpha else {"add_alpha": True}
    rows, cols = grid.shape
    place = {"crs": grid.crs, "transform": grid.transform, "height": rows, "width": cols}
    return WarpedVRT(dataset, resampling=Resampling.nearest, tolerance=TOLERANCE, **place, **alpha)
