"""Grids of nnU-Net's predictor against SciPy's zoom, and windows and weights against their definition."""

import pickle

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom

from segpipe.geometry.nnunet_grids import NnunetGrids, PlacedAxis, resized_shape, thick_axis
from segpipe.geometry.regridding import grown
from segpipe.geometry.starts import nearest_starts
from segpipe.geometry.weighting import profile
from segpipe.geometry.windows import Cover, Tiling, Window
from segpipe.pipeline.regrid import interpolated

PLACED = (PlacedAxis(2, 9, 5, 1, 2), PlacedAxis(0, 6, 9, 0, 0), PlacedAxis(3, 11, 8, 2, 1))
GRIDS = NnunetGrids((12, 6, 13), (7 / 5, 6 / 9, 1.0), (1.0, -1.0), PLACED)


def straight(scores: np.ndarray) -> np.ndarray:
    """Scores of the padded grid on the crop, as SciPy interpolates them."""
    inner = scores[tuple(slice(one.below, one.below + one.resized) for one in PLACED)]
    factors = [(one.stop - one.start) / one.resized for one in PLACED]
    return zoom(inner, factors, order=1, mode="nearest", grid_mode=True)


def test_scores_are_those_of_a_zoom_of_the_whole():
    scores = np.random.default_rng(0).normal(size=GRIDS.shape).astype(np.float32)
    whole = Window((0, 0, 0), GRIDS.own)
    found = interpolated(scores[None].copy(), GRIDS.between(whole), (0, 0, 0))[0]
    assert np.allclose(found[GRIDS.crop], straight(scores), atol=1e-5)


def test_boxes_own_each_pixel_once_and_need_no_other_scores():
    scores = np.random.default_rng(1).normal(size=GRIDS.shape).astype(np.float32)
    found, times = np.zeros(GRIDS.own), np.zeros(GRIDS.own, int)
    cover = Cover(GRIDS.shape, Tiling((4, 5, 6), (2, 2, 3), (1, 1, 1), "nnunet"), 1)
    for index in cover:
        box = cover.finished(index)
        owned, haloed = GRIDS.owned(box), grown(box)
        if owned.size:
            at = tuple(slice(a, b) for a, b in zip(owned.start, owned.stop, strict=True))
            own = tuple(slice(a, b) for a, b in zip(haloed.start, haloed.stop, strict=True))
            found[at] = interpolated(scores[(None, *own)].copy(), GRIDS.between(owned), haloed.start)[0]
            times[at] += 1
    assert (times == 1).all()
    assert np.allclose(found[GRIDS.crop], straight(scores), atol=1e-5)


def test_what_lies_outside_the_crop():
    mask = GRIDS.outside(Window((0, 0, 0), GRIDS.own))
    assert mask is not None
    assert not mask[GRIDS.crop].any()
    assert mask.sum() == mask.size - 7 * 6 * 8
    assert GRIDS.outside(Window((2, 0, 3), (9, 6, 11))) is None


def test_grids_survive_a_worker():
    assert GRIDS.shape == (8, 9, 11)
    again = pickle.loads(pickle.dumps(GRIDS))
    assert (again, again.axes, again.shape) == (GRIDS, GRIDS.axes, GRIDS.shape)


def test_the_nearest_pixel_along_thick_slices():
    axis = NnunetGrids((6,), (2.0,), placed=(PlacedAxis(0, 6, 3, 0, 0, nearest=True),)).axes[0]
    points = axis.between(0, 6)
    assert (points.share == 1).all()
    assert points.upper.tolist() == [0, 0, 1, 1, 2, 2]


def test_thick_axes_and_shapes():
    assert thick_axis((5, 1, 1), (1, 1, 1), None) == 0
    assert thick_axis((1, 1, 1), (1, 1, 4), None) == 2
    assert thick_axis((3, 1, 1), (1, 1, 1), None) is None  # a ratio of 3 is not above it
    assert thick_axis((1, 4, 4), (1, 1, 1), None) is None  # two axes are
    assert thick_axis((5, 1, 1), (1, 1, 1), False) is None
    assert thick_axis((2, 1, 1), (1, 1, 1), True) == 0
    assert resized_shape((10, 5), (1.0, 1.0), (2.0, 2.0)) == (5, 2)  # Python rounds 2.5 to 2


@pytest.mark.parametrize("size", [7, 8, 9, 12, 13, 30, 41])
@pytest.mark.parametrize("tile", [7, 8])
def test_windows_are_spread_and_rounded(size: int, tile: int):
    count = int(np.ceil((size - tile) / (tile * 0.5))) + 1 if size > tile else 1
    step = (size - tile) / (count - 1) if count > 1 else 0
    found = nearest_starts(size, tile)
    assert list(found) == [int(np.round(step * i)) for i in range(count)]
    assert found.nearest == (min(np.diff(list(found))) if count > 1 else 0)
    assert list(nearest_starts(5, 1)) == [0, 1, 2, 3, 4]  # slices


def test_weights_are_a_gaussian_around_the_upper_middle():
    peak = np.zeros(16)
    peak[8] = 1
    wanted = gaussian_filter(peak, 2, mode="constant")
    assert np.allclose(profile(16, 4, 0, "nnunet"), wanted / wanted.max(), atol=1e-6)
