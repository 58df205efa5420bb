"""The strip against sums over the whole array, for one to three axes."""

from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.geometry.windows import Cover, Tiling
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


def test_memory_is_the_shared_rows_and_columns_only():
    cover = Cover((1000, 4000), Tiling((64, 64), (16, 16), (1, 1), "linear"))
    strip = Strip(cover)
    strip.add((0, 0), np.zeros((3, 64, 64), np.float32))
    shared = [max(a + 64 - b for a, b in pairwise(s)) for s in cover.starts]
    assert cover.shared == shared[0]
    expected = 3 * 4 * (shared[0] * cover.padded[1] + 64 * shared[1])
    assert reduce(lambda total, kept: total + kept.nbytes, strip._kept, 0) == expected
