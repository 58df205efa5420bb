"""The grid of a raster: CRS, affine transform, control points, and the part of the Earth that it covers."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.io import DatasetReader
from rasterio.rpc import RPC

from segpipe.array_types import Float
from segpipe.errors import one_line
from segpipe.geometry.grid import Grid
from segpipe.geometry.ground import Ground
from segpipe.geometry.location import Location, placed, size_off_earth
from segpipe.geometry.reference import NowhereError, crs_name

NO_PLACE = "the file has no georeferencing"
BY_ARRAYS = "the file is placed by geolocation arrays, which the mask does not keep: warp it first with gdalwarp -geoloc"
"""Why a swath has no place; GDAL's domain GEOLOCATION names a raster of longitudes or eastings as X_DATASET."""


@dataclass(frozen=True)
class RasterGrid:
    """CRS and affine transform of a raster, neither for a plain picture; the mask has the same grid as its input."""

    shape: tuple[int, ...]
    """Pixels per spatial axis: ``(rows, cols)``."""
    crs: CRS | None = None
    transform: Affine | None = None
    """From (column, row) to coordinates in the CRS, finite and invertible; None if there is none."""
    defect: str | None = None
    """Why the file's transform cannot be used."""
    gcps: tuple[GroundControlPoint, ...] = ()
    gcps_crs: CRS | None = None
    rpcs: RPC | None = None
    area_or_point: str | None = None

    @property
    def georeferenced(self) -> bool:
        """Whether the file says anything about where its pixels lie."""
        return bool(self.crs or self.transform or self.gcps or self.rpcs)

    @property
    def measure(self) -> Ground | None:
        """The ground; None if CRS or transform are missing, contradict each other, or are not of the Earth."""
        return location_of(self).ground

    unit = "m"

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Height and width in m of the pixel in the middle, on the Earth, on another body, or in an engineering CRS."""
        if self.measure is not None:
            size: tuple[float, ...] = self.measure.pixel_size(self.shape)
        else:
            try:
                size = size_off_earth(*_stated(self), self.shape)
            except NowhereError:
                return None
        return size if size and all(math.isfinite(n) and n > 0 for n in size) else None

    @property
    def spacing_unknown(self) -> str:
        if self.spacing is not None:
            return ""
        return location_of(self).reason or "the middle of the grid lies off the Earth"

    def world(self, index: Float) -> Float | None:
        """Easting or longitude, then northing or latitude, in the CRS."""
        if self.transform is None:
            return None
        rows, cols = np.moveaxis(np.asarray(index, np.float64) + 0.5, -1, 0)
        return np.stack(self.transform * (cols, rows), axis=-1)

    def __str__(self) -> str:
        if self.crs:
            code = self.crs.to_epsg()
            return f"EPSG:{code}" if code else str(self.crs.to_wkt())
        return "ground control points" if self.gcps else "no CRS"

    def as_json(self) -> dict[str, Any]:
        placed = {} if self.transform is None or self.gcps else {"transform": list(self.transform[:6])}
        return {"crs": str(self), **placed}


def stated_grid(shape: tuple[int, ...], stated: dict[str, Any]) -> RasterGrid | None:
    """The grid that ``RasterGrid.as_json`` wrote; None if it says too little, as in records of earlier versions."""
    try:
        crs, transform = CRS.from_user_input(stated["crs"]), Affine(*stated["transform"])
    except (KeyError, TypeError, ValueError, CRSError):
        return None
    found, defect = usable(transform)
    return None if defect else RasterGrid(shape, crs, found)


def location_of(grid: RasterGrid) -> Location:
    """The ground of a grid, or a note that says why the grid has none."""
    try:
        return placed(*_stated(grid), grid.shape)
    except NowhereError as reason:
        return Location(reason=str(reason), notes=(f"areas are in pixels: {reason}",))


class NoGroundError(Exception):
    """A grid has no position on the Earth; the text says why."""


def ground_of(grid: Grid) -> Ground:
    """Where the pixels of a raster grid lie on the ground.

    Raises:
        NoGroundError: the grid has none.
    """
    if not isinstance(grid, RasterGrid):
        raise NoGroundError("volumes lie nowhere on the Earth")
    place = location_of(grid)
    if place.ground is None:
        raise NoGroundError(place.reason)
    return place.ground


def _stated(grid: RasterGrid) -> tuple[CRS, Affine]:
    """CRS and transform; an error if either is missing."""
    if grid.defect is not None:
        raise NowhereError(grid.defect)
    if grid.gcps or (grid.rpcs is not None and grid.transform is None):
        by = f"{len(grid.gcps)} control points" if grid.gcps else "RPCs"
        raise NowhereError(f"the file is placed by {by}, which the mask keeps, and not by a geotransform: use gdalwarp")
    if grid.crs is None:
        raise NowhereError(NO_PLACE if grid.transform is None else "the file has a geotransform and no CRS: give --crs")
    if grid.transform is None or _is_default(grid.transform):
        raise NowhereError(f"the file has a CRS, {crs_name(grid.crs)}, and no geotransform that places its pixels in it")
    return grid.crs, grid.transform


def _is_default(transform: Affine) -> bool:
    """Whether a transform is the identity; GDAL's warper also treats one with rows that count upwards as the identity."""
    return (*transform[:4], abs(transform.e), transform.f) == (1, 0, 0, 0, 1, 0)


def parse_crs(text: str) -> CRS:
    """Parse the CRS that a user names.

    Raises:
        ValueError: PROJ does not know the CRS.
    """
    try:
        return CRS.from_user_input(text)
    except CRSError as error:
        raise ValueError(f"must be a code such as EPSG:32633, or WKT, got {text[:80]}: {one_line(error)}") from None


def read_grid(dataset: DatasetReader, crs: str | None = None) -> RasterGrid:
    """The grid of a dataset; ``crs`` replaces its CRS if given."""
    gcps, gcps_crs = dataset.gcps
    transform, defect = (None, None) if gcps else usable(dataset.transform)
    if not (transform or gcps or dataset.rpcs) and "X_DATASET" in dataset.tags(ns="GEOLOCATION"):
        defect = defect or BY_ARRAYS
    grid = RasterGrid(
        shape=dataset.shape,
        crs=dataset.crs,
        transform=transform,
        defect=defect,
        gcps=tuple(gcps),
        gcps_crs=gcps_crs,
        rpcs=dataset.rpcs,
        area_or_point=dataset.tags().get("AREA_OR_POINT"),
    )
    return grid if crs is None else with_crs(grid, parse_crs(crs))


def usable(transform: Affine) -> tuple[Affine | None, str | None]:
    """A transform, or the reason why it is unusable; neither for the identity, which GDAL gives for a file without one."""
    listed = ", ".join(f"{v:g}" for v in transform.to_gdal())
    if not all(map(math.isfinite, transform[:6])):
        return None, f"the geotransform must be of finite numbers, got {listed}"
    if transform.determinant == 0:
        return None, f"the geotransform must give pixels a width and a height, got {listed}"
    return (None, None) if transform.is_identity else (transform, None)


def with_crs(grid: RasterGrid, crs: CRS) -> RasterGrid:
    """Replace the CRS of a grid; a grid with neither transform nor control points stays unchanged."""
    if grid.gcps:
        return replace(grid, gcps_crs=crs)
    return grid if grid.transform is None else replace(grid, crs=crs)


def crs_notes(dataset: DatasetReader, grid: RasterGrid, crs: str | None) -> list[str]:
    """Notes on ``--crs``: which CRS it replaces, or that it has no effect."""
    if crs is None:
        return []
    if not grid.gcps and grid.transform is None:
        return ["--crs has no effect: the file has neither a geotransform nor control points"]
    stated = dataset.gcps[1] if grid.gcps else dataset.crs
    if stated == parse_crs(crs):
        return []
    return [f"the CRS is {crs} by --crs; the file says {stated.to_string() if stated else 'none'}"]
