"""Contracts for models made elsewhere: what fits runs as it did with ``--contract``, what does not leaves the file alone."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import rasterio
from click.testing import CliRunner
from networks import Network, volumetric
from onnx import TensorProto, helper, numpy_helper

from segpipe.cli import main
from segpipe.errors import ContractError, ExportError, ModelError, SegpipeError, SettingsError
from segpipe.export import large
from segpipe.export.attach import attach
from segpipe.network.read import read_spec
from segpipe.settings import load_settings

MODELS = Path(__file__).parents[3] / "shared" / "data" / "models"

SCALED: dict[str, Any] = {"channels": 3, "scale": 1 / 255, "tile": [64, 64], "overlap": [16, 16]}


def toml(path: Path, **values: Any) -> Path:
    """A contract as a file; JSON writes TOML's values, and None removes a key."""
    classes = values.pop("classes", ["a", "b", "c"])
    keys = {"version": 1, "normalize": "none", "activation": "softmax", **SCALED, **values}
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items() if value is not None]
    lines += [f'[[classes]]\nid = {i}\nname = "{name}"' for i, name in enumerate(classes)]
    path.write_text("\n".join(lines))
    return path


def aligned(contract: Path, align: int) -> Path:
    """The same contract, and the stride that it leaves to be measured."""
    path = contract.with_name("aligned.toml")
    path.write_text(f"align = {align}\n{contract.read_text()}")
    return path


def pooling(channels: int = 3, classes: int = 3) -> Network:
    """Two halvings and nearest neighbours: stride 4."""
    net = Network(channels).conv(channels, 8, 3).add("Relu")
    for _ in range(2):
        net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2]).conv(8, 8, 3).add("Relu")
    return net.upsample(4).conv(8, classes, 3)


def saved(net: Network, path: Path, **options: Any) -> Path:
    return net.save(path, None, **{"classes": 3, **options})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(pooling(), tmp_path / "m.onnx")


@pytest.fixture
def contract(tmp_path: Path) -> Path:
    return toml(tmp_path / "c.toml")


@pytest.fixture
def scene(raster: Callable[..., Path]) -> Path:
    """Smooth enough for more than one class, and larger than a tile."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (3, 12, 14), dtype=np.uint8)
    return raster("in/a.tif", np.repeat(np.repeat(coarse, 8, 1), 8, 2)[:, :90, :110])


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as mask:
        return mask.read()


@pytest.fixture
def labels(run_serial: Callable[..., Path], scene: Path, tmp_path: Path) -> Callable[..., np.ndarray]:
    """The mask of the scene."""

    def label(name: str, model: Path, **settings: Any) -> np.ndarray:
        return read(run_serial(scene, model, output=tmp_path / name, **settings) / "a.tif")

    return label


def inside(path: Path) -> dict[str, str]:
    return {p.key: p.value for p in onnx.load(str(path), load_external_data=False).metadata_props}


def contract_in(path: Path) -> dict[str, Any]:
    return dict(json.loads(inside(path)["segpipe"]))


def refused(kind: type[SegpipeError], match: str, model: Path, contract: Path, output: Path | None = None) -> None:
    """The error comes, the model keeps its bytes, and nothing else lies beside it."""
    before = {p: p.read_bytes() for p in model.parent.iterdir() if p.is_file()}
    with pytest.raises(kind, match=match) as caught:
        attach(model, contract, output)
    assert "partial" not in str(caught.value)
    assert {p: p.read_bytes() for p in model.parent.iterdir() if p.is_file()} == before


# --- what fits --------------------------------------------------------------------------------------------------------


def test_attached_model_runs_as_it_did_with_the_contract(model, contract, labels):
    truth = labels("with", model, contract=aligned(contract, 4))
    attached = attach(model, contract)
    found = labels("without", model)
    np.testing.assert_array_equal(found, truth)
    assert len(np.unique(found)) >= 3
    assert attached.path == model
    assert attached.notes == ()


def test_stride_is_measured_and_told(model, contract):
    attached = attach(model, contract)
    assert attached.stride is not None
    assert (attached.stride.align, attached.stride.equivariant) == (4, True)
    written = contract_in(model)
    assert (written["align"], written["equivariant"]) == (4, True)
    assert written["provenance"]["model"] == "m.onnx"
    assert written["provenance"]["exporter"].startswith("segpipe ")


def test_another_output_leaves_the_model_alone(model, contract, tmp_path, labels):
    before = model.read_bytes()
    attach(model, contract, tmp_path / "new" / "n.onnx")
    assert model.read_bytes() == before
    np.testing.assert_array_equal(
        labels("b", tmp_path / "new" / "n.onnx"), labels("a", model, contract=aligned(contract, 4))
    )


def test_output_that_exists_is_refused(model, contract, tmp_path):
    (tmp_path / "n.onnx").write_text("mine")
    refused(SettingsError, "must be new, got .*n.onnx, which exists", model, contract, tmp_path / "n.onnx")
    attach(model, contract, model)


@pytest.mark.parametrize("tile", [40, 48, 100])
def test_tile_need_not_be_a_multiple_of_the_usual_stride(tile, model, tmp_path):
    """32 is assumed where nothing is known; here it is measured."""
    attached = attach(model, toml(tmp_path / "c.toml", tile=[tile, tile]))
    assert attached.contract.align == 4


def test_tile_comes_from_a_fixed_model(tmp_path):
    model = saved(pooling(), tmp_path / "m.onnx", shape=("n", 40, 48))
    assert attach(model, toml(tmp_path / "c.toml", tile=None, overlap=[8, 8])).contract.align == 4


@pytest.mark.parametrize("batch", [1, 4])
def test_fixed_batch(batch, contract, tmp_path, labels):
    model = saved(pooling(), tmp_path / "m.onnx", shape=(batch, 64, 64))
    truth = labels("with", model, contract=aligned(contract, 4))
    assert attach(model, contract).contract.align == 4
    np.testing.assert_array_equal(labels("without", model), truth)


INTEGERS = {
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float16": TensorProto.FLOAT16,
    "float64": TensorProto.DOUBLE,
}


@pytest.mark.parametrize("dtype", INTEGERS)
def test_model_that_takes_raw_pixels(dtype, tmp_path, labels):
    """It scales them itself; noise must reach it in its own type, and within what pixels are."""
    net = Network(3)
    net.add("Cast", to=TensorProto.FLOAT).add("Mul", np.float32(1 / 255))
    net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2]).conv(3, 8, 3).add("Relu").upsample(2).conv(8, 3, 1)
    model = saved(net, tmp_path / "m.onnx", dtype=INTEGERS[dtype])
    contract = toml(tmp_path / "c.toml", scale=1.0, scaling="graph")
    truth = labels("with", model, contract=aligned(contract, 2))
    attached = attach(model, contract)
    assert attached.contract.align == 2
    assert attached.stride is not None
    assert attached.stride.equivariant
    np.testing.assert_array_equal(labels("without", model), truth)


def channels_last(path: Path) -> Path:
    """As TensorFlow's converters write them."""
    net = Network(3).add("Transpose", perm=[0, 3, 1, 2]).conv(3, 8, 3).add("Relu")
    net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2]).upsample(2).conv(8, 3, 3).add("Transpose", perm=[0, 2, 3, 1])
    proto = onnx.load(str(saved(net, path)))
    for value, sizes in ((proto.graph.input[0], ["n", "h", "w", 3]), (proto.graph.output[0], ["n", "h", "w", 3])):
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, sizes))
    onnx.save(proto, str(path))
    return path


def test_channels_last(tmp_path, labels):
    model, contract = channels_last(tmp_path / "m.onnx"), toml(tmp_path / "c.toml", layout="NHWC")
    truth = labels("with", model, contract=aligned(contract, 2))
    attached = attach(model, contract)
    assert attached.contract.align == 2
    np.testing.assert_array_equal(labels("without", model), truth)
    assert len(np.unique(truth)) > 1


def external(path: Path) -> Path:
    """Weights in a file beside the model."""
    proto = onnx.load(str(saved(pooling(), path)))
    onnx.save(proto, str(path), save_as_external_data=True, location=f"{path.name}.data", size_threshold=100)
    assert path.with_name(f"{path.name}.data").stat().st_size > 1000
    return path


@pytest.mark.parametrize("elsewhere", [True, False])
def test_external_data_is_taken_in(elsewhere, contract, tmp_path, labels):
    (tmp_path / "a").mkdir()
    model = external(tmp_path / "a" / "m.onnx")
    truth = labels("with", model, contract=aligned(contract, 4))
    before = model.read_bytes()
    output = tmp_path / "b" / "m.onnx" if elsewhere else model
    attach(model, contract, output if elsewhere else None)
    if elsewhere:
        assert model.read_bytes() == before
        assert [p.name for p in output.parent.iterdir()] == ["m.onnx"]
    else:
        (tmp_path / "a" / "m.onnx.data").unlink()
    np.testing.assert_array_equal(labels("without", output), truth)


def test_external_data_that_is_missing(contract, tmp_path):
    model = external(tmp_path / "m.onnx")
    (tmp_path / "m.onnx.data").unlink()
    refused(ModelError, "m.onnx is not a whole ONNX file: .*m.onnx.data", model, contract)


def test_metadata_of_others_stays_and_ours_is_replaced(model, tmp_path):
    proto = onnx.load(str(model))
    helper.set_model_props(proto, {"author": "somebody", "segpipe": "{}", "resolution": "7", "seg_thresh": "0.3"})
    onnx.save(proto, str(model))
    attach(model, toml(tmp_path / "a.toml", spacing=[10.0, 10.0], classes=["x", "y", "z"]))
    first = inside(model)
    assert first["author"] == "somebody"
    assert json.loads(first["resolution"]) == 1000
    assert "standardization_mean" in first
    attach(model, toml(tmp_path / "b.toml", normalize="zscore", classes=["p", "q", "r"]))
    second = inside(model)
    assert second["author"] == "somebody"
    assert [c["name"] for c in json.loads(second["segpipe"])["classes"]] == ["p", "q", "r"]
    assert json.loads(second["class_names"]) == {"0": "p", "1": "q", "2": "r"}
    # a scaling or a pixel size of the first contract would be wrong for the second
    assert not {"standardization_mean", "standardization_std", "resolution"} & second.keys()


def test_attaching_twice_is_attaching_once(model, contract):
    attach(model, contract)
    once = model.read_bytes()
    attach(model, contract)
    assert model.read_bytes() == once


def test_contract_beside_the_model_is_told(model, tmp_path):
    """It wins over the one inside, now and later."""
    attached = attach(model, toml(tmp_path / "m.toml"))
    assert attached.notes == (
        f"{tmp_path / 'm.toml'} beside the model is its contract in a run, in place of the one inside",
    )


def test_provenance_of_the_user_wins(model, contract):
    with contract.open("a") as file:
        file.write('\n[provenance]\nmodel = "ours"\nlicence = "CC-BY-4.0"\ndate = 2024-05-01\n')
    provenance = attach(model, contract).contract.provenance
    assert (provenance["model"], provenance["licence"]) == ("ours", "CC-BY-4.0")
    assert contract_in(model)["provenance"]["date"] == "2024-05-01"


# --- the stride -----------------------------------------------------------------------------------------------------------


def test_named_stride_that_is_a_multiple_stays(model, tmp_path):
    written = attach(model, toml(tmp_path / "c.toml", align=8)).contract
    assert (written.align, written.equivariant) == (8, True)


@pytest.mark.parametrize("align", [1, 2, [4, 2]])
def test_named_stride_that_is_too_small_is_refused(align, model, tmp_path):
    contract = toml(tmp_path / "c.toml", align=align)
    refused(ExportError, r"multiple of the network's stride, measured as 4, got \[\d, \d\]: leave it out", model, contract)


def test_stride_of_a_path_that_noise_leaves_silent_is_seen_in_the_graph(contract, tmp_path):
    """Three halvings whose rectifier opens for nothing that noise holds."""
    net = Network(3).conv(3, 4, 3)
    for _ in range(3):
        net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    deep = net.add("Sub", np.float32(100)).add("Relu").upsample(8).conv(4, 3, 1).last
    net.last = "t0"
    skip = net.conv(4, 3, 1).last
    net.nodes.append(helper.make_node("Add", [deep, skip], ["sum"]))
    net.last = "sum"
    assert attach(saved(net, tmp_path / "m.onnx"), contract).contract.align == 8


def test_attention_over_the_tile_is_said_not_to_be_equivariant(contract, tmp_path):
    net = Network(3).conv(3, 3, 3)
    local = net.last
    net.add("GlobalAveragePool").add("Mul", np.float32(5))
    net.nodes.append(helper.make_node("Add", [local, net.last], ["sum"]))
    net.nodes.append(helper.make_node("Mul", ["sum", local], ["gated"]))
    net.last = "gated"
    attached = attach(saved(net, tmp_path / "m.onnx"), contract)
    assert (attached.contract.equivariant, attached.contract.align) == (False, 32)


# --- what is not fit to run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 1, 100, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file(keep, model, contract):
    whole = model.read_bytes()
    model.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    refused(ModelError, "m.onnx is not (a whole|an) ONNX file", model, contract)


def test_every_truncation_of_a_small_file_is_refused(contract, tmp_path):
    """Some cuts leave a message that parses: what is missing then must be missed."""
    model = saved(Network(3).conv(3, 3, 1), tmp_path / "m.onnx")
    whole = model.read_bytes()
    for keep in range(0, len(whole) - 1, 7):
        model.write_bytes(whole[:keep])
        with pytest.raises(SegpipeError):
            attach(model, contract)
        assert model.read_bytes() == whole[:keep]


def test_no_file_a_folder_and_text(contract, tmp_path):
    refused(ModelError, "must exist, got .*none.onnx", tmp_path / "none.onnx", contract)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelError, match="got the folder"):
        attach(tmp_path / "folder", contract)
    (tmp_path / "t.onnx").write_text("hello")
    refused(ModelError, "t.onnx is not a whole ONNX file", tmp_path / "t.onnx", contract)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weights_that_are_not_finite(value, dtype, contract, tmp_path):
    net = pooling()
    broken = np.zeros(8, dtype)
    broken[5] = value
    net.weights[1] = numpy_helper.from_array(broken, "w1")
    refused(
        ExportError,
        "weights of .*m.onnx must be finite, got NaN or infinity in w1$",
        saved(net, tmp_path / "m.onnx"),
        contract,
    )


def test_scores_that_are_not_finite(contract, tmp_path):
    """All weights are finite, and yet: the logarithm of noise."""
    model = saved(Network(3).conv(3, 3, 1).add("Log"), tmp_path / "m.onnx")
    refused(ExportError, "scores of m.onnx must be finite, got NaN or infinity on noise", model, contract)


def with_node(op: str, *constants: np.ndarray, **attributes: Any) -> Network:
    return Network(3).conv(3, 4, 3).add(op, *constants, **attributes).conv(4, 3, 1)


def batch_norm() -> Network:
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
    net = with_node("BatchNormalization", ones, zeros, zeros, ones, training_mode=1)
    net.nodes[1].output.extend(["mean", "var"])
    return net


def batch_mean() -> Network:
    """Batch normalisation in training, as some exporters spell it out."""
    net = Network(3).conv(3, 4, 3)
    features = net.last
    net.add("ReduceMean", np.array([0, 2, 3], np.int64), keepdims=1)
    net.nodes.append(helper.make_node("Sub", [features, net.last], ["centred"]))
    net.last = "centred"
    return net.conv(4, 3, 1)


def random_noise() -> Network:
    net = Network(3).conv(3, 4, 3)
    features = net.last
    net.add("RandomNormalLike")
    net.nodes.append(helper.make_node("Add", [features, net.last], ["noisy"]))
    net.last = "noisy"
    return net.conv(4, 3, 1)


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (batch_norm, "same scores each time|beside it in a batch"),
        (batch_mean, "must not depend on the tiles beside it in a batch, and they do"),
        (random_noise, "same scores each time, and does not .*: export it in evaluation mode"),
    ],
)
@pytest.mark.parametrize("batch", ["n", 2])
def test_model_in_training_mode(net, match, batch, contract, tmp_path):
    model = saved(net(), tmp_path / "m.onnx", shape=(batch, 64, 64))
    refused(SegpipeError, match, model, contract)


def test_dropout_in_training_mode_is_left_out_by_the_runtime(contract, tmp_path):
    """Or refused, should ONNX Runtime ever change its mind: never scores with holes."""
    image = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    plain = saved(Network(3).conv(3, 4, 3).conv(4, 3, 1), tmp_path / "p.onnx")
    model = saved(with_node("Dropout", np.float32(0.5), np.array(True)), tmp_path / "m.onnx")
    attach(model, contract)
    found, truth = (onnxruntime.InferenceSession(path).run(None, {"image": image})[0] for path in (model, plain))
    np.testing.assert_allclose(found, truth, rtol=1e-5, atol=1e-5)


# --- contracts that do not fit --------------------------------------------------------------------------------------------

MISFITS: list[tuple[dict[str, Any], type[SegpipeError], str]] = [
    ({"classes": ["a", "b"]}, ContractError, "gives 3 scores per pixel, .* with 2 classes needs 2"),
    ({"channels": 4}, ContractError, "got 4 in the contract .* and 3 in .*m.onnx"),
    ({"normalise": "none"}, ContractError, "c.toml: unknown key normalise"),
    ({"activation": None}, ContractError, "c.toml: missing key activation"),
    ({"normalize": "fixed"}, ContractError, "needs mean and std"),
    ({"output": "probabilities"}, ContractError, "m.onnx has no output called probabilities: it has scores"),
    ({"input": "x"}, ContractError, "has no input called x: it has image"),
    ({"overlap": [64, 64]}, SegpipeError, "overlap must be smaller than the tile"),
    ({"tile": [30, 30]}, ModelError, "m.onnx"),
]


@pytest.mark.parametrize(("changes", "kind", "match"), MISFITS, ids=[str(m[0]) for m in MISFITS])
def test_contract_that_does_not_fit(changes, kind, match, model, tmp_path):
    refused(kind, match, model, toml(tmp_path / "c.toml", **changes))


@pytest.mark.parametrize("layout", ["NHWC", "NCDHW"])
def test_other_layouts(layout, model, tmp_path):
    refused(
        ContractError,
        "tile must be the model's, got 64 x 64 and .*m.onnx takes 3 x 0|must have 5 axes",
        model,
        toml(tmp_path / "c.toml", layout=layout),
    )


def test_contract_that_cannot_be_read(model, tmp_path):
    refused(
        ContractError, "the contract .*none.toml must exist, and does not: correct the path", model, tmp_path / "none.toml"
    )
    (tmp_path / "c.toml").write_text("= 1")
    refused(ContractError, "c.toml is not TOML", model, tmp_path / "c.toml")


def test_tile_of_a_fixed_model_cannot_be_another(contract, tmp_path):
    model = saved(pooling(), tmp_path / "m.onnx", shape=("n", 32, 32))
    refused(SegpipeError, "tile must be the model's, got 64 x 64 and .* takes 32 x 32", model, contract)


def test_output_folder_that_cannot_be(model, contract, tmp_path):
    (tmp_path / "file").write_text("")
    refused(SegpipeError, "cannot be written", model, contract, tmp_path / "file" / "m.onnx")


@pytest.mark.parametrize("elsewhere", [True, False])
def test_weights_that_do_not_fit_into_one_file_stay_outside(elsewhere, contract, tmp_path, labels, monkeypatch):
    (tmp_path / "a").mkdir()
    model = external(tmp_path / "a" / "m.onnx")
    truth = labels("with", model, contract=aligned(contract, 4))
    monkeypatch.setattr(large, "LARGEST", 6000)
    monkeypatch.setattr(large, "LEAST", 100)
    output = tmp_path / "b" / "m.onnx" if elsewhere else model
    made = attach(model, contract, output if elsewhere else None)
    (data,) = output.parent.glob("m.????????????????.data")
    assert data.name == f"m.{hashlib.sha256(data.read_bytes()).hexdigest()[:16]}.data"
    assert output.stat().st_size < 6000
    if not elsewhere:
        assert made.notes == (f"{model}.data is no longer needed by m.onnx: its weights are in {data.name} now",)
        (tmp_path / "a" / "m.onnx.data").unlink()
    np.testing.assert_array_equal(labels("without", output), truth)
    attach(output, contract)
    assert sorted(output.parent.iterdir()) == sorted([data, output])


def test_weights_outside_leave_nothing_behind_if_the_contract_does_not_fit(model, tmp_path, monkeypatch):
    monkeypatch.setattr(large, "LARGEST", 6000)
    monkeypatch.setattr(large, "LEAST", 100)
    refused(ContractError, 'activation = "softmax"', model, toml(tmp_path / "c.toml", activation="none"))


def test_what_fits_into_no_file_even_without_its_weights_is_refused(model, contract, monkeypatch):
    monkeypatch.setattr(large, "LARGEST", 200)
    refused(
        ExportError, "weights above 2 GB must be initializers of the main graph, and .* bytes of m.onnx", model, contract
    )


def test_interrupted_in_the_middle(model, contract, monkeypatch):
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    before = model.read_bytes()
    monkeypatch.setattr("segpipe.export.attach._measure", interrupt)
    ended = CliRunner().invoke(main, ["export", "attach", str(model), "--contract", str(contract)])
    assert ended.exit_code == 75
    assert model.read_bytes() == before
    assert sorted(p.name for p in model.parent.iterdir()) == ["c.toml", "m.onnx"]


# --- the command ----------------------------------------------------------------------------------------------------------


def test_command(model, contract, segpipe):
    done = segpipe("export", "attach", model, "--contract", contract)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{model}: 3 channels to 3 scores, contract attached" in done.stdout
    assert "multiples of 4" in done.stdout
    again = segpipe("export", "attach", model)
    assert again.returncode == 2
    assert "--contract" in again.stderr
    wrong = segpipe("export", "attach", model, "--contract", "none.toml")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: the contract none.toml must exist, and does not: correct the path")


def test_attaching_needs_no_torch(model, contract):
    """It is in the plain installation."""
    code = "import sys; sys.modules['torch'] = None; from segpipe.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "export", "attach", model, "--contract", contract],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- real models ----------------------------------------------------------------------------------------------------------

BINARY: dict[str, Any] = {"task": "binary", "activation": "none", "classes": ["rest", "found"]}
FORMS: dict[str, dict[str, Any]] = {
    "dummy_model": {"classes": ["red", "green", "blue"]},
    "one_output_sigmoid_bsx1x512x512": BINARY,
    "one_output_sigmoid_bsx512x512": BINARY,
    "one_output_sigmoid_red_detector": BINARY,
    "one_output_softmax_bsx2x512x512": {"activation": "none", "classes": ["rest", "found"]},
    "two_outputs_sigmoid_bsx1x512x512": {**BINARY, "output": "output2"},
    "two_outputs_sigmoid_bsx512x512": {**BINARY, "output": "output"},
    "two_outputs_softmax_bsx2x512x512": {"activation": "none", "classes": ["rest", "found"], "output": "output2"},
}
DEEPNESS_TILE = {"tile": [512, 512], "overlap": [128, 128]}


def copied(names: Iterable[str], folder: Path) -> Path:
    """A copy that can be written, for the shared files cannot."""
    for name in names:
        (folder / Path(name).name).write_bytes((MODELS / name).read_bytes())
    return folder


@pytest.mark.shared_data
@pytest.mark.parametrize("name", FORMS)
def test_models_of_deepness(name, tmp_path, labels):
    model = copied([f"deepness/{name}.onnx"], tmp_path) / f"{name}.onnx"
    contract = toml(tmp_path / "c.toml", **DEEPNESS_TILE, **FORMS[name])
    truth = labels("with", model, contract=aligned(contract, 1))
    attached = attach(model, contract)
    assert (attached.contract.align, attached.contract.equivariant) == (1, True)
    np.testing.assert_array_equal(labels("without", model), truth)
    one_by_one = name.endswith("sigmoid_bsx512x512")
    assert len(attached.notes) == one_by_one
    batch = onnx.load(str(model)).graph.input[0].type.tensor_type.shape.dim[0].dim_value
    assert batch == (1 if one_by_one or name == "dummy_model" else 0)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", [name for name in FORMS if name.startswith("two")])
def test_one_of_two_outputs_must_be_named(name, tmp_path):
    model = copied([f"deepness/{name}.onnx"], tmp_path) / f"{name}.onnx"
    contract = toml(tmp_path / "c.toml", **DEEPNESS_TILE, **{k: v for k, v in FORMS[name].items() if k != "output"})
    refused(ContractError, r"has 2 outputs, .*output = .*: output \(.*\), output2", model, contract)


@pytest.mark.shared_data
def test_the_margin_of_a_model_whose_output_is_cropped_is_measured(tmp_path):
    model = copied(["deepness/different_output_size_512_to_484.onnx"], tmp_path) / "different_output_size_512_to_484.onnx"
    keys = {"activation": "none", "task": "multilabel", "classes": ["rest", "found"]}
    contract = toml(tmp_path / "c.toml", **DEEPNESS_TILE, **keys)
    attached = attach(model, contract)
    assert attached.contract.margin == [14, 14]
    assert attached.notes == ("margin = [14, 14] was measured: the model scores the middle of a tile",)


@pytest.mark.shared_data
def test_nuclei(tmp_path, run_serial):
    model = copied(["nuclei/weights.onnx"], tmp_path) / "weights.onnx"
    keys = {**BINARY, "activation": "sigmoid", "channels": 1, "scale": 1.0, "normalize": "zscore", "overlap": [64, 64]}
    contract = toml(tmp_path / "c.toml", tile=[512, 512], **{k: v for k, v in keys.items() if k != "tile"})
    source = MODELS / "nuclei" / "stardist_img2d.tif"
    truth = run_serial(source, model, contract=aligned(contract, 8), output=tmp_path / "with")
    attached = attach(model, contract)
    assert (attached.contract.align, attached.contract.equivariant) == (8, True)
    found = run_serial(source, model, output=tmp_path / "without")
    np.testing.assert_array_equal(*(read(folder / "stardist_img2d.tif") for folder in (found, truth)))


@pytest.mark.shared_data
def test_clouds(tmp_path, raster, run_serial):
    model = copied(["clouds/clouds_bgrn_swir.onnx"], tmp_path) / "clouds_bgrn_swir.onnx"
    with np.load(MODELS / "clouds" / "landsat7.npz") as file:
        reflectance = np.moveaxis(file["img"], -1, 0).astype(np.float32)
    names = ["blue", "green", "red", "nir", "swir1", "swir2"]
    source = raster("in/l.tif", reflectance, descriptions=names)
    sizes = {"tile": [256, 256], "overlap": [64, 64], "scale": 1.0}
    contract = toml(tmp_path / "c.toml", **BINARY, **sizes, channels=names)
    attached = attach(model, contract, tmp_path / "n.onnx")
    assert (attached.contract.align, attached.contract.equivariant) == (4, True)
    truth = run_serial(source, model, contract=aligned(contract, 4), output=tmp_path / "with")
    found = run_serial(source, tmp_path / "n.onnx", output=tmp_path / "without")
    np.testing.assert_array_equal(*(read(folder / "l.tif") for folder in (found, truth)))


def test_a_contract_of_volumes_is_kept_inside_the_model(tmp_path):
    model, sizes = volumetric(tmp_path / "m.onnx", (8, 12, 10)), {"tile": [8, 12, 10], "overlap": [2, 3, 2]}
    terms = {"layout": "NCDHW", **sizes, "align": 2, "spacing": [2.0, 1.0, 1.0], "orientation": "RAS"}
    found = attach(model, toml(tmp_path / "c.toml", channels=1, **terms))
    kept = read_spec(load_settings(None, {"input": ("-",), "model": model, "device": "cpu"})).contract
    assert found.stride is None
    assert {key: value for key, value in kept.model_dump(mode="json").items() if key in terms} == terms | {"align": 2}
    assert kept.spacing_unit == "mm"


@pytest.mark.shared_data
def test_a_contract_of_images_is_none_for_volumes(tmp_path):
    model = copied(["brain/model.onnx"], tmp_path) / "model.onnx"
    contract = toml(tmp_path / "c.toml", layout="NCHW", channels=1)
    refused(ContractError, "must have 4 axes", model, contract)
