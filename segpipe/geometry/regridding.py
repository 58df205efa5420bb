"""Two grids of one case that share a corner: the case's own grid, and the network's grid, which has another spacing.

Pixels are resampled to the network's grid; scores are interpolated back to the case's own grid. Both are sums of products
per axis in a fixed order, so that a value has the same bytes in whatever box it is computed.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Float
from segpipe.geometry.windows import Window

Indices = NDArray[np.intp]
Valid = NDArray[np.bool_]

NEAR = 2.0**-16
"""Distance, in pixels, below which a centre counts as the centre of a pixel. Without it, weights could be so small that
rounding loses their product over several axes."""


AT_ONCE = 2**22
"""Most own pixels that are read at once, and most scores that are interpolated at once: a window needs many own pixels if
the case's own grid is much finer."""


@dataclass(frozen=True, slots=True)
class Between:
    """Positions of own pixels along an axis of the network's grid: each lies between two of its pixels, or on one."""

    lower: Indices
    upper: Indices
    share: Float
    """Weight of ``upper``, above 0 and at most 1; ``lower`` has the rest."""


@dataclass(frozen=True, slots=True)
class Taps:
    """Indices and weights of the ``count`` own pixels that make up each pixel of the network's grid along an axis."""

    index: Indices
    """Own pixels, shape ``(count, pixels)``. Where a weight is 0, the index repeats one with a weight above 0."""
    weight: Float
    """Shape ``(count, pixels)``; the weights of a pixel sum to 1."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of both grids."""

    own: int
    """Number of pixels of the case's own grid."""
    factor: float
    """Spacing of the network's grid divided by that of the case's own grid."""

    @property
    def size(self) -> int:
        """Number of pixels of the network's grid: the own length rounded to whole pixels, as in ``gdalwarp -tr``."""
        return max(1, math.floor(self.own / self.factor + 0.5))

    def owned(self, start: int, stop: int) -> tuple[int, int]:
        """The own pixels whose upper neighbour lies in a span of the network's grid; disjoint spans own disjoint pixels."""
        return self._first(start), self._first(stop)

    def _first(self, edge: int) -> int:
        """The first own pixel whose upper neighbour is ``edge`` or later."""
        if not 0 < edge < self.size:
            return self.own if edge else 0
        near = math.floor((edge - 0.5) * self.factor) + np.arange(-3, 4)
        first = near[np.searchsorted(self._upper(self._places(near)), edge)]
        return min(max(0, int(first)), self.own)

    def between(self, start: int, stop: int) -> Between:
        """Positions of a span of own pixels in the network's grid."""
        places = self._places(np.arange(start, stop))
        upper = self._upper(places)
        lower = np.maximum(upper - 1, 0)
        return Between(lower, upper, np.where(upper == 0, 1.0, np.clip(places - upper + 1, 0, 1)))

    def _places(self, pixels: Indices) -> Float:
        """Centres of own pixels, as indices of the network's grid."""
        places = (pixels + 0.5) / self.factor - 0.5
        whole = np.rint(places)
        return np.where(np.abs(places - whole) < NEAR, whole, places)

    def _upper(self, places: Float) -> Indices:
        """For each position, the first pixel of the network's grid whose centre is at or after it, limited to the grid."""
        return np.clip(np.ceil(places), 0, self.size - 1).astype(np.intp)

    def taps(self, start: int, stop: int) -> Taps:
        """The own pixels, and their weights, that make up the pixels of a span of the network's grid.

        Weights fall linearly from the centre to 0 at the next centre of the coarser grid. This is linear interpolation if
        the network's grid is the finer one, else the triangle filter that Pillow and GDAL use against aliasing. There are no
        pixels beyond the border; the weights of those inside are scaled to sum to 1.
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
        """The span of own pixels that a span of the network's grid needs."""
        ends = self.taps(start, start + 1).index, self.taps(stop - 1, stop).index
        return int(ends[0].min()), int(ends[1].max()) + 1


@dataclass(frozen=True)
class Regridding:
    """The two grids of a case, any number of axes."""

    own: tuple[int, ...]
    """Shape of the case's own grid."""
    factors: tuple[float, ...]
    """Spacing of the network's grid divided by that of the case's own grid, per axis."""
    outside_scores: tuple[float, ...] = ()
    """Score of each class for own pixels that the network does not see."""

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """The axes of both grids."""
        return tuple(Axis(*axis) for axis in zip(self.own, self.factors, strict=True))

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of the network's grid."""
        return tuple(axis.size for axis in self.axes)

    def outside(self, owned: Window) -> Valid | None:
        """Mask of the own pixels of a box that the network does not see; None if it sees all."""
        del owned
        return None

    def owned(self, box: Window) -> Window:
        """The own pixels whose scores follow from a box of the network's grid and one more pixel on its low sides.

        Disjoint boxes own disjoint pixels; boxes that cover the network's grid own all pixels. The result may be empty.
        """
        return _window(axis.owned(a, b) for axis, a, b in zip(self.axes, box.start, box.stop, strict=True))

    def needed(self, window: Window) -> Window:
        """The own pixels that a window of the network's grid needs."""
        return _window(axis.needed(a, b) for axis, a, b in zip(self.axes, window.start, window.stop, strict=True))

    def extent(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Largest shape of own pixels that a window of this shape needs, with one more pixel on its low sides."""
        axes = zip(shape, self.axes, strict=True)
        return tuple(min(axis.own, math.ceil(n * axis.factor + 2 * max(1.0, axis.factor)) + 1) for n, axis in axes)

    def needed_by_box(self, box: Window) -> Window:
        """The own pixels that a box and one more pixel on its low sides need; they include those that the box owns."""
        return self.needed(grown(box))

    def taps(self, window: Window) -> list[Taps]:
        """Along each axis, the own pixels and weights that make up the pixels of a window of the network's grid."""
        return [axis.taps(a, b) for axis, a, b in zip(self.axes, window.start, window.stop, strict=True)]

    def between(self, owned: Window) -> list[Between]:
        """Along each axis, where the own pixels of a window lie between pixels of the network's grid."""
        return [axis.between(a, b) for axis, a, b in zip(self.axes, owned.start, owned.stop, strict=True)]

    def seen(self, invalid: Valid, window: Window) -> Valid:
        """Which pixels of a window of the network's grid include at least one valid own pixel.

        Args:
            invalid: mask of invalid own pixels, over ``needed(window)``.
            window: window of the network's grid.
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
    """Extend a box by one pixel on each low side that is not the border of the case."""
    return Window(tuple(max(0, a - 1) for a in box.start), box.stop)


def _window(spans: Iterator[tuple[int, int]]) -> Window:
    starts, stops = zip(*spans, strict=True)
    return Window(starts, stops)


def resample(
    regridding: Regridding, window: Window, pixels: NDArray[Any], invalid: Valid | None
) -> tuple[NDArray[Any], Valid | None]:
    """Resample to pixels ``(channels, *window.shape)`` of the network's grid, and their invalid mask; None if all are valid.

    Invalid pixels have no weight. A pixel is invalid if all own pixels that it is made of are invalid.

    Args:
        regridding: both grids of the case.
        window: window of the network's grid.
        pixels: own pixels as floats, over ``regridding.needed(window)``.
        invalid: mask of the same shape without channels; None if all own pixels are valid.
    """
    low, taps = regridding.needed(window).start, regridding.taps(window)
    if invalid is None:
        return _weighted(regridding, pixels, taps, low), None
    valid = (~invalid).astype(pixels.dtype)[None]
    summed = _weighted(regridding, np.where(invalid, 0, pixels), taps, low)
    weight = _weighted(regridding, valid, taps, low)[0]
    # a sum without invalid pixels stays unchanged: invalid pixels elsewhere must not change its last bit
    whole = ~regridding.seen(~invalid, window)
    seen = weight > 0
    np.divide(summed, weight, out=summed, where=seen & ~whole)
    summed[:, ~seen] = 0
    return summed, None if seen.all() else ~seen


def _weighted(regridding: Regridding, values: NDArray[Any], taps: Sequence[Taps], low: tuple[int, ...]) -> NDArray[Any]:
    """Weighted sums over all axes, tap by tap: the rounding of a matrix product would depend on its shape."""
    for axis, (own, taken, first) in enumerate(zip(regridding.axes, taps, low, strict=True), 1):
        if own.factor == 1:
            continue  # each pixel is one own pixel
        total: NDArray[Any] | None = None
        for index, weight in zip(taken.index, taken.weight.astype(values.dtype), strict=True):
            part = np.take(values, index - first, axis)
            part *= _along(weight, axis, values.ndim)
            total = part if total is None else np.add(total, part, out=total)
        assert total is not None
        values = total
    return values


def _along(values: NDArray[Any], axis: int, ndim: int) -> NDArray[Any]:
    """Reshape values of one axis so that they broadcast against an array of ``ndim`` axes."""
    return values.reshape([-1 if k == axis else 1 for k in range(ndim)])
