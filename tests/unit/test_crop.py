"""An output smaller than the input: a coarser grid of all of it, or its middle (segpipe.network.view)."""

import numpy as np
import onnxruntime
import pytest
from networks import Network, contract

from segpipe.errors import ModelError
from segpipe.jobs.prepare import prepare
from segpipe.network.view import Probe, measured_margin
from segpipe.settings import load_settings


@pytest.fixture
def source(raster):
    return raster("in/a.tif", np.random.default_rng(5).integers(1, 256, (3, 150, 150), dtype=np.uint8))


def tried(source, model, **flags):
    flags = {"input": (str(source),), "model": model, "output": source.parents[1] / "out", "device": "cpu", **flags}
    return prepare(load_settings(None, flags))


def pooled(net, factor):
    return net.add("MaxPool", kernel_shape=[factor, factor], strides=[factor, factor])


def shallow(factor):
    return pooled(Network(3).conv(3, 6, 3).add("Relu"), factor).conv(6, 4, 3)


def deep(factor):
    """Several levels and a wide receptive field."""
    net, channels = Network(3).conv(3, 8, 5).add("Relu"), 8
    while factor > 1:
        net, factor = pooled(net, 2).conv(channels, 8, 5).add("Relu"), factor // 2
    return net.conv(8, 8, 5).add("Relu").conv(8, 4, 1)


def strided(factor):
    net = Network(3)
    w = net.rng.normal(size=(8, 3, factor, factor)).astype(np.float32)
    return net.add("Conv", w, strides=[factor, factor]).add("Relu").conv(8, 4, 3)


def with_context(factor):
    """The mean of the whole tile beside each pixel, as pyramid pooling has it."""
    from onnx import helper

    net = shallow(factor)
    net.nodes.append(helper.make_node("GlobalAveragePool", [net.last], ["all"]))
    net.nodes.append(helper.make_node("Add", [net.last, "all"], ["both"]))
    net.last = "both"
    return net.conv(4, 4, 1)


COARSE = {"shallow": shallow, "deep": deep, "strided": strided, "context": with_context}


@pytest.mark.parametrize("kind", COARSE)
@pytest.mark.parametrize("factor", [2, 4, 8, 16])
def test_coarser_grids_are_taken(kind, factor, source, tmp_path):
    values = contract(3, 4, tile=[128, 128], overlap=[0, 0], align=factor)
    shape, out = ("n", 128, 128), ("n", 4, 128 // factor, 128 // factor)
    tried(source, COARSE[kind](factor).save(tmp_path / "m.onnx", values, classes=4, shape=shape, out_shape=out))


def cropped(net, margin):
    return net.add("Slice", np.array([margin] * 2), np.array([-margin] * 2), np.array([2, 3]))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_crops_are_refused(factor, wide, source, tmp_path):
    net = Network(3).conv(3, 6, 3).add("Relu").conv(6, 6, 9 if wide else 3).add("Relu").conv(6, 4, 3)
    size = 128 // factor
    net = cropped(net, (128 - size) // 2)
    values = contract(3, 4, tile=[128, 128], overlap=[0, 0])
    model = net.save(tmp_path / "m.onnx", values, classes=4, shape=("n", 128, 128), out_shape=("n", 4, size, size))
    with pytest.raises(ModelError, match=rf"it is the middle of it.*output of {size} x {size}: set margin = "):
        tried(source, model)


def test_crops_of_unpadded_convolutions_are_refused(source, tmp_path):
    """Half the tile, by convolutions that take away what padding would add."""
    net, channels = Network(3), 3
    for _ in range(8):
        w = (net.rng.normal(size=(8, channels, 5, 5)) / np.sqrt(channels * 12)).astype(np.float32)
        net, channels = net.add("Conv", w).add("Relu"), 8
    values = contract(3, 4, tile=[64, 64], overlap=[0, 0])
    net = net.conv(8, 4, 1)
    model = net.save(tmp_path / "m.onnx", values, classes=4, shape=("n", 64, 64), out_shape=("n", 4, 32, 32))
    with pytest.raises(ModelError, match="it is the middle of it"):
        tried(source, model)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_crop_on_tensors(batch, source, tmp_path):
    pytest.importorskip("torch")
    values = contract(3, 4, tile=[128, 128], overlap=[0, 0])
    net = cropped(Network(3).conv(3, 6, 3).add("Relu").conv(6, 4, 3), 32)
    model = net.save(tmp_path / "m.onnx", values, classes=4, shape=(batch, 128, 128), out_shape=(batch, 4, 64, 64))
    with pytest.raises(ModelError, match="it is the middle of it"):
        tried(source, model, device="cpu-tensors")


@pytest.mark.parametrize("margin", [2, 14, 92])
def test_what_is_no_fraction_is_said_to_be_cropped(margin, source, tmp_path):
    """As 512 to 484, and 572 to 388 of the first U-Net."""
    values = contract(3, 4, tile=[288, 288], overlap=[0, 0])
    net = cropped(Network(3).conv(3, 4, 3), margin)
    model = net.save(tmp_path / "m.onnx", values, classes=4, out_shape=("n", 4, "a", "b"))
    if 288 % (288 - 2 * margin):
        with pytest.raises(
            ModelError,
            match=rf"one pixel per stride, .* got .*: if it is the middle of the tile.* set margin = .{margin}, {margin}",
        ):
            tried(source, model)


def probed(model):
    """The network as ONNX Runtime has it, with noise."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    calm, loud = np.random.default_rng(1).normal(size=(2, 1, 3, 128, 128)).astype(np.float32)
    return Probe(lambda tile: session.run(None, {"image": tile})[0][0], calm, 30 * loud, (1, 1))


@pytest.mark.parametrize("kind", COARSE)
@pytest.mark.parametrize("factor", [2, 4])
def test_a_coarser_grid_has_no_margin(kind, factor, tmp_path):
    size = 128 // factor
    model = COARSE[kind](factor).save(tmp_path / "m.onnx", None, classes=4, out_shape=("n", 4, size, size))
    assert measured_margin(probed(model), "m") is None


@pytest.mark.parametrize("margin", [1, 14, 32, 43, 48])
def test_the_margin_of_a_crop_is_measured(margin, tmp_path):
    """Of any size, half of the tile and a quarter of it, too, which a coarser grid may have."""
    net = cropped(Network(3).conv(3, 6, 5).add("Relu").conv(6, 4, 3), margin)
    model = net.save(tmp_path / "m.onnx", None, classes=4, out_shape=("n", 4, "a", "b"))
    assert measured_margin(probed(model), "m") == (margin, margin)


def test_an_output_of_odd_sizes_has_no_middle(tmp_path):
    net = Network(3).add("Conv", np.random.default_rng(0).normal(size=(4, 3, 4, 4)).astype(np.float32))
    model = net.save(tmp_path / "m.onnx", None, classes=4, out_shape=("n", 4, "a", "b"))
    with pytest.raises(ModelError, match="as many pixels on both sides, got 125 x 125 of a tile of 128 x 128"):
        measured_margin(probed(model), "m")


def test_what_noise_does_not_show_is_asked_for(tmp_path):
    net = cropped(Network(3).conv(3, 4, 3).add("Mul", np.zeros(1, np.float32)), 5)
    model = net.save(tmp_path / "m.onnx", None, classes=4, out_shape=("n", 4, "a", "b"))
    with pytest.raises(ModelError, match="noise does not show which: set margin in the contract if it is the middle"):
        measured_margin(probed(model), "m")
