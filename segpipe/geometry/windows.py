"""Cover a case with windows: evenly spread, aligned to the network's stride, as few as possible."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal

import numpy as np

from segpipe.choices import Blend
from segpipe.errors import SettingsError
from segpipe.geometry.starts import NearestStarts, Starts, axis_starts, nearest_starts

Blending = Blend | Literal["nnunet"]
"""A blend that a user can choose, or nnU-Net's own Gaussian and starts of windows, for comparison with it."""


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open box in an array, rows before columns, planes before rows."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> "Window":
        """The window of all of an array."""
        return cls((0,) * len(shape), shape)

    @classmethod
    def spanning(cls, ends: Iterable[tuple[int, int]]) -> "Window":
        """The window with these starts and stops, a pair per axis.

        >>> Window.spanning([(0, 3), (1, 2)])
        Window(start=(0, 1), stop=(3, 2))
        """
        starts, stops = zip(*ends, strict=True)
        return cls(starts, stops)

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels along each axis."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of pixels in the window."""
        return int(np.prod(self.shape))

    @property
    def slices(self) -> tuple[slice, ...]:
        """Index that selects the window from the whole array."""
        return tuple(map(slice, self.start, self.stop))

    def slices_from(self, origin: Sequence[int]) -> tuple[slice, ...]:
        """Index that selects the window from an array whose first element is at ``origin``."""
        return tuple(slice(a - first, b - first) for a, b, first in zip(self.start, self.stop, origin, strict=True))

    def intersection(self, other: "Window") -> "Window":
        """What two windows have in common; empty along each axis along which they do not overlap."""
        start = tuple(map(max, self.start, other.start))
        return Window(start, tuple(map(max, start, map(min, self.stop, other.stop))))

    def blocks(self, sides: Sequence[int]) -> Iterator["Window"]:
        """Yield blocks of at most these sides that cover the window, each pixel once, in row-major order.

        >>> [(block.start, block.stop) for block in Window.whole((3, 2)).blocks((2, 2))]
        [((0, 0), (2, 2)), ((2, 0), (3, 2))]
        """
        axes = zip(self.start, self.stop, sides, strict=True)
        for ends in product(*([(a, min(a + side, stop)) for a in range(start, stop, side)] for start, stop, side in axes)):
            yield Window.spanning(ends)

    def moved(self, by: Sequence[int]) -> "Window":
        """The same box, moved."""
        return Window(*(tuple(a + b for a, b in zip(end, by, strict=True)) for end in (self.start, self.stop)))


ROW_PIXELS = 2**21
"""Pixels of a box of rows, which has at least one row or plane."""


def row_boxes(shape: tuple[int, ...]) -> Iterator[Window]:
    """Boxes of whole rows, or of whole planes of a volume: the order in which a finished mask is read again.

    >>> [(box.start[0], box.stop[0]) for box in row_boxes((5, 1024, 1024))]
    [(0, 2), (2, 4), (4, 5)]
    """
    height = max(1, ROW_PIXELS // max(1, math.prod(shape[1:])))
    return Window.whole(shape).blocks((height, *shape[1:]))


@dataclass(frozen=True, slots=True)
class Tiling:
    """Tile, overlap and stride per axis, in pixels, and the kind of blending."""

    tile: tuple[int, ...]
    """Size of the scores of a window: the network's input without its margin."""
    overlap: tuple[int, ...]
    """Least number of pixels that the scores of neighbouring windows share."""
    align: tuple[int, ...]
    blend: Blending
    fixed: bool = False
    """Whether the graph fixes the tile, which then need not be a multiple of ``align``."""
    margin: tuple[int, ...] = ()
    """Pixels on each side of a tile that the network sees and does not score; empty: none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "margin", self.margin or (0,) * len(self.tile))
        for tile, overlap, align, margin in zip(self.tile, self.overlap, self.align, self.margin, strict=True):
            if margin:
                _check_with_margin(tile, overlap, align, margin)
            else:
                _check_axis(tile, overlap, align, fixed=self.fixed)

    @property
    def input(self) -> tuple[int, ...]:
        """Size of what the network sees of a window: the tile with its margin on both sides."""
        return tuple(tile + 2 * margin for tile, margin in zip(self.tile, self.margin, strict=True))

    @property
    def step(self) -> tuple[int, ...]:
        """Distance between neighbouring windows on a long axis, a multiple of ``align``."""
        return tuple((t - o) // a * a for t, o, a in zip(self.tile, self.overlap, self.align, strict=True))

    @property
    def middle(self) -> tuple[slice, ...]:
        """Slices that select the tile from what the network sees."""
        return tuple(slice(margin, margin + tile) for tile, margin in zip(self.tile, self.margin, strict=True))

    def sliced(self) -> "Tiling":
        """The same tiling for every slice along a new first axis."""
        axes = (1, *self.tile), (0, *self.overlap), (1, *self.align)
        return Tiling(*axes, self.blend, self.fixed, (0, *self.margin))


def _check_axis(tile: int, overlap: int, align: int, *, fixed: bool) -> None:
    if align < 1 or tile < 1 or overlap < 0:
        raise SettingsError(
            f"tile and align must be at least 1 and overlap at least 0, got tile {tile}, align {align}, overlap {overlap}"
        )
    if overlap >= tile:
        raise SettingsError(f"overlap must be smaller than the tile, got overlap {overlap} and tile {tile}: lower --overlap")
    one_more = tile > align and tile % align == 1  # as networks with aligned corners take, such as 513
    if tile % align and not one_more and (not fixed or tile < align):
        raise SettingsError(
            f"tile must be a multiple of align, the network's total stride, got tile {tile} and align {align}: "
            f"take --tile {tile // align * align or align}, or correct align in the contract"
        )
    if tile - overlap < align:
        raise SettingsError(
            f"tile - overlap must be at least align, got {tile} - {overlap} = {tile - overlap} and align {align}: "
            f"lower --overlap to {tile - align}"
        )


def _check_with_margin(tile: int, overlap: int, align: int, margin: int) -> None:
    """As without a margin, for the scores; the tile need not be a multiple of ``align``: valid convolutions take from it."""
    seen = tile + 2 * margin
    if align < 1 or margin < 0 or overlap < 0:
        raise SettingsError(
            f"align must be at least 1, margin and overlap at least 0, got align {align}, margin {margin}, overlap {overlap}"
        )
    if tile < align:
        raise SettingsError(
            f"tile - 2 * margin, what a tile scores, must be at least align, got {seen} - 2 * {margin} = {tile} and align "
            f"{align}: take --tile {seen + -(-(align - tile) // align) * align}"
        )
    if tile - overlap < align:
        raise SettingsError(
            f"tile - 2 * margin - overlap must be at least align, got {seen} - 2 * {margin} - {overlap} = {tile - overlap} "
            f"and align {align}: lower --overlap to {tile - align}"
        )


@dataclass(frozen=True, slots=True)
class Part:
    """A block of the windows of a cover, by their indices: ``first`` to ``stop`` per axis, half-open."""

    first: tuple[int, ...]
    stop: tuple[int, ...]

    def __len__(self) -> int:
        return int(np.prod([b - a for a, b in zip(self.first, self.stop, strict=True)]))

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        """Indices of its windows, in order."""
        return product(*map(range, self.first, self.stop))

    def __contains__(self, index: tuple[int, ...]) -> bool:
        return all(a <= i < b for a, i, b in zip(self.first, index, self.stop, strict=True))


@dataclass(frozen=True)
class Cover:
    """All windows of one case, in row-major order.

    Every pixel lies in at least one window, and is *finished* in exactly one: the last in order that contains it.
    """

    shape: tuple[int, ...]
    tiling: Tiling
    halo: int = 0
    """Number of pixels before a finished box, along every axis, whose sums are needed with the box."""

    @cached_property
    def starts(self) -> tuple[Starts | NearestStarts, ...]:
        """Window starts per axis."""
        t = self.tiling
        if t.blend == "nnunet":
            return tuple(nearest_starts(size, tile) for size, tile in zip(self.shape, t.tile, strict=True))
        return tuple(axis_starts(*axis) for axis in zip(self.shape, t.tile, t.overlap, t.align, strict=True))

    @property
    def shared(self) -> tuple[int, ...]:
        """Largest number of pixels that neighbours along each axis share, with the halo."""
        axes = zip(self.starts, self.tiling.tile, strict=True)
        return tuple(tile + self.halo - starts.nearest if len(starts) > 1 else 0 for starts, tile in axes)

    def strip_shapes(self, extent: Sequence[Any]) -> tuple[tuple[Any, ...], ...]:
        """Shapes of the score sums that blending keeps per class, one array per axis, for windows that span ``extent``.

        The array of an axis holds what later windows along this axis share with earlier ones: the size of one tile along
        the axes before it, and the full extent along the axes after it.
        """
        tile, behind = ([n + self.halo for n in axes] for axes in (self.tiling.tile, extent))
        return tuple((*tile[:axis], shared, *behind[axis + 1 :]) for axis, shared in enumerate(self.shared))

    def strip_size(self, extent: Sequence[Any]) -> Any:
        """Number of score sums that blending keeps per class, for windows that span ``extent``; extents may be arrays."""
        return sum(map(math.prod, self.strip_shapes(extent)))

    @property
    def counts(self) -> tuple[int, ...]:
        """Windows per axis."""
        return tuple(len(axis) for axis in self.starts)

    @property
    def padded(self) -> tuple[int, ...]:
        """Shape up to the end of the last windows: at least the shape of the case."""
        return tuple(axis[-1] + tile for axis, tile in zip(self.starts, self.tiling.tile, strict=True))

    def __len__(self) -> int:
        return int(np.prod(self.counts))

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        """Indices of the windows, one integer per axis, in order."""
        return product(*map(range, self.counts))

    def window(self, index: tuple[int, ...]) -> Window:
        """The window at an index; it may reach behind the far border of the case."""
        start = tuple(axis[i] for axis, i in zip(self.starts, index, strict=True))
        return Window(start, tuple(a + t for a, t in zip(start, self.tiling.tile, strict=True)))

    def seen(self, index: tuple[int, ...]) -> Window:
        """What the network sees of a window: with its margin, it may reach beyond all borders of the case."""
        scored, margin = self.window(index), self.tiling.margin
        start = tuple(a - m for a, m in zip(scored.start, margin, strict=True))
        return Window(start, tuple(b + m for b, m in zip(scored.stop, margin, strict=True)))

    def finished(self, index: tuple[int, ...]) -> Window:
        """The box of pixels that no later window changes, and that no earlier window has finished."""
        start = tuple(axis[i] for axis, i in zip(self.starts, index, strict=True))
        return Window(start, tuple(self._next_start(axis, i) for axis, i in enumerate(index)))

    @property
    def whole(self) -> Part:
        """All windows."""
        return Part((0,) * len(self.counts), self.counts)

    def box(self, part: Part) -> Window:
        """The pixels that the windows of a part finish; boxes of parts without common windows are disjoint."""
        last = tuple(b - 1 for b in part.stop)
        return Window(self.finished(part.first).start, self.finished(last).stop)

    def touching(self, part: Part) -> Part:
        """The windows that touch a part's box or its halo: its own windows, and earlier ones that overlap them."""
        return Part(tuple(self.touching_axis(axis, first) for axis, first in enumerate(part.first)), part.stop)

    def extent(self, part: Part) -> tuple[int, ...]:
        """Pixels per axis that the windows touching a part span."""
        touching = self.touching(part)
        low, high = self.window(touching.first), self.window(tuple(b - 1 for b in touching.stop))
        return tuple(b - a for a, b in zip(low.start, high.stop, strict=True))

    def touching_axis(self, axis: int, first: int) -> int:
        """The first window along an axis that ends after the start of window ``first``, minus the halo."""
        starts, tile = self.starts[axis], self.tiling.tile[axis]
        return bisect_right(starts, starts[first] - self.halo - tile)

    def _next_start(self, axis: int, i: int) -> int:
        starts = self.starts[axis]
        return starts[i + 1] if i + 1 < len(starts) else self.shape[axis]
