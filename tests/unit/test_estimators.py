"""Estimators, against every number that the papers print, and in simulated populations."""

from dataclasses import replace

import golden
import numpy as np
import pytest
from scipy.stats import beta

from segpipe.accuracy.design import design_of
from segpipe.accuracy.estimate import OVERALL, Design, Level, estimate
from segpipe.accuracy.estimators import Sample, Strata, largest_unseen, ratio, select, total

NORMAL = Level(0.95, exact=False)


def columns(found, *quantities):
    return [[found.of(name, what).value for name in found.design.classes] for what in quantities]


def errors(found, *quantities):
    return [[found.of(name, what).error for name in found.design.classes] for what in quantities]


def test_olofsson_2014():
    found = estimate(design_of(golden.OLOFSSON_2014), NORMAL)
    area, user, producer = columns(found, "area", "users_accuracy", "producers_accuracy")
    assert [round(value) for value in area] == [21158, 11686, 285770, 581386]
    half = [(row.interval.high - row.interval.low) / 2 for row in found.rows if row.quantity == "area"]
    assert [round(value) for value in half] == [6158, 3756, 15510, 16282]
    assert [round(value, 2) for value in user] == [0.88, 0.73, 0.93, 0.96]
    assert [round(value, 2) for value in producer] == [0.75, 0.85, 0.93, 0.96]
    assert round(found.of(OVERALL, "overall_accuracy").value, 2) == 0.95
    assert round(1.96 * found.of(OVERALL, "overall_accuracy").error, 2) == 0.02


def test_olofsson_2014_to_all_digits():
    """As the R package mapaccuracy computes them."""
    found = estimate(design_of(golden.OLOFSSON_2014), NORMAL)
    error, user, producer = errors(found, "area", "users_accuracy", "producers_accuracy")
    assert error == pytest.approx([3141.6501969730475, 1916.237768063191, 7913.181784790094, 8306.967526655488], rel=1e-12)
    assert user == pytest.approx([0.037776011264, 0.051406640064, 0.020278249872, 0.010476275861], abs=1e-12)
    assert producer == pytest.approx([0.108831557646, 0.129800184040, 0.017512460544, 0.009368130348], abs=1e-12)
    overall = found.of(OVERALL, "overall_accuracy")
    assert (overall.value, overall.error) == pytest.approx((0.9465118881118881, 0.009430417215588913), rel=1e-12)


def test_olofsson_2013():
    found = estimate(design_of(golden.OLOFSSON_2013), NORMAL)
    assert columns(found, "area")[0] == pytest.approx([45112.4, 1050067.27, 659944.33], rel=1e-12)
    assert errors(found, "area")[0] == pytest.approx([10751.404503460624, 17652.043754279035, 18635.85587158388], rel=1e-12)
    user, producer = columns(found, "users_accuracy", "producers_accuracy")
    assert user == pytest.approx([0.97, 0.93, 0.97])
    assert producer == pytest.approx([0.48063082434097937, 0.9941886770739936, 0.8969258967646558], rel=1e-12)
    of_user, of_producer = errors(found, "users_accuracy", "producers_accuracy")
    assert of_user == pytest.approx([0.017144660799776536, 0.014755532945588956, 0.017144660799776536], rel=1e-12)
    assert of_producer == pytest.approx([0.11455845594876345, 0.0057782786125577515, 0.021023553285353574], rel=1e-12)
    overall = found.of(OVERALL, "overall_accuracy")
    assert (overall.value, overall.error) == pytest.approx((0.94441678194817, 0.011164399504990813), rel=1e-12)


def test_stehman_2014():
    """Strata that are not the classes of the map, with the finite-population correction; page 4932 to 4936."""
    sample, strata = golden.STEHMAN_2014
    whole = strata.weight.sum()
    a, b, c = (select(sample, sample.reference == k) for k in range(3))
    assert [round(v / whole, 5) for v in total(sample, strata, a)] == [0.35, 0.08225]
    assert [round(v / whole, 5) for v in total(sample, strata, c)] == [0.2, 0.06428]
    overall = ratio(sample, strata, select(sample, sample.mapped == sample.reference), sample.area)
    assert (round(overall.value, 5), round(overall.error, 5)) == (0.63, 0.08464)
    both = select(sample, (sample.mapped == 1) & (sample.reference == 1))
    user, producer = ratio(sample, strata, both, select(sample, sample.mapped == 1)), ratio(sample, strata, both, b)
    assert (round(user.value, 4), round(user.error, 5)) == (0.5745, 0.12478)
    assert (round(producer.value, 4), round(producer.error, 5)) == (0.7941, 0.11655)


def test_tyukavina_2025():
    """Units of unequal area, of which the map and the reference may have shares."""
    sample, strata, mapped, reference = golden.tyukavina_2025()
    area, error = total(sample, strata, sample.area * reference)
    assert (round(area, 3), round(error, 3)) == (1223902.897, 31611.102)
    both = sample.area * np.minimum(mapped, reference)
    right = both + sample.area * np.minimum(1 - mapped, 1 - reference)
    overall = ratio(sample, strata, right, sample.area)
    user, producer = (ratio(sample, strata, both, sample.area * share) for share in (mapped, reference))
    printed = [(round(100 * one.value, 4), round(100 * one.error, 4)) for one in (overall, user, producer)]
    assert printed == [(92.0892, 0.7080), (80.6911, 1.8258), (93.6268, 1.3789)]


def test_a_simple_random_sample_by_hand():
    """20 of 100 units wrong: the variance of a share is p (1 - p) / (n - 1)."""
    counts = np.array([[40, 10], [10, 40]])
    matrix = replace(golden.OLOFSSON_2014, mapped=("a", "b"), reference=("a", "b"), counts=counts, area=np.array([5.0, 5]))
    found = estimate(design_of(matrix, simple=True), NORMAL)
    overall = found.of(OVERALL, "overall_accuracy")
    assert (overall.value, overall.error) == pytest.approx((0.8, (0.8 * 0.2 / 99) ** 0.5))
    assert (found.of("a", "area").value, found.of("a", "area").error) == pytest.approx((5.0, 10 * (0.25 / 99) ** 0.5))
    assert found.of("a", "users_accuracy").value == pytest.approx(0.8)


def test_equal_units_make_equal_estimates_whatever_their_area():
    sample, strata = golden.STEHMAN_2014
    larger = replace(sample, area=np.full(40, 7.0))
    y = sample.reference == 0
    one, other = total(sample, strata, select(sample, y)), total(larger, strata, select(larger, y))
    assert np.multiply(one, 7) == pytest.approx(other)
    first, second = (ratio(s, strata, select(s, y), s.area) for s in (sample, larger))
    assert (first.value, first.error, first.units) == pytest.approx((second.value, second.error, second.units))


def test_rows_of_many_units_are_as_good_as_many_rows():
    once = Sample(np.array([0, 0, 1]), np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([3, 2, 4]), np.ones(3))
    each = Sample(*(np.repeat(values, once.count) for values in (once.stratum, once.mapped, once.reference)),
                  np.ones(9, int), np.ones(9))  # fmt: skip
    strata = Strata(np.array([10.0, 20]), np.zeros(2))
    first, second = (ratio(s, strata, select(s, s.reference == 1), s.area) for s in (once, each))
    assert (first.value, first.error, first.units) == pytest.approx((second.value, second.error, second.units))


def test_what_was_not_sampled_may_hide_some():
    """A stratum of 20 with no hit among 30 units: at most 20 times the exact limit."""
    sample = Sample(np.array([0, 1]), np.array([0, 1]), np.array([0, 1]), np.array([10, 30]), np.ones(2))
    strata = Strata(np.array([5.0, 20]), np.zeros(2))
    hidden = largest_unseen(sample, strata, select(sample, sample.reference == 0), 0.9)
    assert hidden == pytest.approx(20 * (1 - 0.05 ** (1 / 30)))
    assert largest_unseen(sample, strata, sample.area, 0.9) == 0


@pytest.mark.parametrize("spread", [0.0, 1e-16, 3e-16, 1e-6, 0.1])
@pytest.mark.parametrize("size", [0.01, 1.0, 7.0])
def test_a_sample_without_an_error_has_an_exact_interval_whatever_the_areas_of_its_pixels(size, spread):
    """Rounding, and areas of pixels, must not stand for what was not seen; SciPy is the oracle."""
    n, pixels = np.array([7, 19, 4]), np.array([300.0, 1000, 99])
    stratum = np.repeat(np.arange(3), n)
    area = size * (1 + spread * np.random.default_rng(0).uniform(-1, 1, 30))
    sample = Sample(stratum, stratum, stratum, np.ones(30, int), area)
    whole = Strata(pixels, n / pixels)
    found = estimate(Design("abc", "abc", sample, whole, float(pixels.sum() * size), None, "ha", "", ()), Level(0.95))
    units = pixels.sum() ** 2 / (pixels**2 / n).sum()  # Kish (1965)
    for k, name in enumerate("abc"):
        share = found.of(name, "share")
        hits = share.value * units
        limits = beta.ppf(0.025, hits, units - hits + 1), beta.ppf(0.975, hits + 1, units - hits)
        assert share.value == pytest.approx(pixels[k] / pixels.sum(), rel=2 * spread + 1e-12)
        assert (share.interval.low, share.interval.high) == pytest.approx(limits, abs=1e-9)


POPULATION = 20_000
DRAWS = 400


@pytest.fixture(scope="module")
def population():
    """Map and reference of a population with three classes, one of them rare, and areas of its units."""
    draw = np.random.default_rng(5)
    reference = draw.choice(3, POPULATION, p=[0.08, 0.32, 0.6])
    wrong = draw.random(POPULATION) < np.array([0.4, 0.3, 0.2])[reference]
    mapped = np.where(wrong, draw.integers(0, 3, POPULATION), reference)
    return mapped, reference, draw.uniform(0.5, 1.5, POPULATION)


def drawn(draw, population, strata, sizes):
    mapped, reference, area = population
    chosen = np.concatenate([draw.choice(np.flatnonzero(strata == k), n, replace=False) for k, n in enumerate(sizes)])
    units = np.bincount(strata).astype(float)
    sample = Sample(strata[chosen], mapped[chosen], reference[chosen], np.ones(len(chosen), int), area[chosen])
    return sample, Strata(units, np.array(sizes) / units)


@pytest.mark.parametrize("alike", [True, False], ids=["equal areas", "unequal areas"])
@pytest.mark.parametrize("design", ["map", "other strata", "simple"])
def test_intervals_hold_the_truth_in_95_of_100_draws(population, design, alike):
    mapped, reference, area = population
    area = np.ones(POPULATION) if alike else area
    strata = {"map": mapped, "other strata": np.arange(POPULATION) // 5000, "simple": np.zeros(POPULATION, int)}[design]
    sizes = {"map": [120, 150, 200], "other strata": [100, 100, 150, 120], "simple": [450]}[design]
    true_area = area[reference == 1].sum()
    true_overall = area[mapped == reference].sum() / area.sum()
    true_producer = area[(mapped == 1) & (reference == 1)].sum() / true_area
    true_user = area[(mapped == 1) & (reference == 1)].sum() / area[mapped == 1].sum()
    held, draw, means = np.zeros(4), np.random.default_rng(1), []
    for _ in range(DRAWS):
        sample, known = drawn(draw, (mapped, reference, area), strata, sizes)
        both, found = (select(sample, x) for x in ((sample.mapped == 1) & (sample.reference == 1), sample.reference == 1))
        value, error = total(sample, known, found)
        ratios = [
            ratio(sample, known, select(sample, sample.mapped == sample.reference), sample.area),
            ratio(sample, known, both, select(sample, sample.mapped == 1)),
            ratio(sample, known, both, found),
        ]
        means.append(value)
        held[0] += abs(value - true_area) <= 1.96 * error
        for k, (one, truth) in enumerate(zip(ratios, (true_overall, true_user, true_producer), strict=True), 1):
            held[k] += abs(one.value - truth) <= 1.96 * one.error
    assert np.mean(means) == pytest.approx(true_area, rel=0.01)
    assert np.all(held / DRAWS > 0.91), held / DRAWS
    assert np.all(held / DRAWS < 0.99), held / DRAWS
