"""Labels as xarray: the coordinates, values and CRS that rioxarray and nibabel find in the same files."""

import builtins

import nibabel
import numpy as np
import pytest
import rasterio
from later import Later
from networks import local, pixelwise
from rasterio.transform import Affine, from_origin
from volumes import OBLIQUE, write

import segpipe
from segpipe.api.coordinates import data_array
from segpipe.api.labels import Labels
from segpipe.formats.nifti.source import read_mask as read_volume_mask
from segpipe.formats.raster.mask import read_mask as read_raster_mask

rioxarray = Later("rioxarray")

RNG = np.random.default_rng(0)


def labelled(scene, tmp_path, **changes):
    """A run over one case, and its result."""
    model = pixelwise(tmp_path / "m.onnx", **changes)
    return segpipe.run(scene, model, tmp_path / "out", executor="serial", device="cpu")


PLACES = {
    "UTM": {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_400_000, 10, 20)},
    "degrees": {"crs": "EPSG:4326", "transform": from_origin(16.5, 48.25, 1e-4, 2e-4)},
    "Web Mercator": {"crs": "EPSG:3857", "transform": from_origin(1e6, 6e6, 0.3, 0.3)},
    "Swiss": {"crs": "EPSG:2056", "transform": from_origin(2_600_000, 1_200_000, 2, 2)},
    "south up": {"crs": "EPSG:32733", "transform": Affine(10, 0, 5e5, 0, 10, 7e6)},
    "no CRS": {"crs": None, "transform": from_origin(10, 20, 2, 2)},
    "nowhere": {"crs": None, "transform": None},
}


@pytest.mark.filterwarnings("ignore:angle from rectified to skew grid:UserWarning")  # of rioxarray, on the Swiss CRS
@pytest.mark.parametrize("place", PLACES)
def test_rasters_are_where_rioxarray_finds_them(place, raster, tmp_path):
    scene = raster("a.tif", RNG.integers(1, 256, (3, 40, 70), dtype=np.uint8), nodata=0, **PLACES[place])
    array = labelled(scene, tmp_path).open("a").to_xarray()
    with rioxarray.open_rasterio(tmp_path / "out/a.tif") as opened:
        expected = opened.isel(band=0)
        assert array.dims == expected.dims == ("y", "x")
        assert np.array_equal(array, expected)
        for axis in "yx":
            assert np.array_equal(array[axis], expected[axis])
        assert array.rio.crs == expected.rio.crs
        assert array.rio.transform() == expected.rio.transform()
        assert array.rio.nodata == expected.rio.nodata == 255
    assert array.dtype == np.uint8
    if place == "UTM":
        assert (array.x.attrs["standard_name"], array.x.attrs["units"]) == ("projection_x_coordinate", "metre")


def test_a_turned_raster_keeps_its_transform_and_has_no_axes_of_its_own(raster, tmp_path):
    transform = from_origin(500_000, 5_400_000, 10, 10) @ Affine.rotation(30)
    scene = raster("a.tif", np.ones((3, 40, 70), np.uint8), transform=transform)
    array = labelled(scene, tmp_path).open("a").to_xarray()
    assert list(array.coords) == ["spatial_ref"]
    assert array.rio.transform().almost_equals(transform)
    assert array.rio.crs.to_epsg() == 32633


def test_a_picture_has_the_centres_of_its_pixels(raster, tmp_path):
    scene = raster("a.png", RNG.integers(1, 256, (3, 40, 70), dtype=np.uint8))
    array = labelled(scene, tmp_path).open("a").to_xarray()
    with rioxarray.open_rasterio(tmp_path / "out/a.png") as expected:
        assert np.array_equal(array, expected.isel(band=0))
    assert array.y.values[:2].tolist() == [0.5, 1.5]
    assert array.rio.crs is None


def test_classes_are_attributes_as_cf_has_them():
    labels = Labels(np.zeros((2, 3), np.uint8), 255, {0: "open water", 9: "forest", 4: "x"})
    array = labels.to_xarray()
    assert array.attrs["flag_values"].tolist() == [0, 9, 4]
    assert array.attrs["flag_meanings"] == "open_water forest x"
    assert array.dims == ("y", "x")
    assert not array.coords


def test_independent_classes_are_a_dimension(raster, tmp_path):
    scene = raster("a.tif", RNG.integers(1, 256, (3, 40, 70), dtype=np.uint8))
    result = labelled(scene, tmp_path, task="multilabel", activation="sigmoid")
    array = result.open("a").to_xarray()
    with rioxarray.open_rasterio(tmp_path / "out/a.tif") as expected:
        assert np.array_equal(array, expected)
        assert np.array_equal(array.x, expected.x)
    assert array.dims == ("class", "y", "x")
    assert array["class"].values.tolist() == ["class0", "class1", "class2"]
    assert array.attrs["flag_meanings"] == "absent present"


def test_an_array_in_memory_has_axes_and_no_coordinates(tmp_path):
    model = segpipe.load(local(tmp_path / "m.onnx", 1), device="cpu")
    image, volume = (model.predict(np.ones((1, *shape), np.uint8)) for shape in [(20, 30), (4, 20, 30)])
    assert (image.to_xarray().dims, volume.to_xarray().dims) == (("y", "x"), ("z", "y", "x"))
    assert not image.to_xarray().coords


AFFINES = {
    "RAS": np.array([[0.8, 0, 0, -20], [0, 0.9, 0, 5], [0, 0, 2.5, 7], [0, 0, 0, 1.0]]),
    "LPS": np.array([[-0.8, 0, 0, 20], [0, -0.9, 0, 5], [0, 0, 2.5, -7], [0, 0, 0, 1.0]]),
    "ASR": np.array([[0, 0, 1.5, 1], [0.7, 0, 0, 2], [0, 0.6, 0, 3], [0, 0, 0, 1.0]]),
}


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_volumes_have_coordinates_in_mm(name, suffix, tmp_path):
    scene = write(tmp_path / f"a{suffix}", RNG.integers(0, 255, (11, 13, 7)).astype("i2"), AFFINES[name])
    array = opened_volume(scene, tmp_path)
    mask = nibabel.load(tmp_path / f"out/a{suffix}")
    data = np.asarray(mask.dataobj)
    for index in [(0, 0, 0), (10, 12, 6), (3, 4, 5)]:
        x, y, z = (mask.affine @ [*index, 1])[:3]
        assert array.sel(x=x, y=y, z=z, method="nearest").item() == data[index]
        there = array.isel(dict(zip(array.dims, index[::-1], strict=True)))
        assert [there.x.item(), there.y.item(), there.z.item()] == pytest.approx([x, y, z])
    assert array.x.attrs == {"units": "mm"}


def opened_volume(scene, tmp_path, **settings):
    model = local(tmp_path / "m.onnx", 1)
    return segpipe.run(scene, model, tmp_path / "out", executor="serial", device="cpu", **settings).open("a").to_xarray()


def test_an_oblique_volume_has_indices_and_its_affine(tmp_path):
    scene = write(tmp_path / "a.nii", RNG.integers(0, 255, (11, 13, 7)).astype("i2"), OBLIQUE)
    array = opened_volume(scene, tmp_path)
    mask = nibabel.load(tmp_path / "out/a.nii")
    assert array.dims == ("k", "j", "i")
    assert array.i.values.tolist() == list(range(11))
    place = array.attrs["affine"] @ [2, 3, 4, 1]  # k, j, i
    assert place == pytest.approx(mask.affine @ [4, 3, 2, 1], abs=1e-5)


def test_lengths_in_other_units_are_mm(tmp_path):
    scene = write(tmp_path / "a.nii", np.ones((4, 5, 6), "i2"), np.diag([0.001, 0.002, 0.003, 1]), xyzt_units=1)
    array = opened_volume(scene, tmp_path)
    assert np.diff(array.z.values) == pytest.approx(3)


def test_independent_classes_of_a_volume(tmp_path):
    scene = write(tmp_path / "a.nii.gz", RNG.integers(0, 255, (11, 13, 7)).astype("i2"))
    model = local(tmp_path / "m.onnx", 1, task="multilabel", activation="sigmoid")
    labels = segpipe.run(scene, model, tmp_path / "out", executor="serial", device="cpu").open("a")
    stored = np.asarray(nibabel.load(tmp_path / "out/a.nii.gz").dataobj)
    assert np.array_equal(labels.array, stored.T)
    assert labels.to_xarray().dims == ("class", "z", "y", "x")


def test_without_xarray_the_command_that_installs_it_is_named(monkeypatch):
    imported = builtins.__import__

    def without(name, *arguments, **options):
        if name == "xarray":
            raise ModuleNotFoundError("No module named 'xarray'", name="xarray")
        return imported(name, *arguments, **options)

    labels = Labels(np.zeros((2, 3), np.uint8), 255, {0: "a"})
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(segpipe.InstallationError, match="to_xarray needs xarray, which is not installed: run pip install"):
        data_array(labels)


READERS = [(read_raster_mask, "a.tif"), (read_volume_mask, "a.nii"), (read_volume_mask, "a.nii.gz")]


@pytest.mark.parametrize(("read", "name"), READERS)
def test_a_damaged_mask_is_an_error(read, name, tmp_path):
    (tmp_path / name).write_bytes(b"no mask" * 100)
    with pytest.raises(segpipe.OutputError, match=rf"{name} cannot be read: "):
        read(tmp_path / name)


def test_a_mask_that_is_gone_is_an_error(raster, tmp_path):
    result = labelled(raster("a.tif", np.ones((3, 40, 70), np.uint8)), tmp_path)
    (tmp_path / "out/a.tif").unlink()
    with pytest.raises(segpipe.OutputError, match=r"a.tif must be a mask that segpipe wrote, and cannot be read"):
        result.open("a")


def test_what_is_written_again_is_where_it_was(raster, tmp_path):
    """As netCDF has it: rioxarray finds the CRS again."""
    scene = raster("a.tif", np.ones((3, 40, 70), np.uint8))
    assert rioxarray.raster_array  # which gives arrays their ``rio``
    labelled(scene, tmp_path).open("a").to_xarray().rio.to_raster(tmp_path / "again.tif")
    with rasterio.open(tmp_path / "again.tif") as again, rasterio.open(scene) as first:
        assert (again.crs, again.transform, again.nodata) == (first.crs, first.transform, 255)
