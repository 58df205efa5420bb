"""Estimators of totals and ratios from a stratified random sample.

Every quantity is a ratio of two totals: user's accuracy is the area mapped and found as a class over the area mapped as it.
With strata that are the map's classes these are the estimators of Olofsson et al. (2014), with other strata those of Stehman
(2014), with units of unequal area those of Tyukavina et al. (2025), with a single stratum those of a simple random sample.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segpipe.accuracy.intervals import exact
from segpipe.array_types import Float, Integers

LARGEST_VARIANCE = 0.25
"""Largest variance of values from 0 to 1, used for a stratum with one unit, from which none can be estimated."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Labelled units. A row stands for ``count`` identical units; arrays have the shape ``(rows,)``."""

    stratum: Integers
    mapped: Integers
    """Class on the map, as a position in the list of classes."""
    reference: Integers
    count: Integers
    area: Float
    """Area of one unit."""


@dataclass(frozen=True, eq=False)
class Strata:
    """Known properties of the strata; arrays have the shape ``(strata,)``."""

    weight: Float
    """Number of units, such that weight times mean area is the area of the stratum; a multiple of it, if units are alike."""
    fraction: Float
    """Share of the units that are in the sample, for the finite-population correction; 0 if their number is unknown."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """An estimated share."""

    value: float
    error: float
    """Standard error."""
    units: float
    """Effective number of units: a simple random sample of this size would have this variance."""
    varies: bool = True
    """Whether units of a stratum differ in more than their area. If none do, the error says nothing of what was not seen."""


@dataclass(frozen=True, eq=False)
class _Moments:
    """Means of two variables and a variance in each stratum, shape ``(strata,)``."""

    y: Float
    x: Float
    variance: Float
    """Variance of ``y - ratio * x``, with n - 1 degrees of freedom."""


def counts(sample: Sample, strata: Strata) -> Float:
    """Units of the sample in each stratum."""
    return np.asarray(np.bincount(sample.stratum, sample.count, len(strata.weight)), np.float64)


def total(sample: Sample, strata: Strata, y: Float) -> tuple[float, float]:
    """The total of ``y`` over all units, and its standard error (Stehman 2014, eq. 25; Tyukavina et al. 2025, eq. A.7, A.8).

    Args:
        sample: the units.
        strata: their strata.
        y: value of each row, shape ``(rows,)``: from 0 to the area of a unit.
    """
    found = _moments(sample, strata, y, sample.area, 0.0)
    return float(strata.weight @ found.y), math.sqrt(_variance(sample, strata, found.variance))


def ratio(sample: Sample, strata: Strata, y: Float, x: Float) -> Ratio | None:
    """The total of ``y`` over that of ``x`` (Stehman 2014, eq. 27, 28; Tyukavina et al. 2025, eq. A.11, A.12).

    Args:
        sample: the units.
        strata: their strata.
        y: value of each row, shape ``(rows,)``: from 0 to that of ``x``.
        x: value of each row, from 0 to the area of a unit.

    Returns:
        None if the total of ``x`` is 0: there is no such class.
    """
    if not (whole := total(sample, strata, x)[0]):
        return None
    value = total(sample, strata, y)[0] / whole
    found = _moments(sample, strata, y, x, value)
    error = math.sqrt(_variance(sample, strata, found.variance)) / whole
    varies = _varies(sample, strata, (y > 0) - value * (x > 0)) or bool(
        ((counts(sample, strata) == 1) & (found.x > 0)).any()
    )
    return Ratio(value, error, _effective(sample, strata, x, value, error if varies else 0.0), varies)


def _varies(sample: Sample, strata: Strata, values: Float) -> bool:
    """Whether values differ within a stratum; exact, as a variance with its rounding errors is not."""
    low, high = (np.full(len(strata.weight), limit) for limit in (np.inf, -np.inf))
    np.minimum.at(low, sample.stratum, values)
    np.maximum.at(high, sample.stratum, values)
    return bool((low < high).any())


def _moments(sample: Sample, strata: Strata, y: Float, x: Float, value: float) -> _Moments:
    n = counts(sample, strata)
    means = [_means(sample, n, each) for each in (y, x, y - value * x)]
    away = y - value * x - means[2][sample.stratum]
    squares = np.bincount(sample.stratum, sample.count * away**2, len(n))
    variance = squares / np.maximum(n - 1, 1)
    alone = (n == 1) & (means[1] > 0)
    largest = LARGEST_VARIANCE * float(sample.area.max()) ** 2
    return _Moments(means[0], means[1], np.where(alone, largest, variance))


def _means(sample: Sample, n: Float, values: Float) -> Float:
    return np.asarray(np.bincount(sample.stratum, sample.count * values, len(n)) / n)


def _variance(sample: Sample, strata: Strata, variances: Float) -> float:
    """Variance of a total, from the variances of the units in each stratum."""
    n = counts(sample, strata)
    return float(np.sum(strata.weight**2 * (1 - strata.fraction) * variances / n))


def _effective(sample: Sample, strata: Strata, x: Float, value: float, error: float) -> float:
    """Effective number of units of a share: with one stratum their number, without variance that of Kish (1965)."""
    held = x > 0
    n = np.bincount(sample.stratum[held], sample.count[held], len(strata.weight))
    if np.count_nonzero(n) == 1:
        return float(n.sum())
    if error:
        return value * (1 - value) / error**2
    weight = strata.weight[n > 0]
    return float(weight.sum() ** 2 / np.sum(weight**2 / n[n > 0]))


def largest_unseen(sample: Sample, strata: Strata, x: Float, level: float) -> float:
    """Upper limit of the total of ``x`` in strata without any ``x`` in the sample, by exact intervals."""
    held = np.bincount(sample.stratum, sample.count * x, len(strata.weight)) > 0
    if held.all():
        return 0.0
    weight, n = strata.weight[~held], counts(sample, strata)[~held]
    units = weight.sum() ** 2 / np.sum(weight**2 / n)
    return float(weight.sum() * exact(0.0, units, level).high * sample.area.max())


def select(sample: Sample, chosen: NDArray[np.bool_]) -> Float:
    """Area of the chosen units, 0 for the others."""
    return np.where(chosen, sample.area, 0.0)
