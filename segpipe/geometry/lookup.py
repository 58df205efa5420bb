"""The pixel of one grid in which the centre of another grid's pixel lies, whatever the CRSs of the two."""

import math
from dataclasses import dataclass

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer

from segpipe.array_types import Bools, Float
from segpipe.geometry.extents import MARGIN, SAMPLES
from segpipe.geometry.ground import Ground
from segpipe.geometry.reference import CrsFacts, transformer
from segpipe.geometry.windows import Window

ALMOST = 1 - 1e-9
"""Factor that keeps points half a turn from the middle of a grid, plus rounding, from counting as another turn."""
STEP = 64
"""Pixels between the points that are transformed exactly; between them, coordinates are interpolated."""
MOST_DEVIATION = 0.01
"""Largest error of that interpolation in pixels; where it is larger, every pixel is transformed."""

Indices = NDArray[np.intp]


def wrap_length(reference: CrsFacts) -> float:
    """Length of a full turn along x in a CRS; 0 if x does not wrap around."""
    if reference.is_plain:
        return 2 * math.pi / reference.radians
    return reference.turn if reference.crs.is_projected else 0.0


class PixelsOf:
    """Transforms coordinates in a CRS to pixels of a grid: x the column, y the number of rows above the bottom edge.

    ``turns``: also of points in the CRS of the grid itself that may lie a turn away.
    """

    def __init__(self, ground: Ground, shape: tuple[int, ...], between: Transformer | None, *, turns: bool = False) -> None:
        self._rows, self._between, self._turns = shape[0], between, turns or between is not None
        self._inverse: Affine = ~ground.transform
        self._turn = wrap_length(ground.reference)
        self._middle = float(ground.coordinates(np.array(shape[0] / 2), np.array(shape[1] / 2))[0])

    def __call__(self, xy: Float) -> Float:
        x, y = xy[:, 0], xy[:, 1]
        if self._between is not None:
            x, y = self._between.transform(x, y)
        if self._turn and self._turns:
            with np.errstate(invalid="ignore"):
                x = x - self._turn * np.rint((x - self._middle) / self._turn * ALMOST)
        t = self._inverse
        with np.errstate(invalid="ignore"):
            return np.column_stack([t.a * x + t.b * y + t.c, self._rows - (t.d * x + t.e * y + t.f)])


def to_pixels(ground: Ground, theirs: Ground, shape: tuple[int, ...]) -> PixelsOf:
    """The function from coordinates of a grid to pixels of another one of this shape."""
    own, other = ground.reference.crs, theirs.reference.crs
    between = None if own.equals(other) else transformer(own, other)
    return PixelsOf(theirs, shape, between, turns=True)


def common(theirs: Ground, their_shape: tuple[int, ...], ground: Ground, shape: tuple[int, ...]) -> Window | None:
    """The part of a grid in which another one may lie; None if it lies beside."""
    axes = [np.linspace(0, size, SAMPLES) for size in their_shape]
    x, y = theirs.coordinates(*np.meshgrid(*axes, indexing="ij"))
    place = to_pixels(theirs, ground, shape)(np.column_stack([x.ravel(), y.ravel()]))
    place = place[np.isfinite(place).all(axis=1)]
    if not len(place):
        return None
    # edges that are straight in both need no margin but that of rounding
    bend = 0.0 if theirs.reference.crs.equals(ground.reference.crs) else MARGIN
    margin = bend * np.ptp(place, axis=0) + 1
    (left, below), (right, above) = place.min(axis=0) - margin, place.max(axis=0) + margin
    start = max(0, int(shape[0] - above)), max(0, int(left))
    stop = min(shape[0], int(shape[0] - below) + 1), min(shape[1], int(right) + 1)
    return Window(start, stop) if start[0] < stop[0] and start[1] < stop[1] else None


@dataclass(frozen=True, eq=False)
class Hits:
    """The pixels of another grid in which the centres of a window's pixels lie."""

    window: Window
    """Part of the other grid that holds all of them."""
    row: Indices
    """Row in that part; with ``col`` it broadcasts to the shape of the requested window."""
    col: Indices
    covered: Bools
    """Which pixels have such a pixel; rows and columns of the others are those of any."""

    def of(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Values of the pixels, from an array of ``window``."""
        found: NDArray[np.generic] = values[self.row, self.col]
        return found


class Lookup:
    """Finds pixels of a grid in another one, by their centres."""

    def __init__(self, ground: Ground, theirs: Ground, their_shape: tuple[int, ...]) -> None:
        self._ground, self._shape = ground, their_shape
        self._to_pixels = to_pixels(ground, theirs, their_shape)
        upright = all(one.transform.b == 0 == one.transform.d for one in (ground, theirs))
        self._is_separable = upright and ground.reference.crs.equals(theirs.reference.crs)

    def hits(self, part: Window) -> Hits | None:
        """The pixels in which the centres of a part's pixels lie; None if none lies on the other grid."""
        rows, cols = (np.arange(a + 0.5, b, dtype=np.float64) for a, b in zip(part.start, part.stop, strict=True))
        col, row = self._separately(rows, cols) if self._is_separable else self._jointly(rows, cols)
        with np.errstate(invalid="ignore"):
            covered = (col >= 0) & (col < self._shape[1]) & (row >= 0) & (row < self._shape[0])
        if not covered.any():
            return None
        whole = np.broadcast_to(row, covered.shape)[covered], np.broadcast_to(col, covered.shape)[covered]
        (top, bottom), (left, right) = ((int(one.min()), int(one.max()) + 1) for one in whole)
        window = Window((top, left), (bottom, right))
        return Hits(window, _within(row, top, bottom), _within(col, left, right), covered)

    def _separately(self, rows: Float, cols: Float) -> tuple[Float, Float]:
        """Column ``(1, cols)`` and row ``(rows, 1)``, for upright grids of one CRS."""
        col = self._exactly(np.full(len(cols), rows[0]), cols)[0]
        row = self._exactly(rows, np.full(len(rows), cols[0]))[1]
        return col[None], row[:, None]

    def _jointly(self, rows: Float, cols: Float) -> tuple[Float, Float]:
        """Column and row, both ``(rows, cols)``: interpolated where the map is smooth enough."""
        nodes = [np.linspace(axis[0], axis[-1], max(2, -(-len(axis) // STEP) + 1)) for axis in (rows, cols)]
        known = self._places(*nodes)
        middles = [(axis[:-1] + axis[1:]) / 2 for axis in nodes]
        between = (known[:, 1:, 1:] + known[:, 1:, :-1] + known[:, :-1, 1:] + known[:, :-1, :-1]) / 4
        with np.errstate(invalid="ignore"):
            deviation = np.abs(self._places(*middles) - between)
        if not (deviation < MOST_DEVIATION).all():  # NaN is not
            found = self._places(rows, cols)
        else:
            found = _interpolated(_interpolated(known, nodes[0], rows, 1), nodes[1], cols, 2)
        return np.floor(found[0]), np.floor(found[1])

    def _places(self, rows: Float, cols: Float) -> Float:
        """Column and row of points, ``(2, rows, cols)``."""
        grid = np.meshgrid(rows, cols, indexing="ij")
        x, y = self._ground.coordinates(*grid)
        place = self._to_pixels(np.column_stack([x.ravel(), y.ravel()]))
        return np.stack([place[:, 0], self._shape[0] - place[:, 1]]).reshape(2, *grid[0].shape)

    def _exactly(self, rows: Float, cols: Float) -> tuple[Float, Float]:
        """Column and row of pairs, rounded down."""
        place = self._to_pixels(np.column_stack(self._ground.coordinates(rows, cols)))
        return np.floor(place[:, 0]), np.floor(self._shape[0] - place[:, 1])


def _interpolated(values: Float, nodes: Float, points: Float, axis: int) -> Float:
    """Linear interpolation along an axis from evenly spaced nodes."""
    if len(points) == 1:
        return np.take(values, [0], axis)
    position = (points - nodes[0]) / (nodes[1] - nodes[0])
    low = np.minimum(position.astype(np.intp), len(nodes) - 2)
    share = (position - low).reshape([-1 if k == axis else 1 for k in range(values.ndim)])
    return np.asarray(np.take(values, low, axis) * (1 - share) + np.take(values, low + 1, axis) * share)


def _within(index: Float, start: int, stop: int) -> Indices:
    """Index relative to ``start``; those beyond, and those that are not finite, are moved inside."""
    finite = np.where(np.isfinite(index), index, start)
    return np.asarray(np.clip(finite, start, stop - 1) - start).astype(np.intp)
