"""Weights of a window at each of its pixels: the product of one profile per axis.

Profiles are float32, symmetric, strictly positive (except for ``crop``), and 1 towards a border of the case, where there is
no neighbour.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from segpipe.geometry.windows import Blending, Cover

Profile = NDArray[np.float32]

GAUSSIAN_FLOOR = 1e-3
"""Smallest gaussian weight as a share of the peak: with less, float32 sums lose the corners of a tile."""


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of every window of a case, and their sum over all windows.

    Arrays are NumPy's, or those of a device.
    """

    profiles: Sequence[Sequence[Any]]
    """Profiles of shape ``(tile,)``, one per axis and window."""
    totals: Sequence[Any]
    """Sums of the profiles over the windows, one per axis."""

    @classmethod
    def over(cls, cover: Cover) -> Self:
        """The weights of a cover."""
        tiling = cover.tiling
        profiles = [
            axis_profiles(starts, tile, tiling.blend) for starts, tile in zip(cover.starts, tiling.tile, strict=True)
        ]
        return cls(profiles, [_total(own, starts) for own, starts in zip(profiles, cover.starts, strict=True)])

    def moved(self, move: Callable[[Profile], Any]) -> Self:
        """The same weights with every array moved; equal profiles are moved once."""
        moved: dict[bytes, Any] = {}
        for profile in (profile for axis in self.profiles for profile in axis):
            if profile.tobytes() not in moved:
                moved[profile.tobytes()] = move(profile)
        return type(self)([[moved[p.tobytes()] for p in axis] for axis in self.profiles], [move(t) for t in self.totals])

    def of(self, index: tuple[int, ...]) -> Any:
        """Weights of one window, shape ``tile``."""
        return _outer([profiles[i] for profiles, i in zip(self.profiles, index, strict=True)])

    def total(self, slices: tuple[slice, ...]) -> Any:
        """Sum of the weights of all windows over a box of the case.

        A product of sums, because the windows form a grid. It holds at every valid pixel, because all windows that contain
        one are inferred.
        """
        return _outer([total[where] for total, where in zip(self.totals, slices, strict=True)])


def _outer(profiles: list[Any]) -> Any:
    return reduce(lambda product, profile: product[..., None] * profile, profiles)


def _total(profiles: list[Profile], starts: Sequence[int]) -> Profile:
    total = np.zeros(starts[-1] + len(profiles[-1]), np.float32)
    for start, profile in zip(starts, profiles, strict=True):
        total[start : start + len(profile)] += profile
    return total


def axis_profiles(starts: Sequence[int], tile: int, blend: Blending) -> list[Profile]:
    """One profile of length ``tile`` per window of an axis."""
    shared = [previous + tile - start for previous, start in pairwise(starts)]
    return [profile(tile, left, right, blend) for left, right in zip([0, *shared], [*shared, 0], strict=True)]


def profile(tile: int, left: int, right: int, blend: Blending) -> Profile:
    """The profile of a window that shares ``left`` and ``right`` pixels with its neighbours, 0 at a border of the case."""
    if blend == "gaussian":
        weights = _gaussian(tile, bool(left), bool(right))
    elif blend == "nnunet":
        weights = np.exp(-0.5 * ((np.arange(tile) - tile // 2) / (tile / 8)) ** 2)
    elif blend == "crop":
        weights = _crop(tile, left, right)
    else:
        weights = np.minimum(_ramp(tile, left, blend), _ramp(tile, right, blend)[::-1])
    return weights.astype(np.float32)


def _gaussian(tile: int, left: bool, right: bool) -> NDArray[np.float64]:
    distance = np.arange(tile) - (tile - 1) / 2
    weights: NDArray[np.float64] = np.maximum(np.exp(-0.5 * (distance / (tile / 8)) ** 2), GAUSSIAN_FLOOR)
    weights /= weights.max()
    if not left:
        weights[distance <= 0] = 1
    if not right:
        weights[distance >= 0] = 1
    return weights


def _crop(tile: int, left: int, right: int) -> NDArray[np.float64]:
    """1 up to the middle of each overlap: neighbours then partition the axis."""
    weights = np.zeros(tile)
    weights[left // 2 : tile - (right - right // 2)] = 1
    return weights


def _ramp(tile: int, shared: int, blend: Blending) -> NDArray[np.float64]:
    """From near 0 to 1 over the pixels shared with the neighbour on the left, then 1."""
    weights = np.ones(tile)
    if blend != "constant" and shared:
        rising = (np.arange(shared) + 0.5) / shared
        weights[:shared] = rising if blend == "linear" else 0.5 - 0.5 * np.cos(np.pi * rising)
    return weights
