import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.errors import SettingsError
from segpipe.geometry.reflection import mirrored, reflected
from segpipe.geometry.starts import axis_starts
from segpipe.geometry.windows import Cover, Tiling, Window


@st.composite
def axes(draw):
    """Size, tile, overlap and align of one axis, overlaps up to 75 %."""
    align = draw(st.sampled_from([1, 2, 4, 7, 8]))
    tile = align * draw(st.integers(1, 12))
    overlap = draw(st.integers(0, min(tile - align, tile * 3 // 4)))
    return draw(st.integers(1, 12 * tile)), tile, overlap, align


def brute_force_count(size: int, tile: int, overlap: int, align: int) -> int:
    """Fewest aligned windows that cover an axis with the overlap asked for: step as far as allowed, each time."""
    start, count = 0, 1
    while start + tile < size:
        start += (tile - overlap) // align * align
        count += 1
    return count


@given(axes())
def test_windows_cover_an_axis_evenly_and_are_as_few_as_can_be(axis):
    size, tile, overlap, align = axis
    starts = np.array(axis_starts(*axis))
    assert len(starts) == brute_force_count(*axis)
    assert (starts % align == 0).all()
    assert size <= max(tile, starts[-1] + tile) < max(size, tile) + align
    steps = np.diff(starts)
    assert (steps >= align).all()
    assert (steps <= tile - overlap).all()
    assert np.ptp(steps) <= align if len(steps) else starts[0] == 0


@pytest.mark.parametrize(
    ("axis", "starts"),
    [
        ((64, 64, 16, 32), (0,)),
        ((65, 64, 16, 1), (0, 1)),
        ((65, 64, 32, 32), (0, 32)),
        ((100, 64, 16, 4), (0, 36)),
        ((4096, 512, 128, 32), (0, 352, 704, 1056, 1408, 1792, 2144, 2496, 2848, 3200, 3584)),
    ],
)
def test_starts_by_hand(axis, starts):
    assert tuple(axis_starts(*axis)) == starts


@given(axes(), axes())
def test_every_pixel_is_finished_in_exactly_one_window_and_the_last_that_shows_it(rows, cols):
    (h, *row), (w, *col) = rows, cols
    cover = Cover((h, w), Tiling(*zip(row, col, strict=True), "constant"))
    finished, last = np.full((2, h, w), -1)
    for number, index in enumerate(cover):
        box, window = cover.finished(index), cover.window(index)
        assert all(a >= s and b <= e for a, b, s, e in zip(box.start, box.stop, window.start, window.stop, strict=True))
        where = tuple(slice(a, b) for a, b in zip(box.start, box.stop, strict=True))
        assert (finished[where] == -1).all()
        finished[where] = number
        last[tuple(slice(a, b) for a, b in zip(window.start, window.stop, strict=True))] = number
    assert len(cover) == number + 1
    np.testing.assert_array_equal(finished, last)


@given(axes(), axes(), st.randoms())
def test_mirrored_reading_equals_numpy_pad_of_the_whole_case(rows, cols, random):
    (h, *row), (w, *col) = rows, cols
    cover = Cover((h, w), Tiling(*zip(row, col, strict=True), "constant"))
    case = np.random.default_rng(random.randrange(2**32)).integers(0, 2**31, (h, w))
    padded = np.pad(case, [(0, p - n) for p, n in zip(cover.padded, case.shape, strict=True)], mode="reflect")
    for index in cover:
        window = cover.window(index)
        inside, mirror = reflected(window, cover.shape)
        read = case[tuple(slice(a, b) for a, b in zip(inside.start, inside.stop, strict=True))]
        expected = padded[tuple(slice(a, b) for a, b in zip(window.start, window.stop, strict=True))]
        np.testing.assert_array_equal(mirrored(read, mirror), expected)
        np.testing.assert_array_equal(mirrored(np.stack([read, -read]), mirror), [expected, -expected])


@pytest.mark.parametrize(
    ("tile", "overlap", "align", "message"),
    [
        (512, 512, 32, "overlap must be smaller than the tile, got overlap 512 and tile 512"),
        (500, 0, 32, "multiple of align.*got tile 500 and align 32.*--tile 480"),
        (512, 500, 32, r"at least align, got 512 - 500 = 12 and align 32.*--overlap to 480"),
        (512, -1, 32, "overlap at least 0"),
        (0, 0, 1, "at least 1"),
    ],
)
def test_a_tiling_that_cannot_work_is_refused_at_birth(tile, overlap, align, message):
    with pytest.raises(SettingsError, match=message):
        Tiling((tile,), (overlap,), (align,), "linear")


def test_window_knows_its_shape_and_size():
    window = Window((2, 3), (5, 10))
    assert (window.shape, window.size) == ((3, 7), 21)
