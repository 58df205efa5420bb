"""Labels on another grid: the nearest pixel, computed by hand, and no label where there is none."""

import numpy as np
import pytest
from rasterio.crs import CRS
from rasterio.transform import from_origin

from segpipe.errors import SourceError
from segpipe.formats.raster.aligned import open_aligned
from segpipe.geometry.raster_grid import RasterGrid
from segpipe.geometry.windows import Window

UTM = CRS.from_epsg(32633)


def read(path, grid, *window):
    with open_aligned(path, grid) as reference:
        return (*reference.read(Window(*window or ((0, 0), grid.shape))), reference.moved)


def test_finer_pixels_repeat_those_of_the_reference(raster):
    values = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3)
    path = raster("r.tif", values, nodata=9)
    grid = RasterGrid((8, 8), UTM, from_origin(499_995, 5_400_005, 5, 5))
    labels, valid, moved = read(path, grid)
    wanted = np.zeros((8, 8), np.uint8)
    wanted[1:7, 1:7] = np.kron(values[0], np.ones((2, 2), np.uint8))
    assert moved
    np.testing.assert_array_equal(valid, (wanted > 0) & (wanted < 9))
    np.testing.assert_array_equal(labels[valid], wanted[valid])
    part, valid_part, _ = read(path, grid, (2, 1), (5, 4))
    np.testing.assert_array_equal(part, labels[2:5, 1:4])
    np.testing.assert_array_equal(valid_part, valid[2:5, 1:4])


def test_the_same_grid_is_read_as_it_is(raster):
    values = np.arange(9, dtype=np.uint8).reshape(1, 3, 3)
    grid = RasterGrid((3, 3), UTM, from_origin(500_000, 5_400_000, 10, 10))
    labels, valid, moved = read(raster("r.tif", values), grid)
    assert (valid, moved) == (None, False)
    np.testing.assert_array_equal(labels, values[0])
    labels, valid, moved = read(raster("n.tif", values, nodata=4), grid)
    assert not moved
    np.testing.assert_array_equal(valid, labels != 4)


def test_several_bands_are_no_labels(raster):
    path = raster("r.tif", np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(SourceError, match="must have one band of labels, and has 3"):
        read(path, RasterGrid((3, 3), UTM, from_origin(500_000, 5_400_000, 10, 10)))


def test_a_picture_of_another_size_has_no_place(raster):
    path = raster("r.png", np.zeros((1, 3, 3), np.uint8))
    with pytest.raises(SourceError, match="must have the size of the mask, 4 x 3"):
        read(path, RasterGrid((3, 4), UTM, from_origin(500_000, 5_400_000, 10, 10)))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"])
@pytest.mark.parametrize("nodata", [None, 9])
def test_pixels_outside_a_moved_reference_have_no_label_whatever_its_type(raster, dtype, nodata):
    path = raster("r.tif", np.arange(1, 10, dtype=dtype).reshape(1, 3, 3), nodata=nodata)
    labels, valid, moved = read(path, RasterGrid((5, 5), UTM, from_origin(499_990, 5_400_010, 10, 10)))
    wanted = np.pad(np.arange(1, 10).reshape(3, 3), 1)
    assert moved
    np.testing.assert_array_equal(valid, (wanted > 0) & (wanted != nodata))
    np.testing.assert_array_equal(labels[valid], wanted[valid])
