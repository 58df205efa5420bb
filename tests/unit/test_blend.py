"""The strip against sums over the whole array, for one to three axes."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.geometry.division import Limits, divide
from segpipe.geometry.windows import Cover, Tiling
from segpipe.network.arrays import HostArrays
from segpipe.pipeline.blend import Strip


@st.composite
def covers(draw, ndim):
    align = draw(st.sampled_from([1, 2, 4]))
    tile = [align * draw(st.integers(1, 5)) for _ in range(ndim)]
    overlap = [draw(st.integers(0, min(t - align, t * 3 // 4))) for t in tile]
    shape = [draw(st.integers(1, 40 if ndim < 3 else 18)) for _ in range(ndim)]
    return Cover(tuple(shape), Tiling(tuple(tile), tuple(overlap), (align,) * ndim, "constant"))


def slices(window):
    return tuple(slice(a, b) for a, b in zip(window.start, window.stop, strict=True))


@pytest.mark.parametrize("ndim", [1, 2, 3])
@given(data=st.data())
def test_strip_equals_sums_over_the_whole_case_bit_for_bit(ndim, data):
    cover = data.draw(covers(ndim))
    rng = np.random.default_rng(0)
    sums = np.zeros((2, *cover.padded), np.float32)
    scores = [rng.normal(size=(2, *cover.tiling.tile)).astype(np.float32) for _ in cover]
    for index, tile in zip(cover, scores, strict=True):
        sums[(slice(None), *slices(cover.window(index)))] += tile
    strip = Strip(cover)
    for index, tile in zip(cover, scores, strict=True):
        box = cover.finished(index)
        got = strip.add(index, tile.copy())[(slice(None), *(slice(0, n) for n in box.shape))]
        # equal bytes, not close: sums are in window order at every pixel
        np.testing.assert_array_equal(got, sums[(slice(None), *slices(box))])


@given(covers(2), st.data())
def test_a_window_without_valid_pixels_changes_no_pixel_that_is_valid(cover, data):
    empty = data.draw(st.sets(st.sampled_from(list(cover))))
    seen = np.ones(cover.padded, bool)
    for index in empty:
        seen[slices(cover.window(index))] = False
    rng = np.random.default_rng(0)
    sums, strip = np.zeros((2, *cover.padded), np.float32), Strip(cover)
    scores = {index: rng.normal(size=(2, *cover.tiling.tile)).astype(np.float32) for index in cover if index not in empty}
    for index, tile in scores.items():
        sums[(slice(None), *slices(cover.window(index)))] += tile
    for index in cover:
        box = slices(cover.finished(index))
        got = strip.add(index, scores[index].copy() if index in scores else None)
        if got is None:
            assert not seen[box].any()
        else:
            valid = seen[box]
            here = got[(slice(None), *(slice(0, n) for n in valid.shape))]
            np.testing.assert_array_equal(here[:, valid], sums[(slice(None), *box)][:, valid])


@pytest.mark.parametrize("ndim", [1, 2, 3])
@settings(max_examples=30)
@given(data=st.data())
def test_with_a_halo_the_sums_before_a_box_come_with_it_however_many_classes_are_added_at_once(ndim, data):
    cover = replace(data.draw(covers(ndim)), halo=1)
    rng = np.random.default_rng(0)
    sums = np.zeros((5, *cover.padded), np.float32)
    scores = [rng.normal(size=(5, *cover.tiling.tile)).astype(np.float32) for _ in cover]
    for index, tile in zip(cover, scores, strict=True):
        sums[(slice(None), *slices(cover.window(index)))] += tile
    before = np.pad(sums, [(0, 0), *[(1, 0)] * ndim])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostArrays, "at_once", data.draw(st.sampled_from([1, 100, 2**23])))
        strip = Strip(cover)
        for index, tile in zip(cover, scores, strict=True):
            box = cover.finished(index)
            place = tuple(slice(a, b + 1) for a, b in zip(box.start, box.stop, strict=True))
            want = before[(slice(None), *place)]
            got = strip.add(index, tile.copy())
            np.testing.assert_array_equal(got[(slice(None), *map(slice, want.shape[1:]))], want)


def held(strip):
    """Elements of all arrays that a strip keeps."""
    return sum(kept.size for kept in strip._kept)


def test_memory_is_the_shared_rows_and_columns_only():
    cover = Cover((1000, 4000), Tiling((64, 64), (16, 16), (1, 1), "linear"))
    strip = Strip(cover)
    strip.add((0, 0), np.zeros((3, 64, 64), np.float32))
    shared = [max(a + 64 - b for a, b in pairwise(s)) for s in cover.starts]
    assert cover.shared == tuple(shared)
    assert held(strip) == 3 * (shared[0] * cover.padded[1] + 64 * shared[1]) == 3 * cover.strip_size(cover.padded)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@given(data=st.data())
def test_the_size_of_a_strip_is_known_before(ndim, data):
    """Of a whole case exactly; of a part, whose windows may lie a stride wider apart than the nearest, at most."""
    cover = data.draw(covers(ndim))
    strip = Strip(cover)
    strip.add((0,) * ndim, np.zeros((2, *cover.tiling.tile), np.float32))
    assert [kept.shape[1:] for kept in strip._kept] == list(cover.strip_shapes(cover.padded))
    assert held(strip) == 2 * cover.strip_size(cover.padded)
    for part in divide(cover, Limits(parts=data.draw(st.integers(1, 12)))):
        windows = cover.touching(part)
        first, last = cover.window(windows.first), cover.window(tuple(n - 1 for n in windows.stop))
        extent = [b - a for a, b in zip(first.start, last.stop, strict=True)]
        strip = Strip(cover, windows)
        strip.add(windows.first, np.zeros((2, *cover.tiling.tile), np.float32))
        assert held(strip) <= 2 * cover.strip_size(extent)


def test_a_strip_of_a_volume_keeps_planes():
    """By hand: tiles of 32 x 32 x 24 that share 8."""
    cover = Cover((70, 90, 50), Tiling((32, 32, 24), (8, 8, 8), (1, 1, 1), "linear"))
    assert [list(axis) for axis in cover.starts] == [[0, 19, 38], [0, 19, 38, 58], [0, 13, 26]]
    planes, rows, cols = 13 * 90 * 50, 32 * 13 * 50, 32 * 32 * 11
    assert cover.strip_size(cover.padded) == planes + rows + cols
