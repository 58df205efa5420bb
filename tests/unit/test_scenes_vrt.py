"""Bands of several pixel sizes on one grid: which grid, where each lies, and what cannot be put together."""

import networks
import numpy as np
import products
import pytest
import rasterio
import tifffile
from affine import Affine
from rasterio.transform import from_origin

from segpipe.contract import parse_contract
from segpipe.errors import SourceError
from segpipe.formats.case import BandsFrom, CaseSelection
from segpipe.formats.cases import find_input
from segpipe.formats.registry import environment, open_case
from segpipe.formats.scenes.layers import open_band
from segpipe.formats.scenes.product import BandFile, Product
from segpipe.formats.scenes.source import SceneSource
from segpipe.formats.scenes.vrt import SceneBand, finest, vrt_of
from segpipe.geometry.windows import Window
from segpipe.overrides import AS_STORED, Overrides


def layer(
    size: float = 10, shape=(60, 80), corner=(0.0, 0.0), nodata: float | None = 0, crs="EPSG:32633", path="a"
) -> SceneBand:
    return SceneBand(path, path, shape, from_origin(*corner, size, size), crs, "uint16", nodata)


def source_of(folder, names, overrides=AS_STORED, **changes):
    contract = parse_contract(networks.contract(names, 3, **changes), "a test")
    (case,) = find_input([str(folder)], CaseSelection(bands=BandsFrom("{case}_{band}.tif", tuple(names)))).cases
    with environment():
        return open_case(case, contract, overrides)


@pytest.mark.parametrize("place", [True, False])
def test_a_turned_band_without_a_place_is_refused_and_not_taken_as_it_lies(place, tmp_path):
    turned = [(274, 3, 1, 3, True)]  # upside down
    scale = [(33550, 12, 3, (10.0, 10.0, 0.0), True), (33922, 12, 6, (0.0, 0.0, 0.0, 5e5, 5e6, 0.0), True)]
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for name in "ab":
        tifffile.imwrite(tmp_path / f"x_{name}.tif", values, extratags=turned + scale * place, metadata=None)
    if place:
        pixels, _ = source_of(tmp_path, "ab").read(Window.whole((3, 4)))
        np.testing.assert_array_equal(pixels[0], values)
        return
    with pytest.raises(SourceError, match=r"x_a.tif: pictures of a scene must be stored upright.*mogrify -auto-orient"):
        source_of(tmp_path, "ab")


def test_the_finest_of_the_wanted_bands():
    fine, coarse = layer(), layer(20, (30, 40))
    assert finest([coarse, fine, layer()]) is fine
    assert 'rasterXSize="40"' in vrt_of([coarse], "bilinear", {})
    assert 'resampling="bilinear"' in vrt_of([coarse, fine], "bilinear", {})


@pytest.mark.parametrize(
    ("other", "rule"),
    [
        (layer(crs="EPSG:32634", path="b"), "b and a: bands of a scene must have one CRS"),
        (layer(20, (20, 40), path="b"), "must cover the same ground, got one that ends 10 of its pixels before the other"),
        (
            layer(20, (30, 40), corner=(100.0, 0.0), path="b"),
            "must cover the same ground, got one that ends 5 of its pixels",
        ),
        (layer(20, (29, 40), nodata=None, path="b"), "must cover the same ground, got one that ends 1 of its pixels"),
        (
            SceneBand("b", "b", (60, 80), Affine(10, 0, 0, 0, 10, -600), "EPSG:32633", "uint16", 0),
            "must run in the same directions",
        ),
        (
            SceneBand("b", "b", (60, 80), Affine(10, 1, 0, 0, -10, 0), "EPSG:32633", "uint16", 0),
            "must run in the same directions",
        ),
    ],
)
def test_layers_that_do_not_fit(other, rule):
    with pytest.raises(SourceError, match=rule):
        vrt_of([layer(), other], "bilinear", {})


def test_pixels_do_not_depend_on_the_window_that_reads_them(tmp_path):
    pixels = products.bands(["B02", "B05", "B01"])
    for name, values in pixels.items():
        products.write(tmp_path / f"a_{name}.tif", values, products.SIZES[name], nodata=0)
    source = source_of(tmp_path, ["B02", "B05", "B01"])
    with environment():
        whole, invalid = source.read(Window((0, 0), products.SHAPE))
        for start, stop in [((1, 1), (34, 38)), ((55, 59), (97, 101)), ((147, 203), (180, 240))]:
            part, mask = source.read(Window(start, stop))
            where = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
            np.testing.assert_array_equal(part, whole[:, *where])
            np.testing.assert_array_equal(np.zeros(part.shape[1:], bool) if mask is None else mask, invalid[where])
        source.close()
    assert invalid.sum() == 3600


def test_a_panchromatic_grid_that_ends_half_a_pixel_earlier(tmp_path):
    """As in Landsat: the centres of the first pixels coincide, so the edges are 7.5 m apart."""
    rng = np.random.default_rng(0)
    coarse, fine = rng.integers(1, 5000, (20, 30), dtype=np.uint16), rng.integers(1, 5000, (39, 59), dtype=np.uint16)
    for name, values, size, shift in (("red", coarse, 30, 0.0), ("pan", fine, 15, 7.5)):
        path = products.write(tmp_path / f"a_{name}.tif", values, size, nodata=0)
        with rasterio.open(path, "r+") as dataset:
            dataset.transform = from_origin(products.CORNER[0] + shift, products.CORNER[1] - shift, size, size)
    source = source_of(tmp_path, ["red", "pan"], Overrides(band_resampling="bilinear"))
    with environment():
        values, invalid = source.read(Window((0, 0), (39, 59)))
        source.close()
    np.testing.assert_array_equal(values[1], fine)
    np.testing.assert_array_equal(values[0][::2, ::2], coarse)  # on the centres nothing is interpolated
    assert invalid is None


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"count": 2}, "a file must hold one band of a scene, got 2"),
        ({"dtype": "complex64"}, "pixels must be integers or floats, got complex64"),
        ({"mask": True}, "bands of a scene must have a nodata value, got a mask"),
    ],
)
def test_files_that_are_no_bands(tmp_path, change, rule):
    kind = {
        "driver": "GTiff",
        "width": 8,
        "height": 8,
        "count": change.get("count", 1),
        "dtype": change.get("dtype", "uint8"),
    }
    with rasterio.open(
        tmp_path / "a_B02.tif", "w", **kind, crs="EPSG:32633", transform=from_origin(0, 0, 10, 10)
    ) as dataset:
        if "mask" in change:
            dataset.write_mask(np.ones((8, 8), bool))
    with pytest.raises(SourceError, match=rule):
        source_of(tmp_path, ["B02"])


def test_images_of_a_product_may_not_lead_elsewhere(tmp_path):
    (tmp_path / "a.tif").write_text(
        "<VRTDataset rasterXSize='1' rasterYSize='1'><VRTRasterBand dataType='Byte' band='1'/></VRTDataset>"
    )
    with environment(), pytest.raises(SourceError, match="images of a product must be JPEG 2000 or GeoTIFF, got VRT"):
        open_band(BandFile("B02", str(tmp_path / "a.tif")), Product(()), remote=False)
    with environment(), pytest.raises(SourceError, match="names in a product must not look like URLs"):
        open_band(BandFile("B02", "/vsizip/a.zip/vsicurl/http://x/b.tif"), Product(()), remote=False)


def test_nodata_by_the_user_counts_before_pixels_are_interpolated(tmp_path):
    fine, coarse = np.full((4, 8), 9, np.uint16), np.array([[7, 7, 100, 100]] * 2, np.uint16)
    products.write(tmp_path / "a_B02.tif", fine, 10)
    products.write(tmp_path / "a_B05.tif", coarse, 20)
    with environment():
        plain = source_of(tmp_path, ["B02", "B05"]).read(Window((0, 0), (4, 8)))[0][1, 0]
        declared = source_of(tmp_path, ["B02", "B05"], Overrides(nodata=7)).read(Window((0, 0), (4, 8)))[0][1, 0]
    assert plain.tolist() == [7, 7, 7, 30, 77, 100, 100, 100]
    assert declared.tolist() == [7, 7, 7, 100, 100, 100, 100, 100]


def test_physical_values_need_a_scale(tmp_path):
    products.hls(tmp_path, {"B04": np.ones((6, 6), np.int16), "B05": np.ones((6, 6), np.int16)}, "L30")
    with rasterio.open(tmp_path / f"{products.HLS['L30']}.B05.tif", "r+") as dataset:
        dataset.update_tags(scale_factor="many")
    (case,) = find_input([str(tmp_path)]).cases
    stored, physical = (parse_contract(networks.contract(["B05"], 3, pixel=p), "a test") for p in ("stored", "physical"))
    with environment(), pytest.raises(SourceError, match="scale_factor and add_offset must be numbers"):
        SceneSource(case, stored)
    with rasterio.open(tmp_path / f"{products.HLS['L30']}.B05.tif", "r+") as dataset:
        dataset.update_tags(scale_factor="1")
    with environment():
        SceneSource(case, stored).close()
        with pytest.raises(SourceError, match='pixel = "physical" needs a scale, and neither'):
            SceneSource(case, physical)
