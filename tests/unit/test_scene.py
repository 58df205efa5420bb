"""What a raster says of its scene is said by its mask; what it says of its pixels is not."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from networks import contract
from PIL import Image
from test_masks import repeater
from test_readback import as_gdal_sees

from segpipe.contract import Contract
from segpipe.formats.raster import sink
from segpipe.formats.raster.scene import scene_tags
from segpipe.results.mask_style import class_colors
from segpipe.results.schema import brief

OWN = {
    "TIFFTAG_DATETIME": "2026:07:03 10:15:31",
    "datetime": "2026-07-03T10:15:31Z",
    "platform": "Sentinel-2ä",
    "cloud_cover": "12.5",
    "PRODUCT_ID": "S2A_MSIL2A_20260703",
}
PIXELS = {
    "STATISTICS_MEAN": "12",
    "STATISTICS_VALID_PERCENT": "100",
    "scale_factor": "0.0001",
    "add_offset": "0",
    "TIFFTAG_SOFTWARE": "other 1.0",
    "TIFFTAG_IMAGEDESCRIPTION": '{"shape": [9, 9]}',
    "TIFFTAG_MAXSAMPLEVALUE": "255",
    "COMPRESSION": "LZW",
    "LAYER_TYPE": "athematic",
    "_FillValue": "7",
    "SEGPIPE": "another run",
    "CLASS_9": "of another run",
    "QUANTIFICATION_VALUE": "10000",
    "long": "x" * 2000,
    "lines": "a\nb",
}
DOMAINS = {
    "IMAGERY": {"ACQUISITIONDATETIME": "2026-07-03 10:15:31", "CLOUDCOVER": "12", "SATELLITEID": "S2A"},
    "IMD": {"IMAGE_1.satId": "S2A", "IMAGE_1.firstLineTime": "2026-07-03T10:15:31Z"},
}


def scene(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    kind: dict[str, Any] = {"driver": "GTiff", "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(path, "w", width=31, height=40, count=1, **kind) as dataset:
        dataset.write(np.zeros((1, 40, 31), np.uint8))
        dataset.update_tags(**OWN, **PIXELS)
        for domain, tags in DOMAINS.items():
            dataset.update_tags(ns=domain, **tags)
    return path


def metadata(root: ElementTree.Element) -> dict[str, str]:
    """Oracle: what GDAL writes of its own domain into a VRT."""
    found = [element for element in root.iterfind("Metadata") if element.get("domain") is None]
    return {item.get("key", ""): item.text or "" for element in found for item in element}


@pytest.mark.parametrize("held", [2**22, 0], ids=["held", "drafted"])
def test_a_mask_keeps_what_describes_the_scene(held, monkeypatch, run_serial, tmp_path):
    monkeypatch.setattr(sink, "HELD_BYTES", held)
    out = run_serial(scene(tmp_path / "in" / "a.tif"), repeater(tmp_path / "m.onnx"), confidence=True)
    root = as_gdal_sees(out / "a.tif")
    tags = metadata(root)
    assert {key: tags.get(key) for key in OWN} == OWN
    assert not set(tags) & (set(PIXELS) - {"SEGPIPE"})
    assert tags["SEGPIPE"] != PIXELS["SEGPIPE"]
    with rasterio.open(out / "a.tif") as mask:  # a VRT does not take over these domains
        assert {domain: mask.tags(ns=domain) for domain in DOMAINS} == DOMAINS
    told = json.loads((out / "a.json").read_text())["input"]["scene"]
    assert told["ACQUISITIONDATETIME"] == DOMAINS["IMAGERY"]["ACQUISITIONDATETIME"]
    assert told["TIFFTAG_DATETIME"] == OWN["TIFFTAG_DATETIME"]
    assert not set(told) & set(PIXELS)


def test_a_photograph_s_time_is_kept(run_serial, tmp_path):
    block = Image.Exif()
    block[0x0132], block[0x0110], block[274] = "2026:01:02 03:04:05", "Camera", 6
    (tmp_path / "in").mkdir()
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "in" / "a.jpg", exif=block.tobytes())
    out = run_serial(tmp_path / "in" / "a.jpg", repeater(tmp_path / "m.onnx"))
    with rasterio.open(out / "a.png") as mask:
        tags = mask.tags()
    assert tags["EXIF_DateTime"] == "2026:01:02 03:04:05"
    assert tags["EXIF_Model"] == "Camera"
    assert "EXIF_Orientation" not in tags  # its pixels are upright
    assert json.loads((out / "a.json").read_text())["input"]["scene"] == {"EXIF_DateTime": "2026:01:02 03:04:05"}


def test_a_file_without_metadata_has_no_scene(raster, run_serial, tmp_path):
    out = run_serial(raster("in/a.tif", np.zeros((1, 9, 9), np.uint8)), repeater(tmp_path / "m.onnx"))
    assert "scene" not in json.loads((out / "a.json").read_text())["input"]


def test_scenes_are_bounded():
    assert len(scene_tags({f"key{i}": "value" for i in range(9999)})) == 256
    assert len(brief({"": {f"date{i}": "2026" for i in range(99)}})) == 12


def contract_of(task: str, classes: list[dict[str, Any]]) -> Contract:
    values = {"task": task, "activation": "sigmoid" if task == "binary" else "softmax", "classes": classes}
    return Contract.model_validate({**contract(3), **values})


def luminance(color: tuple[int, ...]) -> float:
    return float(np.dot(color[:3], (0.2126, 0.7152, 0.0722)) / 255)


@pytest.mark.parametrize(
    ("task", "classes"),
    [
        ("binary", [{"id": 1, "name": "building"}]),
        ("binary", [{"id": 0, "name": "no water"}, {"id": 1, "name": "water"}]),
        ("multiclass", [{"id": 0, "name": "_Background_"}, {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]),
    ],
)
def test_what_is_not_looked_for_is_pale(task, classes):
    colors = class_colors(contract_of(task, classes))
    assert luminance(colors[0]) > 0.8
    assert all(luminance(color) < 0.6 for value, color in colors.items() if value)
    assert all(color[3] == 255 for color in colors.values())


def test_colours_of_the_contract_win():
    classes = [{"id": 0, "name": "background", "color": "#123456"}, {"id": 1, "name": "cat", "color": "#abcdef"}]
    assert class_colors(contract_of("multiclass", classes)) == {0: (0x12, 0x34, 0x56, 255), 1: (0xAB, 0xCD, 0xEF, 255)}
