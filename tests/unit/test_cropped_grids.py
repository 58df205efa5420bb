"""Grids of a case of which the network sees a box, against the grids of the box alone."""

import pickle

import numpy as np
import pytest

from segpipe.geometry.cropped_grids import CroppedGrids, outside_of
from segpipe.geometry.regridding import Regridding, grown, resample
from segpipe.geometry.windows import Cover, Tiling, Window
from segpipe.pipeline.regrid import interpolated

BOX = Window((2, 0, 3), (9, 6, 11))
INSIDE = tuple(slice(a, b) for a, b in zip(BOX.start, BOX.stop, strict=True))
FACTORS = [(1.0, 1.0, 1.0), (1.4, 0.7, 1.0), (0.3, 2.5, 0.9)]


def grids(factors: tuple[float, ...]) -> tuple[CroppedGrids, Regridding]:
    return CroppedGrids((12, 6, 13), factors, (1.0, -1.0), box=BOX), Regridding(BOX.shape, factors)


@pytest.mark.parametrize("factors", FACTORS)
def test_pixels_are_those_of_the_box_alone(factors):
    whole, alone = grids(factors)
    assert whole.shape == alone.shape
    pixels = np.random.default_rng(0).normal(size=(2, *whole.own))
    window = Window((1, 0, 2), whole.shape)
    needed = whole.needed(window)
    assert needed == alone.needed(window).moved(BOX.start)
    invalid = np.random.default_rng(1).random(needed.shape) < 0.2
    taken = pixels[(slice(None), *(slice(a, b) for a, b in zip(needed.start, needed.stop, strict=True)))]
    for mask in (None, invalid):
        found, wanted = resample(whole, window, taken, mask), resample(alone, window, taken, mask)
        assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("factors", FACTORS)
def test_boxes_own_each_pixel_once_and_scores_are_those_of_the_box_alone(factors):
    whole, alone = grids(factors)
    scores = np.random.default_rng(2).normal(size=whole.shape).astype(np.float32)
    straight = interpolated(scores[None].copy(), alone.between(Window((0,) * 3, alone.own)), (0, 0, 0))[0]
    found, times = np.full(whole.own, np.nan), np.zeros(whole.own, int)
    tile = tuple(min(4, n) for n in whole.shape)
    cover = Cover(whole.shape, Tiling(tile, tuple(n // 2 for n in tile), (1, 1, 1), "linear"), 1)
    for index in cover:
        box = cover.finished(index)
        owned, haloed = whole.owned(box), grown(box)
        if owned.size:
            at = tuple(slice(a, b) for a, b in zip(owned.start, owned.stop, strict=True))
            own = tuple(slice(a, b) for a, b in zip(haloed.start, haloed.stop, strict=True))
            found[at] = interpolated(scores[(None, *own)].copy(), whole.between(owned), haloed.start)[0]
            times[at] += 1
    assert (times == 1).all()
    assert np.array_equal(found[INSIDE], straight)


def test_what_lies_outside():
    mask = outside_of(Window((0, 0, 0), (12, 6, 13)), BOX)
    assert mask is not None
    assert not mask[INSIDE].any()
    assert mask.sum() == mask.size - BOX.size
    assert outside_of(Window((3, 1, 4), (5, 2, 6)), BOX) is None


def test_they_travel_to_workers():
    whole, _ = grids(FACTORS[1])
    assert pickle.loads(pickle.dumps(whole)) == whole
