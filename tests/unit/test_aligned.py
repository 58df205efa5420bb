"""Labels on another grid: the nearest pixel, computed by hand, and no label where there is none."""

from itertools import product

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image, ImageOps
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from segpipe.errors import SourceError
from segpipe.formats.raster.aligned import open_aligned
from segpipe.formats.raster.orientation import ORIENTATION
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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_picture_is_turned_upright_as_the_picture_of_its_case(suffix, orientation, tmp_path):
    values, exif = np.arange(12, dtype=np.uint8).reshape(3, 4), Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(values).save(tmp_path / "seen.png", exif=exif.tobytes())
    with Image.open(tmp_path / "seen.png") as image:
        upright = np.array(ImageOps.exif_transpose(image))
    path = tmp_path / f"r.{suffix}"
    if suffix == "tif":
        tifffile.imwrite(path, values, extratags=[(ORIENTATION, 3, 1, orientation, True)], metadata=None)
    else:
        (tmp_path / "seen.png").rename(path)
    labels, _, moved = read(path, RasterGrid(upright.shape))
    assert not moved
    np.testing.assert_array_equal(labels, upright)
    np.testing.assert_array_equal(read(path, RasterGrid(upright.shape), (1, 0), (3, 2))[0], upright[1:3, :2])


def test_a_picture_with_a_place_is_read_as_it_is_stored(tmp_path):
    values = np.arange(9, dtype=np.uint8).reshape(3, 3)
    tifffile.imwrite(tmp_path / "r.tif", values, extratags=[(ORIENTATION, 3, 1, 3, True)], metadata=None)
    labels, _, _ = read(tmp_path / "r.tif", RasterGrid((3, 3), UTM, from_origin(500_000, 5_400_000, 10, 10)))
    np.testing.assert_array_equal(labels, values)


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


TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float32")
MASKS = ("alpha", "alpha nodata", "stored", "stored nodata")


@pytest.mark.parametrize(
    ("masks", "dtype"),
    [
        *product(MASKS, TYPES),
        ("nan", "float32"),
        ("nan nodata", "float32"),
        ("nan alpha", "float64"),
        ("nan nodata alpha", "float32"),
    ],
)
@pytest.mark.parametrize("step", [10, 5])
def test_what_any_mask_of_a_reference_leaves_out_has_no_label(tmp_path, dtype, masks, step):
    """On the same grid and on a finer one. A stored mask decides alone, as in GDAL; an alpha band is one more."""
    values, seen = np.arange(1, 10).reshape(3, 3), np.array([[1, 1, 0], [1, 0, 1], [1, 1, 1]], bool)
    band = np.where(seen, values, np.nan) if "nan" in masks else values
    place = {"crs": UTM, "transform": from_origin(500_000, 5_400_000, 10, 10), "nodata": None}
    if "nodata" in masks:
        place["nodata"] = np.nan if "nan" in masks else 2
    bands = 2 if "alpha" in masks else 1
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(tmp_path / "r.tif", "w", "GTiff", 3, 3, bands, dtype=dtype, **place) as file,
    ):
        file.write(band.astype(dtype), 1)
        if "alpha" in masks:
            file.write((seen * (127 if dtype == "int8" else 255)).astype(dtype), 2)
            file.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
        if "stored" in masks:
            file.write_mask(seen)
    wanted = seen & (values != 2) if masks == "alpha nodata" else seen
    times = np.ones((10 // step, 10 // step), int)
    grid = RasterGrid((30 // step, 30 // step), UTM, from_origin(500_000, 5_400_000, step, step))
    labels, valid, moved = read(tmp_path / "r.tif", grid)
    assert moved == (step < 10)
    np.testing.assert_array_equal(valid, np.kron(wanted, times).astype(bool))
    np.testing.assert_array_equal(labels[valid], np.kron(values, times)[valid])


@pytest.mark.parametrize("west", [0, -180, -360, 170])
@pytest.mark.parametrize("nodata", [None, 9])
def test_longitudes_may_be_counted_from_another_meridian(raster, west, nodata):
    """A reference of the whole globe from -180 to 180, on grids that begin elsewhere: each column by its meridian."""
    values = np.arange(36, dtype=np.uint8).reshape(1, 1, 36).repeat(18, axis=1)
    world = {"crs": "EPSG:4326", "transform": from_origin(-180, 90, 10, 10), "nodata": nodata}
    path = raster("r.tif", values, **world)
    columns = 36 if west != 170 else 4
    grid = RasterGrid((18, columns), CRS.from_epsg(4326), from_origin(west, 90, 10, 10))
    labels, valid, _ = read(path, grid)
    wanted = (np.arange(columns) + (west + 180) // 10) % 36
    seen = np.ones(labels.shape, bool) if valid is None else valid
    np.testing.assert_array_equal(seen, np.broadcast_to(wanted != nodata, labels.shape))
    np.testing.assert_array_equal(labels[seen], np.broadcast_to(wanted, labels.shape)[seen])
