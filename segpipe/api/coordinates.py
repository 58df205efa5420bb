"""Labels as xarray, with the coordinates of their pixels."""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from segpipe.errors import InstallationError
from segpipe.geometry.grid import Grid
from segpipe.geometry.raster_grid import RasterGrid
from segpipe.geometry.voxel_grid import VoxelGrid
from segpipe.process.extras import install

if TYPE_CHECKING:
    from affine import Affine
    from xarray import DataArray

    from segpipe.api.labels import Labels

AXES = {2: ("y", "x"), 3: ("z", "y", "x")}
"""Axis names of an array of which only the shape is known."""

ALONG = 1e-6
"""Components of an axis smaller than this share of its step count as rounding."""


def data_array(labels: "Labels") -> "DataArray":
    """See ``Labels.to_xarray``."""
    try:
        from xarray import DataArray
    except ModuleNotFoundError as error:
        raise InstallationError(f"to_xarray needs {error.name}, which is not installed: run {install('xarray')}") from None
    shape = labels.array.shape[labels.layered :]
    dims, coords, more = _of_grid(labels.grid, shape)
    if labels.layered:
        dims, coords = ("class", *dims), {"class": list(labels.classes.values()), **coords}
    array = DataArray(labels.array, coords, dims, name="labels", attrs={**_meaning(labels), **more})
    if "spatial_ref" in array.coords:
        array.encoding["grid_mapping"] = "spatial_ref"
    return array


def _meaning(labels: "Labels") -> dict[str, Any]:
    """CF attributes that say what the values mean."""
    named = {0: "absent", 1: "present"} if labels.layered else labels.classes
    return {
        "_FillValue": labels.nodata,
        "flag_values": np.array(list(named), labels.array.dtype),
        "flag_meanings": " ".join("_".join(name.split()) for name in named.values()),
    }


def _of_grid(grid: Grid, shape: tuple[int, ...]) -> tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]:
    """Names of the spatial axes, their coordinates, and attributes of the array."""
    if isinstance(grid, RasterGrid):
        return _of_raster(grid)
    if isinstance(grid, VoxelGrid):
        return _of_volume(grid)
    return AXES[len(shape)], {}, {}


def _of_raster(grid: RasterGrid) -> tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]:
    from affine import Affine

    transform = Affine.identity() if grid.transform is None else grid.transform
    reference = {"spatial_ref": ((), 0, _reference(grid, transform))}
    if grid.gcps or transform.b or transform.d:
        return ("y", "x"), reference, {}  # no axis has coordinates of its own
    rows, cols = grid.shape
    x0, y0 = transform.c + 0.5 * transform.a, transform.f + 0.5 * transform.e
    x, y = x0 + np.arange(cols) * transform.a, y0 + np.arange(rows) * transform.e
    names = _axis_attributes(grid)
    return ("y", "x"), {"y": ("y", y, names["y"]), "x": ("x", x, names["x"]), **reference}, {}


def _reference(grid: RasterGrid, transform: "Affine") -> dict[str, Any]:
    """Attributes of a CF grid mapping, in the form that GDAL and rioxarray read."""
    place = {"GeoTransform": " ".join(map(repr, map(float, transform.to_gdal())))}
    if grid.crs is None:
        return place
    from pyproj import CRS

    wkt = str(grid.crs.to_wkt())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of parameters that CF has no place for: the WKT has them
        terms = CRS.from_wkt(wkt).to_cf()
    return {**terms, "crs_wkt": wkt, "spatial_ref": wkt, **place}


def _axis_attributes(grid: RasterGrid) -> dict[str, dict[str, str]]:
    """CF attributes of the coordinates."""
    if grid.crs is None:
        return {"y": {}, "x": {}}
    from pyproj import CRS

    found = {one.get("axis", "").lower(): one for one in CRS.from_wkt(str(grid.crs.to_wkt())).cs_to_cf()}
    return {axis: dict(found.get(axis, {})) for axis in ("y", "x")}


def _of_volume(grid: VoxelGrid) -> tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]:
    affine = grid.affine
    steps = affine[:3, :3]
    used = np.abs(steps) > np.abs(steps).max(axis=0) * ALONG
    if (used.sum(axis=0) != 1).any() or (used.sum(axis=1) != 1).any():
        index = {name: np.arange(n) for name, n in zip("kji", grid.shape, strict=True)}
        return ("k", "j", "i"), index, {"affine": affine, "units": grid.unit}
    world = used.argmax(axis=0)
    dims = tuple("xyz"[axis] for axis in world)
    coords = {
        name: (name, affine[axis, 3] + np.arange(n) * steps[axis, k], {"units": grid.unit})
        for k, (name, axis, n) in enumerate(zip(dims, world, grid.shape, strict=True))
    }
    return dims, coords, {}
