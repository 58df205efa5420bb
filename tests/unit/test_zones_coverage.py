"""Sums over exactextract's coverage: labels, blocks, and the area that a polygon has in pixels."""

import numpy as np
import pytest
import shapely
from fields import ArrayMask

from segpipe.geometry.cells import Cells
from segpipe.geometry.grid import UniformMeasure
from segpipe.zones import coverage
from segpipe.zones.coverage import ForeignLabelError, Layer, areas_within, measure


def cells(shape, size=100.0):
    return Cells(UniformMeasure(2, size, "ha", 1e4), shape, (2**31,) * 2)


class Rows:
    """Areas that differ from row to row."""

    unit, per_unit, cell = "ha", 1e4, (1, 2**31)

    def sizes(self, edges):
        return np.arange(1.0, len(edges[0]))[:, None]


def test_weights_are_those_of_the_pixels():
    """By hand: exactextract shares the sums of operations whose rasters have one name, whatever their weights."""
    labels = np.array([[3, 3], [3, 7]])
    found = measure(
        np.array([shapely.box(0.5, 0, 2, 2)]), Layer(ArrayMask(labels), Cells(Rows(), (2, 2), (1, 2**31)), [3, 7])
    )
    np.testing.assert_allclose(found.pixels, [[2, 1, 0]])
    np.testing.assert_allclose(found.sizes, [[1.5 * 1 + 0.5 * 2, 2, 0]])


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (90, 70))
    shapes = shapely.buffer(shapely.points(rng.uniform(0, 90, (20, 2))), rng.uniform(2, 30, 20))
    whole = measure(shapes, Layer(ArrayMask(labels), cells(labels.shape), [0, 1, 2]))
    monkeypatch.setattr(coverage, "CELLS", 500)
    parts = measure(shapes, Layer(ArrayMask(labels), cells(labels.shape), [0, 1, 2]))
    np.testing.assert_allclose(parts.pixels, whole.pixels, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(parts.all_pixels, areas_within(shapes, labels.shape), rtol=1e-12)


def test_coverage_of_24_bits_is_brought_to_the_exact_area():
    shapes = np.array([shapely.box(0, 0, 1 / 3, 3), shapely.box(1 / 3, 0, 3, 3)])
    found = measure(shapes, Layer(ArrayMask(np.ones((3, 3))), cells((3, 3)), [0, 1]))
    np.testing.assert_allclose(found.all_pixels, [1, 8], rtol=1e-15)
    np.testing.assert_allclose(found.sizes.sum(), 900, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_a_label_that_is_no_class_is_told(dtype):
    mask = ArrayMask(np.zeros((2, 2)))
    mask._array = np.array([[[0, 1], [200, 1]]], dtype)
    with pytest.raises(ForeignLabelError, match="200"):
        measure(np.array([shapely.box(0, 0, 2, 2)]), Layer(mask, cells((2, 2)), [0, 1]))


def test_no_polygons_are_no_rows():
    assert measure(np.zeros(0, object), Layer(ArrayMask(np.zeros((2, 2))), cells((2, 2)), [0])).pixels.shape == (0, 2)


def test_a_polygon_is_clipped_to_the_grid():
    shapes = np.array([shapely.box(-5, -5, 1, 1), shapely.box(0, 0, 4, 4), shapely.box(9, 9, 10, 10)])
    assert areas_within(shapes, (4, 4)).tolist() == [1, 16, 0]
