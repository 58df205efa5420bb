"""Ground shared with many masks: they are opened when they are read, few at once, and no more of them than decide."""

import resource
from contextlib import contextmanager

import numpy as np
import pytest
from fields import UTM, ArrayMask
from test_zones_overlap import noise

from segpipe.geometry.raster_grid import ground_of
from segpipe.geometry.windows import Window
from segpipe.results.overlap import mask_cache
from segpipe.results.overlap.mask_cache import CachedMask, MaskCache
from segpipe.results.overlap.shared import Neighbour, Shared

SHAPE = (40, 50)
WHOLE = Window((0, 0), SHAPE)


class Library:
    """Masks that note which of them are opened, and how many are open at once."""

    def __init__(self, masks):
        self.masks, self.opened, self.open, self.most = masks, [], 0, 0

    @contextmanager
    def opening(self, number):
        self.opened.append(number)
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            yield self.masks[number]
        finally:
            self.open -= 1

    def neighbours(self, on, *, earlier=True):
        for number, mask in enumerate(self.masks):
            cached = CachedMask(on, mask.grid, lambda number=number: self.opening(number))
            yield Neighbour(cached, ground_of(mask.grid), 255, earlier)


def ground():
    return ground_of(ArrayMask(np.zeros(SHAPE), UTM).grid)


def test_no_more_are_open_at_once_and_the_pixels_are_those_of_open_masks(monkeypatch):
    monkeypatch.setattr(mask_cache, "MOST", 2)
    masks = [ArrayMask(np.where(noise(SHAPE, seed), 255, 0).astype(np.uint8), UTM) for seed in range(6)]  # few have data
    library, unseen = Library(masks), noise(SHAPE, 9) == 255
    plain = Shared(ground(), SHAPE, [Neighbour(mask, ground(), 255, True) for mask in masks])
    with MaskCache() as on:
        shared = Shared(ground(), SHAPE, list(library.neighbours(on)))
        assert library.opened == []
        for row in (0, 20):
            part = Window((row, 0), (row + 20, 50))
            own = unseen[row : row + 20]
            np.testing.assert_array_equal(shared.elsewhere(part, own), plain.elsewhere(part, own))
        assert len(library.opened) > 6
        assert library.most == 2
    assert library.open == 0


def test_those_that_can_take_nothing_more_are_not_opened():
    """The first of a thousand has all; and of later ones only a pixel without data asks."""
    library = Library([ArrayMask(np.zeros(SHAPE, np.uint8), UTM)] * 1000)
    with MaskCache() as on:
        shared = Shared(ground(), SHAPE, list(library.neighbours(on)))
        assert shared.windows == [WHOLE]
        assert shared.elsewhere(WHOLE, np.zeros(SHAPE, bool)).all()
        assert library.opened == [0]
        later = Shared(ground(), SHAPE, list(library.neighbours(on, earlier=False)))
        assert not later.elsewhere(WHOLE, np.zeros(SHAPE, bool)).any()
        assert library.opened == [0]
        hole = np.zeros(SHAPE, bool)
        hole[3, 4] = True
        np.testing.assert_array_equal(later.elsewhere(WHOLE, hole), hole)
        assert library.opened == [0, 0]


@pytest.mark.parametrize(("theirs", "taken"), [(200, True), (100, False)])
def test_one_that_comes_later_takes_pixels_with_data_where_it_is_surer(theirs, taken):
    mask, sure = (ArrayMask(np.full(SHAPE, value, np.uint8), UTM) for value in (0, theirs))
    own = ArrayMask(np.full(SHAPE, 150, np.uint8), UTM)
    shared = Shared(ground(), SHAPE, [Neighbour(mask, ground(), 255, False, sure)], own)
    assert (shared.elsewhere(WHOLE, np.zeros(SHAPE, bool)) == taken).all()


def test_a_mask_that_cannot_be_opened_says_so_when_it_is_read():
    def opening():
        raise OSError("gone")

    with MaskCache() as on, pytest.raises(OSError, match="gone"):
        CachedMask(on, ArrayMask(np.zeros(SHAPE), UTM).grid, opening).read(WHOLE)


@pytest.mark.parametrize(("files", "most"), [(1024, 64), (64, 16), (16, 4), (3, 1), (resource.RLIM_INFINITY, 64)])
def test_fewer_are_open_where_a_process_may_open_few_files(files, most, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda what: (files, files))
    assert mask_cache.most_open() == most
