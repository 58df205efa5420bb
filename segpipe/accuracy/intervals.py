"""Confidence intervals of proportions: normal, or exact where a sample is too small for that."""

import math
from dataclasses import dataclass
from statistics import NormalDist

FEW = 5.0
"""Effective number of units with or without a property below which the normal interval of their share is not used."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Limits of a confidence interval, and how they were found: ``normal`` or ``exact``."""

    low: float
    high: float
    kind: str


def z_value(level: float) -> float:
    """Quantile of the normal distribution for a two-sided interval, with the three decimals that the papers use.

    >>> z_value(0.95), z_value(0.9)
    (1.96, 1.645)
    """
    return round(NormalDist().inv_cdf((1 + level) / 2), 3)


def normal(value: float, error: float, level: float) -> Interval:
    """The value, plus and minus its standard error times the normal quantile."""
    width = z_value(level) * error
    return Interval(value - width, value + width, "normal")


def exact(share: float, units: float, level: float) -> Interval:
    """Clopper-Pearson's interval of a share that was found among ``units``, a number that need not be whole.

    With an effective number of units it is the interval of Korn and Graubard (1998) for stratified samples.
    """
    tail, hits = (1 - level) / 2, share * units
    misses = units - hits
    low = beta_quantile(tail, hits, misses + 1) if hits > 0 else 0.0
    high = beta_quantile(1 - tail, hits + 1, misses) if misses > 0 else 1.0
    return Interval(low, high, "exact")


def is_small(share: float, units: float) -> bool:
    """Whether so few units have, or have not, a property that a normal interval would mislead."""
    return units * min(share, 1 - share) < FEW


def beta_quantile(probability: float, a: float, b: float) -> float:
    """Quantile of the beta distribution, by bisection, to 1e-12."""
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if beta_cdf(middle, a, b) < probability else (low, middle)
    return (low + high) / 2


def beta_cdf(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function, by its continued fraction (DLMF 8.17.22)."""
    if not 0 < x < 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - beta_cdf(1 - x, b, a)
    log = a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return math.exp(log) / (a * _fraction(x, a, b))


def _fraction(x: float, a: float, b: float) -> float:
    """1 + d1 / (1 + d2 / (1 + ...)), by the method of Lentz."""
    value, upper, lower = 1.0, 1.0, 0.0
    for k in range(1, 10_000):
        m = k // 2
        even = m * (b - m) * x / ((a + k - 1) * (a + k))
        odd = -(a + m) * (a + b + m) * x / ((a + k - 1) * (a + k))
        step = odd if k % 2 else even
        lower = 1 / ((1 + step * lower) or 1e-300)
        upper = (1 + step / upper) or 1e-300
        value *= upper * lower
        if abs(upper * lower - 1) < 1e-15:
            break
    return value
