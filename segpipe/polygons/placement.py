"""Where the points of a pixel lattice lie: in the CRS of the mask, in another one, or in pixels."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from pyproj import CRS, Transformer

from segpipe.array_types import Float, Integers
from segpipe.errors import InputError
from segpipe.geometry.ground import Ground
from segpipe.geometry.reference import CrsFacts, transformer
from segpipe.polygons.corners import Nodes
from segpipe.vectors.placing import longest_edge
from segpipe.vectors.surfaces import Shapes

TURN = 360.0
NARROW = 1e6
"""Metres: polygons that are no wider on a map do not run across it."""
OTHER_CRS = "name another CRS with --crs, or write .gpkg in that of the masks, as GeoJSON has longitudes and latitudes"
"""Mend for polygons that the target CRS cannot represent."""


@dataclass(frozen=True)
class Placement:
    """Moves points of the lattice of a mask; without ground x is the column and y the row, which counts downwards."""

    shape: tuple[int, ...]
    ground: Ground | None = None
    crs: CRS | None = None
    """Target; None: that of the mask."""

    @cached_property
    def _between(self) -> Transformer | None:
        own = None if self.ground is None else self.ground.reference.crs
        return None if own is None or self.crs is None or own.equals(self.crs) else transformer(own, self.crs)

    @cached_property
    def nodes(self) -> Nodes | None:
        """Vertices on straight borders for a change of CRS: with them, edges leave their curve by 0.01 pixels at most."""
        if self._between is None or self.ground is None:
            return None
        return Nodes(max(1, int(longest_edge(self.ground) / max(self.ground.nominal))))

    @property
    def turns_left(self) -> bool:
        """Whether rings that turn left on a map with north up turn left here: not on a mirrored grid."""
        if self.ground is None:
            return False
        return bool(self.ground.transform.determinant < 0)

    def points(self, row: Float | Integers, col: Float | Integers) -> Float:
        """Coordinates ``(points, 2)``, x or longitude first, of points of the lattice.

        Raises:
            InputError: a point has no place in the target.
        """
        if self.ground is None:
            return np.stack([col, row], axis=1).astype(np.float64)
        x, y = self.ground.coordinates(np.asarray(row, np.float64), np.asarray(col, np.float64))
        if self._between is None:
            return np.stack([x, y], axis=1)
        return self._moved(x, y)

    def _moved(self, x: Float, y: Float) -> Float:
        assert self._between is not None
        x, y = self._between.transform(x, y)
        if not np.isfinite(x).all() or not np.isfinite(y).all():
            name = "" if self.crs is None else self.crs.name
            raise InputError(f"all polygons must have a place in {name}, and some have none: {OTHER_CRS}")
        if self.crs is not None and self.crs.is_geographic:  # across the antimeridian longitudes go on
            x = x - TURN * np.rint((x - self._middle) / TURN)
        return np.stack([x, y], axis=1)

    def are_torn(self, shapes: Shapes) -> bool:
        """Whether the target CRS tears polygons: an edge runs across its map, from border to border or around a pole.

        On the unit sphere, the midpoint of such an edge lies outside the ball whose diameter is the edge.
        """
        import shapely

        if self._between is None:
            return False
        sides = shapely.bounds(shapes) * self._target.metres
        wide = (sides[:, 2:] - sides[:, :2]).max(axis=1) > NARROW
        if not wide.any():
            return False
        _, points, (rings, *_) = shapely.to_ragged_array(shapes[wide])
        one, other = points[:-1], points[1:]
        a, b, c = (self._directions(xy) for xy in (one, other, (one + other) / 2))
        with np.errstate(invalid="ignore"):  # infinite off the map
            whole = np.linalg.norm(2 * c - a - b, axis=1) <= np.linalg.norm(b - a, axis=1)
        whole[rings[1:-1] - 1] = True  # from one ring to the next
        return not whole.all()

    @cached_property
    def _target(self) -> CrsFacts:
        assert self.crs is not None
        return CrsFacts(self.crs, self.crs.name)

    def _directions(self, xy: Float) -> Float:
        """Unit vectors, shape ``(points, 3)``, of points in the target."""
        target = self._target
        if target.is_plain:
            lam, phi = xy.T * target.radians
        else:
            lam, phi = np.stack(target.to_lonlat.transform(*xy.T)) * target.geodetic_radians
        with np.errstate(invalid="ignore"):
            return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=1)

    @cached_property
    def _middle(self) -> float:
        """Longitude of the middle of the mask, in the target."""
        assert self._between is not None
        assert self.ground is not None
        x, y = self.ground.coordinates(np.array(self.shape[0] / 2), np.array(self.shape[1] / 2))
        found = float(self._between.transform(x, y)[0])
        return found if math.isfinite(found) else 0.0

    @cached_property
    def pixel(self) -> tuple[float, float]:
        """Height and width of the pixel in the middle: in m, or 1 without ground."""
        return (1.0, 1.0) if self.ground is None else self.ground.pixel_size(self.shape)
