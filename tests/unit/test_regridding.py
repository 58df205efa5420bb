"""The two grids of a case: pixels to the network's, against SciPy, Pillow and sums written out; owners of boxes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import map_coordinates

from segpipe.geometry.regridding import Axis, Regridding, grown, resample
from segpipe.geometry.windows import Cover, Tiling, Window

FACTORS = [0.1, 1 / 3, 0.5, 0.73, 0.999, 1.0, 1.25, 1.9, 2.0, 3.0, 7.3]


@st.composite
def grids(draw, ndim, longest):
    own = tuple(draw(st.integers(1, longest)) for _ in range(ndim))
    return Regridding(own, tuple(draw(st.sampled_from(FACTORS)) for _ in range(ndim)))


def slices(window, low=None):
    low = low or (0,) * len(window.start)
    return tuple(slice(a - n, b - n) for a, b, n in zip(window.start, window.stop, low, strict=True))


def whole(shape):
    return Window((0,) * len(shape), shape)


def places(axis):
    """Centres of own pixels in pixels of the network's grid."""
    return (np.arange(axis.own) + 0.5) / axis.factor - 0.5


def matrix(axis):
    """What each pixel of the network's grid is made of, written out: shape ``(size, own)``."""
    centres = (np.arange(axis.size)[:, None] + 0.5) * axis.factor - 0.5
    rows = 1 - np.abs(centres - np.arange(axis.own)) / max(1, axis.factor)
    return np.where(rows < 4e-6, 0, rows)


def by_matrices(grids, values):
    """Sums over the last axes of an array, not yet divided by the weights."""
    for k, axis in enumerate(grids.axes, values.ndim - len(grids.axes)):
        values = np.moveaxis(np.moveaxis(values, k, -1) @ matrix(axis).T, -1, k)
    return values


@pytest.mark.parametrize(
    ("own", "factor", "size"), [(100, 0.5, 200), (101, 2, 51), (100, 3, 33), (1, 8, 1), (3, 0.2, 15), (10, 1, 10)]
)
def test_the_network_grid_is_as_long_as_whole_pixels_come(own, factor, size):
    assert Axis(own, factor).size == size


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("own", [1, 2, 3, 17, 40])
def test_own_pixels_lie_where_interpolation_finds_them(own, factor):
    axis = Axis(own, factor)
    values = np.random.default_rng(0).normal(size=axis.size)
    between = axis.between(0, own)
    got = values[between.lower] * (1 - between.share) + values[between.upper] * between.share
    np.testing.assert_allclose(got, np.interp(places(axis), np.arange(axis.size), values), atol=1e-4)
    assert (between.share >= 2**-17).all()


@pytest.mark.parametrize("ndim", [1, 2, 3])
@settings(max_examples=30)
@given(data=st.data())
def test_each_own_pixel_belongs_to_one_box_which_holds_what_it_is_between(ndim, data):
    regridding = data.draw(grids(ndim, 40 if ndim < 3 else 12))
    tile = tuple(-(-n // 6) + data.draw(st.integers(0, 9)) for n in regridding.shape)
    overlap = tuple(data.draw(st.integers(0, n // 2)) for n in tile)
    cover = Cover(regridding.shape, Tiling(tile, overlap, (1,) * ndim, "constant"))
    seen = np.zeros(regridding.own, int)
    for index in cover:
        box = cover.finished(index)
        owned, held = regridding.owned(box), grown(box)
        seen[slices(owned)] += 1
        if not owned.size:
            continue
        for k, points in enumerate(regridding.between(owned)):
            assert held.start[k] <= points.lower.min() <= points.upper.max() < held.stop[k]
        needed = regridding.needed_by_box(box)
        assert all(a <= b for a, b in zip(needed.start, owned.start, strict=True))
        assert all(a >= b for a, b in zip(needed.stop, owned.stop, strict=True))
    assert (seen == 1).all()


@pytest.mark.parametrize("ndim", [1, 2, 3])
@settings(max_examples=30)
@given(data=st.data())
def test_finer_grids_are_linear_interpolation_by_scipy(ndim, data):
    own = tuple(data.draw(st.integers(1, 30 if ndim < 3 else 9)) for _ in range(ndim))
    regridding = Regridding(own, tuple(data.draw(st.sampled_from([f for f in FACTORS if f <= 1])) for _ in range(ndim)))
    pixels = np.random.default_rng(0).normal(size=(2, *own))
    centres = np.meshgrid(*((np.arange(a.size) + 0.5) * a.factor - 0.5 for a in regridding.axes), indexing="ij")
    got, invalid = resample(regridding, whole(regridding.shape), pixels, None)
    assert invalid is None
    for one, own_one in zip(got, pixels, strict=True):
        np.testing.assert_allclose(one, map_coordinates(own_one, centres, order=1, mode="nearest"), atol=1e-4)


@pytest.mark.parametrize("factors", [(2, 2), (1.9, 3.7), (4, 0.5), (0.73, 1.25), (1, 6)])
def test_coarser_grids_are_those_of_pillow(factors):
    regridding = Regridding((74, 95), factors)
    size = tuple(int(n / f) for n, f in zip(regridding.own, factors, strict=True))
    pixels = np.random.default_rng(0).random(regridding.own).astype(np.float32)
    rows, cols = (n * f for n, f in zip(size, factors, strict=True))
    box = (0, 0, cols, rows)
    expected = np.array(Image.fromarray(pixels, "F").resize(size[::-1], Image.Resampling.BILINEAR, box=box))
    got, _ = resample(regridding, whole(regridding.shape), pixels[None], None)
    # Pillow does not look behind its box, which ends before the case where the last pixel is cut
    inner = tuple(slice(0, n - 1) for n in size)
    np.testing.assert_allclose(got[0][inner], expected[inner], atol=1e-5)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.97])
@settings(max_examples=30)
@given(data=st.data())
def test_invalid_pixels_have_no_weight(ndim, share, data):
    regridding = data.draw(grids(ndim, 30 if ndim < 3 else 9))
    rng = np.random.default_rng(0)
    pixels, invalid = rng.normal(size=(2, *regridding.own)), rng.random(regridding.own) < share
    weight = by_matrices(regridding, (~invalid).astype(float))
    with np.errstate(invalid="ignore"):
        expected = by_matrices(regridding, np.where(invalid, 0, pixels)) / weight
    pixels[:, invalid] = np.nan
    got, lost = resample(regridding, whole(regridding.shape), pixels, invalid)
    lost = np.zeros(regridding.shape, bool) if lost is None else lost
    np.testing.assert_array_equal(lost, weight == 0)
    np.testing.assert_array_equal(lost, ~regridding.seen(invalid, whole(regridding.shape)))
    np.testing.assert_allclose(got[:, ~lost], expected[:, ~lost], atol=2e-4)
    # the mask has a label for each valid own pixel
    uppers = np.ix_(*(a.between(0, a.own).upper for a in regridding.axes))
    assert not lost[uppers][~invalid].any()


@pytest.mark.parametrize("ndim", [1, 2, 3])
@settings(max_examples=30)
@given(data=st.data())
def test_a_window_has_the_bytes_of_the_whole(ndim, data):
    regridding = data.draw(grids(ndim, 40 if ndim < 3 else 12))
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(2, *regridding.own)).astype(np.float32)
    invalid = np.zeros(regridding.own, bool)
    invalid[tuple(slice(0, n // 3) for n in regridding.own)] = True
    low = [data.draw(st.integers(0, n - 1)) for n in regridding.shape]
    high = [data.draw(st.integers(a + 1, n)) for a, n in zip(low, regridding.shape, strict=True)]
    window = Window(tuple(low), tuple(high))
    needed = regridding.needed(window)
    expected, lost = resample(regridding, whole(regridding.shape), pixels, invalid)
    own = invalid[slices(needed)] if invalid[slices(needed)].any() else None
    got, missing = resample(regridding, window, pixels[(slice(None), *slices(needed))], own)
    assert got.dtype == np.float32
    assert got.tobytes() == expected[(slice(None), *slices(window))].tobytes()
    everywhere = np.zeros(window.shape, bool)
    np.testing.assert_array_equal(
        everywhere if missing is None else missing, everywhere if lost is None else lost[slices(window)]
    )


def test_no_table_is_as_long_as_an_axis():
    axis = Axis(2**31 - 1, 0.73)
    assert axis.owned(0, axis.size) == (0, 2**31 - 1)
    first, last = axis.owned(10**9, 10**9 + 512)
    assert abs(first - 0.73 * 10**9) < 2
    assert abs(last - first - 0.73 * 512) < 2
    assert axis.needed(axis.size - 1, axis.size) == (2**31 - 2, 2**31 - 1)
