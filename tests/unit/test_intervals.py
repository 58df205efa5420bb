"""Intervals of proportions, against SciPy and published tables."""

import numpy as np
import pytest
from scipy import stats

from segpipe.accuracy.intervals import beta_cdf, beta_quantile, exact, is_small, normal, z_value


@pytest.mark.parametrize("seed", range(5))
def test_quantiles_are_those_of_scipy(seed):
    draw = np.random.default_rng(seed)
    for _ in range(60):
        a, b = 10 ** draw.uniform(-1, 5, 2)
        probability = draw.uniform(0.005, 0.995)
        assert beta_quantile(probability, a, b) == pytest.approx(stats.beta.ppf(probability, a, b), abs=2e-12)


def test_the_distribution_ends_at_0_and_1():
    assert (beta_cdf(0.0, 2, 3), beta_cdf(1.0, 2, 3), beta_cdf(-1, 2, 3)) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize(("hits", "units"), [(0, 30), (30, 30), (1, 10), (66, 75), (313, 325)])
def test_exact_intervals_are_those_of_the_binomial_test(hits, units):
    found, wanted = exact(hits / units, units, 0.95), stats.binomtest(hits, units).proportion_ci(0.95, "exact")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-10)
    assert found.kind == "exact"


def test_the_rule_of_three():
    """With no hit among 30, the upper limit of 95 % on one side is near 3 / 30."""
    assert exact(0.0, 30, 0.9).high == pytest.approx(1 - 0.05 ** (1 / 30))


def test_normal_intervals_have_the_quantiles_of_the_papers():
    assert [z_value(level) for level in (0.9, 0.95, 0.99)] == [1.645, 1.96, 2.576]
    found = normal(0.5, 0.1, 0.95)
    assert (found.low, found.high, found.kind) == (pytest.approx(0.304), pytest.approx(0.696), "normal")


def test_a_share_is_small_where_few_units_have_it_or_lack_it():
    assert is_small(0.02, 100)
    assert is_small(0.98, 100)
    assert not is_small(0.1, 100)


@pytest.mark.parametrize(("share", "units"), [(0.94, 150), (0.9, 75), (0.97, 325), (0.98, 100)])
def test_small_samples_are_held_where_normal_intervals_fail(share, units):
    """High accuracies in samples as they are: the normal interval of 150 units at 0.94 holds it in 9 of 10 draws only."""
    held = np.zeros(2)
    for hits in np.random.default_rng(0).binomial(units, share, 1000):
        p = hits / units
        error = np.sqrt(p * (1 - p) / (units - 1))
        plain = normal(p, error, 0.95)
        chosen = exact(p, units, 0.95) if not error or is_small(p, units) else plain
        held += [plain.low <= share <= plain.high, chosen.low <= share <= chosen.high]
    assert held[1] >= 950 > held[0]
