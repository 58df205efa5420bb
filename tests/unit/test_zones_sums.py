"""Sums of labels and areas over polygons: by hand, and whatever the blocks and batches."""

import numpy as np
import pytest
import shapely
from fields import ArrayMask

from segpipe.geometry.cells import Cells
from segpipe.geometry.grid import UniformMeasure
from segpipe.results.zones import sums
from segpipe.results.zones.sums import ForeignLabelError, MeasuredMask, measure


def cells(shape, size=100.0):
    return Cells(UniformMeasure(2, size, "ha", 1e4), shape, (2**31,) * 2)


def discs(count=20, side=90, seed=0):
    rng = np.random.default_rng(seed)
    return shapely.buffer(shapely.points(rng.uniform(0, side, (count, 2))), rng.uniform(2, 30, count))


class Rows:
    """Areas that differ from row to row."""

    unit, per_unit, cell = "ha", 1e4, (1, 2**31)

    def sizes(self, edges):
        return np.arange(1.0, len(edges[0]))[:, None]


def test_sizes_are_those_of_the_pixels():
    labels = np.array([[3, 3], [3, 7]])
    found = measure(
        np.array([shapely.box(0.5, 0, 2, 2)]), MeasuredMask(ArrayMask(labels), Cells(Rows(), (2, 2), (1, 2**31)), [3, 7])
    )
    np.testing.assert_allclose(found.pixels, [[2, 1, 0]], rtol=1e-15)
    np.testing.assert_allclose(found.sizes, [[1.5 * 1 + 0.5 * 2, 2, 0]], rtol=1e-15)


@pytest.mark.parametrize(("block", "batch"), [((16, 20), 100), ((40, 7), 10**6), ((1, 1), 1)])
def test_blocks_and_batches_change_nothing(monkeypatch, block, batch):
    labels = np.random.default_rng(0).integers(0, 3, (40, 30))
    layer, polygons = MeasuredMask(ArrayMask(labels), cells(labels.shape), [0, 1, 2]), discs(10, 40)
    whole = measure(polygons, layer)
    monkeypatch.setattr(sums, "BLOCK", block)
    monkeypatch.setattr(sums, "BATCH", batch)
    parts = measure(polygons, layer)
    np.testing.assert_allclose(parts.pixels, whole.pixels, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(parts.sizes, whole.sizes, rtol=1e-12, atol=1e-7)


def test_only_pixels_around_polygons_are_read(monkeypatch):
    mask, windows = ArrayMask(np.zeros((300, 300))), []
    monkeypatch.setattr(mask, "read", lambda window, band=0: windows.append(window) or np.zeros(window.shape, np.uint8))
    measure(np.array([shapely.box(10.5, 280, 12, 299)]), MeasuredMask(mask, cells((300, 300)), [0]))
    assert [(window.start, window.stop) for window in windows] == [((1, 10), (20, 12))]


def test_polygons_beyond_the_grid_count_only_within():
    shapes = np.array(
        [shapely.box(-5, -5, 1, 1), shapely.box(0, 0, 4, 4), shapely.box(9, 9, 10, 10), shapely.box(-9, -9, 9, 9)]
    )
    found = measure(shapes, MeasuredMask(ArrayMask(np.ones((4, 4))), cells((4, 4)), [0, 1]))
    np.testing.assert_allclose(found.pixels.sum(axis=1), [1, 16, 0, 16], rtol=1e-15)


def test_neighbours_share_a_pixel_exactly():
    shapes = np.array([shapely.box(0, 0, 1 / 3, 3), shapely.box(1 / 3, 0, 3, 3)])
    found = measure(shapes, MeasuredMask(ArrayMask(np.ones((3, 3))), cells((3, 3)), [0, 1]))
    np.testing.assert_allclose(found.pixels.sum(axis=1), [1, 8], rtol=1e-15)
    np.testing.assert_allclose(found.sizes.sum(), 900, rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_a_label_that_is_no_class_is_told(dtype):
    mask = ArrayMask(np.zeros((2, 2)))
    mask._array = np.array([[[0, 1], [200, 1]]], dtype)
    with pytest.raises(ForeignLabelError, match="200"):
        measure(np.array([shapely.box(0, 0, 2, 2)]), MeasuredMask(mask, cells((2, 2)), [0, 1]))


def test_no_polygons_are_no_rows():
    assert measure(np.zeros(0, object), MeasuredMask(ArrayMask(np.zeros((2, 2))), cells((2, 2)), [0])).pixels.shape == (0, 2)
