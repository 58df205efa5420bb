"""Parts of a case: each window in one, every window that is needed in each, and as the workers need them."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_blend import covers, slices

from segpipe.geometry.division import LONGEST_PART, Limits, _pieces, divide, repeated
from segpipe.geometry.windows import Cover, Tiling
from segpipe.pipeline.blend import Strip

SENTINEL = Tiling((512, 512), (128, 128), (32, 32), "gaussian")


@pytest.mark.parametrize("ndim", [1, 2, 3])
@given(data=st.data())
def test_parts_hold_every_window_and_every_pixel_once(ndim, data):
    cover = data.draw(covers(ndim))
    parts = divide(cover, Limits(data.draw(st.integers(1, 9)), data.draw(st.none() | st.integers(1, 40))))
    assert sorted(index for part in parts for index in part) == list(cover)
    seen = np.zeros(cover.shape, int)
    for part in parts:
        seen[slices(cover.box(part))] += 1
    assert (seen == 1).all()


@given(cover=covers(2), count=st.integers(1, 30))
def test_a_part_is_touched_by_just_the_windows_that_show_its_pixels(cover, count):
    for part in divide(cover, Limits(parts=count)):
        box = cover.box(part)
        shown = [
            index
            for index in cover
            if all(
                a < d and c < b
                for a, b, c, d in zip(
                    *(cover.window(index).start, cover.window(index).stop), box.start, box.stop, strict=True
                )
            )
        ]
        # windows behind the part start where its box ends, at the earliest
        assert list(cover.touching(part)) == shown


@pytest.mark.parametrize("ndim", [1, 2, 3])
@given(data=st.data())
def test_sums_of_a_part_are_those_of_the_whole_case_bit_for_bit(ndim, data):
    cover = data.draw(covers(ndim))
    rng = np.random.default_rng(0)
    sums = np.zeros((2, *cover.padded), np.float32)
    scores = {index: rng.normal(size=(2, *cover.tiling.tile)).astype(np.float32) for index in cover}
    for index, tile in scores.items():
        sums[(slice(None), *slices(cover.window(index)))] += tile
    for part in divide(cover, Limits(parts=data.draw(st.integers(1, 12)))):
        windows = cover.touching(part)
        strip = Strip(cover, windows)
        for index in windows:
            got = strip.add(index, scores[index].copy())
            if index in part:
                box = cover.finished(index)
                here = got[(slice(None), *(slice(0, n) for n in box.shape))]
                np.testing.assert_array_equal(here, sums[(slice(None), *slices(box))])


@pytest.mark.parametrize(
    ("size", "workers", "least_parts", "most_repeated", "least_efficiency"),
    [(4096, 2, 2, 0.10, 0.91), (10_980, 2, 2, 0.04, 0.96), (10_980, 8, 8, 0.15, 0.87), (100_000, 8, 64, 0.06, 0.92)],
)
def test_parts_are_enough_for_the_workers_and_repeat_little(size, workers, least_parts, most_repeated, least_efficiency):
    cover = Cover((size, size), SENTINEL)
    parts = divide(cover, Limits(workers))
    longest = max(len(cover.touching(part)) for part in parts)
    turns = -(-len(parts) // workers)
    assert len(parts) >= least_parts
    assert max(map(len, parts)) <= LONGEST_PART
    assert repeated(cover, parts) <= most_repeated
    assert len(cover) / workers / (turns * longest) >= least_efficiency


def test_a_case_for_one_worker_is_left_whole_unless_it_is_long_or_wide():
    cover = Cover((10_980, 10_980), SENTINEL)
    assert len(divide(cover, Limits())) == 1
    limit = 4000 * 140 + 512 * 140
    wide = divide(cover, Limits(strip=limit))
    assert len(wide) > 1
    for part in wide:
        strip = Strip(cover, windows := cover.touching(part))
        strip.add(windows.first, np.zeros((1, 512, 512), np.float32))
        assert sum(kept.size for kept in strip._kept) <= limit
    assert len(divide(Cover((100_000, 100_000), SENTINEL), Limits())) >= 67


def test_a_volume_is_cut_for_the_memory_of_its_planes():
    """A strip of the whole keeps some planes of 300 x 300; columns that are cut in two halve them."""
    cover = Cover((200, 300, 300), Tiling((64, 64, 64), (16, 16, 16), (8, 8, 8), "gaussian"))
    limit = cover.strip_size(cover.padded) * 2 // 3
    parts = divide(cover, Limits(strip=limit))
    assert len(parts) > 1
    for part in parts:
        strip = Strip(cover, windows := cover.touching(part))
        strip.add(windows.first, np.zeros((1, 64, 64, 64), np.float32))
        assert sum(kept.size for kept in strip._kept) <= limit


@pytest.mark.parametrize("ndim", [1, 2, 3])
@given(data=st.data())
def test_no_other_grid_of_parts_is_better(ndim, data):
    """By all grids, one by one: the workers are done first, then fewest windows are inferred, then fewest parts."""
    cover, workers = data.draw(covers(ndim)), data.draw(st.integers(1, 9))
    axes = [[_pieces(cover, axis, n) for n in range(1, count + 1)] for axis, count in enumerate(cover.counts)]

    def cost(grid):
        count, inferred, longest = (math.prod(map(of, grid)) for of in (len, lambda p: p.inferred, lambda p: p.longest))
        return max(inferred / workers, -(-count // workers) * longest), inferred, count

    best = min(itertools.product(*axes), key=cost)
    parts = divide(cover, Limits(workers))
    assert len(parts) == math.prod(map(len, best))
    assert sum(len(cover.touching(part)) for part in parts) == math.prod(p.inferred for p in best)


@pytest.mark.parametrize(("asked", "got"), [(1, 1), (2, 2), (7, 7), (30, 30), (23, 22), (5000, 121)])
def test_forced_parts_are_as_many_as_can_be_had(asked, got):
    assert len(divide(Cover((4096, 4096), SENTINEL), Limits(parts=asked))) == got
