"""The size of a sample, and its allocation to strata."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from segpipe.array_types import Float, Integers
from segpipe.errors import SettingsError

Allocation = Literal["rare", "proportional", "equal"]


def needed_size(shares: Sequence[float], accuracies: Sequence[float], error: float) -> int:
    """Units for a standard error of the overall accuracy (Olofsson et al. 2014, eq. 13, after Cochran 1977, eq. 5.25).

    n = (sum of W sqrt(U (1 - U)) / error)²

    Args:
        shares: of each stratum in the area.
        accuracies: user's accuracy that is expected of each.
        error: standard error to reach.

    >>> needed_size((0.02, 0.015, 0.32, 0.645), (0.7, 0.6, 0.9, 0.95), 0.01)
    641
    """
    deviations = [math.sqrt(accuracy * (1 - accuracy)) for accuracy in accuracies]
    return max(1, math.ceil((math.fsum(w * s for w, s in zip(shares, deviations, strict=True)) / error) ** 2))


def allocate(size: int, units: Integers, allocation: Allocation, minimum: int) -> Integers:
    """Spread a sample over strata.

    Args:
        size: of the sample.
        units: of each stratum; none gets more.
        allocation: ``rare``: at least ``minimum`` in each, the others proportional to the units (Olofsson et al. 2014,
            section 5.1.2); ``proportional``; ``equal``.
        minimum: of ``rare``.

    Raises:
        SettingsError: the sample is too small for two units in each stratum, or for the minimum.
    """
    least = np.minimum(minimum if allocation == "rare" else min(2, size), units)
    if least.sum() > size:
        raise SettingsError(
            f"{len(units)} strata need at least {least.sum()} units in the sample, got {size}: give a larger --size or a "
            "smaller --minimum"
        )
    weight = np.ones(len(units)) if allocation == "equal" else units.astype(np.float64)
    return _spread(min(size, int(units.sum())), weight, least, units)


def _spread(size: int, weight: Float, least: Integers, most: Integers) -> Integers:
    """Parts in proportion to weights, within limits, that add up to the size; by largest remainders."""
    fixed = np.full(len(weight), -1)
    while len(at := np.flatnonzero(fixed < 0)):
        share = (size - fixed[fixed >= 0].sum()) * weight[at] / weight[at].sum()
        short, over = np.maximum(least[at] - share, 0), np.maximum(share - most[at], 0)
        if not short.any() and not over.any():
            return _rounded(size, fixed, at, share)
        side, limit = (short, least) if short.sum() >= over.sum() else (over, most)
        fixed[at[side > 0]] = limit[at[side > 0]]
    return fixed


def _rounded(size: int, fixed: Integers, at: Integers, share: Float) -> Integers:
    whole = np.floor(share).astype(np.int64)
    rest = size - fixed[fixed >= 0].sum() - whole.sum()
    first = np.argsort(-(share - whole), kind="stable")[:rest]
    whole[first] += 1
    result = fixed.copy()
    result[at] = whole
    return result
