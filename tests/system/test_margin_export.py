"""Torch networks of valid convolutions, and models made elsewhere: the margin is measured and goes into the contract."""

import json
import re
import warnings

import numpy as np
import onnx
import pytest
import rasterio
import torch
from networks import Network, unpadded
from torch import Tensor, nn
from torch.nn import functional

from segpipe.errors import ExportError, SegpipeError
from segpipe.export.attach import attach
from segpipe.export.make import export_model
from segpipe.export.settings import ExportSettings

KEYS = """
scale = 0.00392156862745098
normalize = "none"
"""
CLASSES = "".join(f'[[classes]]\nid = {i}\nname = "c{i}"\n' for i in range(3))


class Unpadded(nn.Module):
    """Two levels without padding: 16 pixels less, 8 on each side; tiles are even."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.top = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.deep = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 1))
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        skip = self.top(image)
        deep = functional.interpolate(self.deep(skip), scale_factor=2.0)
        return self.last(torch.cat([skip[..., 4:-4, 4:-4], deep], 1))


def saved(net: nn.Module, path, tile=50):
    """As a program, of fixed size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(net, torch.zeros(2, 3, tile, tile), check_trace=False).save(path)
    return path


def exported(weights, tmp_path, keys="", **flags):
    classes = tmp_path / "classes.toml"
    classes.write_text(keys + KEYS + CLASSES)
    usual = {"output": tmp_path / "m.onnx", "bands": ("r", "g", "b"), "tile": (50,), "classes": str(classes)}
    return export_model(ExportSettings(weights=weights, **{**usual, **flags}), lambda line: None)


@pytest.mark.parametrize(("free", "raw"), [(False, None), (True, "uint8")])
def test_a_torch_network_is_equal_to_itself_on_the_whole_image(free, raw, raster, run_serial, tmp_path):
    net = Unpadded()
    if free:
        torch.save(net.state_dict(), tmp_path / "w.pt")
        done = exported(tmp_path / "w.pt", tmp_path, raw=raw, module=f"{__name__}:Unpadded")
    else:
        done = exported(saved(net, tmp_path / "w.pt"), tmp_path, raw=raw)
    contract = done.contract
    assert done.free_size == free
    assert (contract.margin, contract.overlap, contract.align, contract.equivariant) == ([8, 8], [0, 0], 2, True)
    pixels = np.random.default_rng(0).integers(1, 256, (3, 93, 120), dtype=np.uint8)
    out = run_serial(raster("in/a.tif", pixels), done.path)
    x = np.pad((pixels / 255).astype(np.float32), [(0, 0), (8, 9), (8, 8)], mode="reflect")
    with torch.inference_mode():
        scores = net(torch.from_numpy(x)[None])[0, :, :93, :120].numpy()
    with rasterio.open(out / "a.tif") as mask:
        np.testing.assert_array_equal(mask.read(1), scores.argmax(axis=0))
    deepness = {p.key: p.value for p in onnx.load(done.path).metadata_props}
    assert json.loads(deepness["tile_size"]) == 50
    assert json.loads(deepness["tiles_overlap"]) == 32  # per cent: the plugin needs twice the margin


def test_a_margin_that_is_not_the_networks_is_refused(tmp_path):
    weights = saved(Unpadded(), tmp_path / "w.pt")
    with pytest.raises(
        ExportError, match=re.escape("measured as [8, 8] from the scores 34 x 34 of a tile of 50 x 50, got [9, 9]")
    ):
        exported(weights, tmp_path, "margin = 9\n")


def test_scores_that_are_to_be_left_out_are_cut_from_the_graph(tmp_path):
    """A margin for a network that keeps sizes."""
    net = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)).eval()
    done = exported(saved(net, tmp_path / "w.pt"), tmp_path, "margin = [3, 5]\n")
    assert done.contract.margin == [3, 5]
    (scores,) = onnx.load(done.path).graph.output
    assert [d.dim_value for d in scores.type.tensor_type.shape.dim][2:] == [44, 40]


def terms(path, **keys):
    values = {
        "version": 1,
        "channels": 3,
        "scale": 1 / 255,
        "normalize": "none",
        "activation": "softmax",
        "tile": 84,
        **keys,
    }
    path.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items()) + "\n" + CLASSES)
    return path


@pytest.mark.parametrize("free", [True, False])
def test_attach_measures_margin_and_stride(free, tmp_path):
    own = unpadded(tmp_path / "own.onnx", 84, free=free)
    proto = onnx.load(own)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "m.onnx")
    done = attach(tmp_path / "m.onnx", terms(tmp_path / "c.toml"))
    assert (done.contract.margin, done.contract.align, done.contract.equivariant) == ([20, 20], 4, True)
    assert "margin = [20, 20] was measured" in done.notes[0]


def test_attach_leaves_a_coarser_grid(tmp_path):
    net = Network(3).conv(3, 8, 5).add("Relu").add("MaxPool", kernel_shape=[2, 2], strides=[2, 2]).conv(8, 3, 3)
    model = net.save(tmp_path / "m.onnx", None, classes=3, out_shape=("n", 3, "a", "b"))
    done = attach(model, terms(tmp_path / "c.toml", tile=64))
    assert done.contract.margin is None


def test_attach_measures_the_margin_of_a_coarser_middle(tmp_path):
    net = Network(3).valid(3, 8).add("Relu").valid(8, 8).add("Relu").add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    net.valid(8, 8).add("Relu").valid(8, 8).add("Relu").conv(8, 3, 1)
    model = net.save(tmp_path / "m.onnx", None, classes=3, out_shape=("n", 3, "a", "b"))
    done = attach(model, terms(tmp_path / "c.toml", tile=84))
    assert done.contract.margin == [6, 6]


def test_attach_checks_a_margin_that_is_named(tmp_path):
    own = unpadded(tmp_path / "own.onnx", 84)
    with pytest.raises(SegpipeError, match=re.escape("got 44 x 44: set margin = [20, 20]")):
        attach(own, terms(tmp_path / "c.toml", margin=18))
