"""Two grids over one case with a corner in common: the case's own, and one of another spacing that the network sees.

Pixels go to the network's grid by ``resample``, scores come back to the case's own by ``interpolate``. Both are sums of
products per axis in a fixed order, so that a value has the same bytes whatever box it is computed in.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.geometry.windows import Window

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Valid = NDArray[np.bool_]

NEAR = 2.0**-16
"""Of a pixel's side: a centre that lies nearer to that of a pixel is taken for it. So no share of a value is small enough to
be lost to rounding, however many axes multiply."""


AT_ONCE = 2**22
"""Own pixels that are read, and scores that are interpolated, at once: a window is made of many where the case's own grid is
much the finer one."""


@dataclass(frozen=True, slots=True)
class Between:
    """Where pixels of the case's own grid lie along an axis of the network's: between two pixels, or on one."""

    lower: Indices
    upper: Indices
    share: Floats
    """Of ``upper``, above 0; the rest is that of ``lower``."""


@dataclass(frozen=True, slots=True)
class Taps:
    """What pixels of the network's grid along an axis are made of: ``count`` neighbours of the case's own grid each."""

    index: Indices
    """Shape ``(count, pixels)``; one that has a weight, too, where the weight is 0."""
    weight: Floats
    """Shape ``(count, pixels)``; 1 in sum."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of both grids."""

    own: int
    """Pixels of the case's own grid."""
    factor: float
    """Spacing of the network's grid over that of the case's own."""

    @property
    def size(self) -> int:
        """Pixels of the network's grid: as near to the same length as whole pixels come, as ``gdalwarp -tr`` has it."""
        return max(1, math.floor(self.own / self.factor + 0.5))

    def owned(self, start: int, stop: int) -> tuple[int, int]:
        """The own pixels whose upper neighbour lies in a span of the network's grid: of all spans, each pixel is in one."""
        return self._first(start), self._first(stop)

    def _first(self, edge: int) -> int:
        """The first own pixel whose upper neighbour is ``edge`` or behind it."""
        if not 0 < edge < self.size:
            return self.own if edge else 0
        near = math.floor((edge - 0.5) * self.factor) + np.arange(-3, 4)
        first = near[np.searchsorted(self._upper(self._places(near)), edge)]
        return min(max(0, int(first)), self.own)

    def between(self, start: int, stop: int) -> Between:
        """Where the own pixels of a span lie."""
        places = self._places(np.arange(start, stop))
        upper = self._upper(places)
        lower = np.maximum(upper - 1, 0)
        return Between(lower, upper, np.where(upper == 0, 1.0, np.clip(places - upper + 1, 0, 1)))

    def _places(self, pixels: Indices) -> Floats:
        """Centres of own pixels, in pixels of the network's grid."""
        places = (pixels + 0.5) / self.factor - 0.5
        whole = np.rint(places)
        return np.where(np.abs(places - whole) < NEAR, whole, places)

    def _upper(self, places: Floats) -> Indices:
        """The first pixel of the network's grid whose centre does not lie before an own one's, inside the grid."""
        return np.clip(np.ceil(places), 0, self.size - 1).astype(np.intp)

    def taps(self, start: int, stop: int) -> Taps:
        """What the pixels of a span of the network's grid are made of.

        Weights fall linearly from the centre to 0 at the next centre of the coarser grid: linear interpolation where the
        network's is the finer one, else the triangle that keeps what it cannot show from aliasing (as in Pillow and GDAL).
        Behind the border there is nothing, and the weights inside make up for it.
        """
        reach = max(1.0, self.factor)
        centres = (np.arange(start, stop) + 0.5) * self.factor - 0.5
        whole = np.rint(centres)
        centres = np.where(np.abs(centres - whole) < NEAR / 16, whole, centres)
        index = np.floor(centres - reach).astype(np.intp) + 1 + np.arange(self._count)[:, None]
        weight = 1 - np.abs(index - centres) / reach
        weight[(weight < NEAR / 4) | (index < 0) | (index >= self.own)] = 0
        nearest = np.clip(np.rint(centres).astype(np.intp), 0, self.own - 1)
        return Taps(np.where(weight > 0, index, nearest), weight / weight.sum(axis=0))

    @property
    def _count(self) -> int:
        return math.ceil(2 * max(1.0, self.factor) - NEAR)

    def needed(self, start: int, stop: int) -> tuple[int, int]:
        """The own pixels that those of a span of the network's grid are made of."""
        ends = self.taps(start, start + 1).index, self.taps(stop - 1, stop).index
        return int(ends[0].min()), int(ends[1].max()) + 1


@dataclass(frozen=True)
class Regridding:
    """The two grids of a case, any number of axes."""

    own: tuple[int, ...]
    """Shape of the case's own grid."""
    factors: tuple[float, ...]
    """Spacing of the network's grid over that of the case's own, per axis."""

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        return tuple(Axis(*axis) for axis in zip(self.own, self.factors, strict=True))

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the network's grid."""
        return tuple(axis.size for axis in self.axes)

    def owned(self, box: Window) -> Window:
        """The own pixels that a box of the network's grid, with one pixel more on its low sides, has scores for.

        Boxes that share no pixel own none in common; those that fill the network's grid own all. It may be empty.
        """
        return _window(axis.owned(a, b) for axis, a, b in zip(self.axes, box.start, box.stop, strict=True))

    def needed(self, window: Window) -> Window:
        """The own pixels that a window of the network's grid is made of."""
        return _window(axis.needed(a, b) for axis, a, b in zip(self.axes, window.start, window.stop, strict=True))

    def extent(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the own pixels that a window of this shape is made of at most, with one pixel more on its low sides."""
        axes = zip(shape, self.axes, strict=True)
        return tuple(min(axis.own, math.ceil(n * axis.factor + 2 * max(1.0, axis.factor)) + 1) for n, axis in axes)

    def needed_by_box(self, box: Window) -> Window:
        """The own pixels that a box and one pixel more on its low sides are made of; it holds those that the box owns."""
        return self.needed(grown(box))

    def taps(self, window: Window) -> list[Taps]:
        return [axis.taps(a, b) for axis, a, b in zip(self.axes, window.start, window.stop, strict=True)]

    def between(self, owned: Window) -> list[Between]:
        return [axis.between(a, b) for axis, a, b in zip(self.axes, owned.start, owned.stop, strict=True)]

    def seen(self, invalid: Valid, window: Window) -> Valid:
        """Pixels of a window of the network's grid that any valid own pixel is part of.

        Args:
            invalid: own pixels, over ``needed(window)``.
            window: of the network's grid.
        """
        low = self.needed(window).start
        valid = ~invalid
        for axis, (taps, first) in enumerate(zip(self.taps(window), low, strict=True)):
            parts = [
                np.take(valid, index - first, axis) & _along(weight > 0, axis, valid.ndim)
                for index, weight in zip(taps.index, taps.weight, strict=True)
            ]
            valid = np.logical_or.reduce(parts)
        return valid


def grown(box: Window) -> Window:
    """A box with one pixel more on each low side that is not the border of the case."""
    return Window(tuple(max(0, a - 1) for a in box.start), box.stop)


def _window(spans: Iterator[tuple[int, int]]) -> Window:
    starts, stops = zip(*spans, strict=True)
    return Window(starts, stops)


def resample(
    regridding: Regridding, window: Window, pixels: NDArray[Any], invalid: Valid | None
) -> tuple[NDArray[Any], Valid | None]:
    """Pixels ``(channels, *window.shape)`` of the network's grid, and where they are invalid; None if nowhere.

    Invalid pixels have no weight. A pixel is invalid where all that it is made of is.

    Args:
        regridding: of the case.
        window: of the network's grid.
        pixels: of the case's own grid, floats, over ``regridding.needed(window)``.
        invalid: of the same shape without channels; None if no pixel is invalid.
    """
    low, taps = regridding.needed(window).start, regridding.taps(window)
    if invalid is None:
        return _weighted(regridding, pixels, taps, low), None
    valid = (~invalid).astype(pixels.dtype)[None]
    summed = _weighted(regridding, np.where(invalid, 0, pixels), taps, low)
    weight = _weighted(regridding, valid, taps, low)[0]
    # where nothing is missing the sum stays as it is: what is invalid elsewhere must not change its last bit
    whole = ~regridding.seen(~invalid, window)
    seen = weight > 0
    np.divide(summed, weight, out=summed, where=seen & ~whole)
    summed[:, ~seen] = 0
    return summed, None if seen.all() else ~seen


def _weighted(regridding: Regridding, values: NDArray[Any], taps: Sequence[Taps], low: tuple[int, ...]) -> NDArray[Any]:
    """Sums over all axes, tap by tap: a product of matrices would round by its shape."""
    for axis, (own, taken, first) in enumerate(zip(regridding.axes, taps, low, strict=True), 1):
        if own.factor == 1:
            continue  # what is needed is what there is
        total: NDArray[Any] | None = None
        for index, weight in zip(taken.index, taken.weight.astype(values.dtype), strict=True):
            part = np.take(values, index - first, axis)
            part *= _along(weight, axis, values.ndim)
            total = part if total is None else np.add(total, part, out=total)
        assert total is not None
        values = total
    return values


def _along(values: NDArray[Any], axis: int, ndim: int) -> NDArray[Any]:
    """Values of one axis in the shape that multiplies an array."""
    return values.reshape([-1 if k == axis else 1 for k in range(ndim)])
