"""The part of each pixel that polygons cover, exact to rounding.

Each border adds its height within a row to all pixels to its right, and a part of it to its own pixel: what lies to its
right there. Left borders add and right ones subtract, so that a sum along the row is the coverage. Rasterizers of fonts
compute grey levels in this way ("exact area coverage": FreeType, LibArt).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Float, Integers
from segpipe.vectors.surfaces import Shapes

LEAST = 1e-9
"""Coverage below this is rounding."""


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges that lead from one row towards a later one; x is the column, y the row, both in pixels from 0."""

    owner: Integers
    """Index of each edge's polygon."""
    start: Float
    """Upper ends, shape ``(edges, 2)``, x before y."""
    stop: Float
    """Lower ends."""
    side: Float
    """1 where the polygon lies to the right, -1 where it lies to the left."""

    @classmethod
    def of(cls, shapes: Shapes, rows: int) -> "Edges":
        """The edges of polygons whose y is the number of rows above the bottom edge of a grid."""
        import shapely

        parts, shape = shapely.get_parts(shapes, return_index=True)
        rings, part = shapely.get_rings(parts, return_index=True)
        points, ring = shapely.get_coordinates(rings, return_index=True)
        points[:, 1] = rows - points[:, 1]
        outer = np.diff(part, prepend=-1) != 0
        joined = np.flatnonzero((np.diff(ring) == 0) & (np.diff(points[:, 1]) != 0))
        down = points[joined + 1, 1] > points[joined, 1]
        side = np.where(shapely.is_ccw(rings) == outer, 1.0, -1.0)[ring[joined]] * np.where(down, 1, -1)
        first, second = joined + ~down, joined + down
        return cls(shape[part[ring[joined]]], points[first], points[second], side)

    def __getitem__(self, which: NDArray[np.bool_]) -> "Edges":
        return Edges(self.owner[which], self.start[which], self.stop[which], self.side[which])


@dataclass(frozen=True, eq=False)
class Boxes:
    """A box of whole pixels for each polygon."""

    top: Integers
    left: Integers
    bottom: Integers
    right: Integers

    @cached_property
    def width(self) -> Integers:
        """Columns of each box, and one more for the borders to its right."""
        return self.right - self.left + 1

    @cached_property
    def size(self) -> Integers:
        """Pixels of each box, with the additional column."""
        return (self.bottom - self.top) * self.width

    @cached_property
    def first(self) -> Integers:
        """Position of each box's first pixel among those of all boxes."""
        return np.cumsum(self.size) - self.size

    def __getitem__(self, which: slice) -> "Boxes":
        return Boxes(self.top[which], self.left[which], self.bottom[which], self.right[which])


@dataclass(frozen=True, eq=False)
class _Spans:
    """Parts of edges within one row."""

    owner: Integers
    row: Integers
    height: Float
    """Rows that it spans, negative where the polygon lies to the left."""
    low: Float
    """Least column."""
    high: Float


def coverage(edges: Edges, boxes: Boxes) -> Float:
    """Part of each pixel of the boxes that their polygons cover, from 0 to 1, box after box, row after row.

    The additional column of each box has no meaning where its polygon extends beyond it.
    """
    where, slope, height = _pixels(_spans(edges, boxes), boxes)
    count = int(boxes.size.sum())
    found: Float = np.cumsum(np.bincount(where, height, count), dtype=np.float64)
    found -= np.bincount(where, height - slope, count)
    found *= found > LEAST
    return found


def _spans(edges: Edges, boxes: Boxes) -> _Spans:
    """Cut edges at the borders of rows; what lies above or below the box of its polygon is left out."""
    (x, y), (end, stop) = edges.start.T, edges.stop.T
    top = np.maximum(y, boxes.top[edges.owner])
    bottom = np.minimum(stop, boxes.bottom[edges.owner])
    first = np.floor(top).astype(np.int64)
    which, step = _repeated(np.maximum(0, np.ceil(bottom).astype(np.int64) - first))
    row = first[which] + step
    upper, lower = np.maximum(top[which], row), np.minimum(bottom[which], row + 1)
    slope = ((end - x) / (stop - y))[which]
    least, most = np.minimum(x, end)[which], np.maximum(x, end)[which]
    one, other = (np.clip(x[which] + (at - y[which]) * slope, least, most) for at in (upper, lower))
    height = (lower - upper) * edges.side[which]
    return _Spans(edges.owner[which], row, height, np.minimum(one, other), np.maximum(one, other))


def _pixels(spans: _Spans, boxes: Boxes) -> tuple[Integers, Float, Float]:
    """Cut spans at the borders of pixels: position, part of the pixel to the right, and height of each piece.

    Pieces to the left of a box count at its left edge, those to its right in its additional column.
    """
    left, wide = boxes.left[spans.owner], boxes.width[spans.owner] - 1
    low, high = spans.low - left, spans.high - left
    first = np.clip(np.floor(low).astype(np.int64), -1, wide)
    last = np.clip(np.ceil(high).astype(np.int64) - 1, first, wide)
    which, step = _repeated(last - first + 1)
    column = first[which] + step
    begin = np.where(step == 0, low[which], column)
    end = np.where(column == last[which], high[which], column + 1)
    width = (high - low)[which]
    share = np.divide(end - begin, width, out=np.ones(len(which)), where=width > 0)
    height = spans.height[which] * share
    right = np.where(column < 0, 1.0, column + 1 - (begin + end) / 2)
    start = boxes.first[spans.owner] + (spans.row - boxes.top[spans.owner]) * boxes.width[spans.owner]
    return start[which] + np.maximum(column, 0), height * right, height


def _repeated(counts: Integers) -> tuple[Integers, Integers]:
    """Each index as often as its count says, and the number of the repetition."""
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
