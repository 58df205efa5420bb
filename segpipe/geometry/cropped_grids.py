"""The two grids of a case of which the network sees a box: what lies outside the box belongs to its border."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce

import numpy as np

from segpipe.array_types import Float
from segpipe.geometry.regridding import Axis, Indices, Regridding, Taps, Valid
from segpipe.geometry.windows import Window


@dataclass(frozen=True, slots=True)
class CroppedAxis(Axis):
    """One axis of both grids; ``factor`` is that of the box."""

    start: int
    """First own pixel of the box."""
    stop: int
    """Own pixel behind the box."""

    @property
    def _inner(self) -> Axis:
        """The axis of the box alone."""
        return Axis(self.stop - self.start, self.factor)

    @property
    def size(self) -> int:
        return self._inner.size

    def _first(self, edge: int) -> int:
        """As of the box alone; the first and the last span own what lies outside, too."""
        if not 0 < edge < self.size:
            return self.own if edge else 0
        return self.start + self._inner._first(edge)

    def _places(self, pixels: Indices) -> Float:
        return self._inner._places(pixels - self.start)

    def taps(self, start: int, stop: int) -> Taps:
        """Own pixels and weights of a range of the network's pixels, by their indices in the whole case."""
        inner = self._inner.taps(start, stop)
        return Taps(inner.index + self.start, inner.weight)


@dataclass(frozen=True)
class CroppedGrids(Regridding):
    """The two grids of a case; ``factors`` are those of the box."""

    box: Window = field(kw_only=True)
    """The own pixels that the network sees."""

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """The axes of both grids; the network sees only the box."""
        spans = zip(self.own, self.factors, self.box.start, self.box.stop, strict=True)
        return tuple(CroppedAxis(*axis) for axis in spans)

    def outside(self, owned: Window) -> Valid | None:
        """Mask of the own pixels of a window that lie outside the box; None if none does."""
        return outside_of(owned, self.box)


def outside_of(owned: Window, box: Window) -> Valid | None:
    """Mask of the pixels of a window that lie outside a box; None if none does."""
    spans = zip(owned.start, owned.stop, box.start, box.stop, strict=True)
    inside = [(np.arange(a, b) >= low) & (np.arange(a, b) < high) for a, b, low, high in spans]
    mask = ~_crossed(inside)
    return mask if mask.any() else None


def _crossed(axes: Sequence[Valid]) -> Valid:
    """Where all of one mask per axis are True."""
    return reduce(lambda mask, axis: mask[..., None] & axis, axes)
