"""Ground that several scenes share counts once: in the first scene that saw it, else in the first that covers it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer

from segpipe.formats.registry import OpenMask
from segpipe.geometry.ground import Ground
from segpipe.geometry.windows import Window
from segpipe.vectors.placing import SAMPLES, PixelsOf

MARGIN = 0.02
"""Margin around the points that are transformed to find the extent of a grid, as a share of that extent."""
CHUNK = 500_000
"""Number of pixels whose coordinates are computed at once."""

Float = NDArray[np.float64]


def extent(ground: Ground, shape: tuple[int, ...]) -> Float:
    """Least and largest geocentric coordinates of a grid in m, ``(2, 3)``, with a margin; NaN off the Earth."""
    axes = [np.linspace(0, size, SAMPLES) for size in shape]
    points = ground.points(*np.meshgrid(*axes, indexing="ij")).reshape(-1, 3)
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        return np.full((2, 3), np.nan)
    least, most = points.min(axis=0), points.max(axis=0)
    margin = MARGIN * float((most - least).max())
    return np.stack([least - margin, most + margin])


def meeting(extents: Float) -> list[list[int]]:
    """For each of some grids, ``(grids, 2, 3)``, the others that may share ground with it."""
    found = []
    for k, (least, most) in enumerate(extents):
        both = (extents[:, 0] <= most).all(axis=1) & (extents[:, 1] >= least).all(axis=1)
        both[k] = False
        found.append(np.flatnonzero(both).tolist())
    return found


@dataclass(frozen=True)
class Neighbour:
    """A mask that may share ground with another one."""

    mask: OpenMask
    ground: Ground
    nodata: int | None
    earlier: bool
    """Whether it comes before the other one in the order of names."""


class Shared:
    """Tells which pixels of a mask count in another one."""

    def __init__(self, ground: Ground, shape: tuple[int, ...], neighbours: Sequence[Neighbour]) -> None:
        self._ground = ground
        self._each = [
            (neighbour, pixels, window)
            for neighbour in neighbours
            for pixels in [to_pixels(ground, neighbour.ground, neighbour.mask.grid.shape)]
            if (window := common(neighbour.ground, neighbour.mask.grid.shape, ground, shape)) is not None
        ]

    def elsewhere(self, window: Window, unseen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The pixels of a window that count in another mask; ``unseen`` are those without data in this one."""
        found = np.zeros(window.shape, np.bool_)
        for neighbour, to_pixels, common in self._each:
            for part in _chunks(_intersection(window, common)):
                own = tuple(slice(a - c, b - c) for a, b, c in zip(part.start, part.stop, window.start, strict=True))
                covered, seen = self._there(part, neighbour, to_pixels)
                takes = seen if neighbour.earlier else seen & unseen[own]
                found[own] |= takes | (covered & unseen[own]) if neighbour.earlier else takes
        return found

    def _there(self, part: Window, neighbour: Neighbour, to_pixels: PixelsOf) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which pixels of a part the other grid covers, and where it holds data."""
        rows, cols = (np.arange(a, b) + 0.5 for a, b in zip(part.start, part.stop, strict=True))
        x, y = self._ground.coordinates(*np.meshgrid(rows, cols, indexing="ij"))
        place = to_pixels(np.column_stack([x.ravel(), y.ravel()]))
        tall, wide = neighbour.mask.grid.shape
        with np.errstate(invalid="ignore"):
            col, row = np.floor(place[:, 0]), np.floor(tall - place[:, 1])
            covered = (col >= 0) & (col < wide) & (row >= 0) & (row < tall)
        seen = np.zeros(len(place), np.bool_)
        if covered.any():
            seen[covered] = _seen(neighbour, row[covered].astype(np.intp), col[covered].astype(np.intp))
        return covered.reshape(part.shape), seen.reshape(part.shape)


def to_pixels(ground: Ground, theirs: Ground, shape: tuple[int, ...]) -> PixelsOf:
    """The function from coordinates of a grid to pixels of another one of this shape."""
    own, other = ground.reference.crs, theirs.reference.crs
    between = None if own.equals(other) else Transformer.from_crs(own, other, always_xy=True)
    return PixelsOf(theirs, shape, between, turns=True)


def _seen(neighbour: Neighbour, row: NDArray[np.intp], col: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Whether a mask holds data in some of its pixels."""
    if neighbour.nodata is None:
        return np.ones(len(row), np.bool_)
    top, left = int(row.min()), int(col.min())
    labels = neighbour.mask.read(Window((top, left), (int(row.max()) + 1, int(col.max()) + 1)))
    return np.asarray(labels[row - top, col - left] != neighbour.nodata)


def common(theirs: Ground, their_shape: tuple[int, ...], ground: Ground, shape: tuple[int, ...]) -> Window | None:
    """The part of a grid in which another one may lie; None if it lies beside."""
    axes = [np.linspace(0, size, SAMPLES) for size in their_shape]
    x, y = theirs.coordinates(*np.meshgrid(*axes, indexing="ij"))
    place = to_pixels(theirs, ground, shape)(np.column_stack([x.ravel(), y.ravel()]))
    place = place[np.isfinite(place).all(axis=1)]
    if not len(place):
        return None
    margin = MARGIN * np.ptp(place, axis=0) + 1
    (left, below), (right, above) = place.min(axis=0) - margin, place.max(axis=0) + margin
    start = max(0, int(shape[0] - above)), max(0, int(left))
    stop = min(shape[0], int(shape[0] - below) + 1), min(shape[1], int(right) + 1)
    return Window(start, stop) if start[0] < stop[0] and start[1] < stop[1] else None


def _intersection(one: Window, other: Window) -> Window:
    start = tuple(map(max, one.start, other.start))
    return Window(start, tuple(map(max, start, map(min, one.stop, other.stop))))


def _chunks(window: Window) -> Iterator[Window]:
    """Rows of a window, few enough to be held."""
    (top, left), (bottom, right) = window.start, window.stop
    if right <= left:
        return
    rows = max(1, CHUNK // (right - left))
    for row in range(top, bottom, rows):
        yield Window((row, left), (min(row + rows, bottom), right))
