"""Boxes of an array in a file, against the array in memory."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.formats.volume.voxels import Voxels
from segpipe.geometry.windows import Window

SHAPE = (5, 6, 7)
spans = st.tuples(*[st.tuples(st.integers(0, n - 1), st.integers(1, n)).map(sorted) for n in SHAPE])


def box(found: tuple[list[int], ...]) -> Window:
    return Window(tuple(a for a, _ in found), tuple(max(b, a + 1) for a, b in found))


@given(st.lists(spans, min_size=1, max_size=6), st.sampled_from([">u2", "<u2", "u1", ">f8"]), st.integers(0, 9))
def test_boxes_are_written_and_read_as_in_an_array(boxes: list[tuple[list[int], ...]], dtype: str, offset: int) -> None:
    expected = np.zeros(SHAPE, dtype)
    file = os.memfd_create("voxels")
    try:
        voxels = Voxels(file, SHAPE, np.dtype(dtype), offset)
        os.ftruncate(file, voxels.end)
        for n, window in enumerate(map(box, boxes)):
            values = np.random.default_rng(n).integers(0, 200, window.shape).astype(dtype)
            expected[tuple(map(slice, window.start, window.stop))] = values
            voxels.write(window, values)
            np.testing.assert_array_equal(voxels.read(window), values)
        whole = voxels.read(Window((0, 0, 0), SHAPE))
        np.testing.assert_array_equal(whole, expected)
        assert whole.dtype.isnative
        assert os.pread(file, 10**6, offset) == expected.tobytes()
    finally:
        os.close(file)


def test_a_view_with_axes_in_another_order_is_written(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w+b") as stream:
        voxels = Voxels(stream.fileno(), (2, 3, 4), np.dtype("u1"))
        values = np.arange(24, dtype="u1").reshape(4, 3, 2).transpose(2, 1, 0)[:, ::-1]
        voxels.write(Window((0, 0, 0), (2, 3, 4)), values)
        np.testing.assert_array_equal(voxels.read(Window((0, 0, 0), (2, 3, 4))), values)


@pytest.mark.parametrize("stop", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_boxes_without_voxels(tmp_path: Path, stop: tuple[int, ...]) -> None:
    with (tmp_path / "a").open("w+b") as stream:
        voxels, box = Voxels(stream.fileno(), (2, 3, 4), np.dtype(">i2")), Window((0, 0, 0), stop)
        voxels.write(box, np.empty(stop, "i2"))
        assert (voxels.read(box).shape, voxels.read(box).dtype) == (stop, np.dtype("i2"))
        assert not stream.seek(0, 2)
