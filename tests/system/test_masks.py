"""What masks are as files: read back with rasterio and rio-cogeo, against the pixels that the model was made to repeat."""

import csv
import hashlib
import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import rasterio
from affine import Affine
from networks import Network, contract, pixelwise
from numpy.typing import NDArray
from onnx import numpy_helper
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC
from rasterio.windows import Window
from rio_cogeo.cogeo import cog_validate
from scenes import Silent

from segpipe.formats.raster.sink import DraftSink, HeldSink, raster_sink
from segpipe.formats.style import Style
from segpipe.geometry.raster_grid import RasterGrid
from segpipe.geometry.windows import Window as Box
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.settings import load_settings
from segpipe.storage.folder import Folder


def repeater(path: Path, classes: list[dict[str, Any]] | int = 3, **changes: Any) -> Path:
    """A model whose label is the pixel's value: of scores ``2 k x - k²``, that of k = x is the largest."""
    named = classes if isinstance(classes, list) else [{"id": i, "name": f"class{i}"} for i in range(classes)]
    k = np.arange(len(named), dtype=np.float32)
    net = Network(1).add("Conv", 2 * k.reshape(-1, 1, 1, 1), -(k**2))
    values = {**contract(1), "scale": 1.0, "tile": [256, 256], "overlap": [32, 32], "classes": named, **changes}
    return net.save(path, values, classes=len(named))


def read(path: Path, **options: Any) -> NDArray[Any]:
    with rasterio.open(path, **options) as dataset:
        return np.asarray(dataset.read())


def run_json(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "run.json").read_text()))


def chunks(path: Path) -> dict[str, bytes]:
    """Oracle for PNG: its chunks by name, checksums checked."""
    data, at, found = path.read_bytes(), 8, {}
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        assert zlib.crc32(name + body) == struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0]
        found[name.decode()] = found.get(name.decode(), b"") + body
        at += 12 + size
    return found


@pytest.mark.parametrize("shape", [(1, 40, 30), (1, 513, 700), (1, 1040, 1200)])
def test_masks_are_cogs_that_repeat_the_pixels(shape, raster, run_serial, tmp_path):
    pixels = np.random.default_rng(0).choice(np.array([0, 1, 2, 9], np.uint8), shape)
    out = run_serial(raster("in/a.tif", pixels, nodata=9), repeater(tmp_path / "m.onnx"), confidence=True)
    for name in ("a.tif", "a.confidence.tif"):
        assert cog_validate(str(out / name), strict=True) == (True, [], [])
    with rasterio.open(out / "a.tif") as mask:
        assert (mask.dtypes, mask.nodata, mask.count) == (("uint8",), 255, 1)
        assert mask.block_shapes == [(512, 512)]
        assert len(mask.overviews(1)) == (0 if max(shape) <= 512 else int(np.ceil(np.log2(max(shape) / 512))))
        np.testing.assert_array_equal(mask.read(), np.where(pixels == 9, 255, pixels))
        np.testing.assert_array_equal(mask.read_masks(1) == 0, pixels[0] == 9)


def test_overviews_show_only_classes_that_lie_below(raster, run_serial, tmp_path):
    """Fine detail of 0 and 2 and nodata: an average, or a cubic kernel, would make 1 of it."""
    pixels = np.random.default_rng(1).choice(np.array([0, 2, 9], np.uint8), (1, 1040, 1200), p=[0.45, 0.45, 0.1])
    pixels[0, 300:600, 300:900] = np.indices((300, 600)).sum(axis=0) % 2 * 2
    out = run_serial(raster("in/a.tif", pixels, nodata=9), repeater(tmp_path / "m.onnx"))
    full = read(out / "a.tif")[0]
    for level, factor in enumerate((2, 4)):
        small = read(out / "a.tif", overview_level=level)[0]
        below = full.reshape(1040 // factor, factor, 1200 // factor, factor)
        assert small.shape == below.shape[::2]
        assert set(np.unique(small)) == {0, 2, 255}
        assert (below == small[:, None, :, None]).any(axis=(1, 3)).all()


@pytest.mark.parametrize("count", [2, 3, 9, 25, 100, 254, 255])
def test_any_number_of_classes_has_different_colours(count, raster, run_serial, tmp_path):
    model = repeater(tmp_path / "m.onnx", count, tile=[16, 16], overlap=[0, 0])
    out = run_serial(raster("in/a.tif", np.zeros((1, 8, 8), np.uint8)), model)
    with rasterio.open(out / "a.tif") as mask:
        table = mask.colormap(1)
        assert mask.colorinterp[0].name == "palette"
    colours = [table[k][:3] for k in range(count)]
    assert len(set(colours)) == count
    assert [table[k][3] for k in range(count)] == [255] * count


COLOURED = [
    {"id": 0, "name": "water", "color": "#1f77b4"},
    {"id": 1, "name": "wheat"},
    {"id": 2, "name": "wood", "color": "#00FF7f"},
]


def test_colours_are_the_contract_s(raster, run_serial, tmp_path):
    pixels = np.zeros((1, 8, 8), np.uint8)
    model = repeater(tmp_path / "m.onnx", COLOURED)
    out = run_serial(raster("in/a.tif", pixels), model)
    run_serial(raster("in/b.png", pixels), model)
    for name in ("a.tif", "b.png"):
        with rasterio.open(out / name) as mask:
            assert mask.colormap(1)[0] == (0x1F, 0x77, 0xB4, 255)
            assert mask.colormap(1)[2] == (0, 255, 127, 255)


NAMES = [{"id": 1, "name": "Wald & Wiese <jung>"}, {"id": 4, "name": 'Äcker "süd"'}, {"id": 0, "name": "水"}]


@pytest.mark.parametrize("ids", [(1, 4, 0), (1, 300, 0)])
def test_class_names_are_in_tags_and_categories(ids, raster, run_serial, tmp_path):
    classes = [{**c, "id": i, "index": k} for k, (c, i) in enumerate(zip(NAMES, ids, strict=True))]
    out = run_serial(raster("in/a.tif", np.zeros((1, 8, 8), np.uint8)), repeater(tmp_path / "m.onnx", classes))
    categories = [e.text or "" for e in ElementTree.parse(out / "a.tif.aux.xml").getroot().iter("Category")]
    with rasterio.open(out / "a.tif") as mask:
        tags = mask.tags()
    for c in classes:
        assert categories[c["id"]] == tags[f"CLASS_{c['id']}"] == c["name"]
    assert sum(map(bool, categories)) == len(classes)


WIDE = ("uint16", 65535)


@pytest.mark.parametrize(("ids", "kind"), [([254, 7, 0], ("uint8", 255)), ([255, 7, 0], WIDE), ([9, 65534], WIDE)])
def test_class_ids_decide_the_type(ids, kind, raster, run_serial, tmp_path):
    classes = [{"id": i, "name": f"c{i}", "index": k} for k, i in enumerate(ids)]
    pixels = np.random.default_rng(2).integers(0, len(ids) + 1, (1, 50, 60), dtype=np.uint8)
    source = raster("in/a.tif", pixels, nodata=len(ids))
    out = run_serial(source, repeater(tmp_path / "m.onnx", classes))
    with rasterio.open(out / "a.tif") as mask:
        assert (mask.dtypes[0], mask.nodata) == kind
        np.testing.assert_array_equal(mask.read(), np.array([*ids, kind[1]])[pixels])
    assert cog_validate(str(out / "a.tif"), strict=True) == (True, [], [])


def test_more_than_255_classes(raster, run_serial, tmp_path):
    pixels = np.arange(300, dtype=np.uint16).reshape(1, 15, 20)
    out = run_serial(raster("in/a.tif", pixels), repeater(tmp_path / "m.onnx", 300, tile=[16, 16], overlap=[0, 0]))
    np.testing.assert_array_equal(read(out / "a.tif"), pixels)


CUSTOM = (
    'PROJCS["farm grid",GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563]],PRIMEM["Greenwich",0],'
    'UNIT["degree",0.0174532925199433]],PROJECTION["Lambert_Conformal_Conic_2SP"],PARAMETER["latitude_of_origin",47.123],'
    'PARAMETER["central_meridian",13.377],PARAMETER["standard_parallel_1",46.5],PARAMETER["standard_parallel_2",48.25],'
    'PARAMETER["false_easting",123456.7],PARAMETER["false_northing",654321.9],UNIT["metre",1],'
    'AXIS["Easting",EAST],AXIS["Northing",NORTH]]'
)
GCPS = [
    GroundControlPoint(r, c, 15 + c * 1e-4 / 3, 48 - r * 1e-4 / 7, 12.5) for r, c in [(0, 0), (0, 30), (40, 0), (40, 30.5)]
]
RPCS = RPC(
    height_off=100.1,
    height_scale=501.3,
    lat_off=48.123456,
    lat_scale=0.1234,
    line_off=20.5,
    line_scale=21.25,
    long_off=15.4321,
    long_scale=0.2345,
    samp_off=15.5,
    samp_scale=16.75,
    line_num_coeff=[0.001 * i / 3 for i in range(20)],
    line_den_coeff=[1.0, *(1e-5 * i / 7 for i in range(19))],
    samp_num_coeff=[0.002 * i / 3 for i in range(20)],
    samp_den_coeff=[1.0, *(1e-6 * i / 7 for i in range(19))],
    err_bias=1.5,
    err_rand=0.25,
)
ODD = Affine(10 / 3, 0, 500000.1 / 3, 0, -10 / 7, 5400000.7 / 3)
GRIDS: dict[str, dict[str, Any]] = {
    "utm": {"crs": "EPSG:32633", "transform": ODD},
    "degrees": {"crs": "EPSG:4326", "transform": Affine(1 / 3600, 0, 15 + 1 / 7200, 0, -1 / 3600, 48 - 1 / 7200)},
    "feet": {"crs": "EPSG:2263", "transform": ODD},
    "grads": {"crs": "EPSG:27572", "transform": ODD},
    "compound": {"crs": "EPSG:32633+5773", "transform": ODD},
    "rotated": {"crs": "EPSG:32633", "transform": ODD * Affine.rotation(33.3)},
    "south up": {"crs": "EPSG:32633", "transform": Affine(10, 0, 5e5, 0, 10 / 3, 5.4e6)},
    "custom": {"crs": CUSTOM, "transform": ODD},
    "moon": {"crs": "+proj=longlat +R=1737400 +no_defs", "transform": ODD},
    "engineering": {"crs": 'LOCAL_CS["slide",UNIT["metre",1]]', "transform": ODD},
    "transform only": {"crs": None, "transform": ODD},
    "crs only": {"crs": "EPSG:32633", "transform": None},
    "gcps": {"crs": None, "transform": None, "gcps": GCPS, "gcps_crs": CRS.from_epsg(4326)},
    "rpc": {"crs": None, "transform": None, "rpcs": RPCS},
    "bare": {"crs": None, "transform": None},
}


def placed(path: Path, place: dict[str, Any], area_or_point: str | None = None) -> Path:
    """A raster of 40 x 31 pixels with any georeferencing."""
    path.parent.mkdir(exist_ok=True)
    options = {key: place[key] for key in ("crs", "transform") if place[key] is not None}
    with rasterio.open(path, "w", driver="GTiff", width=31, height=40, count=1, dtype="uint8", **options) as dataset:
        dataset.write(np.arange(40 * 31, dtype=np.uint16).reshape(1, 40, 31).astype(np.uint8) % 3)
        if area_or_point:
            dataset.update_tags(AREA_OR_POINT=area_or_point)
        if "gcps" in place:
            dataset.gcps = (place["gcps"], place["gcps_crs"])
        if "rpcs" in place:
            dataset.rpcs = place["rpcs"]
    return path


def where(path: Path) -> dict[str, Any]:
    """All that a file says of its place."""
    with rasterio.open(path) as dataset:
        points, points_crs = dataset.gcps
        return {
            "transform": tuple(dataset.transform),
            "crs": None if _unnamed(dataset.crs) else dataset.crs.to_wkt(version="WKT2_2019"),
            "gcps": [(p.row, p.col, p.x, p.y, p.z) for p in points],
            "gcps_crs": points_crs and points_crs.to_wkt(),
            "rpcs": dataset.rpcs and dataset.rpcs.to_dict(),
            "point": dataset.tags().get("AREA_OR_POINT"),
            "shape": dataset.shape,
        }


def _unnamed(crs: CRS | None) -> bool:
    """GDAL makes an unnamed local CRS, of any unit, of a file that has AREA_OR_POINT and no CRS."""
    return crs is None or crs.to_wkt(version="WKT2_2019").startswith('ENGCRS["unnamed"')


@pytest.mark.parametrize("point", [None, "Point"])
@pytest.mark.parametrize("place", GRIDS)
def test_a_mask_lies_where_its_input_lies(place, point, run_serial, tmp_path):
    source = placed(tmp_path / "in" / "a.tif", GRIDS[place], point)
    out = run_serial(source, repeater(tmp_path / "m.onnx"), confidence=True)
    expected = where(source)
    if expected["gcps"]:
        expected["point"] = "Area"  # GDAL moves control points by a pixel when it writes them as Point
    assert where(out / "a.tif") == expected
    assert where(out / "a.confidence.tif") == expected
    np.testing.assert_array_equal(read(out / "a.tif"), read(source))


def test_a_vrt_passes_its_place_on(run_serial, tmp_path):
    """A VRT keeps any WKT; GeoTIFF has keys for most of it. Axes and ellipsoid must be the same ground."""
    placed(tmp_path / "in" / "a.tif", GRIDS["custom"])
    with rasterio.open(tmp_path / "in" / "a.tif") as dataset:
        transform = ",".join(map(repr, dataset.transform.to_gdal()))
    vrt = tmp_path / "in" / "b.vrt"
    vrt.write_text(
        f'<VRTDataset rasterXSize="31" rasterYSize="40"><SRS>{CUSTOM}</SRS><GeoTransform>{transform}</GeoTransform>'
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename relativeToVRT="1">a.tif</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    out = run_serial(vrt, repeater(tmp_path / "m.onnx"))
    with rasterio.open(out / "b.tif") as mask, rasterio.open(vrt) as source:
        assert (mask.transform, mask.crs) == (source.transform, source.crs)


@pytest.mark.parametrize(("name", "shape"), [("a.png", (1, 60, 50)), ("a.png", (1, 700, 300)), ("sub/b.PNG", (1, 60, 50))])
def test_a_picture_gives_an_indexed_picture(name, shape, raster, run_serial, tmp_path):
    pixels = np.random.default_rng(3).integers(0, 4, shape, dtype=np.uint8)
    source = raster(name, pixels, driver="PNG", nodata=3, crs=None, transform=None)
    out = run_serial(source, repeater(tmp_path / "m.onnx", COLOURED))
    mask = out / f"{source.stem}.png"
    parts = chunks(mask)
    width, height, depth, kind = struct.unpack(">IIBB", parts["IHDR"][:10])
    assert (height, width, depth, kind) == (*shape[1:], 8, 3)
    assert parts["PLTE"][:3] == bytes([0x1F, 0x77, 0xB4])
    opacity = [*parts["tRNS"], *[255] * (256 - len(parts["tRNS"]))]
    assert opacity[255] == 0
    assert opacity[:3] == [255] * 3
    np.testing.assert_array_equal(read(mask)[0], np.where(pixels == 3, 255, pixels)[0])
    assert [p.name for p in out.glob("*.aux.xml")] == []


def test_a_jpeg_gives_an_indexed_png(raster, run_serial, tmp_path):
    pixels = np.random.default_rng(4).integers(0, 255, (3, 90, 70), dtype=np.uint8)
    out = run_serial(raster("in/a.jpg", pixels), pixelwise(tmp_path / "m.onnx"))
    assert chunks(out / "a.png")["IHDR"][:10] == struct.pack(">IIBB", 70, 90, 8, 3)


def test_transparent_pixels_of_a_picture_are_nodata(raster, run_serial, tmp_path):
    pixels = np.random.default_rng(5).integers(0, 255, (4, 90, 70), dtype=np.uint8)
    pixels[3] = np.where(np.indices((90, 70))[0] < 30, 0, 255)
    out = run_serial(raster("in/a.png", pixels), pixelwise(tmp_path / "m.onnx"))
    np.testing.assert_array_equal(read(out / "a.png")[0] == 255, pixels[3] == 0)


@pytest.mark.parametrize("sidecar", ["a.pgw", "a.wld", "a.png.aux.xml"])
def test_a_picture_with_a_place_gives_a_geotiff(sidecar, raster, run_serial, tmp_path):
    source = raster("in/a.png", np.ones((1, 30, 40), np.uint8))
    world = "10\n0\n0\n-10\n500005\n5399995\n"
    pam = "<PAMDataset><GeoTransform>500000,10,0,5400000,0,-10</GeoTransform></PAMDataset>"
    (tmp_path / "in" / sidecar).write_text(pam if sidecar.endswith("xml") else world)
    out = run_serial(source, repeater(tmp_path / "m.onnx"))
    with rasterio.open(out / "a.tif") as mask:
        assert mask.transform == Affine(10, 0, 500000, 0, -10, 5400000)
    assert not (out / "a.png").exists()


LOGITS = np.array([[4.0, -1.0], [-3.0, 1.0], [2.0, -2.0]], np.float32)
"""Gain and bias of three independent classes of one channel."""


def affine(path: Path, count: int, **changes: Any) -> Path:
    """Scores ``gain x + bias`` of the first classes."""
    net = Network(1).add("Conv", LOGITS[:count, :1].reshape(-1, 1, 1, 1), LOGITS[:count, 1])
    values = {**contract(1, count), "activation": "sigmoid", "tile": [128, 128], **changes}
    return net.save(path, values, classes=count)


def scores_of(pixels: NDArray[Any], count: int) -> NDArray[np.float64]:
    x = pixels.astype(np.float64) / 255
    return np.stack([gain * x[0] + bias for gain, bias in LOGITS[:count].astype(np.float64)])


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_multilabel_gives_a_band_per_class(threshold, raster, run_serial, tmp_path):
    pixels = np.random.default_rng(6).integers(0, 250, (1, 100, 90), dtype=np.uint8)
    pixels[:, :10] = 255
    classes = [{"id": 5, "name": "b", "index": 1}, {"id": 7, "name": "c", "index": 2}, {"id": 2, "name": "a", "index": 0}]
    model = affine(tmp_path / "m.onnx", 3, task="multilabel", threshold=threshold, classes=classes)
    out = run_serial(raster("in/a.tif", pixels, nodata=255), model)
    expected = (1 / (1 + np.exp(-scores_of(pixels, 3))) > threshold).astype(np.uint8)
    expected[:, :10] = 255
    with rasterio.open(out / "a.tif") as mask:
        assert mask.descriptions == ("a", "b", "c")
        assert mask.nodata == 255
        np.testing.assert_array_equal(mask.read(), expected)
    assert cog_validate(str(out / "a.tif"), strict=True) == (True, [], [])


def test_one_independent_class_is_named_by_what_its_pixels_hold(raster, run_serial, tmp_path):
    """A mask of one band holds 0 and 1, whatever the id of its class: 1 carries the name and the colour."""
    pixels = np.random.default_rng(6).integers(0, 250, (1, 40, 50), dtype=np.uint8)
    classes = [{"id": 0, "name": "cloud", "color": "#ff0000"}]
    out = run_serial(raster("in/a.tif", pixels), affine(tmp_path / "m.onnx", 1, task="multilabel", classes=classes))
    with rasterio.open(out / "a.tif") as mask:
        np.testing.assert_array_equal(mask.read(), scores_of(pixels, 1) > 0)
        assert mask.colormap(1)[1][:3] == (255, 0, 0)
        assert mask.colormap(1)[0][:3] != (255, 0, 0)


@pytest.mark.parametrize("classes", [[{"id": 1, "name": "house"}], [{"id": 0, "name": "rest"}, {"id": 1, "name": "house"}]])
@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_binary_is_one_above_the_threshold(threshold, classes, raster, run_serial, tmp_path):
    pixels = np.random.default_rng(7).integers(0, 250, (1, 100, 90), dtype=np.uint8)
    model = affine(tmp_path / "m.onnx", 1, task="binary", threshold=threshold, classes=classes)
    out = run_serial(raster("in/a.tif", pixels), model)
    np.testing.assert_array_equal(read(out / "a.tif"), 1 / (1 + np.exp(-scores_of(pixels, 1))) > threshold)
    with (out / "areas.csv").open() as stream:
        names = [row["class_name"] for row in csv.DictReader(stream)]
    assert names == [classes[0]["name"] if len(classes) == 2 else "background", "house", "nodata"]


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(scores - scores.max(axis=0))
    return np.asarray((powers / powers.sum(axis=0)).max(axis=0)[None])


def sigmoid(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    p = 1 / (1 + np.exp(-scores))
    return np.where(p > 0.5, p, 1 - p)


@pytest.mark.parametrize("blend_on", ["logits", "probabilities"])
@pytest.mark.parametrize(
    "case",
    [
        (3, {"activation": "softmax"}, softmax),
        (3, {"task": "multilabel"}, sigmoid),
        (1, {"task": "binary", "classes": [{"id": 1, "name": "x"}]}, sigmoid),
    ],
    ids=["softmax", "multilabel", "binary"],
)
def test_confidence_is_the_probability_of_the_label(case, blend_on, raster, run_serial, tmp_path):
    count, changes, likely = case
    pixels = np.random.default_rng(8).integers(0, 250, (1, 100, 90), dtype=np.uint8)
    pixels[:, 5:9] = 255
    model = affine(tmp_path / "m.onnx", count, **changes)
    out = run_serial(raster("in/a.tif", pixels, nodata=255), model, confidence=True, blend_on=blend_on)
    found = read(out / "a.confidence.tif").astype(int)
    expected = np.rint(254 * likely(scores_of(pixels, count)))
    expected[:, 5:9] = 255
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1  # float32 against float64
    assert (found == expected).mean() > 0.999
    with rasterio.open(out / "a.confidence.tif") as dataset:
        assert (dataset.dtypes[0], dataset.nodata) == ("uint8", 255)


def test_a_model_of_probabilities_gives_them_as_confidence(raster, run_serial, tmp_path):
    pixels = np.random.default_rng(9).integers(0, 250, (1, 60, 60), dtype=np.uint8)
    net = Network(1).add("Conv", LOGITS[:, :1].reshape(-1, 1, 1, 1), LOGITS[:, 1]).add("Softmax", axis=1)
    model = net.save(tmp_path / "m.onnx", contract(1, 3, activation="none"), classes=3)
    out = run_serial(raster("in/a.png", pixels), model, confidence=True)
    expected = np.rint(254 * softmax(scores_of(pixels, 3)))
    assert np.abs(read(out / "a.confidence.png").astype(int) - expected).max() <= 1


def test_the_record_tells_what_was_done(raster, run_serial, tmp_path):
    pixels = np.random.default_rng(10).integers(0, 3, (1, 300, 280), dtype=np.uint8)
    pixels[:, :, 200:] = 9
    source = raster("in/sub/a.tif", pixels, nodata=9)
    model = repeater(tmp_path / "m.onnx")
    out = run_serial(tmp_path / "in", model, confidence=True, overlap=64)
    record = json.loads((out / "sub" / "a.json").read_text())
    assert (record["case"], record["schema"]) == ("sub/a", 2)
    assert record["input"]["grid"] == {"crs": "EPSG:32633", "transform": [10.0, 0.0, 500000.0, 0.0, -10.0, 5400000.0]}
    assert record["input"]["path"] == str(source)
    stat = source.stat()
    assert record["input"]["files"] == [{"path": str(source), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}]
    assert record["outputs"] == ["sub/a.tif", "sub/a.tif.aux.xml", "sub/a.confidence.tif"]
    assert record["settings"]["tile"] == [256, 256]
    assert record["settings"]["overlap"] == [64, 64]
    assert record["settings"]["blend_on"] == "logits"
    assert (record["windows"], record["inferred"], record["nodata"]) == (4, 4, 255)
    assert record["seconds"] > 0
    assert record["device"]["device"] == "cpu"
    assert len(record["model"]["sha256"]) == hashlib.sha256().digest_size * 2
    counts = [int((pixels == v).sum()) for v in (0, 1, 2, 9)]
    assert [row["pixels"] for row in record["statistics"]["areas"]] == counts
    with (out / "areas.csv").open() as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["case", "class_id", "class_name", "pixels", "area", "unit", "share"]
    assert [row[:4] for row in rows[1:]] == [
        ["sub/a", k, name, str(n)]
        for k, name, n in zip(["0", "1", "2", ""], ["class0", "class1", "class2", "nodata"], counts, strict=True)
    ]
    newest = max(p.stat().st_mtime_ns for p in (out / "sub").iterdir())
    assert (out / "sub" / "a.json").stat().st_mtime_ns == newest, "the record is written last"


def test_run_json_tells_of_the_whole_run(raster, segpipe, tmp_path):
    raster("in/good.tif", np.ones((1, 200, 300), np.uint8))
    raster("in/wrong.tif", np.ones((2, 20, 30), np.uint8))
    raster("in/before.tif", np.ones((1, 20, 30), np.uint8))
    arguments = ["--model", repeater(tmp_path / "m.onnx"), "--executor", "serial", "--device", "cpu", "-o", "out"]
    assert segpipe("run", "-i", "in/before.tif", *arguments).returncode == 0
    assert segpipe("run", "-i", "in", *arguments).returncode == 1
    record = run_json(tmp_path / "out")
    assert (record["done"], record["skipped"]) == (["good"], ["before"])
    assert [failure["case"] for failure in record["failed"]] == ["wrong"]
    assert "bands must be the model's channels" in record["failed"][0]["error"]
    assert record["interrupted"] is False
    assert record["settings"]["executor"] == "serial"
    assert record["versions"]["rasterio"] == rasterio.__version__
    assert record["device"]["device"] == "cpu"
    rate = 200 * 300 / 1e6 / record["seconds"]
    assert record["megapixels_per_second"] == pytest.approx(rate, rel=0.05, abs=1e-3)


def rewrite(model: Path, **changes: Any) -> None:
    proto = onnx.load(model)
    proto.metadata_props[0].value = json.dumps({**json.loads(proto.metadata_props[0].value), **changes})
    onnx.save(proto, model)


def reweigh(model: Path) -> None:
    proto = onnx.load(model)
    weights = proto.graph.initializer[1]
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) + np.float32(1e-6), weights.name))
    onnx.save(proto, model)


def touch(path: Path) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


PAM = "<PAMDataset><GeoTransform>600000,10,0,5400000,0,-10</GeoTransform></PAMDataset>"


def valid_mask(path: Path) -> None:
    """An external mask that hides the first row."""
    with rasterio.open(path) as dataset:
        shape = dataset.shape
    with rasterio.open(f"{path}.msk", "w", driver="GTiff", height=shape[0], width=shape[1], count=1, dtype="uint8") as msk:
        msk.write(np.where(np.indices(shape)[0], 255, 0).astype(np.uint8)[None])
        msk.update_tags(INTERNAL_MASK_FLAGS_1="2")


class Place:
    """Where one case of a run has its files."""

    def __init__(self, root: Path) -> None:
        self.source, self.model, self.out = root / "in" / "a.tif", root / "m.onnx", root / "out"

    @property
    def mask(self) -> Path:
        return self.out / "a.tif"


Change = Callable[[Place], object]
REDONE: dict[str, tuple[Change, dict[str, Any]]] = {
    "input touched": (lambda p: touch(p.source), {}),
    "weights": (lambda p: reweigh(p.model), {}),
    "class name": (lambda p: rewrite(p.model, classes=[{"id": i, "name": f"new{i}"} for i in range(3)]), {}),
    "scale": (lambda p: rewrite(p.model, scale=0.99), {}),
    "sidecar contract": (lambda p: p.model.with_suffix(".toml").write_text(TOML), {}),
    "overlap": (lambda p: None, {"overlap": 48}),
    "tile": (lambda p: None, {"tile": 128}),
    "blend": (lambda p: None, {"blend": "constant"}),
    "blend on": (lambda p: None, {"blend_on": "probabilities"}),
    "bands": (lambda p: None, {"bands": "1"}),
    "mask gone": (lambda p: p.mask.unlink(), {}),
    "record gone": (lambda p: (p.out / "a.json").unlink(), {}),
    "record cut": (lambda p: (p.out / "a.json").write_text('{"case": "a", "seg'), {}),
    "record of others": (lambda p: (p.out / "a.json").write_text('{"segpipe": "9.9"}'), {}),
    "mask appears": (lambda p: valid_mask(p.source), {}),
    "metadata appears": (lambda p: Path(f"{p.source}.aux.xml").write_text(PAM), {}),
    "overwrite": (lambda p: None, {"overwrite": True}),
    "confidence": (lambda p: None, {"confidence": True}),
}
TOML = (
    'version = 1\nchannels = 1\nscale = 1.0\nnormalize = "none"\ntile = [256]\noverlap = [32]\nalign = 1\n'
    'activation = "softmax"\n' + "".join(f'[[classes]]\nid = {i}\nname = "t{i}"\n' for i in range(3))
)
KEPT: dict[str, tuple[Change, dict[str, Any]]] = {
    "nothing": (lambda p: None, {}),
    "batch": (lambda p: None, {"batch": 2}),
    "same by flag": (lambda p: None, {"overlap": 32, "tile": 256}),
    "other files": (lambda p: touch(p.source.parent), {}),
}


def first_run(raster: Any, run_serial: Any, tmp_path: Path, **settings: Any) -> Place:
    raster("in/a.tif", np.random.default_rng(11).integers(0, 3, (1, 100, 120), dtype=np.uint8))
    place = Place(tmp_path)
    repeater(place.model)
    run_serial(place.source, place.model, **settings)
    return place


@pytest.mark.parametrize("what", KEPT)
def test_a_second_run_does_nothing(what, raster, run_serial, tmp_path):
    place = first_run(raster, run_serial, tmp_path)
    before = {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in place.out.glob("a.[tj]*")}
    table = (place.out / "areas.csv").read_bytes()
    change, settings = KEPT[what]
    change(place)
    run_serial(place.source, place.model, **settings)
    assert {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in place.out.glob("a.[tj]*")} == before
    assert (run_json(place.out)["done"], run_json(place.out)["skipped"]) == ([], ["a"])
    assert (place.out / "areas.csv").read_bytes() == table


@pytest.mark.parametrize("what", REDONE)
def test_what_changes_a_mask_makes_it_anew(what, raster, run_serial, tmp_path):
    place = first_run(raster, run_serial, tmp_path)
    change, settings = REDONE[what]
    change(place)
    run_serial(place.source, place.model, **settings)
    assert (run_json(place.out)["done"], run_json(place.out)["skipped"]) == (["a"], [])
    run_serial(place.source, place.model, **{**settings, "overwrite": False})
    assert (run_json(place.out)["done"], run_json(place.out)["skipped"]) == ([], ["a"])


def test_an_external_mask_that_appears_is_seen(raster, run_serial, tmp_path):
    place = first_run(raster, run_serial, tmp_path)
    valid_mask(place.source)
    run_serial(place.source, place.model)
    np.testing.assert_array_equal(read(place.mask)[0] == 255, np.indices((100, 120))[0] == 0)


@pytest.mark.parametrize("name", ["a.tfw", "a.wld"])
def test_a_world_file_that_appears_makes_a_mask_anew(name, run_serial, tmp_path):
    source = placed(tmp_path / "in" / "a.tif", GRIDS["bare"])
    model = repeater(tmp_path / "m.onnx")
    run_serial(source, model)
    (tmp_path / "in" / name).write_text("10\n0\n0\n-10\n500005\n5399995\n")
    out = run_serial(source, model)
    assert run_json(out)["done"] == ["a"]
    assert where(out / "a.tif")["transform"] == where(source)["transform"]


def test_the_source_of_a_vrt_belongs_to_it(raster, run_serial, tmp_path):
    part = raster("parts/a.tif", np.zeros((1, 20, 30), np.uint8))
    vrt = tmp_path / "in.vrt"
    vrt.write_text(
        '<VRTDataset rasterXSize="30" rasterYSize="20"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">parts/a.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        "</VRTRasterBand></VRTDataset>"
    )
    model = repeater(tmp_path / "m.onnx")
    run_serial(vrt, model)
    touch(part)
    assert run_json(run_serial(vrt, model))["done"] == ["in"]
    assert run_json(run_serial(vrt, model))["skipped"] == ["in"]


def test_a_run_killed_between_mask_and_record_does_not_leave_the_old_record(raster, run_serial, tmp_path):
    """Model A, then B dies between its mask and its record, then A again: the mask must be A's."""
    place = first_run(raster, run_serial, tmp_path)
    right = read(place.mask)
    other = tmp_path / "other.onnx"
    repeater(other, [{"id": 2 - i, "name": f"class{i}", "index": i} for i in range(3)])
    blocked = place.out / ".drafts" / ".a.json.partial"
    blocked.mkdir(parents=True)
    with pytest.raises((AssertionError, OSError)):
        run_serial(place.source, other)
    run_serial(place.source, place.model)
    np.testing.assert_array_equal(read(place.mask), right)


def test_the_table_has_no_rows_of_a_case_that_failed(raster, segpipe, tmp_path):
    """The record of an earlier run tells of pixels that are no longer there."""
    arguments = ["run", "-i", "in", "-m", repeater(tmp_path / "m.onnx"), "-o", "out", "--executor", "serial"]
    source = raster("in/a.tif", np.ones((1, 60, 70), np.uint8))
    raster("in/b.tif", np.ones((1, 60, 70), np.uint8))
    assert segpipe(*arguments).returncode == 0
    source.write_bytes(source.read_bytes()[:500])
    assert segpipe(*arguments).returncode == 1
    with (tmp_path / "out" / "areas.csv").open() as stream:
        assert {row["case"] for row in csv.DictReader(stream)} == {"b"}


def test_a_confidence_of_other_settings_does_not_stay(raster, run_serial, tmp_path):
    """Beside a new mask an old confidence raster would be taken for its own."""
    place = first_run(raster, run_serial, tmp_path, confidence=True)
    before = (place.out / "a.confidence.tif").stat().st_mtime_ns
    rewrite(place.model, scale=0.9)
    run_serial(place.source, place.model)
    confidence = place.out / "a.confidence.tif"
    assert not confidence.exists() or confidence.stat().st_mtime_ns > before


def test_nothing_temporary_stays(raster, run_serial, tmp_path):
    place = first_run(raster, run_serial, tmp_path, confidence=True)
    names = {p.name for p in place.out.iterdir()}
    assert names == {"a.tif", "a.tif.aux.xml", "a.confidence.tif", "a.json", "areas.csv", "run.json"}
    with rasterio.open(place.mask) as mask:
        assert mask.read(1, window=Window(0, 0, 5, 5)).shape == (5, 5)


# --- small rasters are held in memory, large ones drafted on the disk -----------------------------------------------------

UTM, EAST = CRS.from_epsg(32633), Affine(10, 0, 5e5, 0, -10, 5e6)
CORNERS = tuple(GroundControlPoint(row, col, 1 + col / 10, 2 + row / 10) for row in (0, 300) for col in (0, 300))
CLASSES = Style("uint8", 255, ["class"], {0: (1, 2, 3, 255), 255: (0, 0, 0, 0)}, {0: "a", 1: "b"}, {"X": "y"})
PLACES = {
    "picture.png": (RasterGrid((250, 260)), CLASSES),
    "grey.png": (RasterGrid((250, 260)), Style("uint8", 255, ["confidence"])),
    "small.tif": (RasterGrid((250, 260), UTM, EAST), CLASSES),
    "point.tif": (RasterGrid((1250, 1260), UTM, EAST, area_or_point="Point"), CLASSES),
    "bands.tif": (
        RasterGrid((1250, 700), UTM, EAST, area_or_point="Area"),
        Style("uint8", 255, ["a", "b"], tags={"X": "y"}),
    ),
    "many.tif": (RasterGrid((300, 300), UTM, EAST), Style("uint16", 65535, ["class"], names={0: "a"})),
    "gcps.tif": (RasterGrid((300, 300), gcps=CORNERS, gcps_crs=CRS.from_epsg(4326)), CLASSES),
    "nowhere.tif": (RasterGrid((600, 600)), CLASSES),
}


@pytest.mark.parametrize("name", PLACES)
def test_held_and_drafted_rasters_are_the_same_bytes(name, tmp_path, monkeypatch):
    grid, style = PLACES[name]
    rng = np.random.default_rng(3)
    labels = rng.choice([0, 1, style.nodata], (len(style.bands), *grid.shape)).astype(style.dtype)
    left = {}
    for limit in (2**30, 0):
        monkeypatch.setattr("segpipe.formats.raster.sink.HELD_BYTES", limit)
        folder = tmp_path / str(limit)
        sink = raster_sink(Folder(folder), name, grid, style)
        for rows in (slice(100, None), slice(0, 100)):
            height = len(range(*rows.indices(grid.shape[0])))
            box = Box((rows.start, 0), (rows.start + height, grid.shape[1]))
            sink.write(box, labels[:, rows])
        assert sorted(sink.finish()) == sorted(path.name for path in folder.iterdir() if path.is_file())
        left[type(sink)] = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    held, drafted = left.values()
    assert list(left) == [HeldSink, DraftSink]
    assert held == drafted
    assert np.array_equal(read(tmp_path / "0" / name), labels)


@pytest.mark.parametrize("side", [60, 2100], ids=["held", "drafted"])
def test_a_mask_is_on_the_disk_before_its_record_says_so(side, raster, tmp_path, monkeypatch):
    """What a power cut leaves: a mask without its record is done again, a record without its mask vouches for nothing."""
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def flushed(number: int) -> None:
        name = Path(f"/proc/self/fd/{number}").readlink().name
        events.append(f"flushed {re.sub(r'^[.][0-9a-f]{12}(?=[.])', '', name)}")
        fsync(number)

    def named(path: Path, target: Path) -> Path:
        events.append(f"named {Path(target).name}")
        return replace(path, target)

    raster("in/a.tif", np.ones((1, side, side), np.uint8))
    flags = {"input": (str(tmp_path / "in"),), "model": repeater(tmp_path / "m.onnx"), "output": str(tmp_path / "out")}
    prepared = prepare(load_settings(None, flags | {"executor": "serial", "device": "cpu"}))
    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", named)
    carry_out(prepared, Silent())
    order = [events.index(line) for line in ("flushed .a.tif.partial", "named a.tif", "named a.json")]
    assert order == sorted(order)
    assert ("flushed .a.json.partial" in events) == (side > 2048)
