"""Where a grid lies on the Earth, or the reason why that is unknown.

CRS, transform and shape are checked against each other. If they contradict each other, the raster has no ground, and areas
are in pixels.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import rasterio.crs
from affine import Affine
from pyproj import CRS
from pyproj.exceptions import ProjError

from segpipe.array_types import Float
from segpipe.geometry.ground import Ground
from segpipe.geometry.reference import CrsFacts, NowhereError, crs_name, horizontal, innermost, is_earth

EARTH_AREA = 5.101e14
MOST_LONGITUDE = 540.0
"""In degrees: grids from 0 to 360 and grids across the date line are valid."""
LOOKED_AT = 16
"""Points along each axis of a grid at which its location is checked."""
SMALL_METRES = 200e3
"""Longest side in m of a grid for which only the corners and the middle are checked."""
SMALL_RADIANS = math.radians(5)
ALMOST_DEGREES = 1e-3
"""Pixel size in m below which coordinates that could be degrees are read as degrees: 1e-3 degrees are 100 m."""


@dataclass(frozen=True)
class Location:
    """The ground of a grid, if it has one, with notes for the record."""

    ground: Ground | None = None
    notes: tuple[str, ...] = ()
    reason: str = ""
    """Why the grid has no ground."""


@lru_cache(maxsize=64)
def placed(crs: rasterio.crs.CRS, transform: Affine, shape: tuple[int, ...]) -> Location:
    """Check coordinates and shape against the CRS, and return the ground of the grid.

    Raises:
        NowhereError: CRS, transform and shape do not describe a location on the Earth.
    """
    ground = Ground(transform, _reference(crs))
    check = _check_degrees if ground.reference.is_plain else _check_map
    try:
        return Location(ground, tuple(check(ground, shape)))
    except ProjError as error:
        name = ground.reference.name
        raise NowhereError(f"PROJ cannot convert its CRS, {name}, to longitudes and latitudes: {error}") from None


@lru_cache(maxsize=64)
def _reference(crs: rasterio.crs.CRS) -> CrsFacts:
    """The reference shared by all grids of a CRS: PROJ takes ten times as long to make its objects as to use them."""
    return CrsFacts(horizontal(crs), crs_name(crs))


def size_off_earth(crs: rasterio.crs.CRS, transform: Affine, shape: tuple[int, ...]) -> tuple[float, ...]:
    """Height and width in m of the pixel in the middle of a grid on another body, or in an engineering CRS.

    Raises:
        NowhereError: the CRS is of the Earth and the grid does not fit it, or the CRS has no unit of length.
    """
    found = innermost(crs)
    if found.is_engineering:
        return _size_on_plane(found, transform)
    if not (found.is_geographic or found.is_projected) or (geod := found.get_geod()) is None or is_earth(geod):
        raise NowhereError(f"its CRS, {crs_name(crs)}, gives pixels no size")
    try:
        return Ground(transform, CrsFacts(found.to_2d(), crs_name(crs))).pixel_size(shape)
    except ProjError as error:
        raise NowhereError(f"PROJ cannot convert its CRS, {crs_name(crs)}, to longitudes and latitudes: {error}") from None


def _size_on_plane(crs: CRS, transform: Affine) -> tuple[float, ...]:
    """Pixel size in m in an engineering CRS, such as that of a building site, whose axes have a unit of length."""
    x, y = (_metres(axis["unit"]) for axis in crs.to_json_dict()["coordinate_system"]["axis"][:2])
    t = transform
    return math.hypot(t.b * x, t.e * y), math.hypot(t.a * x, t.d * y)


def _metres(unit: str | dict[str, Any]) -> float:
    """Metres per unit of an axis, from PROJ's JSON; NaN if the unit is unknown, or not a unit of length."""
    if isinstance(unit, str):
        return 1.0 if unit == "metre" else math.nan
    known = unit["type"] == "LinearUnit" and unit["name"] != "unknown"
    return float(unit["conversion_factor"]) if known else math.nan


def _check_degrees(ground: Ground, shape: tuple[int, ...]) -> Iterator[str]:
    """Check the range of coordinates; grids of points may exceed a pole by half a pixel, and a turn by one pixel."""
    x, y = ground.coordinates(*_corners(shape))
    degree = math.radians(1) / ground.reference.radians
    tall, wide = ground.pixel_extent
    turn = 360 * degree
    if (
        np.abs(y).max() > 90.001 * degree + tall / 2
        or np.abs(x).max() > MOST_LONGITUDE * degree
        or np.ptp(x) > turn + 1.001 * wide
    ):
        raise NowhereError(
            f"{_spanned(x, y)} are not longitudes and latitudes, as its CRS, {ground.reference.name}, requires: "
            "give the right --crs"
        )
    if np.ptp(x) > turn + wide / 2:
        yield "the grid is wider than a turn around the Earth: areas count both its first and its last column, one place"


def _check_map(ground: Ground, shape: tuple[int, ...]) -> Iterator[str]:
    """Check that points project back to longitudes and latitudes, and cover no more than the Earth."""
    if not _is_small(ground, shape):
        yield from _check_areas(ground, shape)
    name, unit = ground.reference.name, ground.reference.unit
    if _could_be_degrees(ground, shape):
        spanned = _spanned(*ground.coordinates(*_corners(shape)))
        raise NowhereError(f"{spanned} look like degrees, and its CRS, {name}, counts in {unit}: give the right --crs")
    if (use := ground.reference.area_of_use) is not None and use.is_far(*ground.middle(shape)):
        yield f"the grid lies far outside the area of use of its CRS, {name}, {use}: areas are right only if the CRS is"


def _is_small(ground: Ground, shape: tuple[int, ...]) -> bool:
    """Whether a grid is so small that checking its corners and its middle suffices."""
    if max(n * size for n, size in zip(shape, ground.nominal, strict=True)) > SMALL_METRES:
        return False
    rows, cols = _corners(shape)
    lon, lat = ground.lonlat(np.append(rows, shape[0] / 2), np.append(cols, shape[1] / 2))
    return bool(np.isfinite(lon + lat).all() and max(np.ptp(lon), np.ptp(lat)) < SMALL_RADIANS)


def _check_areas(ground: Ground, shape: tuple[int, ...]) -> Iterator[str]:
    """Check the areas of points all over a grid."""
    rows, cols = np.meshgrid(*((np.arange(LOOKED_AT) + 0.5) * n / LOOKED_AT for n in shape), indexing="ij")
    areas, name = ground.pixel_areas(rows, cols), ground.reference.name
    spanned = _spanned(*ground.coordinates(rows, cols))
    if not areas.any():
        raise NowhereError(f"{spanned} are nowhere on Earth in its CRS, {name}: give the right --crs")
    if (total := areas.mean() * math.prod(shape)) > 1.05 * EARTH_AREA:
        raise NowhereError(
            f"{spanned} in its CRS, {name}, are {total / EARTH_AREA:.3g} times the Earth: give the right --crs"
        )
    if (off := float((areas == 0).mean())) > 0:
        yield f"about {off:.0%} of the grid lies off the Earth, where pixels have no area"


def _corners(shape: tuple[int, ...]) -> tuple[Float, Float]:
    return np.array([0.0, 0, shape[0], shape[0]]), np.array([0.0, shape[1], 0, shape[1]])


def _spanned(x: Float, y: Float) -> str:
    return f"coordinates {x.min():.7g} to {x.max():.7g}, {y.min():.7g} to {y.max():.7g}"


def _could_be_degrees(ground: Ground, shape: tuple[int, ...]) -> bool:
    """Whether coordinates may be degrees: small, and outside the CRS's area of use, or with implausibly small pixels."""
    x, y = ground.coordinates(*_corners(shape))
    if np.abs(x).max() > 360 or np.abs(y).max() > 90:
        return False
    use = ground.reference.area_of_use
    return max(ground.nominal) < ALMOST_DEGREES or (use is not None and use.is_outside(*ground.middle(shape)))
