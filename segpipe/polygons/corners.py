"""Corners of regions: the points of the pixel lattice at which the border of a region turns.

The first and second corner of a region in a row of the lattice are the ends of an edge of its border, so are the third and
fourth, and so it is in columns. So corners suffice to rebuild all borders of a region (``rings``), in whatever order they
were found.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Integers

ROW, COL, UP = 1, 2, 4
"""Bits of a corner. ``ROW``, ``COL``: of two corners of one region at one point, this is the second in its row, or column.
``UP``: the region lies above the edge that goes right from here, if one does."""


@dataclass(frozen=True, eq=False)
class Corners:
    """Corners, one element each."""

    region: NDArray[np.int32]
    """Region of 4-connected pixels."""
    point: Integers
    """Index of the point in the lattice of ``(rows + 1, cols + 1)`` points, row by row."""
    kind: NDArray[np.uint8]

    @classmethod
    def joined(cls, parts: "list[Corners]") -> "Corners":
        """The corners of several strips, in order."""
        return cls(
            np.concatenate([np.zeros(0, np.int32), *(part.region for part in parts)]),
            np.concatenate([np.zeros(0, np.int64), *(part.point for part in parts)]),
            np.concatenate([np.zeros(0, np.uint8), *(part.kind for part in parts)]),
        )

    def __len__(self) -> int:
        return len(self.point)

    def __getitem__(self, which: Any) -> "Corners":
        return Corners(self.region[which], self.point[which], self.kind[which])


@dataclass(frozen=True)
class Nodes:
    """Points on straight borders that become vertices, too.

    Where three regions meet, so that neighbours have the same vertices, and at every ``step``-th row and column, so that
    edges follow the curve that they are in another CRS.
    """

    step: int | None = None


def corners_of(values: NDArray[Any], regions: NDArray[np.int32], top: int, nodes: Nodes | None = None) -> Corners:
    """The corners at the points between the rows of an array.

    Args:
        values: class of each pixel from 1, 0 for none, with a column of 0 on either side: shape ``(rows, cols + 2)``.
        regions: region of each pixel, of the same shape; without meaning where ``values`` is 0.
        top: row of the lattice between the first two rows of ``values``.
        nodes: points on straight borders that are wanted; None: corners alone.
    """
    width = values.shape[1] - 1
    quads = _Quads.of(values)
    found = [*_turns(quads), *([] if nodes is None else _straight(quads, nodes, top))]
    flat, parts = np.ascontiguousarray(regions).ravel(), list[Corners]()
    for where, (down, right), kinds in found:
        at = np.flatnonzero(where)
        region = flat[at + at // width + down * (width + 1) + right]
        parts += [Corners(region, at + top * width, np.full(len(at), kind, np.uint8)) for kind in kinds]
    return Corners.joined(parts)


Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Quads:
    """The four pixels around each point: which of them have a class, and which are equal."""

    some: tuple[Flags, Flags, Flags, Flags]
    """Whether the pixel has a class: upper left, upper right, lower left, lower right."""
    up: Flags
    """Whether the two upper pixels are equal."""
    down: Flags
    left: Flags
    right: Flags
    falling: Flags
    """Whether the upper left and the lower right pixel are equal."""
    rising: Flags

    @classmethod
    def of(cls, values: NDArray[Any]) -> "_Quads":
        pixels = values[:-1, :-1], values[:-1, 1:], values[1:, :-1], values[1:, 1:]
        ul, ur, ll, lr = pixels
        a, b, c, d = (pixel != 0 for pixel in pixels)
        return cls(
            some=(a, b, c, d), up=ul == ur, down=ll == lr, left=ul == ll, right=ur == lr, falling=ul == lr, rising=ur == ll
        )


Found = tuple[Flags, tuple[int, int], tuple[int, ...]]
"""Points, which pixel around them is of the region (rows down, columns right), and the kinds of the corners there."""


def _turns(quads: _Quads) -> Iterator[Found]:
    """Points at which a border turns.

    A pixel has a corner where both neighbours beside it differ, or both are equal and the one between them differs. Where a
    region has two pixels that touch at the point alone, each gives a corner. The bits then pair the edges around each of the
    two other pixels, so that a hole that touches its outer border there is a ring of its own, and the polygon is valid.
    """
    q = quads
    ul, ur, ll, lr = q.some
    yield ul & ~q.up & ~q.left | ul & q.up & q.left & ~q.falling, (0, 0), (COL | UP,)
    yield ur & ~q.up & ~q.right | ur & q.up & q.right & ~q.rising, (0, 1), (UP,)
    yield ll & ~q.down & ~q.left, (1, 0), (ROW | COL | UP,)
    yield ll & q.down & q.left & ~q.rising, (1, 0), (ROW | COL,)
    yield lr & ~q.down & ~q.right | lr & q.down & q.right & ~q.falling, (1, 1), (ROW,)


def _straight(quads: _Quads, nodes: Nodes, top: int) -> Iterator[Found]:
    """Vertices on straight borders: two corners each, between which an edge has no length."""
    q = quads
    ul, ur, ll, _ = q.some
    level, upright = ~q.left & ~q.right, ~q.up & ~q.down
    rows, cols = q.up.shape
    row = _every((np.arange(rows) + top)[:, None], nodes)
    col = _every(np.arange(cols)[None], nodes)
    yield ul & q.up & level & (~q.down | col), (0, 0), (UP, ROW | COL | UP)
    yield ll & q.down & level & (~q.up | col), (1, 0), (0, ROW | COL)
    yield ul & q.left & upright & (~q.right | row), (0, 0), (COL | UP, ROW | UP)
    yield ur & q.right & upright & (~q.left | row), (0, 1), (UP, ROW | COL | UP)


def _every(index: NDArray[np.intp], nodes: Nodes) -> Flags:
    if nodes.step is None:
        return np.zeros_like(index, np.bool_)
    return np.asarray(index % nodes.step == 0)
