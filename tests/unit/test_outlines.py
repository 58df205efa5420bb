"""Outlines and diameters against brute force, scipy's hulls, scikit-image, and shapes of known size."""

import math

import numpy as np
import pytest
from scipy.spatial import ConvexHull
from skimage.measure import label, regionprops

from segpipe.results.lesions import outlines
from segpipe.results.lesions.outlines import HALF, IN_PLANE, at, outline, places, plane_diameters, space_diameter, world_box


def turned(seed: int) -> np.ndarray:
    """A random rotation."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    return q * np.sign(np.diag(r))


def points_of(mask: np.ndarray) -> np.ndarray:
    flat = np.flatnonzero(mask)
    return places(outline(np.zeros(len(flat), np.int64), flat, mask.shape)[1], mask.shape)


def every_distance(mask: np.ndarray, steps: np.ndarray, faces: np.ndarray) -> float:
    world = ((np.argwhere(mask)[:, None] + faces[None]) @ steps.T).reshape(-1, 3)
    return max(float(np.linalg.norm(world - one, axis=1).max()) for one in world)


def ellipsoid(shape: tuple[int, ...], radii: tuple[float, ...], steps: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Voxels whose centre lies in an ellipsoid of these radii in mm around the middle."""
    index = np.stack(np.indices(shape), axis=-1) - (np.array(shape) - 1) / 2
    world = index @ steps.T @ turn
    return ((world / radii) ** 2).sum(axis=-1) <= 1


@pytest.mark.parametrize("seed", range(20))
def test_an_outline_keeps_the_vertices_of_the_hull_of_each_slice_and_no_other_points(seed):
    rng = np.random.default_rng(seed)
    shape = (3, int(rng.integers(4, 30)), int(rng.integers(4, 30)))
    mask = rng.random(shape) < rng.uniform(0.05, 0.9)
    mask[:, 1, 1] = mask[:, 2, 3] = mask[:, 3, 0] = True  # not all on one line
    found = points_of(mask)
    for k in range(3):
        own = np.argwhere(mask[k])
        hull = {tuple(own[v]) for v in ConvexHull(own).vertices}
        assert {tuple(p) for p in found[found[:, 0] == k, 1:].tolist()} == hull


@pytest.mark.parametrize("seed", range(10))
def test_the_corners_of_outlines_along_all_axes_hold_the_hull_in_space_and_give_the_same_diameter(seed):
    steps = turned(seed) * [2.5, 0.7, 0.9]
    mask = ellipsoid((24, 31, 28), (20.0, 9.0, 8.0), np.diag([2.5, 0.7, 0.9]), turned(seed + 50))
    points = points_of(mask)
    corners = outlines._corners(points)
    assert outlines.FEW < len(corners) <= len(points)
    found = {tuple(p) for p in corners.tolist()}
    assert {tuple(points[v]) for v in ConvexHull(points).vertices} <= found <= {tuple(p) for p in points.tolist()}
    assert space_diameter(points, steps) == outlines._farthest(points, steps, HALF)[0]


@pytest.mark.parametrize("seed", range(10))
def test_outlines_of_pieces_merge_to_the_outline_of_the_whole(seed):
    rng = np.random.default_rng(seed)
    shape = (4, 20, 20)
    flat = np.flatnonzero(rng.random(shape) < 0.3)
    owner = rng.integers(0, 3, len(flat))
    whole = outline(owner, flat, shape)
    piece = rng.integers(0, 5, len(flat))
    parts = [outline(owner[piece == k], flat[piece == k], shape) for k in range(5)]
    again = outline(*(np.concatenate(pair) for pair in zip(*parts, strict=True)), shape)
    assert all((a == b).all() for a, b in zip(whole, again, strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_diameters_are_the_longest_of_all_distances(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((4, 5, 6)) < 0.2
    mask[tuple(rng.integers(0, 4, 3))] = True
    steps = turned(seed) * rng.uniform(0.4, 5, 3)
    found = points_of(mask)
    assert space_diameter(found, steps) == pytest.approx(every_distance(mask, steps, HALF), rel=1e-12)
    planes = [every_distance(mask[k : k + 1], steps, IN_PLANE) if mask[k].any() else 0 for k in range(4)]
    longest, across, plane = plane_diameters(found, steps)
    assert longest == pytest.approx(max(planes), rel=1e-12)
    assert planes[plane] == pytest.approx(longest, rel=1e-12)
    assert 0 < across <= longest * (1 + 1e-12)


def test_blocks_of_pairs_give_the_same_distance(monkeypatch):
    mask = ellipsoid((20, 40, 40), (9, 17, 12), np.eye(3), turned(3))
    found = points_of(mask)
    whole = space_diameter(found, np.eye(3)), plane_diameters(found, np.eye(3))
    monkeypatch.setattr(outlines, "PAIRS", 100)
    assert (space_diameter(found, np.eye(3)), plane_diameters(found, np.eye(3))) == whole


def test_a_voxel_is_as_long_as_its_longest_side():
    assert plane_diameters(np.array([[2, 3, 4]]), np.diag([5.0, 0.5, 0.8])) == (0.8, pytest.approx(0.5), 2)
    assert space_diameter(np.array([[2, 3, 4]]), np.diag([5.0, 0.5, 0.8])) == 5


def test_a_bar_is_as_long_as_its_voxels_are_together():
    found = points_of(np.pad(np.ones((1, 1, 10), bool), 2))
    assert plane_diameters(found, np.diag([4.0, 2.0, 1.0])) == (10, 2, 2)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.8, 0.8)])
def test_diameters_of_an_ellipsoid_are_within_a_voxel(seed, spacing):
    """Any rotation of the grid, and an ellipsoid whose axes are those of the grid."""
    steps, radii = turned(seed) * spacing, (14.0, 20.0, 9.0)
    mask = ellipsoid((41, 61, 61), radii, np.diag(spacing), np.eye(3))
    longest, across, _ = plane_diameters(points_of(mask), steps)
    voxel = max(spacing) + 1e-9  # 41 voxels of 1 mm, whose centres fill the ellipsoid, are one more than 40 mm
    assert abs(longest - 40) <= voxel
    assert abs(across - 18) <= voxel
    assert abs(space_diameter(points_of(mask), steps) - 40) <= voxel


@pytest.mark.parametrize("seed", range(6))
def test_the_diameter_in_space_of_an_oblique_ellipsoid_is_within_a_voxel(seed):
    mask = ellipsoid((61, 61, 61), (24.0, 12.0, 8.0), np.eye(3), turned(seed))
    assert abs(space_diameter(points_of(mask), np.eye(3)) - 48) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_the_diameter_of_an_image_is_scikit_image_s_feret_diameter(seed):
    rng = np.random.default_rng(seed)
    index = np.stack(np.indices((50, 60)), axis=-1) - (25, 30)
    angle = rng.uniform(0, 3)
    world = index @ np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    mask = ((world / (rng.uniform(5, 20), rng.uniform(3, 9))) ** 2).sum(axis=-1) <= 1
    (region,) = regionprops(label(mask))
    assert plane_diameters(points_of(mask[None]), np.eye(3))[0] == pytest.approx(region.feret_diameter_max, abs=0.75)


@pytest.mark.parametrize("seed", range(4))
def test_the_box_in_space_holds_the_corners_of_all_voxels(seed):
    rng = np.random.default_rng(seed)
    mask, steps, origin = rng.random((4, 5, 6)) < 0.1, turned(seed) * rng.uniform(0.5, 4, 3), rng.uniform(-90, 90, 3)
    mask[1, 2, 3] = True
    corners = np.array(list(np.ndindex(2, 2, 2))) - 0.5
    world = ((np.argwhere(mask)[:, None] + corners) @ steps.T + origin).reshape(-1, 3)
    low, high = world_box(points_of(mask), steps, origin)
    assert np.allclose(low, world.min(axis=0), atol=1e-9)
    assert np.allclose(high, world.max(axis=0), atol=1e-9)
    assert np.allclose(at((1.5, 2, 3), steps, origin), steps @ (1.5, 2, 3) + origin)
