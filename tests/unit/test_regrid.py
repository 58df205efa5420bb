"""Scores on the case's own grid against interpolation of the whole array, for one to three axes."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from test_regridding import grids, places, slices, whole

from segpipe.formats.case import Case
from segpipe.geometry.division import Limits, divide
from segpipe.geometry.regridding import Regridding
from segpipe.geometry.weighting import Weights
from segpipe.geometry.windows import Cover, Tiling, Window
from segpipe.pipeline import regrid as module
from segpipe.pipeline.blend import blend
from segpipe.pipeline.regrid import blocks, can_win, regrid, split
from segpipe.pipeline.tiles import Scored

CLASSES = 2


@st.composite
def covers(draw, regridding):
    ndim = len(regridding.own)
    align = draw(st.sampled_from([1, 2]))
    tile = tuple(align * (-(-n // (align * 5)) + draw(st.integers(0, 5))) for n in regridding.shape)
    overlap = tuple(draw(st.integers(0, min(n - align, n * 2 // 3))) for n in tile)
    blending = draw(st.sampled_from(["gaussian", "linear", "constant", "crop"]))
    return Cover(regridding.shape, Tiling(tile, overlap, (align,) * ndim, blending), halo=1)


def info_of(regridding, cover, part):
    windows = cover.touching(part)
    return SimpleNamespace(regridding=regridding, cover=cover, part=part, windows=windows, weights=Weights.over(cover))


def tiles(info, scores, invalid):
    """As they come from the model: of a window without a valid pixel without scores."""
    grids, cover = info.regridding, info.cover
    seen = grids.seen(invalid, whole(grids.shape))
    for index in info.windows:
        window, box = cover.window(index), cover.finished(index)
        inside = Window(window.start, tuple(min(a, b) for a, b in zip(window.stop, grids.shape, strict=True)))
        own = invalid[slices(grids.needed_by_box(box))]
        weighted = scores[index] * info.weights.of(index) if seen[slices(inside)].any() else None
        yield Scored(Case("a", "a"), info, index, weighted, own_invalid=own if own.any() else None)


def on_own_grid(info, scores, invalid):
    """Scores, where they are, and how often each own pixel has come."""
    grids = info.regridding
    found, count = np.full((CLASSES, *grids.own), np.nan, np.float32), np.zeros(grids.own, int)
    for box in regrid(blend(tiles(info, scores, invalid))):
        place = slices(box.window)
        count[place] += 1
        if box.sums is None:
            assert invalid[place].all()
            continue
        assert box.mean
        found[(slice(None), *place)] = box.sums
        lost = np.zeros(box.window.shape, bool) if box.invalid is None else box.invalid
        np.testing.assert_array_equal(lost, invalid[place])
    return found, count


def expected(info, scores, invalid):
    """In float64: sums over all windows, divided by the weights, interpolated where there are valid pixels."""
    cover, grids = info.cover, info.regridding
    sums, weights = np.zeros((CLASSES, *cover.padded)), np.zeros(cover.padded)
    for index in cover:
        place = slices(cover.window(index))
        sums[(slice(None), *place)] += scores[index] * info.weights.of(index).astype(float)
        weights[place] += info.weights.of(index)
    mean = (sums / weights)[(slice(None), *slices(whole(grids.shape)))]
    seen = grids.seen(invalid, whole(grids.shape)).astype(float)
    points = np.meshgrid(*map(places, grids.axes), indexing="ij")
    weight = map_coordinates(seen, points, order=1, mode="nearest")
    with np.errstate(invalid="ignore"):
        return np.stack([map_coordinates(one * seen, points, order=1, mode="nearest") / weight for one in mean])


@pytest.mark.parametrize("ndim", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.97])
@settings(max_examples=25)
@given(data=st.data())
def test_scores_are_those_of_the_whole_array_interpolated(ndim, share, data):
    regridding = data.draw(grids(ndim, 24 if ndim < 3 else 8))
    cover = data.draw(covers(regridding))
    info = info_of(regridding, cover, cover.whole)
    rng = np.random.default_rng(0)
    scores = {index: rng.normal(size=(CLASSES, *cover.tiling.tile)).astype(np.float32) for index in cover}
    invalid = rng.random(regridding.own) < share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "AT_ONCE", data.draw(st.sampled_from([1, 40, 2**24])))
        found, count = on_own_grid(info, scores, invalid)
    assert (count == 1).all()
    assert np.isfinite(found[:, ~invalid]).all()
    np.testing.assert_allclose(found[:, ~invalid], expected(info, scores, invalid)[:, ~invalid], atol=5e-4)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@settings(max_examples=25)
@given(data=st.data())
def test_parts_have_the_bytes_of_the_whole(ndim, data):
    regridding = data.draw(grids(ndim, 24 if ndim < 3 else 8))
    cover = data.draw(covers(regridding))
    rng = np.random.default_rng(0)
    scores = {index: rng.normal(size=(CLASSES, *cover.tiling.tile)).astype(np.float32) for index in cover}
    invalid = rng.random(regridding.own) < data.draw(st.sampled_from([0, 0.3]))
    want, _ = on_own_grid(info_of(regridding, cover, cover.whole), scores, invalid)
    got, total = np.full_like(want, np.nan), np.zeros(regridding.own, int)
    for part in divide(cover, Limits(parts=data.draw(st.integers(1, 6)))):
        here, count = on_own_grid(info_of(regridding, cover, part), scores, invalid)
        box = slices(regridding.owned(cover.box(part)))
        assert count[box].sum() == count.sum()
        total += count
        got[(slice(None), *box)] = here[(slice(None), *box)]
    assert (total == 1).all()
    assert got[:, ~invalid].tobytes() == want[:, ~invalid].tobytes()


@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    most=st.integers(0, 50),
)
def test_a_box_is_split_into_boxes_that_fill_it(shape, most):
    window = Window((3,) * len(shape), tuple(3 + n for n in shape))
    count = np.zeros([12] * len(shape), int)
    for part in split(window, most):
        assert part.size <= max(most, 1)
        count[slices(part)] += 1
    assert (count[slices(window)] == 1).all()
    assert count.sum() == window.size


@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    most=st.integers(1, 50),
)
def test_a_box_is_split_into_blocks_that_fill_it(shape, most):
    window = Window((3,) * len(shape), tuple(3 + n for n in shape))
    count = np.zeros([12] * len(shape), int)
    for part in blocks(window, most):
        assert part.size <= most
        count[slices(part)] += 1
    assert (count[slices(window)] == 1).all()
    assert count.sum() == window.size


def test_blocks_are_about_cubes():
    assert {block.shape for block in blocks(Window((0, 5, 0), (60, 65, 60)), 27_000)} == {(30, 30, 30)}
    assert {block.shape for block in blocks(Window((7, 0, 0), (8, 60, 60)), 900)} == {(1, 30, 30)}


@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.0, 0.1, 1.0, 10.0]))
def test_the_largest_score_between_pixels_is_that_of_a_class_that_can_win(seed, spread):
    """Scores of many classes that lie close together, or far apart, at points between pixels, with float32's rounding."""
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(40, 1, 1, 1)) * spread + rng.normal(size=(40, 3, 4, 3))).astype(np.float32)
    kept = can_win(values)
    regridding = Regridding((5, 7, 6), (1.7, 1.8, 2.0))
    between = regridding.between(whole(regridding.own))
    scores = module.interpolated(values, between, (0, 0, 0))
    assert set(np.unique(scores.argmax(0))) <= set(kept)
    few = module.interpolated(values[kept], between, (0, 0, 0))
    assert few.tobytes() == scores[kept].tobytes()
    if spread == 10:
        assert len(kept) < 40


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_no_class_is_left_out_beside_scores_that_are_not_finite(wrong):
    values = np.arange(20, dtype=np.float32)[:, None, None] * 100 + np.zeros((20, 2, 2), np.float32)
    assert list(can_win(values)) == [19]
    values[3, 1, 0] = wrong
    assert 3 in can_win(values)


def test_each_window_is_counted_once():
    """Also where no own pixel lies in its box, and where its box is split."""
    regridding = Regridding((3, 40), (0.1, 0.25))
    cover = Cover(regridding.shape, Tiling((4, 16), (1, 4), (1, 1), "linear"), halo=1)
    info = info_of(regridding, cover, cover.whole)
    scores = {index: np.ones((CLASSES, 4, 16), np.float32) for index in cover}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "AT_ONCE", 4)
        boxes = list(regrid(blend(tiles(info, scores, np.zeros(regridding.own, bool)))))
    assert sum(box.inferred for box in boxes) == len(cover)
    assert any(box.window.size == 0 for box in boxes)
