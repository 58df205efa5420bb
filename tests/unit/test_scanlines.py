"""Pixels inside polygons, against GDAL's rasterizer over the whole grid, and by hand where centres lie on edges."""

import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.features import rasterize

from segpipe.geometry.scanlines import Scanlines
from segpipe.geometry.windows import Window
from segpipe.vectors.area import edges_of

SHAPE = (90, 110)


def lines(shapes, shape=SHAPE):
    return Scanlines(edges_of(np.array(shapes, object), shape[0]), shape)


def whole(found):
    return found.covered(Window((0, 0), found.shape))


def drawn(seed):
    """Overlapping polygons with holes and islands, some beyond the borders."""
    rng = np.random.default_rng(seed)

    def disc(most):
        return shapely.Point(rng.uniform(-20, 120, 2)).buffer(rng.uniform(1, most), quad_segs=3)

    return [shape for _ in range(8) if not (shape := disc(40).difference(disc(20)).union(disc(3))).is_empty]


@pytest.mark.parametrize("seed", range(12))
def test_pixels_are_those_of_gdal_in_whatever_window(seed):
    shapes = drawn(seed)
    wanted = rasterize(shapes, SHAPE, transform=Affine(1, 0, 0, 0, -1, SHAPE[0])).astype(bool)
    found = lines(shapes)
    assert np.array_equal(whole(found), wanted)
    for window in (Window((13, 40), (57, 77)), Window((89, 0), (90, 110)), Window((0, 109), (90, 110))):
        assert np.array_equal(found.covered(window), wanted[tuple(map(slice, window.start, window.stop))])
    rows, cols = np.nonzero(wanted)
    assert found.count == wanted.sum()
    assert found.bounds == Window((rows.min(), cols.min()), (rows.max() + 1, cols.max() + 1))


def test_polygons_that_share_edges_through_centres_share_no_pixel():
    parts = [shapely.box(x, y, x + 1.5, y + 1.5) for x in np.arange(0, 6, 1.5) for y in np.arange(0, 6, 1.5)]
    each = [whole(lines([part], (6, 6))) for part in parts]
    assert np.array_equal(np.sum(each, axis=0), np.ones((6, 6)))
    assert whole(lines(parts, (6, 6))).all()


def test_a_centre_on_an_edge_counts_to_the_right_and_below():
    found = whole(lines([shapely.box(1.5, 1.5, 3.5, 3.5)], (5, 5)))  # y counts from the bottom
    assert np.array_equal(np.argwhere(found), [[1, 1], [1, 2], [2, 1], [2, 2]])


@pytest.mark.parametrize("shape", [shapely.box(0.6, 0.6, 1.4, 1.4), shapely.box(-9, 0, -1, 5), shapely.box(0, 7, 5, 9)])
def test_a_polygon_between_centres_or_beyond_the_grid_has_no_pixel(shape):
    found = lines([shape], (5, 5))
    assert found.bounds is None
    assert found.count == 0
    assert not whole(found).any()


def test_no_polygon_has_no_pixel():
    found = lines([], (5, 5))
    assert found.bounds is None
    assert not whole(found).any()


def test_a_hole_in_one_polygon_is_filled_by_another():
    ring = shapely.box(0, 0, 10, 10).difference(shapely.box(3, 3, 7, 7))
    assert lines([ring], (10, 10)).count == 84
    assert lines([ring, shapely.box(4, 4, 6, 6)], (10, 10)).count == 88
    assert lines([ring, ring], (10, 10)).count == 84


def test_counting_over_strips_is_counting_at_once():
    found = lines([shapely.box(2, 3, 9, 1400)], (1500, 12))
    assert found.count == 7 * 1397
    assert found.bounds == Window((100, 2), (1497, 9))
