"""Reading a case on another grid than its own: the same bytes however windows are cut, and validity that comes along."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_regridding import grids, slices, whole

from segpipe.formats import resampled
from segpipe.formats.resampled import Resampled
from segpipe.geometry.regridding import Regridding, resample
from segpipe.geometry.windows import Cover, Tiling, Window


class Held:
    """An array as a source; what is read is noted."""

    def __init__(self, pixels, invalid=None):
        self.pixels, self.dtype, self.largest = pixels, pixels.dtype, 0
        self.grid = SimpleNamespace(shape=pixels.shape[1:])
        self._invalid = np.zeros(pixels.shape[1:], bool) if invalid is None else invalid

    def read(self, window):
        assert all(0 <= a < b <= n for a, b, n in zip(window.start, window.stop, self.pixels.shape[1:], strict=True))
        self.largest = max(self.largest, window.size)
        invalid = self._invalid[slices(window)]
        return self.pixels[(slice(None), *slices(window))], invalid if invalid.any() else None

    def begin(self, window, threads=None):
        found = self.read(window)
        return lambda: found

    def empty(self, window):
        return bool(self._invalid[slices(window)].all())

    def memory(self, shape):
        return int(np.prod(shape))


@pytest.mark.parametrize("ndim", [1, 2, 3])
@settings(max_examples=12)
@given(data=st.data())
def test_windows_have_the_bytes_of_the_whole_however_they_are_read(ndim, data):
    regridding = data.draw(grids(ndim, 40 if ndim < 3 else 10))
    rng = np.random.default_rng(0)
    dtype = data.draw(st.sampled_from(["uint8", "int16", "float32", "int32", "float64"]))
    pixels = rng.integers(0, 120, (2, *regridding.own)).astype(dtype)
    invalid = rng.random(regridding.own) < data.draw(st.sampled_from([0, 0.1, 0.9]))
    floats = np.float32 if dtype in ("uint8", "int16", "float32") else np.float64
    want, lost = resample(regridding, whole(regridding.shape), pixels.astype(floats), invalid)
    lost = np.zeros(regridding.shape, bool) if lost is None else lost
    tile = tuple(-(-n // 3) + data.draw(st.integers(0, 4)) for n in regridding.shape)
    cover = Cover(regridding.shape, Tiling(tile, tuple(n // 3 for n in tile), (1,) * ndim, "constant"), halo=1)
    source = Resampled(Held(pixels, invalid), regridding)
    assert source.shape == regridding.shape
    assert source.dtype == floats
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampled, "AT_ONCE", data.draw(st.sampled_from([1, 200, 2**22])))
        for index in cover:
            full, box = cover.window(index), cover.finished(index)
            window = Window(full.start, tuple(map(min, full.stop, regridding.shape)))
            taken = source.take(window, box)()
            assert taken.pixels.dtype == floats
            assert taken.pixels.tobytes() == want[(slice(None), *slices(window))].tobytes()
            clear = np.zeros(window.shape, bool)
            np.testing.assert_array_equal(clear if taken.invalid is None else taken.invalid, lost[slices(window)])
            own = invalid[slices(regridding.needed_by_box(box))]
            assert (taken.own_invalid is None) == (not own.any())
            if taken.own_invalid is not None:
                np.testing.assert_array_equal(taken.own_invalid, own)
            assert source.read(window)[0].tobytes() == taken.pixels.tobytes()


def test_whole_numbers_are_rounded_for_a_model_that_takes_them():
    pixels = np.array([[0, 1, 255, 255]], np.uint8)
    source = Resampled(Held(pixels), Regridding((4,), (0.5,)), whole=True)
    got, _ = source.read(Window((0,), (8,)))
    assert got.dtype == source.dtype == np.uint8
    np.testing.assert_array_equal(got[0], np.rint([0, 0.25, 0.75, 64.5, 191.5, 255, 255, 255]))


def test_what_is_invalid_does_not_bleed():
    pixels = np.full((1, 20, 20), 7, np.int16)
    invalid = np.zeros((20, 20), bool)
    invalid[5:9, 3:11] = True
    pixels[:, invalid] = -32768
    for factors in ((0.5, 0.5), (1.9, 2.0), (0.73, 3.0)):
        regridding = Regridding((20, 20), factors)
        got, lost = Resampled(Held(pixels, invalid), regridding).read(whole(regridding.shape))
        lost = np.zeros(regridding.shape, bool) if lost is None else lost
        np.testing.assert_allclose(got[0][~lost], 7, rtol=1e-6)


def test_much_finer_cases_are_read_slab_by_slab():
    """A window of 32 x 32 is made of 1,600 x 1,600 pixels here."""
    source = Held(np.zeros((1, 2000, 2000), np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampled, "AT_ONCE", 400_000)
        Resampled(source, Regridding((2000, 2000), (50, 50))).read(Window((4, 4), (36, 36)))
    assert source.largest < 800_000


def test_a_window_is_empty_where_all_that_it_is_made_of_is():
    invalid = np.ones((60, 60), bool)
    invalid[40:, 40:] = False
    for factors in ((0.5, 0.5), (1.9, 3.0)):
        regridding = Regridding((60, 60), factors)
        source = Resampled(Held(np.zeros((1, 60, 60), np.uint8), invalid), regridding)
        cover = Cover(regridding.shape, Tiling((8, 8), (2, 2), (1, 1), "linear"), halo=1)
        empty = [index for index in cover if source.empty(cover.window(index))]
        assert 0 < len(empty) < len(cover)
        assert all(invalid[slices(regridding.owned(cover.finished(index)))].all() for index in empty)


def test_memory_is_that_of_the_pixels_that_windows_are_made_of():
    source = Held(np.zeros((1, 900, 900), np.uint8))
    for factors in ((0.3, 1.0), (2.0, 7.5)):
        regridding = Regridding((900, 900), factors)
        for start in (0, 1, 17):
            window = Window((start, start), (start + 40, start + 60))
            assert Resampled(source, regridding).memory(window.shape) >= regridding.needed(window).size
