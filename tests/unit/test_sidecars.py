"""Files beside a raster that GDAL would pass over in silence: each is compared with how GDAL has used it."""

import errno
import os

import numpy as np
import pytest
import rasterio
from inspecting import settings as of_settings
from networks import contract
from unreadable import fail

from segpipe.contract import parse_contract
from segpipe.errors import SourceError
from segpipe.formats.raster import aligned, source
from segpipe.formats.raster.aligned import open_aligned
from segpipe.formats.raster.dataset_files import files_of
from segpipe.formats.raster.gdal import gdal_options, open_raster
from segpipe.formats.raster.sidecars import Checks, facts
from segpipe.formats.scenes import layers
from segpipe.formats.scenes.layers import open_band
from segpipe.formats.scenes.product import BandFile, Product
from segpipe.geometry.raster_grid import read_grid
from segpipe.geometry.windows import Window
from segpipe.inspect import raster as inspected
from segpipe.storage.retry import is_passing

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


TAKES_ONE = parse_contract(contract(1, 2), "m.onnx")

PAM = {
    "nodata": "<PAMRasterBand band='1'><NoDataValue>1</NoDataValue></PAMRasterBand>",
    "scale": "<PAMRasterBand band='1'><Scale>2</Scale></PAMRasterBand>",
    "place": "<GeoTransform>5e5,10,0,5.4e6,0,-10</GeoTransform>",
    "name": "<PAMRasterBand band='1'><Description>red</Description></PAMRasterBand>",
    "scene": "<Metadata><MDI key='AREA_OR_POINT'>Point</MDI></Metadata>",
}


def beside(path, kind, raster):
    """A file beside a raster that says something of it; its path."""
    if kind == "mask":
        file = raster(f"{path.name}.msk", np.zeros((1, 8, 9), np.uint8), driver="GTiff", crs=None)
        with rasterio.open(file, "r+") as dataset:
            dataset.update_tags(INTERNAL_MASK_FLAGS_1="2")
        return file
    world = path.with_suffix({".png": ".pgw", ".tif": ".tfw"}[path.suffix])
    file = world if kind == "world" else path.with_name(f"{path.name}.aux.xml")
    file.write_text(WORLD if kind == "world" else f"<PAMDataset>{PAM[kind]}</PAMDataset>")
    return file


def blind(file, times):
    """``open_raster`` for which a file is not there the ``times`` that are named, as when it cannot be read for a moment."""
    opened = []

    def open_blindly(path, *, remote=False):
        opened.append(path)
        if len(opened) not in times:
            return open_raster(path, remote=remote)
        away = file.rename(file.with_name("away"))
        dataset = open_raster(path, remote=remote)
        facts(dataset)  # GDAL reads some of it when it is asked
        away.rename(file)
        return dataset

    return open_blindly


@pytest.mark.parametrize("time", [1, 2])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("kind", [*PAM, "world", "mask"])
def test_a_file_that_gdal_could_not_read_for_a_moment_is_not_lost_in_silence(kind, name, time, raster, monkeypatch):
    path = raster(name, np.ones((1, 8, 9), np.uint8), crs=None, transform=None)
    monkeypatch.setattr(source, "open_raster", blind(beside(path, kind, raster), [time]))
    with gdal_options():
        with pytest.raises(SourceError, match=f"{path}: a file beside it could be read in only one of two tries") as told:
            source.RasterSource(str(path), TAKES_ONE)
        assert is_passing(told.value)
        source.RasterSource(str(path), TAKES_ONE).close()  # another try


def test_a_raster_that_is_opened_again_is_as_before(raster, monkeypatch):
    path = raster("a.tif", np.ones((1, 8, 9), np.uint8))
    monkeypatch.setattr(source, "open_raster", blind(beside(path, "mask", raster), [3]))
    with gdal_options():
        opened = source.RasterSource(str(path), TAKES_ONE)
        with pytest.raises(SourceError, match="could be read in only one of two tries"):
            opened.begin(Window((0, 0), (8, 9)), threads=2)()
        opened.close()


def test_a_reference_and_a_band_of_a_scene_do_not_lose_a_file_beside_them(raster, monkeypatch):
    path = raster("a.tif", np.ones((1, 8, 9), np.uint8))
    file = beside(path, "nodata", raster)
    with rasterio.open(path) as dataset:
        grid = read_grid(dataset)
    for module in (aligned, layers):
        monkeypatch.setattr(module, "open_raster", blind(file, [1]))
    lost = pytest.raises(SourceError, match="could be read in only one of two tries")
    with lost, open_aligned(path, grid):
        pass
    with lost, gdal_options():
        open_band(BandFile("red", str(path)), Product("p", (), own_tags=True), remote=False)


def test_words_in_another_encoding_beside_a_raster_are_no_fault(raster):
    path = raster("a.tif", np.ones((1, 8, 9), np.uint8))
    words = "<Description>Müller</Description><UnitType>µm</UnitType>"
    text = (
        f"<PAMDataset><Metadata><MDI key='n'>ü</MDI></Metadata><PAMRasterBand band='1'>{words}</PAMRasterBand></PAMDataset>"
    )
    path.with_name("a.tif.aux.xml").write_bytes(text.encode("latin-1"))
    with rasterio.open(path) as dataset:
        grid = read_grid(dataset)
        assert facts(dataset) == facts(dataset)
    with open_aligned(path, grid) as labels:
        assert labels.read(Window((0, 0), (8, 9)))[0].all()


def test_an_inspection_does_not_lose_a_file_beside_a_raster(raster, monkeypatch):
    path = raster("a.tif", np.ones((1, 8, 9), np.uint8))
    monkeypatch.setattr(inspected, "open_raster", blind(beside(path, "nodata", raster), [1]))
    with pytest.raises(SourceError, match="could be read in only one of two tries"), gdal_options():
        inspected.inspect_raster(str(path), of_settings(path), alone=True)


def test_the_file_itself_is_among_those_of_a_raster_of_which_gdal_does_not_find_it(raster, monkeypatch):
    path = raster("a.tif", np.ones((1, 8, 9), np.uint8))
    monkeypatch.setattr("segpipe.formats.raster.dataset_files.own_files", lambda dataset: [])
    with rasterio.open(path) as dataset:
        assert files_of(dataset) == [str(path)]


class Unlistable:
    """A listing of a folder that opens, and fails when it is read, as on a file server that has lost its handle."""

    def __init__(self, _) -> None:
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass

    def __next__(self):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(raster, monkeypatch):
    """GDAL would ignore the nodata values in the sidecar file, in every try."""
    path = raster("a.tif", np.ones((1, 8, 9), np.uint8))
    monkeypatch.setattr(os, "scandir", Unlistable)
    with gdal_options(), pytest.raises(SourceError, match=r"a.tif cannot be opened: Stale file handle") as lost:
        source.RasterSource(str(path), parse_contract(contract(1, 2), "x"))
    assert is_passing(lost.value)


def test_a_folder_whose_files_may_be_read_but_not_listed_is_no_fault(raster, tmp_path, monkeypatch):
    path = raster("a.tif", np.ones((1, 8, 9), np.uint8))
    fail(monkeypatch, tmp_path, "scandir", number=errno.EACCES)
    with gdal_options():
        source.RasterSource(str(path), parse_contract(contract(1, 2), "x")).close()
