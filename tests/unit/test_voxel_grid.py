"""Grids of volumes: directions and turns against nibabel, places by their definition."""

from fractions import Fraction
from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.geometry.voxel_grid import Turned, VoxelGrid, furthest_apart, matrix_rows, shear, turned_to
from segpipe.geometry.windows import Window

ALL = ["".join(letters) for axes in permutations(("RL", "AP", "SI")) for letters in product(*axes)]
"""All 48 orientations."""


def rotated(seed: int, scale: tuple[float, float, float] = (0.7, 1.3, 2.9)) -> np.ndarray:
    """An affine of perpendicular axes that lie anyhow."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = q * scale
    affine[:3, 3] = rng.normal(size=3) * 50
    return affine


@pytest.mark.parametrize("sheared", [0.0, 0.01])
def test_directions_are_nibabels_however_oblique(sheared: float) -> None:
    for seed in range(1000):
        affine = rotated(seed)
        affine[:3, :3] += sheared * np.random.default_rng(seed).normal(size=(3, 3))
        grid = VoxelGrid((3, 4, 5), matrix_rows(affine))
        assert grid.directions == "".join(nibabel.aff2axcodes(affine))
        assert grid.turn(turned_to(grid, "LPS")).directions == "LPS"


def test_there_are_48_orientations() -> None:
    assert len(set(ALL)) == 48


@pytest.mark.parametrize("letters", ALL)
def test_a_turn_is_that_of_nibabel_and_every_voxel_stays_where_it_is(letters: str) -> None:
    affine, stored = rotated(5), np.arange(60, dtype="i2").reshape(3, 4, 5)
    grid = VoxelGrid(stored.shape, matrix_rows(affine))
    turned = turned_to(grid, letters)
    change = nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(letters))
    expected = nibabel.Nifti1Image(stored, affine).as_reoriented(change)
    np.testing.assert_array_equal(turned.array(stored), np.asarray(expected.dataobj))
    np.testing.assert_allclose(grid.turn(turned).affine, expected.affine, atol=1e-12)
    assert grid.turn(turned).directions == letters
    np.testing.assert_array_equal(turned.back(turned.array(stored)), stored)
    np.testing.assert_allclose(grid.turn(turned).stored.affine, affine, atol=1e-12)
    assert grid.turn(turned).stored.shape == stored.shape
    told = grid.turn(turned).as_json()
    np.testing.assert_allclose(told["affine"], expected.affine[:3], atol=1e-8)
    assert (told["orientation"], told["unit"]) == (letters, "mm")


@given(st.sampled_from(ALL), st.tuples(*[st.tuples(st.integers(0, 3), st.integers(1, 3))] * 3))
def test_a_box_of_turned_axes_leads_back_to_the_same_voxels(letters: str, spans: tuple[tuple[int, int], ...]) -> None:
    stored = np.arange(6 * 7 * 8).reshape(6, 7, 8)
    grid = VoxelGrid(stored.shape, matrix_rows(rotated(3)))
    there = grid.turn(turned_to(grid, letters))
    box = Window(tuple(a for a, _ in spans), tuple(a + n for a, n in spans))
    back = there.turned.window_back(box, there.shape)
    shown = there.turned.array(stored)[tuple(map(slice, box.start, box.stop))]
    np.testing.assert_array_equal(there.turned.array(stored[tuple(map(slice, back.start, back.stop))]), shown)


def test_channels_stay_in_front() -> None:
    turned = Turned((2, 0, 1), (True, False, True))
    stored = np.arange(2 * 24).reshape(2, 2, 3, 4)
    assert turned.array(stored).shape == (2, 4, 2, 3) == (2, *turned.shape((2, 3, 4)))
    np.testing.assert_array_equal(turned.array(stored)[1], turned.array(stored[1]))
    np.testing.assert_array_equal(turned.back(turned.array(stored)), stored)


def test_spacing_size_and_place_of_a_voxel() -> None:
    grid = VoxelGrid((5, 6, 7), ((0, 0, -0.5, 10), (0, 0.8, 0, 20), (3, 0, 0, 30)))
    assert grid.spacing == pytest.approx((3, 0.8, 0.5))
    assert grid.cell == pytest.approx(3 * 0.8 * 0.5)
    np.testing.assert_allclose(grid.world(np.array([[0, 0, 0], [1, 2, 3]])), [[10, 20, 30], [8.5, 21.6, 33]])
    assert grid.unit == "mm"
    assert (grid.measure.unit, grid.measure.size, grid.measure.per_unit) == ("mm3", pytest.approx(1.2), 1)
    assert str(grid) == "3 x 0.8 x 0.5 mm, SAL"


def test_the_volume_of_a_voxel_is_exact_where_floats_are() -> None:
    # against exact fractions: elimination, as in numpy.linalg.det, rounds most of these, as the processor would have it
    rng = np.random.default_rng(0)
    for steps in rng.integers(-40, 41, (200, 3, 3)) / 8:
        (a, b, c), (d, e, f), (g, h, i) = ([Fraction(number) for number in row] for row in steps.tolist())
        exact = a * e * i + b * f * g + c * d * h - c * e * g - b * d * i - a * f * h
        assert VoxelGrid((2, 2, 2), matrix_rows(np.column_stack([np.vstack([steps, [0, 0, 0]]), [0, 0, 0, 1]]))).cell == abs(
            exact
        )


def test_shear_is_how_far_the_end_of_an_axis_lies_off() -> None:
    # planes 2 mm apart that slide by 0.1 mm each: over 10 planes by 1 mm, which is 2 voxels of 0.5 mm, and by hand
    grid = VoxelGrid((10, 8, 8), ((0, 0, 0.5, 0), (0.1, 0.5, 0, 0), (2, 0, 0, 0)))
    assert shear(grid) == pytest.approx(10 * 0.1 / 0.5, rel=0.01)
    assert shear(VoxelGrid((10, 8, 8), matrix_rows(rotated(1)))) < 1e-9


def test_affines_differ_most_at_a_corner() -> None:
    one, other = np.eye(4), np.diag([1.0, 1, 1.1, 1])
    assert furthest_apart(one, other, (5, 6, 11)) == pytest.approx(1)
    assert furthest_apart(one, one, (5, 6, 11)) == 0
