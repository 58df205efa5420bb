"""What is beside a tile in a batch must not change a bit of its scores."""

import json
import re

import numpy as np
import onnx
import pytest
import rasterio
from inspecting import sidecar
from networks import Network, contract, local
from onnx import helper

from segpipe.errors import ModelError
from segpipe.export.attach import attach
from segpipe.jobs.prepare import prepare
from segpipe.settings import load_settings


def dynamic(path, batch="n", **changes):
    """Quantized as onnxruntime's quantize_dynamic does it: the range is that of the whole batch."""
    net = Network(3).conv(3, 8, 3).add("Relu")
    values = net.last
    weights = net.rng.integers(-127, 128, (4, 8, 3, 3)).astype(np.int8)
    w = net.constant(weights)
    net.nodes.append(helper.make_node("DynamicQuantizeLinear", [values], ["q", "scale", "zero"]))
    net.nodes.append(helper.make_node("ConvInteger", ["q", w, "zero"], ["sums"], pads=[1] * 4))
    net.nodes.append(helper.make_node("Cast", ["sums"], ["floats"], to=onnx.TensorProto.FLOAT))
    net.nodes.append(helper.make_node("Mul", ["floats", "scale"], ["scaled"]))
    net.last = "scaled"
    net.add("Mul", np.array(0.01, np.float32))
    return net.save(path, contract(3, 4, **changes), classes=4, shape=(batch, "h", "w"))


def batch_norm(path, batch="n"):
    ones, zeros = np.ones(8, np.float32), np.zeros(8, np.float32)
    net = Network(3).conv(3, 8, 3).add("BatchNormalization", ones, zeros, zeros, ones, training_mode=1)
    net.nodes[-1].output.extend(["mean", "var"])
    net.conv(8, 4, 1)
    return net.save(path, contract(3, 4), classes=4, shape=(batch, "h", "w"))


def spread_over_batch(path, batch="n"):
    """A global mean over the batch axis, too."""
    net = Network(3).conv(3, 4, 3)
    net.nodes.append(helper.make_node("ReduceMean", [net.last, net.constant(np.array([0, 2, 3]))], ["mean"], keepdims=1))
    net.nodes.append(helper.make_node("Sub", [net.last, "mean"], ["less"]))
    net.last = "less"
    return net.save(path, contract(3, 4), classes=4, shape=(batch, "h", "w"))


MIXING = {"dynamic": dynamic, "mean": spread_over_batch}


@pytest.fixture
def source(raster):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 150, 210)) * np.linspace(0.1, 1, 210)
    return raster("in/a.tif", pixels.astype(np.uint8))


def read(out):
    with rasterio.open(out / "a.tif") as mask:
        return mask.read()


def test_statistics_that_a_model_keeps_from_call_to_call_are_refused(source, tmp_path):
    """ONNX Runtime updates them in place: the same tile had other scores in each call."""
    flags = {"input": (str(source),), "model": batch_norm(tmp_path / "m.onnx"), "output": tmp_path / "out", "device": "cpu"}
    with pytest.raises(ModelError, match=r"same scores each time.*batch normalisation in training mode.*evaluation mode"):
        prepare(load_settings(None, flags))


@pytest.mark.parametrize("kind", MIXING)
def test_a_model_that_mixes_tiles_runs_them_one_by_one(kind, source, run_serial, tmp_path, caplog):
    model = MIXING[kind](tmp_path / "m.onnx")
    one = read(run_serial(source, model, output=tmp_path / "one"))
    four = read(run_serial(source, model, batch=4, output=tmp_path / "four"))
    np.testing.assert_array_equal(four, one)
    assert re.search(r"scores depend on the batch .*: batches of 1 are taken, in place of 4", caplog.text)
    assert json.loads((tmp_path / "four" / "run.json").read_text())["resolved"]["batch"] == 1


@pytest.mark.parametrize(("kind", "why"), [("dynamic", "range from the whole batch"), ("mean", "mix tiles")])
def test_with_a_fixed_batch_it_is_refused(kind, why, source, tmp_path):
    model = MIXING[kind](tmp_path / "m.onnx", batch=4)
    flags = {"input": (str(source),), "model": model, "output": tmp_path / "out", "device": "cpu"}
    with pytest.raises(ModelError, match=f"fixed at 4 .*{why}.*: export it with a batch of 1 or a free one"):
        prepare(load_settings(None, flags))


@pytest.mark.parametrize("batch", ["n", 4])
def test_other_models_keep_their_batch(batch, source, tmp_path, caplog):
    net = Network(3).conv(3, 8, 3).add("Relu").conv(8, 4, 3)
    model = net.save(tmp_path / "m.onnx", contract(3, 4), classes=4, shape=(batch, "h", "w"))
    flags = {"input": (str(source),), "model": model, "output": tmp_path / "out", "device": "cpu", "batch": 4}
    assert prepare(load_settings(None, flags)).run.model.batch == 4
    assert not caplog.records


@pytest.mark.parametrize("kind", ["dynamic", "mean"])
def test_on_tensors(kind, source, tmp_path, caplog):
    """The path of the GPUs, whose batch is 8 unless asked otherwise."""
    pytest.importorskip("torch")
    model = MIXING[kind](tmp_path / "m.onnx")
    flags = {"input": (str(source),), "model": model, "output": tmp_path / "out", "device": "cpu-tensors"}
    assert prepare(load_settings(None, flags)).run.model.batch == 1
    assert "scores depend on the batch" in caplog.text
    caplog.clear()
    plain = local(tmp_path / "p.onnx")
    assert prepare(load_settings(None, {**flags, "model": plain})).run.model.batch == 8
    assert not caplog.records


def test_kernels_that_round_from_call_to_call_are_not_taken_for_mixing(source, tmp_path, caplog, monkeypatch):
    """A smaller batch would not help against them."""
    pytest.importorskip("torch")
    from segpipe.pipeline import gpu_check

    rng, scored = np.random.default_rng(0), gpu_check._scored
    monkeypatch.setattr(gpu_check, "_scored", lambda model, batch: scored(model, batch) + rng.normal(0, 1e-7))
    flags = {"input": (str(source),), "model": local(tmp_path / "p.onnx"), "device": "cpu-tensors"}
    assert prepare(load_settings(None, flags | {"output": tmp_path / "out"})).run.model.batch == 8
    assert "differ from call to call on cpu-tensors" in caplog.text


def test_attach_fixes_the_batch_of_a_model_quantized_at_run_time(tmp_path):
    model = dynamic(tmp_path / "m.onnx")
    values = json.loads({p.key: p.value for p in onnx.load(model).metadata_props}["segpipe"])
    attached = attach(model, sidecar(tmp_path / "c.toml", values), tmp_path / "new.onnx")
    assert attached.notes == ("DynamicQuantizeLinear takes its range from the whole batch: its batch is fixed at 1 now",)
    assert onnx.load(tmp_path / "new.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


@pytest.mark.parametrize("operator", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_a_model_that_draws_at_random_is_refused(operator, source, tmp_path):
    net = Network(3).conv(3, 4, 1).add("Sigmoid").add(operator).conv(4, 4, 1)
    model = net.save(tmp_path / "m.onnx", contract(3, 4), classes=4)
    flags = {"input": (str(source),), "model": model, "output": tmp_path / "out", "device": "cpu"}
    with pytest.raises(ModelError, match=rf"same scores each time, and does not \({operator}\): export it in evaluation"):
        prepare(load_settings(None, flags))
