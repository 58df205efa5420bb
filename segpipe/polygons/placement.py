"""Where the points of a pixel lattice lie: in the CRS of the mask, in another one, or in pixels."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from segpipe.errors import InputError
from segpipe.geometry.ground import Ground
from segpipe.polygons.corners import Nodes
from segpipe.vectors.placing import longest_edge

TURN = 360.0

Integers = NDArray[np.int64]
Float = NDArray[np.float64]


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
        return (
            None
            if own is None or self.crs is None or own.equals(self.crs)
            else Transformer.from_crs(own, self.crs, always_xy=True)
        )

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
            raise InputError(f"all polygons must have a place in {name}, and some have none: name another CRS with --crs")
        if self.crs is not None and self.crs.is_geographic:  # across the antimeridian longitudes go on
            x = x - TURN * np.rint((x - self._middle) / TURN)
        return np.stack([x, y], axis=1)

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
