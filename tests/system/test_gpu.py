"""What only a GPU can show. It runs without the suite's fixtures too: benchmarks/gpu.py calls it where little is installed.

``SEGPIPE_TEST_DEVICE=cpu-tensors`` runs the same on the CPU.
"""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
from networks import Network, contract, pooling
from onnx import TensorProto, helper
from rasterio.transform import from_origin

from segpipe.contract import parse_contract
from segpipe.errors import DeviceMemoryError
from segpipe.geometry.weighting import Weights
from segpipe.geometry.windows import Cover, Tiling
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.network.arrays import HOST
from segpipe.network.device import DeviceMemory, gpu_facts
from segpipe.network.device_arrays import DeviceArrays, DeviceStreams, Upload, scaled
from segpipe.network.read import read_spec
from segpipe.network.scaling import Scaling
from segpipe.pipeline.blend import Strip
from segpipe.pipeline.decision import Decision
from segpipe.pipeline.infer import load_model
from segpipe.pipeline.model_check import try_out
from segpipe.settings import load_settings

pytestmark = pytest.mark.gpu

DEVICE = os.environ.get("SEGPIPE_TEST_DEVICE", "cuda")
SHAPE = (700, 900) if DEVICE == "cuda" else (300, 400)


class Silent:
    def progress(self, pixels): ...

    def outcome(self, outcome): ...


def scene(path, shape=SHAPE, dtype=np.uint16, nodata=True):
    rng = np.random.default_rng(4)
    pixels = rng.integers(1, 250, (3, *shape)).astype(dtype)
    if nodata:
        pixels[:, : shape[0] // 3, : shape[1] // 3] = 0
        pixels[:, rng.random(shape) < 0.1] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = {"crs": "EPSG:32633", "transform": from_origin(5e5, 5.4e6, 10, 10), "nodata": 0}
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=shape[0], width=shape[1], dtype=pixels.dtype, **grid
    ) as dataset:
        dataset.write(pixels)
    return path


def run(source, model, output, **settings):
    flags = {"input": (str(source),), "model": model, "output": output, "executor": "serial", "confidence": True}
    summary = carry_out(prepare(load_settings(None, flags | settings)), Silent())
    assert (summary.failed, summary.problems) == ([], [])
    found = {}
    for name in ("scene.tif", "scene.confidence.tif"):
        with rasterio.open(output / name) as dataset:
            found[name] = dataset.read()
    return found


def bytes_of(out):
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tif"))}


@pytest.fixture
def streams():
    return DeviceStreams("cpu" if DEVICE == "cpu-tensors" else "cuda")


def test_the_device_is_a_gpu(streams):
    assert streams.pinned or DEVICE == "cpu-tensors"
    assert DEVICE == "cpu-tensors" or (gpu_facts()["name"] and streams.handle)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "float32", "float64"])
def test_scaling_gives_the_bytes_of_numpy(dtype, streams):
    rng = np.random.default_rng(0)
    stored = (rng.random((3, 4, 200, 300)) * 200).astype(dtype)
    invalid = rng.random((3, 200, 300)) < 0.2
    scaling = Scaling(np.full(4, 1e-4) * [1, 2, 3, 4], np.full(4, -0.3), np.full(4, -0.29), np.full(4, -0.28))
    arrays, upload, masks = DeviceArrays(streams, 4), Upload(streams), Upload(streams)
    for _ in range(5):  # so that buffers are used again while they are on their way
        with arrays.here(), upload.send(list(stored)) as sent, masks.send(list(invalid)) as where:
            there = scaled(sent, scaling, where, arrays)
        (got,) = arrays.fetch(there)()
        here = np.stack([scaling(a, b) for a, b in zip(stored, invalid, strict=True)])
        assert got.tobytes() == here.tobytes()
        stored = stored[::-1].copy()
        invalid = invalid[::-1].copy()


def test_sums_and_labels_have_the_bytes_of_numpy(streams):
    cover = Cover((500, 700), Tiling((128, 128), (32, 32), (8, 8), "gaussian"))
    rng, weights, arrays = np.random.default_rng(0), Weights.over(cover), DeviceArrays(streams, 4)
    strips = Strip(cover), Strip(cover, arrays=arrays)
    terms = parse_contract(contract(3, 6), "test")
    deciding = [Decision(terms, "logits", where) for where in (HOST, arrays)]
    for index in cover:
        scores = np.round(rng.normal(size=(6, 128, 128)).astype(np.float32) * 4) / 4
        with arrays.here():
            there = arrays.put(scores)
            there *= arrays.weights(weights).of(index)
            sums = strips[1].add(index, there)
            fetched = arrays.fetch(sums, *deciding[1].labels(sums, None, None))
        scores *= weights.of(index)
        here = strips[0].add(index, scores)
        got, labels, finite = fetched()
        np.testing.assert_array_equal(got, here)
        np.testing.assert_array_equal(labels, deciding[0].labels(here, None, None)[0])
        assert finite


def test_the_first_of_equal_scores_wins(streams):
    arrays = DeviceArrays(streams, 4)
    scores = np.random.default_rng(0).integers(0, 3, (7, 300, 300)).astype(np.float32)
    with arrays.here():
        winner, best = arrays.fetch(*arrays.most_likely(arrays.put(scores), np.dtype(np.uint8)))()
    np.testing.assert_array_equal(winner, scores.argmax(axis=0))
    np.testing.assert_array_equal(best, scores.max(axis=0))


def half_input(path):
    net = Network(3).add("Cast", to=TensorProto.FLOAT).conv(3, 4, 1)
    return net.save(path, contract(3, 4), classes=4, dtype=TensorProto.FLOAT16)


def quarter(path):
    net = Network(3).add("AveragePool", kernel_shape=[4, 4], strides=[4, 4]).conv(3, 4, 1)
    return net.save(path, contract(3, 4), classes=4, shape=("n", 64, 64), out_shape=("n", 4, 16, 16))


MODELS = {
    "pooling": lambda path: pooling(path, 3, 4),
    "z-score": lambda path: pooling(path, 3, 4, normalize="zscore"),
    "multilabel": lambda path: pooling(path, 3, 4, task="multilabel", activation="sigmoid"),
    "quarter": quarter,
    "fp16 input": half_input,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_run_gives_the_labels_of_the_cpu(name, tmp_path):
    source, model = scene(tmp_path / "in" / "scene.tif"), MODELS[name](tmp_path / "m.onnx")
    here = run(source, model, tmp_path / "here", device="cpu")
    there = run(source, model, tmp_path / "there", device=DEVICE)
    labels = here["scene.tif"], there["scene.tif"]
    np.testing.assert_array_equal(labels[0] == 255, labels[1] == 255)
    assert (labels[0] == labels[1]).mean() >= 0.9999
    likely = [found["scene.confidence.tif"].astype(int) for found in (here, there)]
    assert (np.abs(likely[0] - likely[1]) <= 1).mean() >= 0.999
    assert json.loads((tmp_path / "there" / "scene.json").read_text())["device"]["device"] == DEVICE


def test_the_same_bytes_over_repeats_and_parts(tmp_path):
    source, model = scene(tmp_path / "in" / "scene.tif"), pooling(tmp_path / "m.onnx", 3, 4)
    outs = []
    for number, parts in enumerate((None, None, None, 2, 5)):
        out = tmp_path / str(number)
        run(source, model, out, device=DEVICE, batch=4, **({} if parts is None else {"parts": parts}))
        outs.append(bytes_of(out))
    assert all(found == outs[0] for found in outs)


def test_a_graph_of_free_sizes_that_computes_shapes_runs_on_the_device(tmp_path, caplog):
    """Its axes are fixed when it is opened, so that no node of it is left to the CPU."""
    net = Network(3).conv(3, 4, 3)
    net.add("Reshape", np.array([0, 4, -1])).add("Relu")
    shape = net.last
    net.last = "image"
    net.add("Shape", start=2, end=4)
    tail, net.last = net.last, shape
    lead = net.constant(np.array([0, 4]))
    net.nodes.append(helper.make_node("Concat", [lead, tail], ["whole"], axis=0))
    net.nodes.append(helper.make_node("Reshape", [net.last, "whole"], ["back"]))
    net.last = "back"
    model = net.save(tmp_path / "m.onnx", contract(3, 4), classes=4)
    source = scene(tmp_path / "in" / "scene.tif", (200, 200))
    here = run(source, model, tmp_path / "here", device="cpu")
    there = run(source, model, tmp_path / "there", device=DEVICE)
    assert (here["scene.tif"] == there["scene.tif"]).mean() >= 0.9999
    assert "run on the CPU" not in caplog.text


def test_a_profile_tells_what_the_device_itself_has_taken(tmp_path, streams):
    source, model = scene(tmp_path / "in" / "scene.tif"), pooling(tmp_path / "m.onnx", 3, 4)
    flags = {"input": (str(source),), "model": model, "output": tmp_path / "out", "executor": "serial", "device": DEVICE}
    summary = carry_out(prepare(load_settings(None, flags | {"profile": True})), Silent())
    stages = summary.profile.stages
    assert min(stages[name].busy for name in ("upload", "download")) > 0
    assert summary.profile.limit == (stages["gpu"] if streams.pinned else stages["infer"]).busy > 0


def test_memory_is_planned_and_what_does_not_fit_is_refused(tmp_path, streams):
    if not streams.pinned:
        return
    source, model = scene(tmp_path / "in" / "scene.tif"), pooling(tmp_path / "m.onnx", 3, 4, tile=[512, 512])
    flags = {"input": (str(source),), "model": model, "output": tmp_path / "out", "executor": "serial", "device": DEVICE}
    spec = try_out(read_spec(load_settings(None, flags)))
    assert spec.memory is not None
    assert spec.memory.strip > 0
    hog = torch.empty(max(streams.free() - 2**30, 0), dtype=torch.uint8, device="cuda")
    with pytest.raises(DeviceMemoryError, match=r"lower --batch"):
        try_out(read_spec(load_settings(None, flags | {"batch": 512})))
    tight = load_model(
        replace(spec, batch=512, memory=DeviceMemory(2**40, 2**40))
    )  # planned with more memory: smaller batches do
    assert tight.spec.batch < 512
    del hog, tight
