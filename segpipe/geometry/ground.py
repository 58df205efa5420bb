"""The part of the Earth that a raster covers, or the reason why it is unknown.

CRS, transform and shape are checked against each other. If they contradict each other, the raster has no ground, and areas
are in pixels.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import rasterio.crs
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer
from pyproj.enums import TransformDirection
from pyproj.exceptions import CRSError, ProjError

from segpipe.geometry.smooth import on_grid

EARTH_RADIUS = 6371e3
EARTH_AREA = 5.101e14
CELL_METRES = 1280.0
"""Longest side of a cell. Within it the scale of Web Mercator changes by 0.06 % at 60 degrees of latitude."""
CELL_PIXELS = 256
STEP_METRES = 500.0
"""Half the distance over which the projection is differentiated: long compared with the 1 mm to which PROJ inverts, short
compared with the Earth's radius (an error of 1e-9)."""

MOST_LONGITUDE = 540.0
"""In degrees: grids from 0 to 360 and grids across the date line are valid."""
LOOKED_AT = 16
"""Points along each axis of a grid at which its location is checked."""
SMALL_METRES = 200e3
"""Longest side in m of a grid for which only the corners and the middle are checked."""
SMALL_RADIANS = math.radians(5)
ALMOST_DEGREES = 1e-3
"""Pixel size in m below which coordinates that could be degrees are read as degrees: 1e-3 degrees are 100 m."""

Float = NDArray[np.float64]


@dataclass(frozen=True)
class AreaOfUse:
    """The area of use of a CRS, in degrees."""

    west: float
    south: float
    east: float
    north: float

    def is_outside(self, lon: float, lat: float, margin: float = 0.0) -> bool:
        """Whether a point is outside by more than a share ``margin`` of width and height."""
        wide, tall = (self.east - self.west) % 360 or 360.0, self.north - self.south
        beside = abs((lon - self.west - wide / 2 + 180) % 360 - 180) - wide / 2
        return beside > margin * wide or not -margin * tall <= lat - self.south <= (1 + margin) * tall

    def is_far(self, lon: float, lat: float) -> bool:
        """Whether a point is outside by more than the area's width or height; zones are often used beyond their borders."""
        return math.isfinite(lon + lat) and self.is_outside(lon, lat, 1.0)

    def __str__(self) -> str:
        return f"{self.west:g} to {self.east:g} east and {self.south:g} to {self.north:g} north"


@dataclass(frozen=True)
class Reference:
    """Everything that follows from a CRS alone; shared by many grids."""

    crs: CRS
    name: str

    @cached_property
    def is_plain(self) -> bool:
        """Whether coordinates are longitudes and latitudes, and not those of a rotated pole."""
        return self.crs.is_geographic and not self.crs.is_derived

    @cached_property
    def geodetic(self) -> CRS:
        base = self.crs.source_crs if self.crs.is_geographic else self.crs.geodetic_crs
        assert base is not None
        return base

    @cached_property
    def to_lonlat(self) -> Transformer:
        return Transformer.from_crs(self.crs, self.geodetic, always_xy=True)

    @cached_property
    def ellipsoid(self) -> tuple[float, float]:
        """Semi-major axis in m and squared first eccentricity."""
        geod = self.crs.get_geod()
        assert geod is not None
        return geod.a, geod.es

    @cached_property
    def radians(self) -> float:
        """Radians per unit of a geographic CRS."""
        return float(self.crs.axis_info[0].unit_conversion_factor)

    @cached_property
    def geodetic_radians(self) -> float:
        return float(self.geodetic.axis_info[0].unit_conversion_factor)

    @cached_property
    def greenwich(self) -> float:
        """Longitude of the prime meridian in radians."""
        zero = self.crs.prime_meridian
        return 0.0 if zero is None else float(zero.longitude) * float(zero.unit_conversion_factor)

    @cached_property
    def unit(self) -> str:
        return str(self.crs.axis_info[0].unit_name)

    @cached_property
    def metres(self) -> float:
        """Metres per unit of the CRS; for a geographic CRS, along a meridian."""
        if self.crs.is_geographic:
            return self.radians * EARTH_RADIUS
        return float(self.crs.axis_info[0].unit_conversion_factor)

    @cached_property
    def turn(self) -> float:
        """Length of a full turn along x on a cylindrical map, equal at all latitudes; 0 on other maps."""
        lon, lat = np.meshgrid([0.0, 10.0, 20.0, 30.0], [0.0, 45.0])
        degrees = self.geodetic_radians / math.radians(1)
        x, y = self.to_lonlat.transform(lon / degrees, lat / degrees, direction=TransformDirection.INVERSE)
        with np.errstate(invalid="ignore"):
            # the median, since one step may cross the edge of the map; np.median loads numpy.ma, which takes 7 ms
            steps = np.sort(np.diff(x), axis=1)[:, 1]
        flat = np.isfinite(y).all() and np.ptp(y, axis=1).max() < 1e-6 * np.ptp(y)
        return float(abs(36 * steps[0])) if flat and abs(steps[0] - steps[1]) < 1e-6 * abs(steps[0]) else 0.0

    @cached_property
    def area_of_use(self) -> AreaOfUse | None:
        """The area of use from PROJ's database; None if the CRS has no code, or if the database lacks its authority."""
        code = self.crs.to_json_dict().get("id")
        if code is None:
            return None
        try:
            use = CRS.from_authority(code["authority"], code["code"]).area_of_use
        except CRSError:
            return None
        return None if use is None else AreaOfUse(*use.bounds)


@dataclass(frozen=True)
class Ground:
    """The part of the Earth that a grid lies on."""

    transform: Affine
    reference: Reference

    @property
    def rows_are_parallels(self) -> bool:
        """Whether this is a geographic grid with north up: then all pixels of a row have one area, in closed form."""
        return self.reference.is_plain and self.transform.b == 0 == self.transform.d

    def zone_areas(self, edges: NDArray[np.int64]) -> Float:
        """Area in m² between consecutive edges of rows, one pixel wide: the zone between their parallels, cut to that width.

        q(phi) = b²/2 (s / (1 - e²s²) + ln((1 + es) / (1 - es)) / 2e) with s = sin(phi) (Snyder 1987, eq. 3-12).
        """
        parallels = (self.transform.f + self.transform.e * edges) * self.reference.radians
        zones = self._zone(np.clip(parallels, -math.pi / 2, math.pi / 2))
        return np.asarray(abs(self.transform.a) * self.reference.radians * np.abs(np.diff(zones)))

    def _zone(self, phi: Float) -> Float:
        a, es = self.reference.ellipsoid
        e, s = math.sqrt(es), np.sin(phi)
        if e == 0:
            return np.asarray(a**2 * s)
        return np.asarray(a**2 * (1 - es) / 2 * (s / (1 - es * s**2) + np.arctanh(e * s) / e))

    def pixel_areas(self, rows: Float, cols: Float) -> Float:
        """Area in m² of a pixel around each point, given in pixels: the parallelogram that its two sides span in space.

        The sides are central differences of points on the ellipsoid in Cartesian coordinates, so that poles and the date
        line need no special case. 0 where the grid leaves the Earth, as beyond the limb of a geostationary image.
        """
        step = STEP_METRES / max(self.nominal)
        east = self.points(rows, cols + step) - self.points(rows, cols - step)
        south = self.points(rows + step, cols) - self.points(rows - step, cols)
        with np.errstate(invalid="ignore"):
            area = np.linalg.norm(np.cross(east, south), axis=-1) / (2 * step) ** 2
        return np.where(np.isfinite(area), area, 0.0)

    def points(self, rows: Float, cols: Float) -> Float:
        """Cartesian coordinates in m of points of the grid on the ellipsoid, shape ``(..., 3)``."""
        a, es = self.reference.ellipsoid
        lam, phi = self.lonlat(rows, cols)
        with np.errstate(invalid="ignore"):
            normal = a / np.sqrt(1 - es * np.sin(phi) ** 2)
            x, y = normal * np.cos(phi) * np.cos(lam), normal * np.cos(phi) * np.sin(lam)
            return np.stack([x, y, normal * (1 - es) * np.sin(phi)], axis=-1)

    def lonlat(self, rows: Float, cols: Float) -> tuple[Float, Float]:
        """Longitude and latitude in radians of points given in pixels; infinite off the Earth."""
        x, y = self.coordinates(rows, cols)
        if self.reference.is_plain:
            return np.asarray(x * self.reference.radians), np.asarray(y * self.reference.radians)
        lon, lat = self.reference.to_lonlat.transform(x, y)
        off = ~self._is_on_map(x, y, lon, lat)
        unit = self.reference.geodetic_radians
        return np.where(off, np.inf, lon * unit), np.where(off, np.inf, lat * unit)

    def coordinates(self, rows: Float, cols: Float) -> tuple[Float, Float]:
        """Coordinates in the CRS, easting or longitude first, of points given in pixels."""
        t = self.transform
        return t.a * cols + t.b * rows + t.c, t.d * cols + t.e * rows + t.f

    def _is_on_map(self, x: Float, y: Float, lon: Float, lat: Float) -> NDArray[np.bool_]:
        """Whether the projection is reversible: PROJ also inverts points beside the map, to other locations on it.

        A cylindrical map may extend by a full turn.
        """
        back_x, back_y = self.reference.to_lonlat.transform(lon, lat, direction=TransformDirection.INVERSE)
        turn = self.reference.turn
        with np.errstate(invalid="ignore"):
            turns = np.clip(np.rint((x - back_x) / turn), -1, 1) if turn else 0.0
            away = np.hypot(x - back_x - turns * turn, y - back_y)
            return np.asarray(away * self.reference.metres < STEP_METRES)

    @cached_property
    def nominal(self) -> tuple[float, float]:
        """Height and width of a pixel in metres by the CRS's unit, ignoring distortion."""
        t = self.transform
        return math.hypot(t.b, t.e) * self.reference.metres, math.hypot(t.a, t.d) * self.reference.metres

    @property
    def pixel_extent(self) -> tuple[float, float]:
        """Height and width of a pixel along the axes of the CRS, in its unit."""
        t = self.transform
        return abs(t.d) + abs(t.e), abs(t.a) + abs(t.b)

    unit = "ha"
    per_unit = 1e4

    @property
    def cell(self) -> tuple[int, int]:
        """Rows and columns of pixels that share one pixel area."""
        if self.rows_are_parallels:
            return 1, 2**31
        side = 2 ** max(0, math.floor(math.log2(CELL_METRES / max(self.nominal))))
        return (min(side, CELL_PIXELS),) * 2

    def sizes(self, edges: Sequence[NDArray[np.int64]]) -> Float:
        """Area in m² of a pixel of each cell; for a cell of several rows of a geographic grid, their mean."""
        if self.rows_are_parallels:
            return np.asarray(self.zone_areas(edges[0]) / np.diff(edges[0]))[:, None]
        rows, cols = (np.asarray((axis[:-1] + axis[1:]) / 2, np.float64) for axis in edges)
        return on_grid(self.pixel_areas, rows, cols)

    def middle(self, shape: tuple[int, ...]) -> tuple[float, float]:
        """Longitude from Greenwich and latitude in degrees of the middle of a grid; infinite off the Earth."""
        lon, lat = self.lonlat(np.array([shape[0] / 2]), np.array([shape[1] / 2]))
        return math.degrees(lon[0] + self.reference.greenwich), math.degrees(lat[0])

    def pixel_size(self, shape: tuple[int, ...]) -> tuple[float, float]:
        """Height and width in m, on the ground, of the pixel in the middle of a grid."""
        row, col = (np.array([n / 2 + k for k in (-0.5, 0.5, 0.0)]) for n in shape)
        geod = Geod(a=self.reference.ellipsoid[0], es=self.reference.ellipsoid[1])
        lon, lat = (
            np.degrees(v) for v in self.lonlat(np.array([*row[:2], *row[[2, 2]]]), np.array([*col[[2, 2]], *col[:2]]))
        )
        _, _, metres = geod.inv(lon[[0, 2]], lat[[0, 2]], lon[[1, 3]], lat[[1, 3]])
        return float(metres[0]), float(metres[1])


@dataclass(frozen=True)
class Place:
    """The ground of a grid, if it has one, with notes for the record."""

    ground: Ground | None = None
    notes: tuple[str, ...] = ()
    reason: str = ""
    """Why the grid has no ground."""


class NowhereError(Exception):
    """Why a grid has no location on Earth."""


@lru_cache(maxsize=64)
def placed(crs: rasterio.crs.CRS, transform: Affine, shape: tuple[int, ...]) -> Place:
    """Check coordinates and shape against the CRS, and return the ground of the grid.

    Raises:
        NowhereError: CRS, transform and shape do not describe a location on the Earth.
    """
    ground = Ground(transform, _reference(crs))
    check = _check_degrees if ground.reference.is_plain else _check_map
    try:
        return Place(ground, tuple(check(ground, shape)))
    except ProjError as error:
        name = ground.reference.name
        raise NowhereError(f"PROJ cannot convert its CRS, {name}, to longitudes and latitudes: {error}") from None


@lru_cache(maxsize=64)
def _reference(crs: rasterio.crs.CRS) -> Reference:
    """The reference shared by all grids of a CRS: PROJ takes ten times as long to make its objects as to use them."""
    return Reference(horizontal(crs), crs_name(crs))


def crs_name(crs: rasterio.crs.CRS | CRS) -> str:
    """An authority's code, else a name."""
    try:
        known = CRS.from_user_input(crs)
    except CRSError:
        return str(crs.to_wkt())
    code = known.to_json_dict().get("id")
    return f"{code['authority']}:{code['code']}" if code else str(known.name)


def horizontal(crs: rasterio.crs.CRS | CRS) -> CRS:
    """The horizontal part of a CRS, without heights and datum shifts.

    Raises:
        NowhereError: there is none, or it is of another body.
    """
    found = _innermost(crs)
    if not (found.is_geographic or found.is_projected) or (geod := found.get_geod()) is None:
        raise NowhereError(
            f"its CRS, {crs_name(crs)}, is of the type {found.type_name}, which has no longitudes and latitudes"
        )
    if not _is_earth(geod):
        raise NowhereError(
            f"its CRS, {crs_name(crs)}, is of a body with a radius of {geod.a / 1e3:,.0f} km, not of the Earth"
        )
    return found.to_2d()


def _innermost(crs: rasterio.crs.CRS | CRS) -> CRS:
    try:
        found = CRS.from_user_input(crs)
    except CRSError:
        raise NowhereError(f"PROJ does not know its CRS, {crs.to_wkt()[:60]}") from None
    while found.is_compound or found.is_bound:
        inner = found.sub_crs_list[0] if found.is_compound else found.source_crs
        assert inner is not None
        found = inner
    return found


def _is_earth(geod: Geod) -> bool:
    return abs(geod.a / EARTH_RADIUS - 1) <= 0.01


def size_off_earth(crs: rasterio.crs.CRS, transform: Affine, shape: tuple[int, ...]) -> tuple[float, ...]:
    """Height and width in m of the pixel in the middle of a grid on another body, or in an engineering CRS.

    Raises:
        NowhereError: the CRS is of the Earth and the grid does not fit it, or the CRS has no unit of length.
    """
    found = _innermost(crs)
    if found.is_engineering:
        return _size_on_plane(found, transform)
    if not (found.is_geographic or found.is_projected) or (geod := found.get_geod()) is None or _is_earth(geod):
        raise NowhereError(f"its CRS, {crs_name(crs)}, gives pixels no size")
    try:
        return Ground(transform, Reference(found.to_2d(), crs_name(crs))).pixel_size(shape)
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
