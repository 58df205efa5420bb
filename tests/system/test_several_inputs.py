"""Networks of several inputs: two images, two sensors, constants and dates, against ONNX Runtime on the whole image."""

import numpy as np
import pytest
import rasterio
from several import FORMS, labels_of, several

import segpipe as library

SHAPE = (150, 130)


def pixels_of(form, seed=3):
    return np.random.default_rng(seed).integers(0, 256, (FORMS[form].channels, *SHAPE), dtype=np.uint8)


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read(1)


@pytest.mark.parametrize("form", FORMS)
def test_labels_are_those_of_the_whole_image_however_it_is_run(form, tmp_path, raster, run_serial):
    model, pixels = several(tmp_path / "m.onnx", form), pixels_of(form)
    scene = raster("in/a.tif", pixels)
    wanted = labels_of(model, form, pixels)
    assert len(np.unique(wanted)) > 1
    plain = run_serial(scene.parent, model)
    assert (read(plain / "a.tif") == wanted).mean() >= 0.9999
    ways = [{"device": "openvino"}, {"device": "cpu-tensors", "batch": 3}, {"batch": 2}, {"tta": "flips"}]
    for number, way in enumerate(ways):
        found = run_serial(scene.parent, model, output=tmp_path / f"out{number}", **way)
        assert (read(found / "a.tif") == wanted).mean() >= 0.9999, way


@pytest.mark.parametrize("form", FORMS)
def test_parts_give_the_same_bytes(form, tmp_path, raster, run_serial):
    model, scene = several(tmp_path / "m.onnx", form), raster("in/a.tif", pixels_of(form))
    found = [run_serial(scene.parent, model, output=tmp_path / f"out{n}", parts=n) / "a.tif" for n in (1, 2, 7)]
    assert len({mask.read_bytes() for mask in found}) == 1


@pytest.mark.parametrize("form", ["two images", "channels before dates"])
def test_workers_give_the_same_bytes(form, tmp_path, raster, run_serial, segpipe):
    model, scene = several(tmp_path / "m.onnx", form), raster("in/a.tif", pixels_of(form))
    one = run_serial(scene.parent, model)
    command = ["run", "--input", scene, "--model", model, "--output", tmp_path / "dask", "--device", "cpu"]
    ended = segpipe(*command, "--executor", "dask", "--workers", 2, "--parts", 4)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "dask" / "a.tif").read_bytes() == (one / "a.tif").read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_python_predicts_the_same(form, tmp_path):
    model, pixels = several(tmp_path / "m.onnx", form), pixels_of(form)
    found = library.load(model).predict(pixels)
    assert (found.array == labels_of(model, form, pixels)).mean() >= 0.9999


def test_a_swap_of_the_inputs_is_seen(tmp_path, raster, run_serial):
    """The main test can fail: with the images exchanged, labels are others."""
    inputs = {"before": {"channels": "3:6"}, "after": {"channels": "0:3"}}
    model, pixels = several(tmp_path / "m.onnx", "two images"), pixels_of("two images")
    scene = raster("in/a.tif", pixels)
    wanted = labels_of(model, "two images", pixels)
    swapped = several(tmp_path / "swapped.onnx", "two images", inputs=inputs)
    assert (read(run_serial(scene.parent, swapped) / "a.tif") == wanted).mean() < 0.9


def test_folds_of_several_inputs_are_averaged(tmp_path, raster, run_serial):
    models = [several(tmp_path / f"m{seed}.onnx", "two images", seed=seed) for seed in (0, 1)]
    scene = raster("in/a.tif", pixels_of("two images"))
    one = run_serial(scene.parent, models[0], output=tmp_path / "one")
    both = run_serial(scene.parent, tuple(models), output=tmp_path / "both")
    assert (read(one / "a.tif") != read(both / "a.tif")).any()
