"""Ground that scenes share: against a mosaic made by hand, over two projections, and across the antimeridian."""

import numpy as np
import pytest
import shapely
from affine import Affine
from fields import UTM, ArrayMask, fields, square

from segpipe.geometry.extents import extent, meeting
from segpipe.geometry.raster_grid import ground_of
from segpipe.geometry.windows import Window
from segpipe.results.overlap import shared
from segpipe.results.overlap.shared import Neighbour, Shared
from segpipe.results.zones.case import measured

CLASSES = ((0, "water"), (1, "wheat"), (2, "maize"))


def noise(shape, seed):
    """Blocks of labels, a quarter of them without data."""
    rng = np.random.default_rng(seed)
    blocks = rng.choice(np.array([0, 1, 2, 255], np.uint8), (shape[0] // 5 + 1, shape[1] // 5 + 1))
    return np.kron(blocks, np.ones((5, 5), np.uint8))[: shape[0], : shape[1]]


def summed(masks, zones):
    """Classes, seen, unseen and share of each zone, over masks in order."""
    totals = np.zeros((len(zones), 6))
    for k, mask in enumerate(masks):
        others = [Neighbour(one, ground_of(one.grid), 255, n < k) for n, one in enumerate(masks) if n != k]
        together = Shared(ground_of(mask.grid), mask.grid.shape, others)
        found = measured(mask, CLASSES, 255, zones, lambda together=together: together)
        totals[found.index] += np.column_stack([found.classes, found.seen, found.unseen, found.within])
    return totals


def polygons(transform, shape, count=25):
    rng = np.random.default_rng(5)
    points = [transform * tuple(rng.uniform(0, n) for n in shape[::-1]) for _ in range(count)]
    return [shapely.Point(point).buffer(float(r)) for point, r in zip(points, rng.uniform(30, 250, count), strict=True)]


def test_scenes_of_one_grid_are_their_mosaic(tmp_path, monkeypatch):
    """Three scenes, each pixel from the first that saw it."""
    monkeypatch.setattr(shared, "CHUNK", 700)
    offsets, shape = [(0, 0), (20, 35), (-10, 50)], (60, 70)
    scenes = [noise(shape, k) for k in range(3)]
    mosaic = np.full((90, 130), 254, np.uint8)  # 254: nowhere
    for (row, col), labels in zip(offsets, scenes, strict=True):
        part = mosaic[row + 10 : row + 70, col : col + 70]
        part[:] = np.where((part == 254) | ((part == 255) & (labels != 255)), labels, part)
    masks = [ArrayMask(scene, UTM * Affine.translation(col, row)) for scene, (row, col) in zip(scenes, offsets, strict=True)]
    whole = ArrayMask(mosaic, UTM * Affine.translation(0, -10))
    zones = fields(tmp_path, polygons(UTM * Affine.translation(0, -10), mosaic.shape))
    truth = measured(whole, (*CLASSES, (254, "nowhere")), 255, zones)
    found = summed(masks, zones)[truth.index]
    np.testing.assert_allclose(found[:, :3], truth.classes[:, :3], rtol=1e-5, atol=0.01)
    np.testing.assert_allclose(found[:, 4], truth.unseen, rtol=1e-5, atol=0.01)
    reached = 1 - truth.classes[:, 3] / (truth.seen + truth.unseen)
    np.testing.assert_allclose(found[:, 5], reached * truth.within, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", [0, 1])
def test_scenes_of_two_projections_count_shared_ground_once(first, tmp_path):
    """The same ground in UTM and in degrees: polygons have their own area, but for pixels at the seam."""
    west = ArrayMask(np.zeros((300, 200)))
    east = ArrayMask(np.ones((300, 200)), Affine(1.2e-4, 0, 15.012, 0, -0.9e-4, 48.756), "EPSG:4326")
    shape = square(UTM, 50, 60, 250, 240)
    zones = fields(tmp_path, [shape])
    found = summed([west, east] if first == 0 else [east, west], zones)
    alone = [measured(mask, CLASSES, 255, zones).seen.sum() for mask in (west, east)]
    pixel = measured(west, CLASSES, 255, fields(tmp_path, [square(UTM, 0, 0, 1, 1)])).seen[0]
    truth = 200 * 180 * pixel
    assert sum(alone) > 1.05 * truth
    np.testing.assert_allclose(found[0, 3], truth, rtol=3e-3)
    np.testing.assert_allclose(found[0, 5], 1, rtol=3e-3)
    assert found[0, first] == pytest.approx(alone[first], rel=1e-6)  # of the first scene, all counts


def test_scenes_that_only_touch_share_nothing(tmp_path):
    masks = [ArrayMask(noise((40, 50), 1)), ArrayMask(noise((40, 50), 2), UTM * Affine.translation(50, 0))]
    zones = fields(tmp_path, [square(UTM, 3.3, 4.4, 91.2, 30.7)])
    together, apart = summed(masks, zones), [measured(mask, CLASSES, 255, zones) for mask in masks]
    np.testing.assert_allclose(together[:, :3], sum(one.classes for one in apart), rtol=1e-12)


def test_grids_on_both_sides_of_the_antimeridian_share_ground():
    east = ArrayMask(np.zeros((20, 20)), Affine(0.01, 0, 179.9, 0, -0.01, 0), "EPSG:4326")
    west = ArrayMask(np.zeros((20, 20)), Affine(0.01, 0, -180.05, 0, -0.01, 0), "EPSG:4326")
    grounds = [ground_of(mask.grid) for mask in (east, west)]
    extents = np.array([extent(ground, (20, 20)) for ground in grounds])
    assert [near.tolist() for near in meeting(extents)] == [[1], [0]]
    west_shares = Shared(grounds[1], (20, 20), [Neighbour(east, grounds[0], 255, True)])
    found = west_shares.elsewhere(Window((0, 0), (20, 20)), np.zeros((20, 20), bool))
    assert found[:, :15].all()  # up to 180.1 degrees
    assert not found[:, 15:].any()


def test_grids_far_from_one_another_do_not_meet():
    grids = [ArrayMask(np.zeros((9, 9)), UTM * Affine.translation(d, 0)) for d in (0, 5, 500)]
    extents = [extent(ground_of(mask.grid), (9, 9)) for mask in grids]
    assert [near.tolist() for near in meeting(np.array([*extents, np.full((2, 3), np.nan)]))] == [[1], [0], [], []]
