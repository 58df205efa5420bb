"""Sizes of samples, against the paper, and how they are spread, against rules that any allocation keeps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.accuracy.allocation import allocate, needed_size
from segpipe.errors import SettingsError

UNITS = np.array([200_000, 150_000, 3_200_000, 6_450_000])
"""Pixels of 30 m of the example of Olofsson et al. (2014)."""


def test_the_size_of_the_paper():
    assert needed_size((0.02, 0.015, 0.32, 0.645), (0.7, 0.6, 0.9, 0.95), 0.01) == 641


def test_allocations_of_the_paper():
    """Table 5: 75 for each rare class and the rest by area; the paper rounds 163 and 328 to 165 and 325."""
    assert allocate(641, UNITS, "rare", 75).tolist() == [75, 75, 163, 328]
    assert allocate(641, UNITS, "equal", 75).tolist() == [161, 160, 160, 160]
    assert allocate(641, UNITS, "proportional", 75).tolist() == [13, 10, 205, 413]


def test_no_class_gives_more_pixels_than_it_has():
    assert allocate(100, np.array([3, 1000, 50]), "equal", 50).tolist() == [3, 49, 48]
    assert allocate(1000, np.array([3, 10, 5]), "rare", 2).tolist() == [3, 10, 5]


def test_a_sample_too_small_for_its_strata_is_refused():
    with pytest.raises(SettingsError, match="4 strata need at least 200 units in the sample, got 100"):
        allocate(100, UNITS, "rare", 50)
    with pytest.raises(SettingsError, match="at least 8 units in the sample, got 5"):
        allocate(5, UNITS, "proportional", 50)


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=12), st.integers(1, 9000),
    st.sampled_from(["rare", "proportional", "equal"]), st.integers(0, 60),
)  # fmt: skip
def test_parts_add_up_within_their_limits(units, size, allocation, minimum):
    units = np.array(units)
    try:
        found = allocate(size, units, allocation, minimum)
    except SettingsError:
        return
    assert found.sum() == min(size, units.sum())
    assert (found <= units).all()
    assert (found >= np.minimum(minimum if allocation == "rare" else min(2, size), units)).all()
    if allocation == "proportional":
        free = (found > 2) & (found < units)
        share = found[free] / units[free]
        assert np.allclose(share, share.mean() if len(share) else 0, atol=1 / units[free].min() if len(share) else 0)
