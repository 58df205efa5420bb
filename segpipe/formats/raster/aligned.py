"""Read labels of a raster on another grid: nearest neighbour, where the grids differ.

A label is valid if no mask of the file says otherwise, as in ``validity.py``: a stored mask, else nodata values; and an
alpha band of any type. GDAL takes an alpha band of 8 or 16 bits alone for a mask, and either that or nodata values.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterWindow

from segpipe.errors import SourceError
from segpipe.formats.raster.dataset_files import files_of
from segpipe.formats.raster.gdal import gdal_errors, gdal_options, open_raster
from segpipe.formats.raster.orientation import UPRIGHT, Turn, turn_of
from segpipe.formats.raster.readback import same_crs, same_transform
from segpipe.formats.raster.sidecars import check_opened
from segpipe.formats.raster.source import raster_window
from segpipe.formats.raster.validity import Interval, nodata_interval
from segpipe.geometry.grid import Grid
from segpipe.geometry.lookup import wrap_length
from segpipe.geometry.raster_grid import NoGroundError, RasterGrid, ground_of, read_grid
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
    _alpha: bool = False
    """Whether the last band of the file is an alpha band."""
    _turn: Turn | None = None
    """How to turn stored pixels upright; None if they already are."""
    _nodata: Interval | None = None
    """Values that are nodata beside an alpha band, by which GDAL resamples."""
    _rest: "AlignedRaster | None" = None
    """The same raster a full turn of longitude away, for pixels that lie there."""

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Labels of a window, and where they are valid; None: everywhere."""
        labels, valid = self._read(window)
        if self._rest is None or valid is None or valid.all():
            return labels, valid
        more, there = self._rest.read(window)
        return np.where(valid, labels, more), valid | (True if there is None else there)

    def _read(self, window: Window) -> tuple[NDArray[Any], NDArray[Any] | None]:
        place = raster_window(window if self._turn is None else self._turn.stored(window))
        with gdal_errors(SourceError, f"{self._path} cannot be read"):
            labels = self._dataset.read(1, window=place)
            masks = list(self._masks(place))
        if self._turn is not None:
            labels, masks = self._turn(labels), [self._turn(mask) for mask in masks]
        if self._nodata is not None:
            masks.append((labels < self._nodata[0]) | (labels > self._nodata[1]))
        if labels.dtype.kind == "f":
            masks.append(np.isfinite(labels))
        return labels, np.logical_and.reduce(masks) if masks else None

    def _masks(self, place: RasterWindow) -> Iterator[NDArray[np.bool_]]:
        """Where the masks of the file, one by one, say that labels are valid."""
        if self.moved or self._alpha:  # the mask flags of a warped dataset know the alpha band of some types only
            yield self._dataset.read(self._dataset.count, window=place) != 0
        if not self.moved and MaskFlags.all_valid not in self._dataset.mask_flag_enums[0]:
            yield self._dataset.read_masks(1, window=place) > 0


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
            with gdal_errors(SourceError, f"{path} cannot be read"):
                check_opened(str(path), dataset, files_of(dataset), lambda: open_raster(str(path)))
            _check_bands(path, dataset)
            own, turn = _upright(path, dataset, grid)
            if _is_same(own, grid):
                yield AlignedRaster(path, dataset, moved=False, _alpha=_has_alpha(dataset), _turn=turn)
                return
            if own.crs is None or own.transform is None or grid.crs is None or grid.transform is None:
                sizes = [f"{one.shape[1]} x {one.shape[0]}" for one in (grid, own)]
                raise SourceError(
                    f"{path} must have the size of the mask, {sizes[0]}, or both must have a CRS and a geotransform; "
                    f"it has {sizes[1]} and {own}, the mask has {grid}"
                )
            with gdal_errors(SourceError, f"{path} cannot be read on the grid of the mask"), ExitStack() as stack:
                nodata, found = _beside_alpha(dataset), None
                for shift in _shifts(own, grid):
                    moved = stack.enter_context(_warped(dataset, _shifted(grid, shift)))
                    found = AlignedRaster(path, moved, moved=True, _nodata=nodata, _rest=found)
                assert found is not None  # there is one shift at least
                yield found


def _upright(path: Path, dataset: DatasetReader, grid: RasterGrid) -> tuple[RasterGrid, Turn | None]:
    """The grid of a raster, and how to turn its pixels upright: by the orientation tag if it has no georeferencing."""
    own = read_grid(dataset)
    turn, _ = turn_of(dataset, str(path), place=own.georeferenced or grid.georeferenced)
    return replace(own, shape=turn.shape), None if turn.orientation == UPRIGHT else turn


def _check_bands(path: Path, dataset: DatasetReader) -> None:
    if dataset.count - _has_alpha(dataset) != 1:
        raise SourceError(
            f"{path} must have one band of labels, and has {dataset.count}: extract one with gdal_translate -b"
        )
    if "complex" in dataset.dtypes[0]:
        raise SourceError(
            f"{path} must hold integers or floats, and holds {dataset.dtypes[0]}: "
            "take the real part with gdal_translate -ot Float32"
        )


def _has_alpha(dataset: DatasetReader) -> bool:
    return bool(dataset.colorinterp[-1] == ColorInterp.alpha)


def _beside_alpha(dataset: DatasetReader) -> Interval | None:
    """Nodata values of a file with an alpha band, but for NaN, which is never valid."""
    alone = _has_alpha(dataset) and set(dataset.mask_flag_enums[0]) == {MaskFlags.nodata}
    return nodata_interval(dataset.nodata, np.dtype(dataset.dtypes[0])) if alone and not np.isnan(dataset.nodata) else None


def _is_same(own: RasterGrid, grid: RasterGrid) -> bool:
    """Whether pixels lie on pixels; where one has no place, only the size is known."""
    if own.shape != grid.shape:
        return False
    if own.transform is None or grid.transform is None:
        return not (_is_placed(own) and _is_placed(grid)) or _points(own) == _points(grid)
    return same_transform(own.transform, grid.transform, grid.shape) and (own.crs is None or same_crs(own.crs, grid.crs))


def _is_placed(grid: RasterGrid) -> bool:
    return grid.transform is not None or bool(grid.gcps)


def _points(grid: RasterGrid) -> list[tuple[float, ...]]:
    """Row, column and coordinates of each control point."""
    return [(point.row, point.col, point.x, point.y) for point in grid.gcps]


def _shifts(own: RasterGrid, grid: RasterGrid) -> Sequence[float]:
    """How far a grid moves along x to lie on a raster: longitudes of one may be from -180, of the other from 0 degrees."""
    try:
        turn = wrap_length(ground_of(grid).reference) if same_crs(own.crs, grid.crs) else 0.0
    except NoGroundError:
        turn = 0.0
    (low, high), (west, east) = _span(own), _span(grid)
    return [shift for shift in (0.0, -turn, turn) if turn and low < east + shift and west + shift < high] or [0.0]


def _span(grid: RasterGrid) -> tuple[float, float]:
    """Least and largest x of the corners of a grid."""
    assert grid.transform is not None
    x = [(grid.transform * (col, row))[0] for row in (0, grid.shape[0]) for col in (0, grid.shape[1])]
    return min(x), max(x)


def _shifted(grid: RasterGrid, x: float) -> RasterGrid:
    assert grid.transform is not None
    return replace(grid, transform=Affine.translation(x, 0) * grid.transform) if x else grid


def _warped(dataset: DatasetReader, grid: RasterGrid) -> WarpedVRT:
    """Pixels outside the raster, and its nodata, are invalid by an alpha band.

    Nodata values are not for GDAL where there is an alpha band or a stored mask: it would take them in place of a stored
    mask, write them into the alpha band, and change labels that are equal to them.
    """
    alpha: dict[str, Any] = {} if _has_alpha(dataset) else {"add_alpha": True}
    if set(dataset.mask_flag_enums[0]) != {MaskFlags.nodata} or _has_alpha(dataset):
        alpha |= {"src_nodata": None, "nodata": None}
    rows, cols = grid.shape
    place = {"crs": grid.crs, "transform": grid.transform, "height": rows, "width": cols}
    return WarpedVRT(dataset, resampling=Resampling.nearest, tolerance=TOLERANCE, **place, **alpha)
