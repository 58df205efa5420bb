"""The path of the GPUs on CPU tensors, against NumPy: blending, weights, scaling, labels, and whole runs."""

import json
import subprocess
import sys
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import rasterio
import torch
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st
from networks import Network, contract, local
from onnx import TensorProto

from segpipe.contract import parse_contract
from segpipe.errors import DeviceError, DeviceMemoryError, ModelError, SettingsError, SourceError, memory_errors
from segpipe.formats.case import Case
from segpipe.geometry.weighting import Weights
from segpipe.geometry.windows import Cover, Tiling
from segpipe.jobs.launch import carry_out
from segpipe.jobs.local_cluster import started
from segpipe.jobs.planning import make_plan
from segpipe.jobs.prepare import prepare
from segpipe.jobs.worker_pool import memory_mb
from segpipe.network.arrays import HOST
from segpipe.network.device import (
    DeviceMemory,
    Options,
    SessionTerms,
    _load_tensorrt,
    _refused,
    check_runtime,
    engine_folder,
    providers,
)
from segpipe.network.device_arrays import BUFFERS, CONSTANTS, DeviceArrays, DeviceStreams, Upload, scaled
from segpipe.network.read import read_spec
from segpipe.network.scaling import Scaling
from segpipe.pipeline import infer_gpu
from segpipe.pipeline.agreement import checked_agreement
from segpipe.pipeline.blend import Strip
from segpipe.pipeline.decision import Decision
from segpipe.pipeline.gpu_check import _device_memory
from segpipe.pipeline.infer_gpu import DeviceModel, _engine_key
from segpipe.pipeline.memory import STRETCHES
from segpipe.pipeline.stretch import STRETCH_BYTES
from segpipe.pipeline.tiles import Patch
from segpipe.results.run import Run
from segpipe.settings import load_settings
from segpipe.timing import spans
from segpipe.timing.report import account
from segpipe.timing.spans import begin

STREAMS = DeviceStreams("cpu")
TENSORS = DeviceArrays(STREAMS, 4)


@st.composite
def covers(draw):
    tile, align = draw(st.integers(2, 6)) * 4, 4
    overlap = draw(st.integers(0, tile - align))
    shape = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    blend = draw(st.sampled_from(["gaussian", "cosine", "linear", "constant", "crop"]))
    return Cover(shape, Tiling((tile,) * 2, (overlap,) * 2, (align,) * 2, blend))


@given(covers(), st.data())
def test_weighted_sums_are_the_same_bytes(cover, data):
    empty = data.draw(st.sets(st.sampled_from(list(cover))))
    rng, weights = np.random.default_rng(0), Weights.over(cover)
    moved, strips = TENSORS.weights(weights), (Strip(cover), Strip(cover, arrays=TENSORS))
    for index in cover:
        scores = None if index in empty else rng.normal(size=(3, *cover.tiling.tile)).astype(np.float32)
        there = None if scores is None else torch.from_numpy(scores.copy())
        if scores is not None:
            scores *= weights.of(index)
            there *= moved.of(index)
        here, there = strips[0].add(index, scores), strips[1].add(index, there)
        assert (here is None) == (there is None)
        if here is not None:
            assert here.tobytes() == there.contiguous().numpy().tobytes()
    box = tuple(slice(0, n) for n in cover.shape)
    np.testing.assert_array_equal(weights.total(box), moved.total(box).numpy())


TYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]


def pixels_of(dtype, shape, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype) * 1000
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("fill", [False, True])
def test_scaling_gives_the_same_bytes_in_every_type(dtype, clip, fill):
    stored, invalid = pixels_of(dtype, (2, 3, 20, 30)), np.random.default_rng(1).random((2, 20, 30)) < 0.2
    limits = (np.array([-0.5, 0, 0.1]), np.array([0.9, 1, 2.0])) if clip else (None, None)
    fills = np.array([3.0, 0.1, -7]) if fill else None
    scaling = Scaling(np.array([1e-4, 0.3, 1 / 255]), np.array([0.1, -3.3, 0]), *limits, fill=fills)
    upload, masks = Upload(STREAMS), Upload(STREAMS)
    with upload.send(list(stored)) as sent, masks.send(list(invalid)) as where:
        assert sent.numpy().tobytes() == stored.tobytes()
        there = scaled(sent, scaling, where, TENSORS)
    here = np.stack([scaling(a, b) for a, b in zip(stored, invalid, strict=True)])
    assert there.numpy().tobytes() == here.tobytes()


def test_buffers_take_turns_and_grow():
    upload, kept = Upload(STREAMS), []
    for size in (3, 50, 7, 50, 80):
        stored = [pixels_of("uint16", (2, size, size), seed) for seed in range(3)]
        with upload.send(stored) as sent:
            kept.append((sent.clone(), np.stack(stored)))
    for there, here in kept:
        np.testing.assert_array_equal(there.numpy(), here)


def decisions(values, blend_on="logits"):
    terms = parse_contract(values, "test")
    return [Decision(terms, blend_on, arrays) for arrays in (HOST, TENSORS)]


def classes(ids):
    return [{"id": i, "name": f"class{i}", "index": k} for k, i in enumerate(ids)]


FORMS = {
    "multiclass": {},
    "ids of their own": {"classes": classes([7, 3, 200, 1])},
    "more than 255": {"classes": classes([7, 300, 65000, 1])},
    "multilabel": {"task": "multilabel", "activation": "sigmoid", "threshold": 0.3},
    "binary": {"task": "binary", "activation": "sigmoid", "classes": classes([0, 1])[:2]},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("blend_on", ["logits", "probabilities"])
def test_labels_are_the_same_bytes_ties_and_all(form, masked, blend_on):
    if form == "binary":
        values = contract(3, 2, **{**FORMS[form], "classes": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]})
    else:
        values = contract(3, 4, **FORMS[form])
    here, there = decisions(values, blend_on)
    rng = np.random.default_rng(0)
    count = 1 if form == "binary" else 4
    sums = np.round(rng.normal(size=(count, 40, 50)) * 4).astype(np.float32) / 4  # so that many pixels are in a tie
    sums = np.abs(sums) / 3 if blend_on == "probabilities" else sums
    total = rng.random((40, 50)).astype(np.float32) + 0.5
    invalid = rng.random((40, 50)) < 0.3 if masked else None
    if masked:
        sums[:, invalid] = np.nan
    moved = [None if a is None else torch.from_numpy(a.copy()) for a in (sums, total, invalid)]
    labels, finite = here.labels(sums, total, invalid)
    got, same = TENSORS.fetch(*there.labels(*moved))()
    assert got.dtype == labels.dtype
    np.testing.assert_array_equal(got, labels)
    assert bool(finite) is bool(same) is True
    with np.errstate(invalid="ignore"):
        likely = here.confidence(sums, total, invalid)
    (mine,) = TENSORS.fetch(there.confidence(*moved))()
    # exp is the library's own and may differ in its last bit, and so a step of 1 in 254 where it lies between two
    assert np.abs(mine.astype(int) - likely).max() <= 1
    assert (mine == likely).mean() > 0.999


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_show_where_a_pixel_is_valid(bad):
    here, there = decisions(contract(3, 4))
    sums, invalid = np.zeros((4, 5, 5), np.float32), np.zeros((5, 5), bool)
    sums[2, 1, 1] = bad
    invalid[1, 1] = True
    for where, expected in ((invalid, True), (~invalid, False), (None, False)):
        moved = None if where is None else torch.from_numpy(where)
        assert bool(here.labels(sums, None, where)[1]) is expected
        assert bool(there.labels(torch.from_numpy(sums), None, moved)[1]) is expected


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"), DeviceMemoryError),
        (RuntimeError("BFCArena: Failed to allocate memory for requested buffer of size 5"), DeviceMemoryError),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), DeviceMemoryError),
        (RuntimeError("CUBLAS failure 3: the resource allocation failed ; GPU=0"), DeviceMemoryError),
        (RuntimeError("an illegal memory access was encountered"), RuntimeError),
        (SourceError("a.tif cannot be read: out of memory"), SourceError),
    ],
)
def test_memory_that_is_used_up_is_told_from_other_failures(error, kind):
    with pytest.raises(kind, match=str(error).splitlines()[0][:20]) as caught, memory_errors():
        raise error
    assert type(caught.value) is kind


@pytest.fixture
def scenes(raster):
    """Cases of unlike type and size, with and without nodata, so that batches mix them."""
    rng = np.random.default_rng(3)
    shapes = [(130, 180), (64, 64), (65, 90), (10, 17), (120, 100), (33, 130)]
    for number, shape in enumerate(shapes):
        dtype = [np.uint8, np.uint16, np.float32][number % 3]
        pixels = rng.integers(1, 256, (3, *shape)).astype(dtype)
        if number % 2:
            path = raster(f"in/{number}.tif", pixels)
            continue
        pixels[:, rng.random(shape) < 0.2] = 0
        pixels[:, :, : shape[1] // 3] = 0
        path = raster(f"in/{number}.tif", pixels, nodata=0)
    return path.parent


def masks(out):
    found = {}
    for path in sorted(out.rglob("*.tif")):
        with rasterio.open(path) as dataset:
            found[path.relative_to(out).as_posix()] = dataset.read()
    return found


def deep(path, **changes):
    net = Network(3).conv(3, 8, 3).add("Relu").add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    net.conv(8, 8, 3).add("Relu").upsample(2).conv(8, 4, 3)
    return net.save(path, contract(3, 4, align=2, **changes), classes=4)


def quarter(path):
    net = Network(3).add("AveragePool", kernel_shape=[4, 4], strides=[4, 4]).conv(3, 4, 1)
    return net.save(path, contract(3, 4), classes=4, shape=("n", 64, 64), out_shape=("n", 4, 16, 16))


def half(path):
    net = Network(3).add("Cast", to=TensorProto.FLOAT).conv(3, 4, 1)
    return net.save(path, contract(3, 4), classes=4, dtype=TensorProto.FLOAT16)


MODELS = {
    "logits": deep,
    "z-score": lambda path: deep(path, normalize="zscore"),
    "clipped": lambda path: deep(path, clip=[0.1, 0.8]),
    "multilabel": lambda path: deep(path, task="multilabel", activation="sigmoid"),
    "quarter": quarter,
    "fp16 input": half,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_run_gives_the_labels_of_numpy(name, scenes, run_serial, tmp_path):
    model = MODELS[name](tmp_path / "m.onnx")
    settings = {"confidence": True, "blend_on": "probabilities" if name == "quarter" else None}
    here = masks(run_serial(scenes, model, output=tmp_path / "here", batch=4, **settings))
    there = masks(run_serial(scenes, model, output=tmp_path / "there", batch=4, device="cpu-tensors", **settings))
    assert list(there) == list(here)
    assert len(here) == 12
    for path in here:
        if ".confidence" in path:
            assert np.abs(there[path].astype(int) - here[path]).max() <= 1, path
        else:
            np.testing.assert_array_equal(there[path], here[path])
    records = [json.loads((tmp_path / place / "0.json").read_text()) for place in ("here", "there")]
    assert records[0]["statistics"] == records[1]["statistics"]
    assert [record["device"]["device"] for record in records] == ["cpu", "cpu-tensors"]


def test_parts_and_batches_give_the_same_bytes(scenes, run_serial, tmp_path):
    model = deep(tmp_path / "m.onnx", normalize="zscore")
    masks = {}
    for batch, parts in ((1, None), (3, None), (8, 5)):
        out = run_serial(scenes, model, output=tmp_path / f"{batch}", batch=batch, parts=parts, device="cpu-tensors")
        masks[batch] = {path.name: path.read_bytes() for path in out.glob("*.tif")}
    assert masks[1] == masks[3] == masks[8]
    assert len(masks[1]) == 6


def test_workers_run_it_too(scenes, segpipe, tmp_path):
    model, config = deep(tmp_path / "m.onnx"), tmp_path / "c.toml"
    config.write_text('device = "cpu-tensors"\nworkers = 1\nconfidence = true\n')
    done = segpipe("run", "-i", scenes, "-m", model, "-o", tmp_path / "out", "-c", config)
    assert done.returncode == 0, done.stderr
    assert len(masks(tmp_path / "out")) == 12


def test_torch_stays_out_of_a_run_on_the_cpu(scenes, tmp_path):
    model = local(tmp_path / "m.onnx")
    program = (
        "import sys; from segpipe.cli import main; code = 0\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code\n"
        "assert code == 0 and 'torch' not in sys.modules, (code, 'torch' in sys.modules)"
    )
    arguments = ["run", "-i", scenes, "-m", model, "-o", tmp_path / "out", "--device", "cpu", "--executor", "serial"]
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def short_of_memory(monkeypatch, most):
    """Let the device have memory for batches of some size only."""
    whole = DeviceModel.score

    def score(self, tiles):
        if self.spec.batch > most:
            raise DeviceMemoryError("the device's memory is used up")
        return whole(self, tiles)

    monkeypatch.setattr(DeviceModel, "score", score)


@pytest.mark.parametrize("parts", [None, 3])
def test_a_batch_without_memory_is_halved_and_its_cases_begin_anew(parts, scenes, run_serial, tmp_path, monkeypatch, caplog):
    model = deep(tmp_path / "m.onnx")
    whole = run_serial(scenes, model, output=tmp_path / "whole", device="cpu-tensors", batch=8)
    prepared = prepare(load_settings(None, flags_of(scenes, model, tmp_path / "out", batch=8, parts=parts)))
    short_of_memory(monkeypatch, 3)
    summary = carry_out(prepared, Silent())
    assert (summary.failed, summary.problems) == ([], [])
    for path in whole.glob("*.tif"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert [r.message for r in caplog.records if "starting again with batches of 4" in r.message]
    assert [r.message for r in caplog.records if "starting again with batches of 2" in r.message]
    assert {json.loads(p.read_text())["device"]["batch"] for p in (tmp_path / "out").glob("[0-9].json")} == {2}


def test_a_record_names_every_batch_that_parts_of_its_case_were_done_with(scenes, run_serial, tmp_path, monkeypatch):
    model, out = deep(tmp_path / "m.onnx"), tmp_path / "out"
    prepared = prepare(load_settings(None, flags_of(scenes / "0.tif", model, out, batch=8, parts=3)))
    whole = DeviceModel.score

    def score(self, tiles):
        if self.spec.batch == 8 and list(out.glob(".parts/*/*.npz")):
            raise DeviceMemoryError("the device's memory is used up")
        return whole(self, tiles)

    monkeypatch.setattr(DeviceModel, "score", score)
    assert not carry_out(prepared, Silent()).failed
    assert json.loads((out / "0.json").read_text())["device"]["batch"] == [4, 8]


def with_memory_for(monkeypatch, most):
    """Let the device open networks, and run them, for batches of some size only; sessions that are open."""
    run, gives, opened, live = (
        infer_gpu._DeviceSession.__call__,
        infer_gpu._DeviceSession.gives,
        infer_gpu.open_on_device,
        weakref.WeakSet(),
    )

    def call(self, given, out):
        if len(next(iter(given.values()))) > most["run"]:
            raise DeviceMemoryError("the device's memory is used up")
        run(self, given, out)

    def open_on_device(model, terms):
        assert not live, "the session before is still there"
        session = opened(model, terms)
        live.add(session)
        return session

    def first(self, given):
        if len(next(iter(given.values()))) > most["open"]:
            raise DeviceMemoryError("no room for the network")
        return gives(self, given)

    monkeypatch.setattr(infer_gpu._DeviceSession, "__call__", call)
    monkeypatch.setattr(infer_gpu._DeviceSession, "gives", first)
    monkeypatch.setattr(infer_gpu, "open_on_device", open_on_device)
    return live


def test_a_smaller_batch_is_opened_once_the_larger_one_is_gone_and_halved_until_it_fits(scenes, tmp_path, monkeypatch):
    """Errors of batches that failed hold the session that they failed in."""
    settings = load_settings(None, flags_of(scenes, deep(tmp_path / "m.onnx"), tmp_path / "out", batch=16))
    prepared, most = prepare(settings), {"run": 3, "open": 16}
    with_memory_for(monkeypatch, most)
    monkeypatch.setattr(DeviceModel, "shrink", lambda self: most.update(open=3) or shrink(self))
    summary = carry_out(prepared, Silent())
    assert (summary.failed, summary.problems) == ([], [])
    assert {json.loads(p.read_text())["device"]["batch"] for p in (tmp_path / "out").glob("[0-9].json")} == {2}


shrink = DeviceModel.shrink


def test_a_model_that_found_no_memory_at_all_is_opened_again_when_there_is_some(spec, monkeypatch):
    most = {"run": 9, "open": 9}
    live = with_memory_for(monkeypatch, most)
    model, patch = DeviceModel(replace(spec, batch=4)), Patch(np.ones((3, 64, 64), np.float32))
    with model.arrays.here():
        whole = model.score([patch])[0].numpy()
    most["open"] = 0
    assert not model.shrink()
    assert not live
    failed = []  # as a tile keeps its error, and with it all that it passed through
    for _ in range(2):
        with pytest.raises(DeviceMemoryError, match="no room for the network") as raised:
            model.score([patch])
        failed.append(raised.value)
        assert not live
    most["open"] = 9
    with model.arrays.here():
        np.testing.assert_array_equal(model.score([patch])[0].numpy(), whole)
    assert model.spec.batch == 1


def test_a_model_that_was_replaced_is_not_opened_again(spec):
    model = DeviceModel(replace(spec, batch=4))
    spec.path.write_bytes(spec.path.read_bytes() + b"\x00\x00")
    with pytest.raises(ModelError, match="has changed since this run began"):
        model.shrink()


def test_what_a_failed_case_held_is_given_back_where_the_batch_cannot_be_smaller(spec):
    model, held = DeviceModel(replace(spec, batch=1)), torch.zeros(1)
    error = DeviceMemoryError("the device's memory is used up")
    error.held, error.itself, seen = held, error, weakref.ref(held)
    del error, held
    assert not model.shrink()
    assert seen() is None


def test_an_upload_whose_buffer_found_no_memory_goes_well_once_there_is_some(monkeypatch):
    upload, sizes = Upload(DeviceStreams("cpu")), []
    pixels, make = [np.arange(12, dtype=np.uint16).reshape(3, 4)], torch.empty

    def empty(size, **more):
        sizes.append(size)
        if len(sizes) == 2:  # after the host's, the device's
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make(size, **more)

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(torch.OutOfMemoryError), upload.send(pixels):
        pass
    for _ in range(2 * BUFFERS):
        with upload.send(pixels) as sent:
            np.testing.assert_array_equal(sent.numpy(), np.stack(pixels))


def test_constants_of_cases_do_not_pile_up_on_a_device():
    arrays = DeviceArrays(DeviceStreams("cpu"), lag=1)
    for k in range(1000):
        assert arrays.constant(np.array([k])).tolist() == [k]
    assert arrays.constant(np.array([999])) is arrays.constant(np.array([999]))
    assert len(arrays._values) <= CONSTANTS


def test_a_tile_without_memory_fails_its_case_and_says_so(scenes, tmp_path, monkeypatch):
    model = deep(tmp_path / "m.onnx")
    prepared = prepare(load_settings(None, flags_of(scenes, model, tmp_path / "out", batch=2)))
    short_of_memory(monkeypatch, 0)
    summary = carry_out(prepared, Silent())
    assert len(summary.failed) == 6
    assert all("memory is used up" in failure.error for failure in summary.failed)


class Silent:
    def progress(self, pixels): ...

    def outcome(self, outcome): ...


def flags_of(scenes, model, out, **more):
    fixed = {"input": (str(scenes),), "model": model, "output": out, "executor": "serial", "device": "cpu-tensors"}
    return fixed | {key: value for key, value in more.items() if value is not None}


def test_channels_last_and_a_batch_that_is_fixed(raster, run_serial, tmp_path):
    rng = np.random.default_rng(1)
    source = raster("in/a.tif", rng.integers(0, 255, (3, 200, 150), dtype=np.uint8))
    net = Network(3).add("Transpose", perm=[0, 3, 1, 2]).conv(3, 4, 3).add("Transpose", perm=[0, 2, 3, 1])
    model = net.save(tmp_path / "m.onnx", contract(3, 4, layout="NHWC"), classes=4)
    proto = onnx.load(model)
    for value, channels in ((proto.graph.input[0], 3), (proto.graph.output[0], 4)):
        del value.type.tensor_type.shape.dim[:]
        for size in (3, 64, 64, channels):
            value.type.tensor_type.shape.dim.add().dim_value = size
    onnx.save(proto, model)
    here = masks(run_serial(source, model, output=tmp_path / "here"))
    there = masks(run_serial(source, model, output=tmp_path / "there", device="cpu-tensors"))
    np.testing.assert_array_equal(there["a.tif"], here["a.tif"])


@pytest.mark.parametrize("raw", ["uint8", "uint16"])
def test_raw_pixels_go_into_a_graph_that_scales_them(raw, raster, run_serial, tmp_path):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 255, (3, 200, 150), dtype=np.uint8)
    pixels[:, :60, :70] = 0
    source = raster("in/a.tif", pixels.astype(raw), nodata=0)
    net = Network(3).add("Cast", to=TensorProto.FLOAT).add("Mul", np.array(1 / 255, np.float32)).conv(3, 4, 3)
    kind = {"uint8": TensorProto.UINT8, "uint16": TensorProto.UINT16}[raw]
    model = net.save(tmp_path / "m.onnx", contract(3, 4, scaling="graph"), classes=4, dtype=kind)
    here = masks(run_serial(source, model, output=tmp_path / "here"))
    there = masks(run_serial(source, model, output=tmp_path / "there", device="cpu-tensors"))
    np.testing.assert_array_equal(there["a.tif"], here["a.tif"])


@pytest.fixture
def spec(raster, tmp_path):
    source = raster("in/a.tif", np.ones((3, 64, 64), np.uint8))
    return read_spec(load_settings(None, flags_of(source, deep(tmp_path / "m.onnx"), tmp_path / "out")))


def test_labels_that_are_not_the_cpus_are_refused_before_a_run(spec):
    truth = np.random.default_rng(0).normal(size=(2, 4, 64, 64)).astype(np.float32)
    checked_agreement(spec, truth + np.float32(1e-4), truth)
    other = truth.copy()
    other[:, :, :2] = other[:, ::-1, :2]  # 1 row in 32
    with pytest.raises(DeviceError, match=r"at least 99% of the labels on cpu-tensors must be the CPU's, got 9[67]\."):
        checked_agreement(spec, other, truth)
    other[0, 0, 0, 0] = np.inf
    with pytest.raises(DeviceError, match="NaN or infinity on cpu-tensors, and none on the CPU"):
        checked_agreement(spec, other, truth)


def test_a_device_without_memory_for_its_tiles_is_refused_before_a_run(spec):
    found = _device_memory(spec, 8 * 10**9, 6 * 10**9)
    assert 2 * 10**9 < found.limit < 3 * 10**9
    assert 4 * 10**9 < found.strip < 6 * 10**9
    with pytest.raises(DeviceMemoryError, match=r"0\.0 GB left beside the network.*lower --batch"):
        _device_memory(spec, 10**9, 10**6)


def test_a_strip_is_as_wide_as_the_devices_memory_allows(spec, raster, tmp_path):
    source = raster("wide/a.tif", np.ones((3, 100, 2000), np.uint8))
    settings = load_settings(None, flags_of(source, spec.path, tmp_path / "out"))
    per_pixel = 28 * 4 * 4  # windows start in rows 0 and 36
    for strip, parts in ((per_pixel * 2500, 0), (per_pixel * 800, 3)):
        run = Run(replace(spec, memory=DeviceMemory(limit=0, strip=strip)), settings)
        plan = make_plan([Case("a", str(source))], run, 1, open_all=True)
        assert len(plan.cuts[0].parts if plan.cuts else ()) == parts


def test_planned_memory_knows_of_what_is_read_at_one_go(spec, raster, tmp_path):
    """Windows of a row are read at one go where the network is on a device, and some stretches are in memory at once."""
    source = raster("scene.tif", np.ones((3, 200, 400), np.uint8))
    settings = load_settings(None, {"input": (str(source),), "model": spec.path, "output": tmp_path / "out"})
    there, here = (Run(replace(spec, device=device), settings) for device in ("cpu-tensors", "cpu"))
    plan = make_plan([Case("a", str(source))], here, 1, open_all=True)
    assert memory_mb(plan, there) - memory_mb(plan, here) == pytest.approx(STRETCHES * STRETCH_BYTES / 1e6)


def test_tf32_is_for_gpus(spec, raster, tmp_path):
    flags = {"input": ("x",), "model": spec.path, "device": "cpu", "tf32": True}
    with pytest.raises(SettingsError, match="--tf32 is for an NVIDIA GPU, got device cpu"):
        read_spec(load_settings(None, flags))


def test_providers_of_a_gpu():
    terms = SessionTerms("cuda", Options(), {}, stream=77, limit=10**9)
    ((name, options),) = providers(terms)
    assert name == "CUDAExecutionProvider"
    assert options == {
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
        "prefer_nhwc": "0",
        "fuse_conv_bias": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "user_compute_stream": "77",
        "gpu_mem_limit": "1000000000",
    }
    fast = replace(terms, device="tensorrt", options=Options(tf32=True, nhwc=True), half=True)
    (first, own), (second, rest) = providers(fast)
    assert (first, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert own == {"trt_fp16_enable": "1", "user_compute_stream": "77"}
    assert (rest["use_tf32"], rest["prefer_nhwc"]) == ("1", "1")


def test_engines_have_a_folder_per_setting(spec, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    others = [replace(spec, options=Options(tf32=True)), replace(spec, batch=4), replace(spec, sha256="0")]
    folders = {engine_folder(_engine_key(other)) for other in (spec, *others)}
    assert len(folders) == 4
    assert all(folder.parent == tmp_path / "segpipe" / "tensorrt" for folder in folders)


def test_tensorrt_that_is_not_installed_is_an_error_with_the_mend():
    with pytest.raises(DeviceError, match=r"libnvinfer.so.10 is not there: pip install .*\[tensorrt\]'"):
        _load_tensorrt()


def test_a_worker_sees_one_gpu_each():
    with started(3, "127.0.0.1:0", ["5", "GPU-abc"]) as cluster, Client(cluster, set_as_default=False) as client:
        seen = client.run(lambda: __import__("os").environ["CUDA_VISIBLE_DEVICES"])
    assert sorted(seen.values()) == ["5", "5", "GPU-abc"]


@pytest.mark.parametrize(("folders", "refused"), [(("a",), False), (("a", "a"), True), (("a", "b"), False)])
def test_two_packages_of_onnx_runtime_in_one_folder_are_refused(folders, refused, tmp_path, monkeypatch):
    """They overwrite each other there; one that is put before the other does not."""
    for name, folder in zip(("onnxruntime", "onnxruntime_gpu"), folders, strict=False):
        info = tmp_path / folder / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / folder) for folder in dict.fromkeys(folders)])
    if refused:
        with pytest.raises(DeviceError, match="uninstall both"):
            check_runtime()
    else:
        check_runtime()


class FakeEvent:
    """As CUDA's: it knows when its stream came to it, once it has."""

    def __init__(self, *, enable_timing):
        assert enable_timing
        self.done = False

    def record(self, stream):
        self.at = next(stream)

    def query(self):
        return self.done

    def elapsed_time(self, later):
        return (later.at - self.at) * 1000


@pytest.fixture
def recorder():
    begin(on=True)
    yield spans._recorder
    begin(on=False)


def timing_streams(work):
    """Streams as on a GPU, whose streams are the moments at which they come to an event."""
    streams = DeviceStreams("cpu")
    streams.pinned, streams._module, streams.work = True, SimpleNamespace(Event=FakeEvent), iter(work)
    return streams


def test_a_profile_counts_what_the_device_took_once_it_is_done(recorder):
    """No GPU is needed to see that nothing waits for one."""
    streams = timing_streams([1.0, 3.0, 10.0, 14.0])
    for stage, stream in (("gpu", None), ("upload", iter([2.0, 9.0])), ("gpu", None)):
        with streams.timed(stage, stream):
            pass
    streams.report_timings()
    assert not any(total.busy for total in recorder.taken().totals.values())
    streams._timed[0][-1].done = True
    streams.report_timings()
    assert recorder.taken().totals["gpu"].busy == pytest.approx(2.0)
    for _, _, stop in streams._timed:
        stop.done = True
    streams.report_timings()
    busy = {name: total.busy for name, total in recorder.taken().totals.items()}
    assert busy == pytest.approx({"gpu": 6.0, "upload": 7.0})
    found = account(recorder, workers=1, calls=1, on_cpu=False)
    assert found.limit == pytest.approx(6.0)
    assert found.stages["gpu"].wall < 0.01  # to be alone at the stream


def test_nothing_is_timed_where_nobody_profiles():
    streams = timing_streams([])
    with streams.timed("gpu"):
        pass
    assert not streams._timed


def test_why_a_provider_was_not_taken_is_told(tmp_path, monkeypatch):
    """ONNX Runtime writes it to its log and goes on with the CPU."""
    monkeypatch.setattr("segpipe.network.device.onnxruntime.__file__", str(tmp_path / "onnxruntime" / "__init__.py"))
    assert "libonnxruntime_providers_cuda.so: cannot open shared object file" in _refused("cuda")
