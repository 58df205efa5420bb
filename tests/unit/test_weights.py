import numpy as np
import pytest
from hypothesis import given
from test_windows import axes

from segpipe.geometry.starts import axis_starts
from segpipe.geometry.weighting import GAUSSIAN_FLOOR, Weights, axis_profiles, profile
from segpipe.geometry.windows import Cover, Tiling

BLENDS = ["gaussian", "cosine", "linear", "constant", "crop"]


@pytest.mark.parametrize("blend", BLENDS)
@given(axis=axes())
def test_weights_are_symmetric_positive_and_one_towards_a_border(blend, axis):
    _, tile, overlap, _ = axis
    profiles = axis_profiles(axis_starts(*axis), tile, blend)
    assert len(profiles) == len(axis_starts(*axis))
    np.testing.assert_array_equal(profiles[0][: tile // 8 or 1], 1)
    np.testing.assert_array_equal(profiles[-1][-(tile // 8 or 1) :], 1)
    for weights in profiles:
        assert weights.dtype == np.float32
        assert weights.max() <= 1
        assert weights.min() >= 0 if blend == "crop" else weights.min() > 0
    for shared in {0, overlap}:
        inner = profile(tile, shared, shared, blend)
        if blend != "crop" or shared % 2 == 0:
            np.testing.assert_array_equal(inner, inner[::-1])


@given(axis=axes())
def test_crop_partitions_an_axis(axis):
    starts, tile = axis_starts(*axis), axis[1]
    total = np.zeros(starts[-1] + tile)
    for start, weights in zip(starts, axis_profiles(starts, tile, "crop"), strict=True):
        total[start : start + tile] += weights
    np.testing.assert_array_equal(total, 1)


@pytest.mark.parametrize("blend", ["linear", "cosine"])
def test_two_ramps_add_up_to_one(blend):
    left, right = axis_profiles((0, 44), 64, blend)
    np.testing.assert_allclose(left[44:] + right[:20], 1, atol=1e-6)


def test_linear_ramp_by_hand():
    np.testing.assert_allclose(profile(6, 2, 0, "linear"), [0.25, 0.75, 1, 1, 1, 1])


def test_gaussian_has_a_sigma_of_an_eighth_of_the_tile_and_a_floor():
    weights = profile(64, 16, 16, "gaussian")
    x = np.arange(64) - 31.5
    expected = np.exp(-(x**2) / (2 * 8**2)) / np.exp(-(0.5**2) / (2 * 8**2))
    np.testing.assert_allclose(weights[16:48], expected[16:48], rtol=1e-6)
    assert weights.min() == pytest.approx(GAUSSIAN_FLOOR, rel=1e-2)


@pytest.mark.parametrize("blend", BLENDS)
def test_total_is_the_sum_over_all_windows(blend):
    cover = Cover((150, 101), Tiling((32, 24), (16, 18), (4, 2), blend))
    weights, total = Weights.over(cover), np.zeros(cover.padded)
    for index in cover:
        window = cover.window(index)
        total[tuple(slice(a, b) for a, b in zip(window.start, window.stop, strict=True))] += weights.of(index)
    np.testing.assert_allclose(weights.total((slice(0, 150), slice(0, 101))), total[:150, :101], rtol=1e-6)
    assert total.min() > 0
