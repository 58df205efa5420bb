"""The part of the Earth that a raster covers: longitudes and latitudes, and areas of its pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import Geod
from pyproj.enums import TransformDirection

from segpipe.array_types import Float
from segpipe.geometry.grid import M2_PER_HA
from segpipe.geometry.reference import CrsFacts
from segpipe.geometry.smooth import on_grid

CELL_METRES = 1280.0
"""Longest side of a cell. Within it the scale of Web Mercator changes by 0.06 % at 60 degrees of latitude."""
CELL_PIXELS = 256
STEP_METRES = 500.0
"""Half the distance over which the projection is differentiated: long compared with the 1 mm to which PROJ inverts, short
compared with the Earth's radius (an error of 1e-9)."""


@dataclass(frozen=True)
class Ground:
    """The part of the Earth that a grid lies on."""

    transform: Affine
    reference: CrsFacts

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
    per_unit = M2_PER_HA

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
