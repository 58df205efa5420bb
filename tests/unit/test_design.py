"""What a design makes of a matrix: strata, warnings, and samples from which nothing can be estimated."""

from dataclasses import replace

import golden
import numpy as np
import pytest

from segpipe.accuracy.design import Matrix, design_of
from segpipe.accuracy.estimate import OVERALL, Level, estimate
from segpipe.errors import InputError

TWO = Matrix(("a", "b"), ("a", "b"), np.array([[40, 10], [10, 40]]), np.array([10.0, 90]))


def test_a_class_without_area_is_no_stratum():
    more = replace(TWO, mapped=("a", "x", "b"), counts=np.array([[40, 10], [0, 0], [10, 40]]), area=np.array([10.0, 0, 90]))
    found, plain = estimate(design_of(more)), estimate(design_of(TWO))
    assert found.design.strata == ["a", "b"]
    assert found.of("b", "area") == plain.of("b", "area")
    assert found.of("x", "users_accuracy").value is None
    assert any("x is in no sample" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("counts", "area", "said"),
    [
        ([[0, 0], [10, 40]], [10, 90], "each stratum must have units in the sample, and a, 10 of area, has none"),
        ([[4, 1], [10, 40]], [0, 90], "a has 5 units in the sample and no mapped area"),
    ],
)
def test_strata_and_samples_fit(counts, area, said):
    with pytest.raises(InputError, match=said):
        design_of(replace(TWO, counts=np.array(counts), area=np.array(area, float)))


def test_one_unit_in_a_stratum_is_said_and_makes_the_error_large():
    one = replace(TWO, counts=np.array([[1, 0], [10, 40]]))
    found = estimate(design_of(one))
    assert "stratum a has one sample" in found.warnings[0]
    known, whole = 90**2 * 0.8 * 0.2 / 49, 100.0
    assert found.of(OVERALL, "overall_accuracy").error == pytest.approx((known + 10**2 * 0.25) ** 0.5 / whole)
    assert found.of("b", "users_accuracy").error == pytest.approx((0.8 * 0.2 / 49) ** 0.5)  # of b alone


def test_names_that_do_not_match_are_said():
    found = design_of(replace(TWO, reference=("a", "B")))
    assert found.classes == ("a", "b", "B")
    assert "classes of the reference that the map does not have: B" in found.warnings[0]
    assert "classes of the map that the reference does not have: b" in found.warnings[1]
    estimates = estimate(found)
    assert estimates.of("B", "users_accuracy").value is None
    assert estimates.of("B", "area").value == pytest.approx(10 * 0.2 + 90 * 0.8)


def test_a_stratified_sample_is_not_a_simple_one():
    said = design_of(golden.OLOFSSON_2014, simple=True).warnings
    assert "the design does not fit: 75 of 640 units are in deforestation, which covers 2.00% of the map" in said[0]
    fitting = replace(TWO, area=np.array([50.0, 50]))
    assert design_of(fitting, simple=True).warnings == ()


def test_a_simple_sample_without_errors_has_no_interval_of_no_width():
    right = replace(TWO, counts=np.array([[5, 0], [0, 45]]))
    for simple in (True, False):
        found = estimate(design_of(right, simple=simple))
        for row in found.rows:
            assert row.interval.high > row.interval.low, row
        assert found.of("b", "users_accuracy").interval.low == pytest.approx(0.025 ** (1 / 45))


def test_nothing_omitted_in_the_sample_is_no_proof():
    """A class of 10 of 100 ha that was found nowhere else: 0 of 45 units leave room for 7 of the other 90 ha."""
    found = estimate(design_of(replace(TWO, counts=np.array([[20, 0], [0, 45]]))))
    limit = 90 * (1 - 0.025 ** (1 / 45))
    assert found.of("a", "producers_accuracy").interval.low == pytest.approx(10 / (10 + limit))


def test_all_pixels_in_the_sample_leave_no_error():
    found = estimate(design_of(replace(TWO, pixels=np.array([50, 50]))), Level(exact=False))
    assert {row.error for row in found.rows} == {0.0}


def test_a_sample_of_no_units_is_refused():
    with pytest.raises(InputError, match="every count of the matrix is 0"):
        design_of(replace(TWO, counts=np.zeros((2, 2), int)), simple=True)


def test_the_matrix_of_areas_has_the_mapped_areas_as_sums():
    found = estimate(design_of(golden.OLOFSSON_2014))
    assert found.matrix.sum(axis=1) == pytest.approx(golden.OLOFSSON_2014.area / 900_000)
    assert found.matrix.sum(axis=0) == pytest.approx([found.of(c, "share").value for c in found.design.classes])
