"""Pixel areas of large grids from a few points of each block: against every point, on maps of all kinds."""

import numpy as np
import pytest
import rasterio.crs
from affine import Affine

from segpipe.geometry.location import placed
from segpipe.geometry.smooth import BLOCK, CLOSE, MANY, on_grid


def counted(function):
    """The function, and a list of how many points it was asked for."""
    asked = []

    def count(rows, cols):
        asked.append(rows.size)
        return function(rows, cols)

    return count, asked


def test_polynomials_are_exact_from_few_points():
    function, asked = counted(lambda rows, cols: 3 + rows**3 * 1e-6 + rows * cols**2 * 1e-6)
    rows, cols = np.arange(300) + 0.5, np.arange(517) * 2.0
    found = on_grid(function, rows, cols)
    np.testing.assert_allclose(found, function(*np.meshgrid(rows, cols, indexing="ij")), rtol=1e-12)
    assert sum(asked[:-1]) < found.size / 20


def test_a_small_grid_is_computed_point_by_point():
    function, asked = counted(lambda rows, cols: np.sin(rows * cols))
    rows = np.arange(200.0)
    np.testing.assert_array_equal(on_grid(function, rows, rows[:5]), np.sin(np.outer(rows, rows[:5])))
    assert asked == [1000]
    assert MANY > 1000


def test_blocks_that_are_not_smooth_are_computed_point_by_point():
    def step(rows, cols):
        return np.where(rows + cols < 333, 0.0, 1.0) + np.where(rows > 400, np.sin(3 * cols), 0)

    rows = np.arange(5 * BLOCK + 1) + 200.0
    np.testing.assert_allclose(
        on_grid(step, rows, rows - 200), step(*np.meshgrid(rows, rows - 200, indexing="ij")), rtol=CLOSE
    )


@pytest.mark.parametrize(
    ("crs", "size", "left", "top"),
    [
        ("EPSG:3035", 12_000, 2e6, 5.5e6),
        ("EPSG:3857", 12_000, -4e6, 9e6),
        ("EPSG:32633", 2_600, -4e5, 6e6),
        ("EPSG:3031", 12_000, -2e6, 2e6),
        ("+proj=geos +h=35785831 +lon_0=0 +sweep=y +ellps=WGS84", 20_000, -5.6e6, 5.6e6),
        ("+proj=igh", 25_000, -7e6, 7e6),
    ],
)
def test_pixel_areas_are_those_of_each_pixel(crs, size, left, top):
    ground = placed(rasterio.crs.CRS.from_string(crs), Affine(size, 0, left, 0, -size, top), (560, 560)).ground
    edges = [np.arange(561, dtype=np.int64)] * 2
    middles = np.arange(560) + 0.5
    exact = ground.pixel_areas(*np.meshgrid(middles, middles, indexing="ij"))
    found = ground.sizes(edges)
    np.testing.assert_array_equal(found == 0, exact == 0)
    np.testing.assert_allclose(found, exact, rtol=1e-8)
    assert found.sum() == pytest.approx(exact.sum(), rel=1e-12)


def test_the_edge_of_a_map_is_followed_between_the_nodes():
    """A gap between two lobes of a map: wide below, where it shows, and ever narrower above, where no node meets it."""

    def gap(rows, cols):
        return np.where(np.abs(cols - 96.5) < 0.6 + rows / 40, 0.0, 1.0)

    rows, cols = np.arange(320.0), np.arange(260.0)
    found, exact = on_grid(gap, rows, cols), gap(*np.meshgrid(rows, cols, indexing="ij"))
    np.testing.assert_array_equal(found == 0, exact == 0)
    np.testing.assert_allclose(found, exact, rtol=1e-12)
