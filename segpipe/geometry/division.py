"""How a large case is cut into parts: enough for the workers, with few windows inferred twice."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from segpipe.geometry.windows import Cover, Part

LONGEST_PART = 1024
"""Windows of a part: what a killed worker loses is at most this, and repeats are about 6 % of them."""

MOST_PIECES = 64
"""Along one axis."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a part must not exceed, and how many there should be."""

    workers: int = 1
    """Who share the case."""
    parts: int | None = None
    """As many parts as can be had up to this number; None: as many as the workers need."""
    width: int | None = None
    """Pixels along the last axis that a strip has memory for."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """An axis cut into pieces of windows."""

    bounds: tuple[int, ...]
    inferred: int
    """Windows that all pieces infer: their own, and those before them that reach in."""
    longest: int
    """That the longest piece infers."""
    own: int
    """That the longest piece has of its own."""
    width: int
    """Pixels that the widest piece spans."""

    def __len__(self) -> int:
        return len(self.bounds) - 1


Grid = tuple[Pieces, ...]


def cut(cover: Cover, limits: Limits) -> tuple[Part, ...]:
    """Blocks of windows in row-major order that hold each window of a cover once.

    Of all grids of nearly equal blocks within the limits, the one that the workers finish first, then the one that infers
    the fewest windows. A window that reaches into another block is inferred for both.
    """
    axes = [
        [_pieces(cover, axis, n) for n in range(1, min(count, MOST_PIECES) + 1)] for axis, count in enumerate(cover.counts)
    ]
    grids = list(product(*axes))
    if limits.parts is not None:
        wanted = max(n for n in map(_count, grids) if n <= limits.parts)
        grids = [grid for grid in grids if _count(grid) == wanted]
    else:
        finest = tuple(pieces[-1] for pieces in axes)
        grids = [grid for grid in grids if _fits(grid, limits)] or [finest]
    best = min(grids, key=lambda grid: (_time(grid, limits.workers), _inferred(grid), _count(grid)))
    return tuple(_parts(best))


def _pieces(cover: Cover, axis: int, count: int) -> Pieces:
    """An axis in ``count`` pieces that infer about as many windows each."""
    starts, tile = cover.starts[axis], cover.tiling.tile[axis]
    # the first piece has none before it that reach in, and takes more of its own
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


def _count(grid: Grid) -> int:
    return math.prod(len(pieces) for pieces in grid)


def _inferred(grid: Grid) -> int:
    """Windows that all blocks infer: a product, because blocks form a grid."""
    return math.prod(pieces.inferred for pieces in grid)


def _time(grid: Grid, workers: int) -> float:
    """Windows that the busiest worker infers, if all blocks are as large as the largest."""
    largest = math.prod(pieces.longest for pieces in grid)
    return max(_inferred(grid) / workers, -(-_count(grid) // workers) * largest)


def _fits(grid: Grid, limits: Limits) -> bool:
    narrow = limits.width is None or grid[-1].width <= limits.width
    return narrow and math.prod(pieces.own for pieces in grid) <= LONGEST_PART


def _parts(grid: Grid) -> Iterator[Part]:
    for blocks in product(*(list(pairwise(pieces.bounds)) for pieces in grid)):
        yield Part(tuple(a for a, _ in blocks), tuple(b for _, b in blocks))


def repeated(cover: Cover, parts: Sequence[Part]) -> float:
    """Windows inferred more than once, as a share of all windows of a case."""
    return sum(len(cover.touching(part)) for part in parts) / len(cover) - 1
