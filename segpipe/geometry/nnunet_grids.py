"""The two grids of a case as in nnU-Net's predictor: cropped, resampled by the ratio of shapes, padded to the patch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from segpipe.array_types import Float
from segpipe.geometry.cropped_grids import outside_of
from segpipe.geometry.regridding import NEAR, Axis, Indices, Regridding, Valid
from segpipe.geometry.windows import Window

THICK = 3.0
"""Ratio of the largest to the smallest spacing above which nnU-Net resamples the axis of the largest by itself."""


@dataclass(frozen=True, slots=True)
class PlacedAxis:
    """Where a case lies in the network's grid, along one axis."""

    start: int
    """First own pixel of the crop."""
    stop: int
    """Own pixel behind the crop."""
    resized: int
    """Pixels of the crop after it was resampled."""
    below: int
    """Pixels of padding before these."""
    above: int
    """Pixels of padding after these."""
    nearest: bool = False
    """Whether scores are those of the nearest pixel, and not interpolated."""

    @property
    def size(self) -> int:
        """Pixels of the network's grid, padding included."""
        return self.below + self.resized + self.above


@dataclass(frozen=True, slots=True)
class NnunetAxis(Axis):
    """One axis of both grids; ``factor`` is that of the crop."""

    placed: PlacedAxis

    @property
    def size(self) -> int:
        """Pixels of the network's grid, padding included."""
        return self.placed.size

    def _first(self, edge: int) -> int:
        if not 0 < edge < self.size:
            return self.own if edge else 0
        return int(np.searchsorted(self._upper(self._places(np.arange(self.own))), edge))

    def _places(self, pixels: Indices) -> Float:
        """Positions of own pixels; those outside the crop have that of its border."""
        placed = self.placed
        places = (pixels - placed.start + 0.5) / self.factor - 0.5
        whole = np.rint(places)
        places = np.where(np.abs(places - whole) < NEAR, whole, places)
        if placed.nearest:
            places = np.floor(places + 0.5)
        return np.asarray(np.clip(places, 0, placed.resized - 1) + placed.below)

    def needed(self, start: int, stop: int) -> tuple[int, int]:
        """All own pixels: a cubic spline and statistics depend on each of them."""
        del start, stop
        return 0, self.own


@dataclass(frozen=True)
class NnunetGrids(Regridding):
    """The two grids of a case, of three axes; ``factors`` are those of the crop."""

    placed: tuple[PlacedAxis, ...] = ()

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """The axes of both grids, with the crop and the padding of each."""
        return tuple(NnunetAxis(*axis) for axis in zip(self.own, self.factors, self.placed, strict=True))

    @property
    def crop(self) -> tuple[slice, ...]:
        """The crop, as slices of the own grid."""
        return tuple(slice(one.start, one.stop) for one in self.placed)

    def outside(self, owned: Window) -> Valid | None:
        """Mask of the own pixels of a box that lie outside the crop, where nnU-Net writes background."""
        return outside_of(owned, Window.spanning((one.start, one.stop) for one in self.placed))


def resized_shape(shape: Sequence[int], own: Sequence[float], wanted: Sequence[float]) -> tuple[int, ...]:
    """Shape after resampling, rounded as Python rounds."""
    return tuple(max(1, round(a / b * n)) for n, a, b in zip(shape, own, wanted, strict=True))


def thick_axis(now: Sequence[float], then: Sequence[float], forced: bool | None) -> int | None:
    """The axis that nnU-Net resamples by itself, as that of thick slices; None if it resamples all together.

    Args:
        now: spacing before resampling.
        then: spacing afterwards.
        forced: ``force_separate_z`` of the plans.
    """
    if forced is False:
        return None
    thick = [spacing for spacing in (now, then) if forced or max(spacing) / min(spacing) > THICK]
    if not thick:
        return None
    axes = [axis for axis, size in enumerate(thick[0]) if size == max(thick[0])]
    return axes[0] if len(axes) == 1 else None
