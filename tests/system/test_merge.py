"""Classes of several outputs, or of some: labels are those of the softmax, summed by hand in NumPy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import rasterio
from networks import Network
from onnx import TensorProto, helper

from segpipe.errors import ContractError
from segpipe.export.attach import attach

OUTPUTS, SIDE = 6, 64
IMAGE = np.random.default_rng(1).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
SEVERAL = [("water", 4), ("plants", [0, 3, 5]), ("built", [1, 2])]
SOME = [("water", 4), ("plants", [0, 3]), ("built", 2)]


def network(path: Path, end: str = "", **options: Any) -> Path:
    """Scores of each pixel by itself, with an activation at the end if asked."""
    net = Network(3).add("Sub", np.float32(0.5)).conv(3, OUTPUTS, 1).add("Mul", np.float32(4))
    if end:
        net.add(end, **({"axis": 1} if end == "Softmax" else {}))
    return net.save(path, None, classes=OUTPUTS, **options)


def toml(path: Path, classes: list[tuple[str, Any]], **keys: Any) -> Path:
    usual = {"version": 1, "channels": 3, "scale": 1 / 255, "normalize": "none", "tile": [SIDE, SIDE], "align": 1}
    lines = [f"{key} = {json.dumps(value)}" for key, value in {**usual, "activation": "softmax", **keys}.items()]
    for k, (name, index) in enumerate(classes):
        lines += [
            "[[classes]]",
            f"id = {k}",
            f'name = "{name}"',
            *([] if index is None else [f"index = {json.dumps(index)}"]),
        ]
    path.write_text("\n".join(lines))
    return path


def raw(model: Path, name: str | None = None) -> np.ndarray:
    """Scores of the image by ONNX Runtime, ``(outputs, rows, cols)``."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    image = (IMAGE / np.float32(255)).astype(np.float32)[None]
    return session.run(name and [name], {session.get_inputs()[0].name: image})[0][0]


def probabilities(scores: np.ndarray, classes: list[tuple[str, Any]]) -> np.ndarray:
    """The softmax over the outputs of all classes, summed by class."""
    groups = [index if isinstance(index, list) else [index] for _, index in classes]
    powers = np.exp(scores.astype(np.float64) - scores.max(0))
    sums = np.stack([powers[group].sum(0) for group in groups])
    return sums / sums.sum(0)


@pytest.mark.parametrize("classes", [SEVERAL, SOME, [("water", 4), ("plants", 0)]])
@pytest.mark.parametrize(("end", "activation"), [("", "softmax"), ("Softmax", "none")])
def test_labels_are_those_of_the_sums(classes, end, activation, tmp_path, raster, run_serial):
    model = network(tmp_path / "m.onnx", end)
    wanted = probabilities(raw(network(tmp_path / "logits.onnx")), classes)
    made = attach(model, toml(tmp_path / "c.toml", classes, activation=activation), tmp_path / "n.onnx")
    found = raw(made.path)
    if activation == "softmax":
        found = probabilities(found, [(name, k) for k, (name, _) in enumerate(classes)])
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    out = run_serial(raster("in/a.tif", IMAGE), made.path)
    with rasterio.open(out / "a.tif") as mask:
        labels = mask.read(1)
    assert (labels == wanted.argmax(0)).mean() >= 0.9999
    assert len(np.unique(labels)) == len(classes)
    assert made.contract.provenance["of_outputs"] == OUTPUTS


def test_parts_give_the_same_bytes(tmp_path, raster, run_serial):
    model = attach(network(tmp_path / "m.onnx"), toml(tmp_path / "c.toml", SOME)).path
    scene = raster("in/a.tif", np.random.default_rng(2).integers(0, 256, (3, 210, 190), dtype=np.uint8))
    masks = {(run_serial(scene, model, output=tmp_path / f"{n}", parts=n) / "a.tif").read_bytes() for n in (1, 2, 7)}
    assert len(masks) == 1


def test_outputs_of_no_class_are_told(tmp_path):
    made = attach(network(tmp_path / "m.onnx"), toml(tmp_path / "c.toml", SOME))
    assert made.notes == (
        "2 of the model's 6 outputs belong to no class (1, 5): their pixels get the most likely of the classes",
    )
    assert attach(network(tmp_path / "n.onnx"), toml(tmp_path / "c.toml", SEVERAL)).notes == ()


def test_a_class_of_a_multilabel_model_has_the_maximum(tmp_path):
    model = network(tmp_path / "m.onnx")
    scores = raw(model)
    terms = toml(tmp_path / "c.toml", SOME, task="multilabel", activation="sigmoid")
    found = raw(attach(model, terms).path)
    np.testing.assert_array_equal(found, np.stack([scores[4], scores[[0, 3]].max(0), scores[2]]))


def test_channels_last_several_outputs_and_half_precision(tmp_path):
    """The other output and its consumers stay as they are."""
    model = network(tmp_path / "m.onnx")
    wanted = probabilities(raw(model), SOME)
    proto = onnx.load(model)
    graph = proto.graph
    graph.node.append(helper.make_node("Transpose", ["scores"], ["last"], perm=[0, 2, 3, 1]))
    graph.node.append(helper.make_node("Cast", ["last"], ["half"], to=TensorProto.FLOAT16))
    graph.node.append(helper.make_node("Transpose", ["image"], ["seen"], perm=[0, 2, 3, 1]))
    graph.output.append(helper.make_tensor_value_info("half", TensorProto.FLOAT16, ["n", "h", "w", OUTPUTS]))
    graph.node[0].input[0] = "first"
    graph.node.insert(0, helper.make_node("Transpose", ["image"], ["first"], perm=[0, 3, 1, 2]))
    graph.node.remove(graph.node[-1])
    graph.input[0].CopyFrom(helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", "h", "w", 3]))
    onnx.save(proto, model)
    made = attach(model, toml(tmp_path / "c.toml", SOME, layout="NHWC", output="half"))
    assert made.contract.output == "half/classes"
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["scores", "half/classes"]
    image = np.moveaxis((IMAGE / np.float32(255)).astype(np.float32), 0, -1)[None]
    found = np.moveaxis(session.run(["half/classes"], {"image": image})[0][0].astype(np.float32), -1, 0)
    names = [(name, k) for k, (name, _) in enumerate(SOME)]
    np.testing.assert_allclose(probabilities(found, names), wanted, atol=0.01)


@pytest.mark.parametrize(
    ("classes", "keys", "message"),
    [
        ([("a", [0, 6]), ("b", 1)], {}, "has outputs 0 to 5, and a class names 6 by index"),
        ([("a", [0, 1]), ("b", [1, 2])], {}, "an output must belong to one class, got 1 more than once"),
        ([("a", [0, 1]), ("b", None)], {}, r"must say its outputs, numbers from 0, by index, got \[None\] for class 'b'"),
        ([("a", []), ("b", 1)], {}, r"by index, got \[\] for class 'a'"),
        ([("a", [0, -1]), ("b", 1)], {}, "by index"),
        ([("a", [0, True]), ("b", 1)], {}, "by index"),
        (
            [("a", [0, 2]), ("b", 1)],
            {"task": "binary", "activation": "sigmoid"},
            'task = "binary" is for a model of one score',
        ),
        ([("a", [0, 2]), ("b", 1)], {"activation": "none"}, 'activation = "softmax"'),
        ([("a", [0, 2]), ("b", 1)], {"activation": "argmax"}, "outputs can be combined if they are scores"),
        (
            [("a", [0, 2]), ("b", 1)],
            {"output": "other"},
            'must name the output with the scores, output = "...": it has scores',
        ),
    ],
)
def test_what_cannot_be_combined_is_refused(classes, keys, message, tmp_path):
    model = network(tmp_path / "m.onnx")
    before = model.read_bytes()
    with pytest.raises(ContractError, match=message):
        attach(model, toml(tmp_path / "c.toml", classes, **keys))
    assert model.read_bytes() == before


def test_probabilities_named_logits_are_seen_before_they_are_combined(tmp_path):
    model = network(tmp_path / "m.onnx", "Softmax")
    with pytest.raises(ContractError, match='activation = "none"'):
        attach(model, toml(tmp_path / "c.toml", SEVERAL))


def test_outputs_are_combined_once(tmp_path):
    model = network(tmp_path / "m.onnx")
    attach(model, toml(tmp_path / "c.toml", SOME))
    with pytest.raises(ContractError, match=r"outputs 0 to 2, .* they were combined before, so take the original"):
        attach(model, toml(tmp_path / "c.toml", SOME))


def test_a_contract_that_a_run_would_take_instead_is_refused(tmp_path):
    model, beside = network(tmp_path / "m.onnx"), toml(tmp_path / "m.toml", SOME)
    with pytest.raises(ContractError, match=r"would take m.toml beside it for its contract, .*: rename that file, or name"):
        attach(model, beside)
    assert attach(model, beside, tmp_path / "n.onnx").contract.scores == 3


def test_a_run_says_how_to_combine(tmp_path, raster, segpipe):
    model = network(tmp_path / "m.onnx")
    toml(tmp_path / "m.toml", SEVERAL)
    ended = segpipe("run", "--input", raster("in/a.tif", IMAGE), "--model", model, "--output", tmp_path / "out")
    assert ended.returncode == 2
    assert (
        "index must be one output; several are combined inside the model, by segpipe export attach, got [0, 3, 5]"
        in ended.stderr
    )
