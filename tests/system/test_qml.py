"""The style for QGIS: complete by what QGIS itself saves of a paletted layer, and a file of the case like any other."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from networks import pixelwise
from test_masks import NAMES, repeater

from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.settings import load_settings

SAVED_BY_QGIS = {
    "rasterrenderer": {"type": "paletted", "band": "1", "alphaBand": "-1", "opacity": "1", "nodataColor": ""},
    "brightnesscontrast": {"brightness": "0", "contrast": "0", "gamma": "1"},
    "rasterresampler": {"maxOversampling": "2"},
}
"""Elements of the pipe that QGIS 3.18 to 3.40 save of a paletted layer as it is at first, with their attributes."""


def record(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "a.json").read_text()))


def entries(path: Path) -> dict[int, dict[str, str]]:
    found = ElementTree.parse(path).getroot().iterfind("pipe/rasterrenderer/colorPalette/paletteEntry")
    return {int(entry.get("value", "-1")): dict(entry.attrib) for entry in found}


@pytest.mark.parametrize("name", ["in/a.tif", "in/a.png"])
def test_a_style_has_the_classes_and_their_colours(name, raster, run_serial, tmp_path):
    plain = {"crs": None, "transform": None} if name.endswith("png") else {}
    source = raster(name, np.zeros((1, 8, 8), np.uint8), **plain)
    out = run_serial(source, repeater(tmp_path / "m.onnx", NAMES_BY_INDEX), style="qgis")
    root = ElementTree.parse(out / "a.qml").getroot()
    assert (out / "a.qml").read_text().startswith("<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>")
    assert root.tag == "qgis"
    for tag, attributes in SAVED_BY_QGIS.items():
        element = root.find(f"pipe/{tag}")
        assert element is not None
        assert attributes.items() <= element.attrib.items()
    found = entries(out / "a.qml")
    assert {value: entry["label"] for value, entry in found.items()} == {c["id"]: c["name"] for c in NAMES}
    with rasterio.open(out / Path(name).name) as mask:
        table = mask.colormap(1)
    assert {v: e["color"] for v, e in found.items()} == {v: "#{:02x}{:02x}{:02x}".format(*table[v]) for v in found}
    assert {entry["alpha"] for entry in found.values()} == {"255"}
    assert "a.qml" in record(out)["outputs"]


NAMES_BY_INDEX = [{**c, "index": k} for k, c in enumerate(NAMES)]


def test_masks_of_two_bytes_have_one_too(raster, run_serial, tmp_path):
    classes = [{**c, "id": c["id"] + 300} for c in NAMES_BY_INDEX]
    out = run_serial(raster("in/a.tif", np.zeros((1, 8, 8), np.uint8)), repeater(tmp_path / "m.onnx", classes), style="qgis")
    assert set(entries(out / "a.qml")) == {c["id"] for c in classes}


def test_independent_classes_have_none(raster, run_serial, tmp_path):
    model = pixelwise(tmp_path / "m.onnx", task="multilabel", activation="sigmoid")
    source = raster("in/a.tif", np.zeros((3, 8, 8), np.uint8))
    out = run_serial(source, model, style="qgis")
    assert not list(out.glob("*.qml"))
    assert run(source, model, out, style="qgis").skipped


def run(source: Path, model: Path, out: Path, **settings: Any) -> Any:
    from scenes import Silent

    flags = {"input": (str(source),), "model": model, "output": out, "executor": "serial", "device": "cpu"}
    return carry_out(prepare(load_settings(None, flags | settings)), Silent())


def test_a_case_without_its_style_is_not_done(raster, run_serial, tmp_path):
    source, model = raster("in/a.tif", np.zeros((1, 8, 8), np.uint8)), repeater(tmp_path / "m.onnx")
    out = run_serial(source, model)
    mask = (out / "a.tif").read_bytes()
    assert run(source, model, out, style="qgis").done
    assert (out / "a.qml").is_file()
    assert (out / "a.tif").read_bytes() == mask
    assert run(source, model, out, style="qgis").skipped
    assert run(source, model, out).skipped
    (out / "a.qml").unlink()
    assert run(source, model, out, style="qgis").done


def test_a_style_goes_with_the_run_that_wanted_it(raster, run_serial, tmp_path):
    source, model = raster("in/a.tif", np.zeros((1, 8, 8), np.uint8)), repeater(tmp_path / "m.onnx")
    out = run_serial(source, model, style="qgis")
    run(source, model, out, overwrite=True)
    assert not (out / "a.qml").exists()


THEIRS = "<!DOCTYPE qgis><qgis version='3.34'><pipe/></qgis>"


@pytest.mark.parametrize("before", [False, True])
def test_a_style_of_somebody_else_stays(before, raster, run_serial, tmp_path):
    source, model = raster("in/a.tif", np.zeros((1, 8, 8), np.uint8)), repeater(tmp_path / "m.onnx")
    out = tmp_path / "out"
    out.mkdir()
    if before:
        run_serial(source, model, style="qgis")
    (out / "a.qml").write_text(THEIRS)
    failed = run(source, model, out, style="qgis", overwrite=True).failed
    assert [f.error for f in failed] == [f"{out / 'a.qml'} is an input or was not written by segpipe: name another --output"]
    assert run(source, model, out, overwrite=True).done
    assert (out / "a.qml").read_text() == THEIRS
