"""Pixels whose centre lies inside polygons, window by window: a pixel has the same answer in whatever window it is read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Integers
from segpipe.geometry.windows import Window

STRIP = 512
"""Rows whose crossings are in memory at once while pixels are counted."""


@dataclass(frozen=True, eq=False)
class Crossings:
    """Where edges cross the middles of some rows, sorted by row and column."""

    row: Integers
    col: Integers
    """First column, possibly outside the grid, whose centre does not lie left of the edge."""
    sign: Integers
    """1 where a polygon begins, -1 where it ends; the sum along a row is the number of polygons at a pixel."""


class Scanlines:
    """Edges of polygons in the pixels of a grid; polygons may overlap, and have holes.

    A centre on an edge counts to the right of it and below it, so that polygons that share an edge share no pixel.

    Args:
        edges: ``(count, 4)``: row and column where an edge begins, and where it ends, counted from the upper left corner.
            Each ring is closed; going along it, the inside lies to the left: exteriors descend at their left side.
        shape: rows and columns of the grid.
    """

    def __init__(self, edges: NDArray[np.float64], shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        down = edges[:, 0] < edges[:, 2]
        low = np.where(down[:, None], edges, edges[:, [2, 3, 0, 1]])  # one order of ends: shared edges cross alike
        first, stop = (_centre_from(rows, shape[0]) for rows in (low[:, 0], low[:, 2]))
        kept = np.flatnonzero(first < stop)
        order = kept[np.argsort(first[kept], kind="stable")]
        self._edges, self._first, self._stop = low[order], first[order], stop[order]
        self._sign = np.where(down, 1, -1)[order]
        self._held: tuple[tuple[int, int], Crossings] | None = None

    def covered(self, window: Window) -> NDArray[np.bool_]:
        """Mask of the pixels of a window whose centre lies inside a polygon."""
        (top, left), (bottom, right) = window.start, window.stop
        found = self._crossings(top, bottom)
        steps = np.zeros((bottom - top, right - left + 1), np.int32)
        np.add.at(steps, (found.row - top, np.clip(found.col, left, right) - left), found.sign)
        return np.asarray(np.cumsum(steps, axis=1, dtype=np.int32)[:, :-1] > 0)

    @property
    def count(self) -> int:
        """Number of pixels of the grid inside."""
        return sum(int((stop - start).sum()) for start, stop in self._spans())

    @property
    def bounds(self) -> Window | None:
        """The smallest window with all pixels inside; None if there are none."""
        boxes = [(rows.min(), start.min(), rows.max() + 1, stop.max()) for rows, start, stop in self._rows() if len(rows)]
        if not boxes:
            return None
        top, left, bottom, right = np.transpose(boxes)
        return Window((int(top.min()), int(left.min())), (int(bottom.max()), int(right.max())))

    def _spans(self) -> Iterator[tuple[Integers, Integers]]:
        yield from ((start, stop) for _, start, stop in self._rows())

    def _rows(self) -> Iterator[tuple[Integers, Integers, Integers]]:
        """Row, first and last column of each run of pixels inside, strip by strip."""
        if not len(self._first):
            return
        for top in range(int(self._first[0]), int(self._stop.max()), STRIP):
            found = self._between(top, min(top + STRIP, self.shape[0]))
            inside = np.cumsum(found.sign)[:-1] > 0  # the sum of each row is 0
            start, stop = (np.clip(cols, 0, self.shape[1])[inside] for cols in (found.col[:-1], found.col[1:]))
            there = start < stop
            yield found.row[:-1][inside][there], start[there], stop[there]

    def _crossings(self, top: int, bottom: int) -> Crossings:
        """As ``_between``; the last rows are kept, since windows of a row share them."""
        held = self._held
        if held is None or held[0] != (top, bottom):
            held = self._held = (top, bottom), self._between(top, bottom)
        return held[1]

    def _between(self, top: int, bottom: int) -> Crossings:
        """Crossings of a range of rows."""
        most = int(np.searchsorted(self._first, bottom))
        at = np.flatnonzero(self._stop[:most] > top)
        first, stop = np.maximum(self._first[at], top), np.minimum(self._stop[at], bottom)
        counts = stop - first
        edge = np.repeat(at, counts)
        row = np.arange(len(edge)) + np.repeat(first - np.cumsum(counts) + counts, counts)
        begin, left, end, right = self._edges[edge].T
        col = _centre_from(left + (row + 0.5 - begin) * ((right - left) / (end - begin)), self.shape[1])
        order = np.lexsort((col, row))
        return Crossings(row[order], col[order], self._sign[edge][order])


def _centre_from(place: NDArray[Any], size: int) -> Integers:
    """The first pixel whose centre does not lie before a place; at most one beyond the ends of an axis."""
    return np.clip(np.ceil(place - 0.5), 0, size).astype(np.int64)
