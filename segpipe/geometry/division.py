"""Divide a large case into parts: enough for the workers, with few windows inferred twice."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from segpipe.geometry.windows import Cover, Part

LONGEST_PART = 1024
"""Most windows in a part: a killed worker loses at most these, and repetitions are about 6 % of them."""

MOST_PIECES = 64
"""Most pieces along an axis."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of parts, and their desired number."""

    workers: int = 1
    """Number of workers that share the case."""
    parts: int | None = None
    """Make as many parts as possible up to this number; None: as many as the workers need."""
    strip: int | None = None
    """Most score sums per class that memory allows while a part is blended; None: no limit."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """An axis divided into pieces of windows."""

    bounds: tuple[int, ...]
    inferred: int
    """Number of windows that all pieces infer: their own, and earlier ones that overlap them."""
    longest: int
    """Most windows that a piece infers."""
    own: int
    """Most windows that a piece owns."""
    width: int
    """Most pixels that a piece spans."""

    def __len__(self) -> int:
        return len(self.bounds) - 1


def divide(cover: Cover, limits: Limits) -> tuple[Part, ...]:
    """Blocks of windows in row-major order that contain each window of a cover once.

    Among all grids of nearly equal blocks within the limits, choose the one that the workers finish first, then the one that
    infers the fewest windows. A window that overlaps another block is inferred for both.
    """
    axes = [
        [_pieces(cover, axis, n) for n in range(1, min(count, MOST_PIECES) + 1)] for axis, count in enumerate(cover.counts)
    ]
    count, inferred = _products(axes, len), _products(axes, lambda pieces: pieces.inferred)
    best = _first_least(_allowed(axes, cover, limits), _time(axes, limits.workers), inferred, count)
    return tuple(_parts([pieces[k] for pieces, k in zip(axes, best, strict=True)]))


def _pieces(cover: Cover, axis: int, count: int) -> Pieces:
    """Divide an axis into ``count`` pieces that infer about equally many windows."""
    starts, tile = cover.starts[axis], cover.tiling.tile[axis]
    # no earlier window overlaps the first piece, so it owns more windows
    reach = max(1, -(-cover.tiling.overlap[axis] // (tile - cover.tiling.overlap[axis])))
    equal = (len(starts) + (count - 1) * reach) / count
    inside = (round(i * equal - (i - 1) * reach) for i in range(1, count))
    bounds = (0, *(min(max(b, i), len(starts) - count + i) for i, b in enumerate(inside, 1)), len(starts))
    if list(bounds) != sorted(set(bounds)):
        bounds = tuple(i * len(starts) // count for i in range(count + 1))
    spans = [(cover.touching_axis(axis, a), b) for a, b in pairwise(bounds)]
    lengths = [b - a for a, b in spans]
    own = max(b - a for a, b in pairwise(bounds))
    return Pieces(bounds, sum(lengths), max(lengths), own, max(starts[b - 1] + tile - starts[a] for a, b in spans))


Axes = Sequence[Sequence[Pieces]]
"""For each axis of a case, all ways to divide it. One way per axis makes a grid; arrays below have one value per grid."""


def _values(axes: Axes, value: Callable[[Pieces], int]) -> tuple[NDArray[np.float64], ...]:
    """``value`` of every way to divide each axis, as arrays that broadcast to all grids."""
    return np.meshgrid(*([float(value(p)) for p in axis] for axis in axes), indexing="ij", sparse=True)


def _products(axes: Axes, value: Callable[[Pieces], int]) -> NDArray[np.float64]:
    return np.asarray(math.prod(_values(axes, value)))


def _time(axes: Axes, workers: int) -> NDArray[np.float64]:
    """Windows that the busiest worker infers, if all blocks are as large as the largest."""
    rounds = np.ceil(_products(axes, len) / workers)
    longest = _products(axes, lambda pieces: pieces.longest)
    return np.maximum(_products(axes, lambda pieces: pieces.inferred) / workers, rounds * longest)


def _allowed(axes: Axes, cover: Cover, limits: Limits) -> NDArray[np.bool_]:
    """Mask of the grids within the limits; if there are none, of the finest grid."""
    count = _products(axes, len)
    if limits.parts is not None:
        return np.asarray(count == count[count <= limits.parts].max())
    strip = cover.strip_size(_values(axes, lambda pieces: pieces.width))
    fits = _products(axes, lambda pieces: pieces.own) <= LONGEST_PART
    fits &= np.less_equal(strip, math.inf if limits.strip is None else limits.strip)
    return fits if fits.any() else np.asarray(count == count.max())


def _first_least(allowed: NDArray[np.bool_], *keys: NDArray[np.float64]) -> tuple[int, ...]:
    """Index of the allowed grid with the least first key, ties broken by the later keys, then by position."""
    for key in keys:
        allowed = allowed & (key == key[allowed].min())
    return tuple(map(int, np.unravel_index(int(allowed.argmax()), allowed.shape)))


def _parts(grid: Sequence[Pieces]) -> Iterator[Part]:
    for blocks in product(*(list(pairwise(pieces.bounds)) for pieces in grid)):
        yield Part(tuple(a for a, _ in blocks), tuple(b for _, b in blocks))


def repeated(cover: Cover, parts: Sequence[Part]) -> float:
    """Windows inferred more than once, as a share of all windows of a case."""
    return sum(len(cover.touching(part)) for part in parts) / len(cover) - 1
