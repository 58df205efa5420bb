"""Files beside a raster that GDAL would pass over in silence: each is compared with how GDAL has used it."""

import numpy as np
import pytest
import rasterio

from segpipe.errors import SourceError
from segpipe.formats.raster.sidecars import Checks

WORLD = "10\n0\n0\n-10\n500000\n5400000\n"


def check(path, *files):
    with rasterio.open(path) as dataset:
        Checks(str(path)).end(dataset, [str(path), *map(str, files)])


@pytest.fixture
def picture(raster):
    return raster("a.png", np.ones((1, 8, 9), np.uint8))


@pytest.mark.parametrize("text", [WORLD, WORLD.replace("\n", " metres\n"), WORLD.replace("10", "10,5", 1)])
def test_a_world_file_of_six_numbers_is_taken(text, picture):
    picture.with_suffix(".pgw").write_text(text)
    check(picture, picture.with_suffix(".pgw"))


@pytest.mark.parametrize("text", ["10\n0\n0\n-10\n500000\n", WORLD.replace("-10", "x"), "\n"])
def test_one_that_gdal_passes_over_is_named(text, picture):
    picture.with_suffix(".pgw").write_text(text)
    with pytest.raises(SourceError, match=r"a.pgw must be a world file, six numbers on lines of their own"):
        check(picture, picture.with_suffix(".pgw"))


def test_a_mask_of_another_size_is_named(picture, raster):
    raster("a.png.msk", np.ones((1, 3, 3), np.uint8), driver="GTiff", crs=None)
    with pytest.raises(SourceError, match=r"a.png.msk must be a raster of the size"):
        check(picture)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<PAMDataset><PAMRasterBand", "is not well-formed XML"),
        ("<PAMDataset><PAMRasterBand><NoDataValue>none</NoDataValue></PAMRasterBand></PAMDataset>", "got 'none'"),
        ("<PAMDataset><GeoTransform>1,0,0,0,x,1</GeoTransform></PAMDataset>", "got 'x'"),
    ],
)
def test_a_damaged_sidecar_is_named(text, message, picture):
    beside = picture.with_name("a.png.aux.xml")
    beside.write_text(text)
    with pytest.raises(SourceError, match=message):
        check(picture, beside)


def test_a_whole_sidecar_is_taken(picture):
    beside = picture.with_name("a.png.aux.xml")
    text = "<PAMDataset><PAMRasterBand band='1'><NoDataValue> 1.5E1</NoDataValue><NoDataValue/></PAMRasterBand></PAMDataset>"
    beside.write_text(text)
    check(picture, beside)
