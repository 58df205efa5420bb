"""What follows from a CRS alone: its units, its ellipsoid, and where it may be used."""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import rasterio.crs
from pyproj import CRS, Geod, Transformer
from pyproj.enums import TransformDirection
from pyproj.exceptions import CRSError

EARTH_RADIUS = 6371e3


class NowhereError(Exception):
    """Why a grid has no location on Earth."""


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
class CrsFacts:
    """Everything that follows from a CRS alone; shared by many grids."""

    crs: CRS
    name: str

    @cached_property
    def is_plain(self) -> bool:
        """Whether coordinates are longitudes and latitudes, and not those of a rotated pole."""
        return self.crs.is_geographic and not self.crs.is_derived

    @cached_property
    def geodetic(self) -> CRS:
        """The geographic CRS that it is based on."""
        base = self.crs.source_crs if self.crs.is_geographic else self.crs.geodetic_crs
        assert base is not None
        return base

    @cached_property
    def to_lonlat(self) -> Transformer:
        """From its coordinates, x first, to longitude and latitude of its geodetic CRS."""
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
        """Radians per unit of the geodetic CRS."""
        return float(self.geodetic.axis_info[0].unit_conversion_factor)

    @cached_property
    def greenwich(self) -> float:
        """Longitude of the prime meridian in radians."""
        zero = self.crs.prime_meridian
        return 0.0 if zero is None else float(zero.longitude) * float(zero.unit_conversion_factor)

    @cached_property
    def unit(self) -> str:
        """Name of the unit of its coordinates."""
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


@lru_cache(maxsize=256)
def transformer(source: CRS, target: CRS) -> Transformer:
    """From x and y, or longitudes and latitudes, in a CRS to those in another one.

    It is kept for the next masks: PROJ takes up to 0.1 s to find one between two datums, such as from UTM to EPSG:3035.
    """
    return Transformer.from_crs(source, target, always_xy=True)


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
    found = innermost(crs)
    if not (found.is_geographic or found.is_projected) or (geod := found.get_geod()) is None:
        raise NowhereError(
            f"its CRS, {crs_name(crs)}, is of the type {found.type_name}, which has no longitudes and latitudes"
        )
    if not is_earth(geod):
        raise NowhereError(
            f"its CRS, {crs_name(crs)}, is of a body with a radius of {geod.a / 1e3:,.0f} km, not of the Earth"
        )
    return found.to_2d()


def innermost(crs: rasterio.crs.CRS | CRS) -> CRS:
    """The horizontal CRS inside compound and bound ones; raises ``NowhereError`` if PROJ does not know it."""
    try:
        found = CRS.from_user_input(crs)
    except CRSError:
        raise NowhereError(f"PROJ does not know its CRS, {crs.to_wkt()[:60]}") from None
    while found.is_compound or found.is_bound:
        inner = found.sub_crs_list[0] if found.is_compound else found.source_crs
        assert inner is not None
        found = inner
    return found


def is_earth(geod: Geod) -> bool:
    """Whether an ellipsoid has about the size of the Earth."""
    return abs(geod.a / EARTH_RADIUS - 1) <= 0.01
