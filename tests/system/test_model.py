"""Forms that models come in, through whole runs: labels against ONNX Runtime and NumPy, or a clear refusal."""

import json

import numpy as np
import onnx
import pytest
import rasterio
from networks import Network, contract, pixelwise
from onnx import TensorProto, numpy_helper
from scenes import Silent

from segpipe.errors import ContractError, ModelError, SegpipeError, SettingsError
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.settings import load_settings

SHAPE = (64, 64)


@pytest.fixture
def pixels():
    return np.random.default_rng(5).integers(1, 256, (3, *SHAPE), dtype=np.uint8)


@pytest.fixture
def source(raster, pixels):
    return raster("in/a.tif", pixels)


def labels(out):
    with rasterio.open(out / "a.tif") as mask:
        return mask.read(1)


def convolved(model, pixels):
    """Scores of a 1 x 1 convolution by NumPy."""
    w, b = (numpy_helper.to_array(t) for t in onnx.load(model).graph.initializer[:2])
    return np.einsum("kc,chw->khw", w[:, :, 0, 0].astype(float), pixels / 255) + b[:, None, None]


def test_channels_last(source, pixels, run_serial, tmp_path):
    net = Network(3).add("Transpose", perm=[0, 3, 1, 2]).conv(3, 4, 1).add("Transpose", perm=[0, 2, 3, 1])
    model = net.save(tmp_path / "m.onnx", contract(3, 4, layout="NHWC"), classes=4)
    proto = onnx.load(model)
    for value, sizes in ((proto.graph.input[0], ("n", 64, 64, 3)), (proto.graph.output[0], ("n", 64, 64, 4))):
        del value.type.tensor_type.shape.dim[:]
        for size in sizes:
            setattr(value.type.tensor_type.shape.dim.add(), "dim_param" if size == "n" else "dim_value", size)
    onnx.save(proto, model)
    np.testing.assert_array_equal(labels(run_serial(source, model)), convolved(model, pixels).argmax(axis=0))


def bilinear(scores, factor):
    """Half-pixel centres, as torch's ``align_corners=False``."""
    for axis in (1, 2):
        size = scores.shape[axis]
        at = np.clip((np.arange(size * factor) + 0.5) / factor - 0.5, 0, size - 1)
        low = np.floor(at).astype(int)
        high, share = np.minimum(low + 1, size - 1), (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        scores = np.take(scores, low, axis) * (1 - share) + np.take(scores, high, axis) * share
    return scores


@pytest.mark.parametrize("factor", [2, 4])
def test_scores_at_a_fraction_of_the_size_are_upsampled_before_blending(factor, source, pixels, run_serial, tmp_path):
    net = Network(3).add("AveragePool", kernel_shape=[factor] * 2, strides=[factor] * 2).conv(3, 4, 1)
    sizes = ("n", 4, 64 // factor, 64 // factor)
    model = net.save(tmp_path / "m.onnx", contract(3, 4), classes=4, shape=("n", 64, 64), out_shape=sizes)
    small = pixels.reshape(3, 64 // factor, factor, 64 // factor, factor).mean(axis=(2, 4))
    mean = bilinear(convolved(model, small), factor)
    ordered = np.sort(mean, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(labels(run_serial(source, model))[clear], mean.argmax(axis=0)[clear])


@pytest.mark.parametrize(
    ("dtype", "name"), [(TensorProto.FLOAT16, "float16"), (TensorProto.UINT8, "uint8"), (TensorProto.INT64, "int64")]
)
def test_input_types(dtype, name, source, pixels, run_serial, tmp_path):
    """Half precision scaled by the host; integers scaled inside the graph."""
    net = Network(3).add("Cast", to=TensorProto.FLOAT)
    values = contract(3, 4)
    if name != "float16":
        net.add("Mul", np.array(1 / 255, np.float32))
        values["scaling"] = "graph"
    model = net.conv(3, 4, 1).save(tmp_path / "m.onnx", values, classes=4, dtype=dtype)
    scaled = (pixels / 255).astype(np.float16) if name == "float16" else pixels / 255
    w, b = (numpy_helper.to_array(t) for t in list(onnx.load(model).graph.initializer)[-2:])
    mean = np.einsum("kc,chw->khw", w[:, :, 0, 0], scaled.astype(np.float32)) + b[:, None, None]
    np.testing.assert_array_equal(labels(run_serial(source, model)), mean.argmax(axis=0))


def test_raw_pixels_that_do_not_fit_the_model_are_refused(raster, tmp_path, pixels):
    net = Network(3).add("Cast", to=TensorProto.FLOAT).conv(3, 3, 1)
    model = net.save(tmp_path / "m.onnx", contract(3, 3, scaling="graph"), classes=3, dtype=TensorProto.UINT8)
    flags = {"input": (str(raster("in/a.tif", pixels.astype(np.uint16))),), "model": model, "output": tmp_path / "out"}
    (failure,) = prepare(load_settings(None, flags)).plan.failed
    assert "uint8 input without loss, got uint16" in failure.error


@pytest.mark.parametrize("normalize", ["zscore", "minmax"])
def test_statistics_are_those_of_the_cases_valid_pixels(normalize, raster, run_serial, tmp_path):
    rng = np.random.default_rng(2)
    pixels = rng.integers(1, 60000, (2, 1100, 1300)).astype(np.uint16)
    pixels[:, 200:700, :] = 0
    valid = pixels[:, (pixels != 0).all(axis=0)].astype(float)
    if normalize == "zscore":
        center, spread = valid.mean(axis=1), valid.std(axis=1)
    else:
        center, spread = valid.min(axis=1), np.ptp(valid, axis=1)
    x = (pixels - center[:, None, None]) / spread[:, None, None]
    values = contract(2, 3, scale=1.0, normalize=normalize, tile=[512, 512], overlap=[0, 0])
    model = Network(2).conv(2, 3, 1).save(tmp_path / "m.onnx", values, classes=3)
    mean = convolved(model, x * 255)
    ordered = np.sort(mean, axis=0)
    clear = (pixels != 0).all(axis=0) & (ordered[-1] - ordered[-2] > 1e-4)
    got = labels(run_serial(raster("in/a.tif", pixels, nodata=0), model))
    np.testing.assert_array_equal(got[clear], mean.argmax(axis=0)[clear])


def test_physical_pixels_take_the_files_scale_and_offset(tmp_path, run_serial, raster):
    stored = np.random.default_rng(1).integers(1, 200, (3, *SHAPE)).astype(np.int16)
    path = raster("in/a.tif", stored)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.5, 2.0, 1.0), (10.0, -5.0, 0.0)
    model = pixelwise(tmp_path / "m.onnx", pixel="physical")
    physical = stored * np.reshape([0.5, 2, 1], (3, 1, 1)) + np.reshape([10, -5, 0], (3, 1, 1))
    np.testing.assert_array_equal(labels(run_serial(path, model)), convolved(model, physical).argmax(axis=0))


def forms(tmp_path, kind):
    """Models and settings that must be refused before any case is opened."""
    net, path, options = Network(3).conv(3, 3, 1), tmp_path / "m.onnx", {}
    shape: tuple = ("n", "h", "w")
    values, classes = contract(3, 3), 3
    if kind == "uint8 scaled by the host":
        net = Network(3).add("Cast", to=TensorProto.FLOAT).conv(3, 3, 1)
        return net.save(path, values, classes=3, dtype=TensorProto.UINT8), options
    if kind == "fixed tile":
        shape = ("n", 96, 96)
    elif kind == "no tile":
        values.pop("tile")
    elif kind == "fixed batch":
        shape, options = (2, "h", "w"), {"batch": 3}
    elif kind == "classes":
        values = contract(3, 5)
    elif kind == "channels":
        values = contract(4, 3)
    elif kind == "cropped output":
        net.add("Slice", np.array([2, 2]), np.array([-2, -2]), np.array([2, 3]))
        return net.save(path, values, classes=3, out_shape=("n", 3, "a", "b")), options
    elif kind == "logits of probabilities":
        values, options = contract(3, 3, activation="none"), {"blend_on": "logits"}
    elif kind == "wrong output name":
        values = contract(3, 3, output="logits")
    elif kind == "dropout":
        net = Network(3).add("Dropout", np.float32(0.5), np.array(True)).conv(3, 3, 3)
    elif kind == "volume":
        values = contract(3, 3, layout="NCDHW", tile=[64, 64, 64], overlap=[0, 0, 0])
    return net.save(path, values, classes=classes, shape=shape), options


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("uint8 scaled by the host", ContractError, 'takes uint8 pixels.*scaling = "graph"'),
        ("fixed tile", ContractError, "got 64 x 64 and .* takes 96 x 96: give --tile 96,96"),
        ("no tile", ContractError, r"tiles of any size.*tile = \[512, 512\]"),
        ("fixed batch", SettingsError, "fixed at 2, got --batch 3"),
        ("classes", ContractError, "gives 3 scores per pixel.*5 classes needs 5"),
        ("channels", ContractError, "got 4 in the contract .* and 3 in"),
        (
            "cropped output",
            ModelError,
            r"one pixel per stride, rounded up or down, got 60 x 60 for a tile of 64 x 64: .* set margin = \[2, 2\]",
        ),
        ("logits of probabilities", SettingsError, "needs a model that gives logits"),
        ("wrong output name", ContractError, "no output called logits: it has scores"),
        ("volume", ContractError, "must have 5 axes"),
        ("dropout", ModelError, r"the same scores each time, and does not \(dropout in training mode\): export it in eval"),
    ],
)
def test_a_model_that_does_not_fit_its_contract_is_refused(kind, error, message, source, tmp_path):
    model, options = forms(tmp_path, kind)
    flags = {"input": (str(source),), "model": model, "output": tmp_path / "out", **options}
    with pytest.raises(error, match=message):
        prepare(load_settings(None, flags))


def test_a_fixed_batch_is_filled_up(source, pixels, run_serial, tmp_path):
    values = contract(3, 4, tile=[48, 48], overlap=[16, 16])
    model = Network(3).conv(3, 4, 1).save(tmp_path / "m.onnx", values, classes=4, shape=(3, "h", "w"))
    np.testing.assert_array_equal(labels(run_serial(source, model)), convolved(model, pixels).argmax(axis=0))


def test_scores_that_are_not_finite_fail_the_case_with_the_reason(source, tmp_path):
    net = Network(3).conv(3, 3, 1).add("Mul", np.array(np.nan, np.float32))
    model = net.save(tmp_path / "m.onnx", contract(3, 3), classes=3)
    flags = {"input": (str(source),), "model": model, "output": tmp_path / "out", "executor": "serial"}
    prepared = prepare(load_settings(None, flags))
    (failure,) = carry_out(prepared, Silent()).failed
    assert "scores must be finite, got NaN" in failure.error
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"areas.csv", "run.json"}


def test_external_data_is_read_and_counts_as_the_model(source, pixels, run_serial, tmp_path):
    model = pixelwise(tmp_path / "plain.onnx", classes=4)
    proto = onnx.load(model)
    external = {"save_as_external_data": True, "location": "m.data", "size_threshold": 0}
    onnx.save(proto, tmp_path / "m.onnx", **external)
    out = run_serial(source, tmp_path / "m.onnx")
    np.testing.assert_array_equal(labels(out), convolved(model, pixels).argmax(axis=0))
    before = json.loads((out / "a.json").read_text())["model"]["sha256"]
    proto = onnx.load(model)  # saving has moved the weights of the other one out of it
    weights = proto.graph.initializer[0]
    weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), weights.name))
    onnx.save(proto, tmp_path / "m.onnx", **external)
    again = json.loads((run_serial(source, tmp_path / "m.onnx") / "a.json").read_text())["model"]["sha256"]
    assert again != before
    (tmp_path / "m.data").unlink()
    with pytest.raises(SegpipeError, match=r"needs its external data .*m\.data"):
        run_serial(source, tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("crs", "pixel", "refused"),
    [
        ("EPSG:32633", 10.0, None),
        ("EPSG:32633", 10.9, None),
        ("EPSG:32633", 11.2, "11.2 x 11.2 m on the ground"),
        ("EPSG:3857", 10.0, "got 6.581 x 6.6 m"),  # Web Mercator at 48.7 degrees
        ("EPSG:3857", 15.1, None),
    ],
)
def test_the_pixel_size_on_the_ground_must_be_the_models(crs, pixel, refused, raster, tmp_path, pixels):
    x, y = (500_000, 5_400_000) if crs == "EPSG:32633" else (1_669_792, 6_240_000)
    place = rasterio.transform.from_origin(x, y, pixel, pixel)
    path = raster("in/a.tif", pixels, crs=crs, transform=place)
    model = pixelwise(tmp_path / "m.onnx", spacing=[10.0, 10.0])
    plan = prepare(load_settings(None, {"input": (str(path),), "model": model, "output": tmp_path / "out"})).plan
    assert [refused in failure.error for failure in plan.failed] == ([] if refused is None else [True])


def test_a_picture_without_a_place_is_noted_not_refused(raster, tmp_path, pixels):
    model = pixelwise(tmp_path / "m.onnx", spacing=[10.0, 10.0])
    flags = {"input": (str(raster("in/a.png", pixels)),), "model": model, "output": tmp_path / "out"}
    (planned,) = prepare(load_settings(None, flags)).plan.opened
    assert "pixel size not checked against the model's 10 x 10 m" in planned.notes[0]
