"""``Model.predict``: the labels of a file with the same pixels, byte for byte."""

import pickle
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import onnx
import pytest
import rasterio
from networks import Network, contract, local, pixelwise, positional, volumetric
from onnx import TensorProto, helper
from scenes import PATIENCE
from volumes import write

import segpipe
from segpipe.api.arrays import ArraySource
from segpipe.api.labels import Labels
from segpipe.errors import DeviceError, ModelError, SettingsError, SourceError
from segpipe.geometry.windows import Window
from segpipe.results.cleaning import stage

RNG = np.random.default_rng(0)


def mask_of(result, case="a", **options):
    """Labels on disk, through segpipe and through an independent reader."""
    labels = result.open(case, **options)
    with rasterio.open(f"{result.output}/{case}.tif") as mask:
        stored = mask.read()
    assert np.array_equal(labels.array, stored if labels.layered else stored[0])
    return labels


def assert_same(found, expected):
    assert found.array.dtype == expected.array.dtype
    assert found.array.tobytes() == expected.array.tobytes()
    assert (found.nodata, found.classes, found.layered) == (expected.nodata, expected.classes, expected.layered)
    if expected.confidence is not None:
        assert found.confidence.tobytes() == expected.confidence.tobytes()


def holed(shape, dtype, *, nodata=None):
    """Pixels with gaps, a whole tile among them, and where they are valid."""
    pixels = RNG.integers(1, 256, shape).astype(dtype)
    valid = RNG.random(shape[1:]) > 0.1
    valid[:70, :90] = False
    if nodata is not None:
        pixels[:, ~valid] = nodata
    return pixels, valid


CLEANED = [{"majority": 3}, {"sieve": 12}, {"majority": 5, "sieve": "20"}]


@pytest.mark.parametrize("rule", CLEANED, ids=str)
@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_cleaned_labels_are_those_of_a_run(rule, task, raster, tmp_path, monkeypatch):
    """In many slabs, with confidence and nodata."""
    monkeypatch.setattr(stage, "SLAB", 4000)
    pixels, valid = holed((3, 150, 170), np.uint8, nodata=0)
    keys = {"task": task, "activation": "softmax" if task == "multiclass" else "sigmoid"}
    count = 1 if task == "binary" else 3
    classes = [{"id": 1 if task == "binary" else k, "name": f"c{k}"} for k in range(count)]
    net = Network(3).conv(3, 8, 3).add("Relu").conv(8, count, 3)
    net.save(tmp_path / "m.onnx", contract(3, count, offset=-0.5, classes=classes, **keys), classes=count)
    model = segpipe.load(tmp_path / "m.onnx", device="cpu")
    result = segpipe.run(
        raster("a.tif", pixels, nodata=0), model, tmp_path / "out", confidence=True, executor="serial", **rule
    )
    found = model.predict(pixels, valid, confidence=True, **rule)
    assert_same(found, mask_of(result, confidence=True))
    assert (found.array != model.predict(pixels, valid).array).any()


def test_rules_of_cleaning_are_checked(tmp_path):
    model = segpipe.load(local(tmp_path / "m.onnx"), device="cpu")
    pixels = np.ones((3, 64, 64), np.uint8)
    with pytest.raises(SettingsError, match="majority"):
        model.predict(pixels, majority=4)
    with pytest.raises(SettingsError, match="sieve"):
        model.predict(pixels, sieve="much")
    with pytest.raises(SourceError, match=r"sieve must fit the case, got 5000m2 and pixels of unknown size: .* in pixels"):
        model.predict(pixels, sieve="0.5ha")


SHAPES = [(150, 230), (64, 64), (1, 1), (10, 200), (65, 63)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tile", [64, 96])
def test_nodata_of_any_shape(shape, tile, raster, tmp_path):
    pixels, valid = holed((3, *shape), np.uint8, nodata=0)
    model = segpipe.load(positional(tmp_path / "m.onnx", tile, overlap=[tile // 4] * 2), device="cpu")
    scene = raster("a.tif", pixels, nodata=0)
    result = segpipe.run(scene, model, tmp_path / "out", executor="serial", confidence=True)
    assert_same(model.predict(pixels, valid, confidence=True), mask_of(result, confidence=True))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_with_nan_and_infinity(dtype, raster, tmp_path):
    pixels, valid = holed((3, 150, 230), dtype)
    pixels[1, ~valid] = np.nan
    pixels[2, 100, 100:110] = np.inf
    model = segpipe.load(local(tmp_path / "m.onnx"), device="cpu")
    result = segpipe.run(raster("a.tif", pixels), model, tmp_path / "out", executor="serial")
    labels = model.predict(pixels)
    assert_same(labels, mask_of(result))
    assert not labels.valid[100, 105]
    assert labels.confidence is None


CHANGES = {
    "zscore": {"normalize": "zscore"},
    "minmax": {"normalize": "minmax", "clip": [0.1, 0.8]},
    "fixed": {"normalize": "fixed", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]},
    "ids": {
        "classes": [
            {"id": 7, "name": "x", "index": 1},
            {"id": 300, "name": "y", "index": 0},
            {"id": 2, "name": "z", "index": 2},
        ]
    },
    "multilabel": {"task": "multilabel", "activation": "sigmoid"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_contracts_of_every_kind(name, raster, tmp_path):
    pixels, valid = holed((3, 150, 230), np.uint8, nodata=0)
    net = Network(3).conv(3, 8, 3).add("Relu").conv(8, 3, 3)
    model = segpipe.load(net.save(tmp_path / "m.onnx", contract(3, 3, **CHANGES[name]), classes=3), device="cpu")
    result = segpipe.run(raster("a.tif", pixels, nodata=0), model, tmp_path / "out", executor="serial", confidence=True)
    labels = model.predict(pixels, valid, confidence=True)
    assert_same(labels, mask_of(result, confidence=True))
    assert labels.layered == (name == "multilabel")
    assert labels.valid.shape == (150, 230)


def test_a_binary_model(raster, tmp_path):
    pixels, valid = holed((3, 150, 230), np.uint16, nodata=0)
    net = Network(3).conv(3, 1, 3)
    values = contract(3, 1, task="binary", activation="sigmoid", classes=[{"id": 1, "name": "roof"}], scale=1 / 255)
    model = segpipe.load(net.save(tmp_path / "m.onnx", values, classes=1), batch=3, device="cpu")
    result = segpipe.run(raster("a.tif", pixels, nodata=0), model, tmp_path / "out", executor="serial")
    labels = model.predict(pixels, valid)
    assert_same(labels, mask_of(result))
    assert labels.classes == {0: "background", 1: "roof"}


def test_channels_last_models_take_the_same_arrays(raster, tmp_path):
    pixels, valid = holed((3, 150, 230), np.uint8, nodata=0)
    net = Network(3).add("Transpose", perm=[0, 3, 1, 2]).conv(3, 3, 3).add("Transpose", perm=[0, 2, 3, 1])
    path = net.save(tmp_path / "m.onnx", contract(3, 3, layout="NHWC"), classes=3)
    model = onnx.load(path)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, ["n", "h", "w", 3]))
    onnx.save(model, path)
    loaded = segpipe.load(path, device="cpu")
    result = segpipe.run(raster("a.tif", pixels, nodata=0), loaded, tmp_path / "out", executor="serial")
    assert_same(loaded.predict(pixels, valid), mask_of(result))


def test_a_volume_of_a_model_of_volumes(tmp_path):
    voxels = RNG.integers(-100, 100, (30, 41, 52)).astype(np.int16)
    path = write(tmp_path / "a.nii.gz", voxels.T)
    model = segpipe.load(volumetric(tmp_path / "m.onnx", (16, 24, 24)), device="cpu")
    result = segpipe.run(path, model, tmp_path / "out", executor="serial", confidence=True)
    labels = model.predict(voxels[None], confidence=True)
    assert_same(labels, result.open("a", confidence=True))
    assert labels.array.shape == voxels.shape


def test_a_volume_of_a_model_of_images_is_taken_slice_by_slice(tmp_path):
    voxels = RNG.normal(size=(7, 70, 90)).astype(np.float32)
    voxels[3, 20:40] = np.nan
    path = write(tmp_path / "a.nii", voxels.T)
    model = segpipe.load(local(tmp_path / "m.onnx", 1, scale=1.0), device="cpu")
    result = segpipe.run(path, model, tmp_path / "out", executor="serial")
    labels = model.predict(voxels[None])
    assert_same(labels, result.open("a"))
    slices = np.stack([model.predict(plane[None]).array for plane in voxels])
    assert np.array_equal(labels.array, slices)


def test_a_memory_map_other_byte_orders_and_booleans(tmp_path):
    pixels, valid = holed((3, 100, 120), np.uint16)
    model = segpipe.load(local(tmp_path / "m.onnx"), device="cpu")
    expected = model.predict(pixels, valid)
    np.save(tmp_path / "a.npy", pixels)
    assert_same(model.predict(np.load(tmp_path / "a.npy", mmap_mode="r"), valid), expected)
    assert_same(model.predict(pixels.astype(">u2"), valid), expected)
    assert_same(model.predict(np.asfortranarray(pixels)[:, :, :], valid), expected)
    assert_same(model.predict(pixels > 100, valid), model.predict((pixels > 100).astype(np.uint8), valid))


def test_an_array_without_a_valid_pixel(tmp_path):
    model = segpipe.load(local(tmp_path / "m.onnx"), device="cpu")
    labels = model.predict(np.ones((3, 100, 120), np.uint8), np.zeros((100, 120), np.bool_), confidence=True)
    assert (labels.array == 255).all()
    assert (labels.confidence == 255).all()


def test_several_threads_at_once(tmp_path):
    model = segpipe.load(local(tmp_path / "m.onnx"), device="cpu")
    arrays = [holed((3, 100, 120), np.uint8)[0] for _ in range(4)]
    expected, found = [model.predict(array) for array in arrays], {}
    threads = [
        threading.Thread(target=lambda k=k, array=array: found.update({k: model.predict(array)}))
        for k, array in enumerate(arrays)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, one in enumerate(expected):
        assert_same(found[k], one)


class Untaken:
    """A tensor that is no array, as one with a gradient."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Use tensor.detach().numpy() instead.")


WRONG = [
    (
        np.ones((4, 9, 9)),
        None,
        r"the array must have shape \(3, rows, cols\), got \(4, 9, 9\): the model's channels are r, g, b",
    ),
    (np.ones((9, 9, 3)), None, r"got \(9, 9, 3\): give numpy.moveaxis\(array, -1, 0\)"),
    (np.ones((9, 9)), None, r"must have shape \(3, rows, cols\), got \(9, 9\): give one image"),
    (np.ones((1, 3, 9, 9, 9)), None, r"got \(1, 3, 9, 9, 9\): give one image"),
    (np.ones((3, 0, 9)), None, "must have pixels, got 3 x 0 x 9"),
    (np.ones((3, 9, 9), complex), None, "must hold integers or floats of at most 64 bits, got complex128: convert it"),
    (np.array([["a"]]), None, "must hold integers or floats"),
    (np.ma.ones((3, 9, 9)), None, "must not be masked: give array.data"),
    (
        np.ones((3, 9, 9)),
        np.ones((9, 8), bool),
        r"valid must be a boolean array of the pixels' shape \(9, 9\), got bool of shape",
    ),
    (np.ones((3, 9, 9)), np.ones((9, 9)), r"valid must be a boolean array .*, got float64 of shape \(9, 9\): as array"),
    (np.ones((3, 9, 9)), np.ma.ones((9, 9), bool), r"valid must not be masked: give valid.filled\(False\)$"),
    (Untaken(), None, r"^the array must be an array, or what NumPy makes one of: Use tensor.detach\(\).numpy\(\) instead.$"),
    (np.ones((3, 9, 9)), [[True], [True, False]], "^valid must be an array, or what NumPy makes one of: "),
]


FORK = """
import sys
from multiprocessing import get_context

import numpy as np

import segpipe

models = [segpipe.load("m.onnx", device=device) for device in ("cpu", "openvino")]
image = np.load("image.npy")

def predict():
    return [model.predict(image).array for model in models]

before, fork = predict(), get_context("fork")
answers = fork.SimpleQueue()
child = fork.Process(target=lambda: answers.put([predict(), predict()]))
child.start()
child.join(float(sys.argv[1]))
child.kill()
np.save("labels.npy", [before, *([] if answers.empty() else answers.get()), predict()])
"""


def test_a_fork_opens_the_network_anew(tmp_path):
    """OpenVINO's threads stay behind in the parent: a call in a fork waited for them for ever."""
    model = segpipe.load(pixelwise(tmp_path / "m.onnx", 3), device="cpu")
    image = RNG.integers(1, 256, (3, 90, 100), np.uint8)
    np.save(tmp_path / "image.npy", image)
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(PATIENCE)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    labels = np.load(tmp_path / "labels.npy")
    assert labels.shape == (4, 2, 90, 100)  # before, twice in the fork, after
    assert (labels == model.predict(image).array).all()


def test_a_fork_cannot_use_a_gpu(tmp_path, monkeypatch):
    model = segpipe.load(pixelwise(tmp_path / "m.onnx", 3), device="cpu")
    monkeypatch.setattr(model._network, "spec", replace(model.spec, device="cuda"))
    monkeypatch.setattr(model._network, "_process", 1)
    with pytest.raises(
        DeviceError, match=r"a process that is forked cannot use cuda .*: start processes by .* \"spawn\", or"
    ):
        model.predict(np.ones((3, 90, 100), np.uint8))


def test_a_copy_in_another_process_opens_the_same_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = segpipe.load(pixelwise(tmp_path / "m.onnx", 3).name, overlap=32, device="cpu")
    image, sent = RNG.integers(1, 256, (3, 90, 100), np.uint8), pickle.dumps(model)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    copy = pickle.loads(sent)
    assert np.array_equal(copy.predict(image).array, model.predict(image).array)
    assert (repr(copy), copy.overlap) == (repr(model).replace("m.onnx", f"{tmp_path}/m.onnx"), (32, 32))
    assert copy.settings == {"model": (f"{tmp_path}/m.onnx",), "overlap": 32, "device": "cpu"}
    pixelwise(tmp_path / "m.onnx", 4)
    with pytest.raises(ModelError, match=r"/m\.onnx has changed since"):
        pickle.loads(sent)
    (tmp_path / "m.onnx").unlink()
    with pytest.raises(ModelError, match=r"/m\.onnx cannot be read: No such file"):
        pickle.loads(sent)


@pytest.mark.parametrize(("array", "valid", "why"), WRONG)
def test_what_does_not_fit_says_rule_value_and_mend(array, valid, why, tmp_path):
    net = Network(3).conv(3, 3, 3)
    model = segpipe.load(net.save(tmp_path / "m.onnx", contract(["r", "g", "b"], 3), classes=3), device="cpu")
    with pytest.raises(segpipe.SourceError, match=why):
        model.predict(array, valid)


def test_one_channel_must_have_its_axis(tmp_path):
    model = segpipe.load(local(tmp_path / "m.onnx", 1), device="cpu")
    with pytest.raises(segpipe.SourceError, match=r"must have shape \(1, rows, cols\), got \(9, 9\): give array\[None\]"):
        model.predict(np.ones((9, 9)))


def test_pixels_that_cannot_be_right_are_an_error_unless_allowed(tmp_path):
    pixels = RNG.random((3, 100, 120)).astype(np.float32)
    path = local(tmp_path / "m.onnx", scale=1e-4, normalize="fixed", mean=[0.1] * 3, std=[0.05] * 3)
    with pytest.raises(segpipe.SourceError, match=r"the array: pixels look like reflectance 0 to 1 .*: .*unusual_values"):
        segpipe.load(path, device="cpu").predict(pixels)
    assert segpipe.load(path, device="cpu", unusual_values="allow").predict(pixels).valid.all()


def test_a_model_of_integers_takes_no_floats(tmp_path):
    net = Network(3).add("Cast", to=TensorProto.FLOAT).conv(3, 3, 3)
    values = contract(3, 3, scaling="graph", scale=1.0)
    path = net.save(tmp_path / "m.onnx", values, classes=3, dtype=TensorProto.UINT8)
    model = segpipe.load(path, device="cpu")
    assert model.predict(np.ones((3, 70, 70), np.uint8)).valid.all()
    with pytest.raises(
        segpipe.SourceError, match="the array: pixels must fit the model's uint8 input without loss, got float"
    ):
        model.predict(np.ones((3, 70, 70)))


def test_scores_that_are_not_finite_are_an_error(tmp_path):
    model = segpipe.load(pixelwise(tmp_path / "m.onnx", scale=1.0), device="cpu")
    with pytest.raises(segpipe.ModelError, match="scores must be finite"):
        model.predict(np.full((3, 70, 70), 3e38, np.float32))


@pytest.mark.parametrize(
    ("settings", "error", "why"),
    [
        ({"workers": 2}, segpipe.SettingsError, "segpipe.load: workers is a setting of a run: give it to segpipe.run"),
        ({"tiel": 2}, segpipe.SettingsError, "segpipe.load: unknown key tiel: did you mean tile?"),
        ({"device": "tpu"}, segpipe.SettingsError, "device: "),
        ({"overlap": 64}, segpipe.SegpipeError, "overlap"),
    ],
)
def test_settings_of_a_model(settings, error, why, tmp_path):
    with pytest.raises(error, match=why):
        segpipe.load(local(tmp_path / "m.onnx"), **settings)


def test_a_model_without_a_contract_says_what_to_write(tmp_path):
    path = Network(3).conv(3, 3, 3).save(tmp_path / "m.onnx", None, classes=3)
    with pytest.raises(segpipe.ContractError, match="contract"):
        segpipe.load(path)


def test_a_model_says_what_it_takes(tmp_path):
    model = segpipe.load(str(local(tmp_path / "m.onnx")), tile=128, device="cpu")
    assert (model.channels, model.tile, model.overlap) == (3, (128, 128), (16, 16))
    assert model.classes == {i: f"class{i}" for i in range(3)}
    assert model.contract.task == "multiclass"
    assert repr(model).endswith(
        "m.onnx: 3 channels to 3 classes (class0, class1, class2), tile 128 x 128, overlap 16 x 16, on cpu"
    )


def test_the_source_is_the_array_in_any_window():
    array = RNG.random((2, 5, 6)).astype(np.float32)
    array[0, 1, 2] = np.nan
    source = ArraySource(array, np.arange(30).reshape(5, 6) > 4)
    pixels, invalid = source.read(Window((0, 1), (3, 5)))
    assert np.array_equal(pixels, array[:, 0:3, 1:5], equal_nan=True)
    assert invalid.tolist() == [[True] * 4, [False, True, False, False], [False] * 4]
    assert source.begin(Window((2, 0), (3, 6)))()[1] is None
    assert source.empty(Window((0, 0), (1, 5)))
    assert not source.empty(Window((0, 0), (1, 6)))
    assert not ArraySource(array).empty(Window((0, 0), (1, 5)))
    assert source.near((0.5, 0.99), 2) == Window((2, 4), (4, 6))


def test_labels_show_themselves_in_a_line():
    labels = Labels(np.zeros((2, 3), np.uint8), 255, {0: "water", 1: "forest"})
    assert repr(labels) == "Labels of 2 x 3, uint8, nodata 255; 0: water, 1: forest"
