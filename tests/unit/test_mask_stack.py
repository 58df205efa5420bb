"""Masks of one grid by their confidence: the same pixels as pair by pair, each mask read once, and the file of decisions."""

import errno
import os
from collections import OrderedDict
from contextlib import contextmanager

import numpy as np
import pytest
from affine import Affine
from fields import UTM, ArrayMask

from segpipe.errors import OutputError
from segpipe.geometry.raster_grid import ground_of
from segpipe.geometry.windows import Window
from segpipe.results.overlap import decisions, mask_stack
from segpipe.results.overlap.decisions import Decisions
from segpipe.results.overlap.mask_stack import MaskStack
from segpipe.results.overlap.shared import Neighbour, Shared

SHAPE = (23, 31)
WHOLE = Window((0, 0), SHAPE)
MASKS = 6


def drawn(seed):
    """A mask of which a third has no data, and confidences of few values, so that many are the same."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(SHAPE) < 1 / 3, 255, rng.integers(0, 3, SHAPE)).astype(np.uint8)
    return ArrayMask(labels), ArrayMask(
        np.where(labels == 255, 255, rng.integers(0, 255, SHAPE) // 90 * 90).astype(np.uint8)
    )


@pytest.fixture
def masks(monkeypatch):
    monkeypatch.setattr(decisions, "SIDE", 10)
    return [drawn(seed) for seed in range(MASKS)]


class Counting:
    """Opens masks, and counts how often."""

    def __init__(self, masks):
        self.masks, self.count = masks, 0

    @contextmanager
    def __call__(self, position):
        self.count += 1
        yield self.masks[position]


def stack_of(masks, opening, nodata=255, ranks=None, cache=None):
    ground = ground_of(masks[0][0].grid)
    ranks = np.arange(len(masks)) if ranks is None else np.array(ranks)
    return MaskStack(ground, SHAPE, [nodata] * len(masks), ranks, opening, OrderedDict() if cache is None else cache)


def pairwise(masks, mine, rank, grid, nodata=255, ranks=None):
    """Where one of them goes before a mask, asked one by one."""
    ranks = range(len(masks)) if ranks is None else ranks
    others = [
        Neighbour(mask, ground_of(mask.grid), nodata, earlier=other < rank, confidence=sure)
        for other, (mask, sure) in zip(ranks, masks, strict=True)
        if other != rank
    ]
    return elsewhere(others, mine, grid, nodata)


def elsewhere(neighbours, mine, grid, nodata=255):
    labels, sure = (one.read(WHOLE) for one in mine)
    unseen = np.zeros(SHAPE, bool) if nodata is None else labels == nodata
    shared = Shared(ground_of(grid), SHAPE, neighbours, ArrayMask(sure))
    return shared.elsewhere(WHOLE, unseen)


@pytest.mark.parametrize("nodata", [255, None])
def test_each_of_them_counts_where_it_does_pair_by_pair_and_is_opened_once_a_block(masks, nodata):
    opening = Counting(masks)
    own = stack_of(masks, opening, nodata)
    for rank, mine in enumerate(masks):
        found = elsewhere([own.of(rank)], mine, mine[0].grid, nodata)
        np.testing.assert_array_equal(found, pairwise(masks, mine, rank, mine[0].grid, nodata))
        assert 0.3 < found.mean() < 1
    assert opening.count == MASKS * 3 * 4


@pytest.mark.parametrize("rank", [-1, 2, 9], ids=["before", "between", "after"])
def test_one_of_another_grid_meets_them_as_pair_by_pair(masks, rank):
    grid = ArrayMask(np.zeros(SHAPE), UTM * Affine.translation(7.3, -4.6) * Affine.scale(0.8)).grid
    ranks = [0, 1, 3, 4, 5, 7]
    found = elsewhere([stack_of(masks, Counting(masks), ranks=ranks).of(rank)], drawn(50), grid)
    np.testing.assert_array_equal(found, pairwise(masks, drawn(50), rank, grid, ranks=ranks))
    assert 0.1 < found.mean() < 0.9  # a part lies beside


def test_of_many_stacks_only_those_asked_last_keep_what_they_decided(masks, monkeypatch):
    monkeypatch.setattr(mask_stack, "MOST_CACHED", 2)
    cache, opening = OrderedDict(), Counting(masks)
    each = [stack_of(masks, opening, ranks=[k, *range(5, 10)], cache=cache) for k in range(3)]
    part, before = Window((0, 0), (5, 5)), len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for number, times in ((0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4)):
        each[number].keys(part)
        assert opening.count == times * MASKS
    assert list(cache) == [0, 1]
    assert len(os.listdir("/proc/self/fd")) == before + 2  # noqa: PTH208
    cache.clear()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_decisions_of_any_window_are_those_of_the_whole_and_found_once(monkeypatch):
    monkeypatch.setattr(decisions, "SIDE", 10)
    truth, asked = np.arange(23 * 31, dtype=np.uint32).reshape(SHAPE), []

    def fill(window):
        asked.append(window)
        return truth[window.start[0] : window.stop[0], window.start[1] : window.stop[1]]

    cache, rng = Decisions(SHAPE), np.random.default_rng(3)
    for _ in range(40):
        (top, bottom), (left, right) = (np.sort(rng.choice(size + 1, 2, replace=False)).tolist() for size in SHAPE)
        np.testing.assert_array_equal(cache.read(Window((top, left), (bottom, right)), fill), truth[top:bottom, left:right])
    np.testing.assert_array_equal(cache.read(WHOLE, fill), truth)
    assert len(asked) == len(set(asked)) == 12


def test_a_full_disk_of_temporary_files_is_named_with_the_mend(masks, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    own = stack_of(masks, Counting(masks))
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(
        OutputError, match=r"up to 2,852 bytes in .*: No space left on device: free space there, or set TMPDIR"
    ):
        own.keys(WHOLE)
