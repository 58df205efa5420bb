"""``--device openvino``: labels against ONNX Runtime, the same bytes within a kind, and what cannot be had is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from networks import Network, contract, local, pooling, volumetric

import segpipe as package
from segpipe.errors import DeviceError, ModelError, SettingsError
from segpipe.export.precision import converted
from segpipe.formats.case import Case
from segpipe.jobs import prepare as preparing
from segpipe.network import openvino_session
from segpipe.network.openvino_session import Engine, OpenVinoSession, engine_version, resolve_engine, runtime
from segpipe.network.read import read_spec
from segpipe.network.session import RuntimeSession, close_kept, open_on_host
from segpipe.pipeline import agreement, infer
from segpipe.pipeline.agreement import Agreement, agreement_of, compare_engine, refuse_below
from segpipe.pipeline.infer import load_ahead, load_model
from segpipe.pipeline.model_check import try_out
from segpipe.results.device_kind import device_facts, device_kind
from segpipe.results.parts import cut_key
from segpipe.results.run import Run
from segpipe.settings import Settings, load_settings
from segpipe.tune.candidates import open_networks
from segpipe.tune.settings import TuneSettings

BF16 = "BF16" in runtime().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bf16 = pytest.mark.skipif(not BF16, reason="this processor does not compute in bf16")
PRECISIONS = ["fp32", pytest.param("bf16", marks=needs_bf16)]


@pytest.fixture
def scene(raster):
    rng = np.random.default_rng(5)
    pixels = rng.integers(1, 256, (3, 210, 170), dtype=np.uint8)
    pixels[:, 40:90, 60:150] = 0
    return raster("in/a.tif", pixels, nodata=0)


@pytest.fixture
def model(tmp_path):
    return pooling(tmp_path / "m.onnx", classes=4)


@pytest.fixture
def quantised(tmp_path):
    """The same kind of network in int8, with ranges from noise."""
    proto = onnx.load(str(local(tmp_path / "float.onnx", classes=4)))
    for number, node in enumerate(proto.graph.node):
        node.name = str(number)
    noise = np.random.default_rng(2).random((4, 3, 64, 64), np.float32)
    int8 = converted(proto, "int8", list(noise))
    onnx.helper.set_model_props(int8, {"segpipe": json.dumps(contract(3, 4))})
    onnx.save(int8, tmp_path / "int8.onnx")
    return tmp_path / "int8.onnx"


def labels(out: Path, name: str = "a.tif") -> np.ndarray:
    import rasterio

    with rasterio.open(out / name) as file:
        return file.read(1)


def settings(model: Path, **changes) -> Settings:
    return load_settings(None, {"input": ("a.tif",), "model": model, "device": "openvino", **changes})


def test_fp32_labels_are_those_of_onnx_runtime(scene, model, run_serial, tmp_path):
    there = labels(run_serial(scene, model, output=tmp_path / "cpu"))
    here = labels(run_serial(scene, model, output=tmp_path / "openvino", device="openvino"))
    assert (there == 255).sum() == 50 * 90
    assert np.mean(here == there) >= 0.9999


def test_a_profile_counts_the_time_of_calls_whose_work_other_threads_do(scene, model, run_serial, tmp_path):
    out = run_serial(scene, model, output=tmp_path / "out", device="openvino", profile=True)
    found = json.loads((out / "run.json").read_text())["profile"]
    assert found["limit_seconds"] == pytest.approx(found["stages"]["infer"]["busy_seconds"] / found["calls"], abs=2e-3)


@needs_bf16
def test_bf16_labels_differ_at_margins_alone(scene, model, run_serial, tmp_path):
    there = labels(run_serial(scene, model, output=tmp_path / "cpu"))
    out = run_serial(scene, model, output=tmp_path / "bf16", device="openvino", precision="bf16", min_agreement=0.9)
    share = np.mean(labels(out) == there)
    assert 0.95 < share < 1
    device = json.loads((out / "a.json").read_text())["device"]
    assert device["precision"] == "bf16"
    assert device["openvino"] == engine_version()
    assert 0.9 < device["agreement"] < 1
    assert device["min_agreement"] == 0.9


def test_int8_runs_as_the_file_says(scene, quantised, run_serial, tmp_path):
    there = labels(run_serial(scene, quantised, output=tmp_path / "cpu"))
    out = run_serial(scene, quantised, output=tmp_path / "openvino", device="openvino", precision="int8", min_agreement=0.9)
    assert np.mean(labels(out) == there) > 0.95
    assert json.loads((out / "a.json").read_text())["device"]["precision"] == "int8"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_bytes_however_it_is_run(precision, scene, model, segpipe, tmp_path):
    command = ["run", "--input", scene, "--model", model, "--device", "openvino", "--precision", precision]
    command += ["--min-agreement", 0.9, "--confidence"]
    ways = ["--executor serial", "--executor serial --batch 3", "--executor serial --parts 2 --threads 2"]
    found = []
    for number, way in enumerate([*ways, "--executor processes --workers 2 --parts 7"]):
        ended = segpipe(*command, "--output", tmp_path / str(number), *way.split())
        assert ended.returncode == 0, ended.stderr
        found.append([(tmp_path / str(number) / name).read_bytes() for name in ("a.tif", "a.confidence.tif", "areas.csv")])
    assert all(files == found[0] for files in found)


def test_volumes_channels_last_flips_and_folds_run_as_they_do_on_the_cpu(tmp_path):
    net = Network(3).add("Transpose", perm=[0, 3, 1, 2]).conv(3, 4, 3).add("Transpose", perm=[0, 2, 3, 1])
    last = net.save(tmp_path / "nhwc.onnx", contract(layout="NHWC"), classes=4)
    proto = onnx.load(str(last))
    for value in (proto.graph.input[0], proto.graph.output[0]):
        sizes = value.type.tensor_type.shape.dim
        sizes[1].dim_param, sizes[2].dim_param = "h", "w"
        sizes[3].dim_value = 3 if value.name == "image" else 4
    onnx.helper.set_model_props(proto, {"segpipe": json.dumps(contract(3, 4, layout="NHWC"))})
    onnx.save(proto, last)
    folds = [local(tmp_path / f"{seed}.onnx", classes=4, seed=seed) for seed in (1, 2)]
    rng = np.random.default_rng(0)
    image, volume = rng.integers(0, 255, (3, 90, 100)).astype(np.uint8), rng.normal(size=(1, 20, 30, 25)).astype(np.float32)
    each = [
        (last, image, {}),
        (folds, image, {"tta": "flips"}),
        (volumetric(tmp_path / "v.onnx", (16, 16, 16)), volume, {"unusual_values": "allow"}),
    ]
    for path, pixels, more in each:
        here, there = (package.load(path, device=d, **more).predict(pixels).array for d in ("openvino", "cpu"))
        assert np.mean(here == there) >= 0.9999


def test_a_model_whose_labels_differ_is_refused_with_both_figures(scene, model, segpipe, tmp_path, monkeypatch):
    session = OpenVinoSession.run
    monkeypatch.setattr(OpenVinoSession, "run", lambda self, batch: np.roll(session(self, batch), 1, axis=1))
    command = ["run", "--input", scene, "--model", model, "--output", tmp_path / "out", "--executor", "serial"]
    ended = segpipe(*command, "--device", "openvino")
    assert ended.returncode == 2
    assert (
        "at least 99% of the labels on openvino must be the CPU's, got 0.00% on tiles of a: take --device cpu"
        in ended.stderr
    )
    assert not (tmp_path / "out" / "a.tif").exists()
    assert segpipe(*command, "--device", "cpu").returncode == 0


def test_where_no_case_has_a_valid_tile_noise_decides(raster, model, monkeypatch):
    cases = [Case("empty", str(raster("in/empty.tif", np.zeros((3, 64, 64), np.uint8), nodata=0)))]
    spec = try_out(read_spec(settings(model)))
    assert compare_engine(spec, cases) == replace(spec, agreement=1.0)
    session = OpenVinoSession.run
    monkeypatch.setattr(OpenVinoSession, "run", lambda self, batch: np.roll(session(self, batch), 1, axis=1))
    with pytest.raises(DeviceError, match=r"at least 99% of the labels .* got 0.00% on noise through .*m.onnx"):
        compare_engine(spec, cases)


def test_nothing_is_compared_where_no_label_needs_to_be_equal(scene, model, run_serial, tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "HostModel", None)
    monkeypatch.setattr(agreement, "CpuReference", None)
    out = run_serial(scene, model, output=tmp_path / "out", device="openvino", min_agreement=0.0)
    device = json.loads((out / "a.json").read_text())["device"]
    assert device["openvino"] == engine_version()
    assert not {"agreement", "min_agreement"} & {*device}


@pytest.mark.parametrize("least", [0.99, 0.0])
def test_scores_that_only_openvino_makes_infinite_are_refused_before_a_run(model, monkeypatch, least):
    session = OpenVinoSession.run
    monkeypatch.setattr(OpenVinoSession, "run", lambda self, batch: session(self, batch) + np.float32(np.inf))
    with pytest.raises(DeviceError, match="NaN or infinity on openvino, and none on the CPU: leave --precision out"):
        try_out(read_spec(settings(model, min_agreement=least)))


@pytest.fixture
def opened(monkeypatch):
    """Files that OpenVINO opens, in order."""
    paths, init = [], OpenVinoSession.__init__

    def noted(self, path, *more):
        paths.append(path)
        init(self, path, *more)

    monkeypatch.setattr(OpenVinoSession, "__init__", noted)
    yield paths
    close_kept()


def test_a_model_that_is_loaded_ahead_is_opened_and_compiled_once(tmp_path, opened, monkeypatch):
    folds = [local(tmp_path / f"{seed}.onnx", classes=4, seed=seed) for seed in (1, 2)]
    spec = read_spec(settings(folds, tile=(64,)))
    tiles = np.random.default_rng(0).random(spec.batch_shape).astype(np.float32)
    expected = load_model(spec)(tiles)
    opened.clear()
    load_ahead(spec)
    assert opened == folds
    monkeypatch.setattr(OpenVinoSession, "_compile", None)
    tried = replace(spec, network_mb=1.0, trial_shapes=(spec.batch_shape, expected.shape))
    assert load_model(tried)(tiles).tobytes() == expected.tobytes()
    assert opened == folds


@pytest.mark.parametrize("least", [0.99, 0.0])
def test_the_trial_and_the_comparison_open_a_network_once(least, model, opened):
    spec = try_out(read_spec(settings(model, min_agreement=least)), keep=True)
    compare_engine(spec)
    assert opened == [model]
    for tried in (spec, try_out(spec)):  # and it is closed
        assert open_on_host(tried) is not open_on_host(tried)


@pytest.mark.parametrize("change", [{"threads": 2}, {"sha256": "0"}, {"engine": None, "device": "cpu"}])
def test_another_model_than_was_loaded_ahead_is_opened_anew(change, model, opened):
    spec = read_spec(settings(model))
    load_ahead(spec)
    other = replace(spec, **change)
    assert open_on_host(other) is not open_on_host(spec)
    close_kept()
    assert open_on_host(spec) is not open_on_host(spec)


def test_onnx_runtime_opens_a_network_ahead_and_scores_nothing(tmp_path, monkeypatch):
    folds = [local(tmp_path / f"{seed}.onnx", classes=4, seed=seed) for seed in (1, 2)]
    spec = read_spec(settings(folds, tile=(64,), device="cpu"))
    tiles = np.random.default_rng(0).random(spec.batch_shape).astype(np.float32)
    expected = load_model(spec)(tiles)
    run, openings = RuntimeSession.run, []
    monkeypatch.setattr(RuntimeSession, "run", None)
    load_ahead(spec)
    monkeypatch.setattr(RuntimeSession, "run", run)
    monkeypatch.setattr("segpipe.network.session.open_session", lambda *a, **more: openings.append(a))
    tried = replace(spec, network_mb=1.0, trial_shapes=(spec.batch_shape, expected.shape))
    assert load_model(tried)(tiles).tobytes() == expected.tobytes()
    assert openings == []
    for other in (replace(spec.members[0], threads=2), spec.members[0]):  # another session, and one without an arena
        open_on_host(other, arena="none")
    assert len(openings) == 2
    close_kept()


def test_what_is_large_or_changed_or_on_a_device_is_not_loaded_ahead(model, opened, monkeypatch):
    spec = read_spec(settings(model))
    load_ahead(replace(spec, engine=None, device="cpu-tensors"))
    monkeypatch.setattr(infer, "SMALL", model.stat().st_size - 1)
    load_ahead(spec)
    assert opened == []
    monkeypatch.setattr(infer, "SMALL", model.stat().st_size)
    with pytest.raises(ModelError, match="has changed since this run began"):
        load_ahead(replace(spec, sha256="0"))
    assert open_on_host(spec) is not open_on_host(spec)


def test_a_run_tells_its_worker_the_model_before_it_tries_it(scene, model, segpipe, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(preparing, "tell_spare", told.append)
    monkeypatch.setattr(preparing, "try_out", lambda spec, **more: (told.append("tried"), try_out(spec, **more))[1])
    for device in ("openvino", "cpu"):
        command = ["run", "--input", scene, "--model", model, "--output", tmp_path / device, "--executor", "serial"]
        assert segpipe(*command, "--device", device).returncode == 0
    ahead, said = told[::2], told[1::2]
    assert [(one.model.path, one.model.engine) for one in ahead] == [(model, Engine("CPU", "fp32")), (model, None)]
    assert said == ["tried", "tried"]


def test_only_valid_pixels_are_compared_and_counted_by_hand(model):
    spec = read_spec(settings(model))
    truth = np.zeros((1, 4, 2, 2), np.float32)
    truth[0, 1] = 1
    found = truth.copy()
    found[0, 2, 0, 0] = 2
    assert agreement_of(spec, found, truth) == Agreement(3, 4)
    assert Agreement(0, 0).share == 1
    refuse_below(spec, 0.99, "here")
    with pytest.raises(DeviceError, match=r"got 75\.00% on here"):
        refuse_below(spec, 0.75, "here")
    found[0, 0, 0, 0] = np.nan
    with pytest.raises(DeviceError, match="NaN or infinity on openvino, and none on the CPU: leave --precision out"):
        agreement_of(spec, found, truth)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "openvino:GPU"}, r"--device openvino:GPU needs this device, and OpenVINO sees CPU: take one of them"),
        ({"device": "cpu", "precision": "bf16"}, "precision bf16 needs OpenVINO, got device cpu: add --device openvino"),
        (
            {"precision": "int8"},
            r"precision int8 needs a file in int8, got .*m.onnx in fp32: segpipe export --precision int8",
        ),
        ({"tf32": True}, "--tf32 is for an NVIDIA GPU, got device openvino"),
    ],
)
def test_what_cannot_be_had_is_refused(changes, message, model):
    with pytest.raises((DeviceError, SettingsError), match=message):
        read_spec(settings(model, **changes))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_quantised_file_is_refused_in_another_precision(precision, quantised):
    with pytest.raises(SettingsError, match=f"precision {precision} needs a file in floats, got .*int8.onnx in int8"):
        read_spec(settings(quantised, precision=precision))


@pytest.mark.parametrize("name", ["openvino:", "openvino:gpu", "OPENVINO", "cpu:CPU", "npu"])
def test_a_device_of_another_name_is_refused(name, model):
    with pytest.raises(SettingsError, match="device: must be auto, cpu, openvino, cuda or tensorrt"):
        settings(model, device=name)


def test_a_processor_without_bf16_is_named(monkeypatch):
    class Core:
        available_devices = ("CPU",)

        def get_property(self, place, name):
            return ["FP32", "INT8"]

    monkeypatch.setattr(openvino_session, "_core", Core)
    assert resolve_engine("CPU", "fp32") == Engine("CPU", "fp32")
    with pytest.raises(DeviceError, match=r"needs a processor that computes in bf16 .* leave --precision out"):
        resolve_engine("CPU", "bf16")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DeviceError, match=r"--device openvino needs OpenVINO, .* pip install .*openvino"):
        runtime.__wrapped__()


def test_a_graph_that_openvino_cannot_read_is_the_models_error(tmp_path):
    path = tmp_path / "custom.onnx"
    node = onnx.helper.make_node("Unheard", ["image"], ["scores"], domain="nobody")
    image, scores = (onnx.helper.make_tensor_value_info(n, 1, [1, 3, 8, 8]) for n in ("image", "scores"))
    graph = onnx.helper.make_graph([node], "g", [image], [scores])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("nobody", 1)]
    onnx.save(onnx.helper.make_model(graph, ir_version=10, opset_imports=opsets), path)
    with pytest.raises(ModelError, match=r"OpenVINO cannot load .*custom.onnx: .* take --device cpu"):
        OpenVinoSession(path, Engine("CPU", "fp32"), 1, "scores").run({"image": np.zeros((1, 3, 8, 8), np.float32)})


def test_sessions_give_new_arrays_and_can_be_stopped(model):
    session = open_on_host(read_spec(settings(model)))
    one, two = np.zeros((1, 3, 64, 64), np.float32), np.ones((2, 3, 64, 64), np.float32)
    first = session.run({"image": one})
    kept = first.copy()
    assert session.run({"image": two}).shape == (2, 4, 64, 64)
    session.run({"image": two[:1]})
    np.testing.assert_array_equal(first, kept)
    runtime_session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(first, runtime_session.run(None, {"image": one})[0], atol=1e-5)
    session.stop()


@needs_bf16
def test_parts_of_another_precision_or_engine_never_mix(model, tmp_path):
    from segpipe.formats.case import Case

    kinds = [{"device": "cpu"}, {}, {"precision": "bf16"}]
    keys, facts = set(), []
    for kind in kinds:
        chosen = settings(model, output=str(tmp_path), **kind)
        run = Run(read_spec(chosen), chosen)
        keys.add(cut_key(Case("a", "a.tif"), run, [], (10, 10)))
        facts.append(device_kind(run.model))
    assert len(keys) == 3
    assert device_facts(run.model) == facts[-1]


def test_no_telemetry_is_loaded_and_no_file_of_it_is_left(tmp_path):
    code = (
        "import sys; from segpipe.network.openvino_session import runtime; runtime().Core(); "
        "print([m for m in sys.modules if m.split('.')[0] == 'openvino_telemetry'])"
    )
    home = tmp_path / "home"
    home.mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={"HOME": str(home), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.strip() == "[]"
    assert list(home.rglob("*")) == []


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr("segpipe.tune.candidates.resolve_device", lambda _: ("cpu", "no GPU"))
    monkeypatch.setattr("segpipe.network.device._cuda_missing", lambda: "no GPU")


@needs_bf16
def test_tune_measures_engines_and_precisions_of_each_file(model, quantised, no_gpu):
    networks = open_networks(TuneSettings(model=model, also=(quantised,)))
    assert [network.name for network in networks] == [
        "m.onnx",
        "m.onnx (openvino, fp32)",
        "m.onnx (openvino, bf16)",
        "int8.onnx",
        "int8.onnx (openvino, int8)",
    ]
    assert networks[2].flags == ["--model", str(model), "--device", "openvino", "--precision", "bf16"]
    assert [network.name for network in open_networks(TuneSettings(model=model, device="cpu"))] == ["m.onnx"]
    (bf16,) = open_networks(TuneSettings(model=model, device="openvino", precisions=("bf16",)))
    assert bf16.spec.engine == Engine("CPU", "bf16")


def test_tune_names_a_precision_that_no_file_has(model):
    with pytest.raises(SettingsError, match="no file can be computed in int8 on this device: leave --precision out"):
        open_networks(TuneSettings(model=model, device="cpu", precisions=("int8",)))


@needs_bf16
def test_tune_ends_with_the_run_to_start(model, scene, segpipe, no_gpu):
    command = ["tune", model, "--input", scene, "--tile", 64, "--overlap", 16, "--batch", 1, "--seconds", 2]
    tuned = json.loads(segpipe(*command, "--min-agreement", 0.5, "--json").stdout)
    kinds = {(choice["device"], choice["precision"]) for choice in tuned["choices"]}
    assert kinds == {("cpu", None), ("openvino", "fp32"), ("openvino", "bf16")}
    best = next(choice for choice in tuned["choices"] if choice["best"])
    assert (f"--device {best['device']}" in tuned["command"]) == (best["device"] == "openvino")


def test_a_case_that_breaks_the_comparison_costs_only_itself(model, scene, raster, monkeypatch):
    """Whatever a reader lets through: the next case gives the tile, and the job of the first says why it fails."""
    bad = raster("in/0.tif", np.ones((3, 64, 64), np.uint8))
    opened = agreement.open_checked

    def fails(case, *arguments):
        if case.path == str(bad):
            raise OSError("stale file handle")
        return opened(case, *arguments)

    monkeypatch.setattr(agreement, "open_checked", fails)
    spec = try_out(read_spec(settings(model)))
    found = list(
        agreement._tiles(
            [Case("0", str(bad)), Case("a", str(scene))],
            spec,
            load_settings(None, {"input": ("x",), "model": model}).overrides,
        )
    )
    assert [case.name for case, _ in found] == ["a"]
