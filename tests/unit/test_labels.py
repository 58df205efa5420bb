"""Volumes on the grid of a mask: all corners must lie where those of the mask do."""

import numpy as np
import pytest

from segpipe.accuracy.labels import PIXELS, ROWS, rows_at_once, turned_onto, windows
from segpipe.errors import SourceError
from segpipe.geometry.voxel_grid import VoxelGrid, matrix_rows

SHAPE = (200, 512, 512)
GRID = VoxelGrid(SHAPE, matrix_rows(np.array([[0, 0, 1.0, -90], [0, 1.0, 0, 40], [2.0, 0, 0, 7], [0, 0, 0, 1]])))


def other(change):
    """The grid with its axes about its first voxel changed by a matrix ``(4, 4)`` of indices."""
    return VoxelGrid(SHAPE, matrix_rows(GRID.affine @ change))


def moved(*by):
    change = np.eye(4)
    change[:3, 3] = by
    return other(change)


def turned(angle):
    """About the last corner, which stays: by an angle, in the plane of rows and columns."""
    change, (c, s) = np.eye(4), (np.cos(angle), np.sin(angle))
    change[1:3, 1:3] = [[c, -s], [s, c]]
    last = np.array([*SHAPE, 1.0])
    change[:3, 3] = (last - change @ last)[:3]
    return other(change)


def scaled(by):
    return other(np.diag([1, by, 1, 1]))


ARRAY = np.broadcast_to(np.uint8(1), SHAPE)


@pytest.mark.parametrize(
    "own",
    [moved(0.4, 0, 0), moved(0, 0.4, -0.4), moved(0, 0, 0.2), turned(0.001), scaled(1.0009)],
    ids=["planes", "rows and columns", "a fifth", "turned", "scaled"],
)
def test_a_volume_elsewhere_is_refused(own):
    with pytest.raises(SourceError, match="must lie on the grid of the mask"):
        turned_onto(ARRAY, own, GRID, "r.nii.gz")


@pytest.mark.parametrize("own", [GRID, moved(0, -0.01, 0.05), scaled(1 + 1e-6)], ids=["same", "rounded", "scaled"])
def test_rounding_of_a_place_is_none(own):
    assert turned_onto(ARRAY, own, GRID, "r.nii.gz").shape == SHAPE


def test_axes_of_another_order_and_direction_are_turned():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    grid = VoxelGrid((2, 3, 4), GRID.rows)
    back = np.array([[0, 1, 0, 0], [0, 0, -1, 2], [1, 0, 0, 0], [0, 0, 0, 1.0]])  # from an index of the reference
    own = VoxelGrid((4, 2, 3), matrix_rows(grid.affine @ back))
    stored = array.transpose(2, 0, 1)[:, :, ::-1]
    np.testing.assert_array_equal(turned_onto(stored, own, grid, "r.nii.gz"), array)


@pytest.mark.parametrize("shape", [(1025, 30), (1000, 20_001), (3, 20, 10), (30, 3000, 4000), (2, 10**6)])
def test_windows_cover_a_grid_and_hold_few_pixels(shape):
    found = list(windows(shape))
    sizes = [np.prod(window.shape) for window in found]
    assert sum(sizes) == np.prod(shape)
    assert len({window.start for window in found}) == len(found)
    assert max(sizes) <= max(PIXELS, np.prod(shape[1:]) * (len(shape) == 3))


@pytest.mark.parametrize(
    ("shape", "rows"), [((9000, 30), ROWS), ((9000, 40_960), 102), ((600, 512, 512), 16), ((9, 4096, 4096), 1)]
)
def test_rows_of_boundaries_hold_few_pixels(shape, rows):
    assert rows_at_once(shape) == rows
