"""The contract's activation against what a graph gives, in runs, inspect, attach and export."""

import json

import numpy as np
import onnx
import pytest
import rasterio
from inspecting import sidecar
from networks import Network, contract
from onnx import helper
from test_ending import end

from segpipe.errors import ContractError
from segpipe.export.attach import attach
from segpipe.jobs.prepare import prepare
from segpipe.settings import load_settings

BINARY = {"task": "binary", "classes": [{"id": 1, "name": "found"}]}
MULTILABEL = {"task": "multilabel"}


@pytest.fixture
def source(raster):
    return raster("in/a.tif", np.random.default_rng(5).integers(1, 256, (3, 64, 64), dtype=np.uint8))


def prepared(source, model, **flags):
    return prepare(load_settings(None, {"input": (str(source),), "model": model, "device": "cpu", **flags}))


def made(path, kind, count=4, gain=None, **changes):
    net = Network(3).conv(3, count, 1)
    if gain is not None:
        net.add("Mul", np.array(gain, np.float32))
    return end(net, kind).save(path, contract(3, count, **changes), classes=count)


WRONG = [
    ("sigmoid", 1, {**BINARY, "activation": "sigmoid"}, 'probabilities already, .*ends in Sigmoid: set activation = "none"'),
    ("hard sigmoid", 1, {**BINARY, "activation": "sigmoid"}, 'ends in HardSigmoid: set activation = "none"'),
    ("sigmoid by hand", 1, {**BINARY, "activation": "sigmoid"}, 'set activation = "none"'),
    ("sigmoid", 3, {**MULTILABEL, "activation": "sigmoid"}, 'set activation = "none" in the contract$'),
    ("sigmoid", 3, {"activation": "softmax"}, 'activation = "none" .*task = "multilabel" if'),
    ("softmax", 4, {"activation": "softmax"}, 'ends in Softmax: set activation = "none"'),
    ("exp of log-softmax", 4, {"activation": "softmax"}, 'set activation = "none"'),
    ("logits", 4, {"activation": "none"}, 'they are not, .*ends in Conv: set activation = "softmax"'),
    ("log-softmax", 4, {"activation": "none"}, 'set activation = "softmax"'),
    ("logits", 1, {**BINARY, "activation": "none"}, 'set activation = "sigmoid"'),
    ("logits", 3, {**MULTILABEL, "activation": "none"}, 'set activation = "sigmoid"'),
    ("tanh", 1, {**BINARY, "activation": "none"}, 'set activation = "sigmoid"'),
    ("scaled to bytes", 1, {**BINARY, "activation": "none"}, "they are not"),
]
"""What a graph ends in, its scores, the contract, and what must be said."""


@pytest.mark.parametrize(("kind", "count", "changes", "message"), WRONG)
def test_a_wrong_activation_is_refused_and_the_right_one_named(kind, count, changes, message, source, tmp_path):
    with pytest.raises(ContractError, match=message):
        prepared(source, made(tmp_path / "m.onnx", kind, count, **changes))


@pytest.mark.parametrize(("kind", "count", "changes", "message"), WRONG)
def test_attach_refuses_it_as_well(kind, count, changes, message, tmp_path):
    model = made(tmp_path / "m.onnx", kind, count, **changes)
    terms = json.loads({p.key: p.value for p in onnx.load(model).metadata_props}["segpipe"])
    with pytest.raises(ContractError, match=message):
        attach(model, sidecar(tmp_path / "c.toml", terms), tmp_path / "new.onnx")
    assert not (tmp_path / "new.onnx").exists()


RIGHT = [
    ("logits", 1, {**BINARY, "activation": "sigmoid"}),
    ("relu", 1, {**BINARY, "activation": "sigmoid"}),
    ("tanh", 1, {**BINARY, "activation": "sigmoid"}),
    ("unknown", 1, {**BINARY, "activation": "sigmoid"}),
    ("residual", 4, {"activation": "softmax"}),
    ("log-softmax", 4, {"activation": "softmax"}),
    ("unknown", 4, {"activation": "softmax"}),
    ("softmax", 4, {"activation": "none"}),
    ("sigmoid", 4, {"activation": "none"}),
    ("sigmoid", 4, {**MULTILABEL, "activation": "none"}),
    ("sigmoid, upsampled", 1, {**BINARY, "activation": "none"}),
    ("sigmoid, bicubic", 1, {**BINARY, "activation": "none"}),
    ("sigmoid, quantized", 1, {**BINARY, "activation": "none"}),
    ("hard sigmoid", 1, {**BINARY, "activation": "none"}),
    ("clipped", 1, {**BINARY, "activation": "none"}),
]


@pytest.mark.parametrize(("kind", "count", "changes"), RIGHT)
def test_a_right_one_is_not(kind, count, changes, source, tmp_path):
    model = made(tmp_path / "m.onnx", kind, count, **changes)
    if "upsampled" in kind or "bicubic" in kind:
        model = half_inside(tmp_path / "m.onnx", kind, changes)
    prepared(source, model)


def half_inside(path, kind, changes):
    """Probabilities at half the size, upsampled inside the graph."""
    net = Network(3).add("AveragePool", kernel_shape=[2, 2], strides=[2, 2]).conv(3, 1, 1)
    return end(net, kind).save(path, contract(3, 1, **changes), classes=1)


@pytest.mark.parametrize(("task", "activation"), [(BINARY, "sigmoid"), (MULTILABEL, "sigmoid"), ({}, "softmax")])
def test_logits_of_noise_may_lie_within_0_and_1(task, activation, source, tmp_path):
    """Of an untrained network, whose graph says that they are logits."""
    net = Network(3).conv(3, 1, 1).add("Mul", np.array(1e-3, np.float32)).conv(1, 1 if task is BINARY else 3, 1)
    net.weights[-1].CopyFrom(
        onnx.numpy_helper.from_array(np.full(1 if task is BINARY else 3, 0.4, np.float32), net.weights[-1].name)
    )
    count = 1 if task is BINARY else 3
    prepared(source, net.save(tmp_path / "m.onnx", contract(3, count, **task, activation=activation), classes=count))


def test_logits_that_lie_there_by_chance_are_no_probabilities(source, tmp_path):
    """Small ones of noise; those of loud noise do not."""
    net = Network(3).conv(3, 1, 1).add("Mul", np.array(0.05, np.float32)).add("Add", np.array(0.5, np.float32))
    model = net.save(tmp_path / "m.onnx", contract(3, 1, **BINARY, activation="none"), classes=1)
    with pytest.raises(ContractError, match='set activation = "sigmoid"'):
        prepared(source, model)


def function(net, op, count):
    """A model that hides one operator in a function of its own, whose range nobody knows."""
    net.nodes.append(helper.make_node("Ours", [net.last], ["hidden"], domain="local"))
    net.last = "hidden"
    inner = helper.make_node(op, ["x"], ["y"], **({"axis": 1} if op == "Softmax" else {}))
    return helper.make_function("local", "Ours", ["x"], ["y"], [inner], [helper.make_opsetid("", 20)])


@pytest.mark.parametrize(
    ("op", "count", "changes", "message"),
    [
        ("Sigmoid", 1, {**BINARY, "activation": "sigmoid"}, 'ends in Ours: set activation = "none"'),
        ("Softmax", 3, {"activation": "softmax"}, 'ends in Ours: set activation = "none"'),
        ("Identity", 3, {"activation": "none"}, 'ends in Ours: set activation = "softmax"'),
        (
            "Sigmoid",
            3,
            {"activation": "none"},
            'scores sum to 1, and they sum to .*"softmax" in the contract, or task = "multi',
        ),
        ("Sigmoid", 1, {**BINARY, "activation": "none"}, None),
        ("Softmax", 3, {"activation": "none"}, None),
        ("Identity", 3, {"activation": "softmax"}, None),
        ("Identity", 1, {**BINARY, "activation": "sigmoid"}, None),
    ],
)
def test_where_the_graph_does_not_tell_scores_do(op, count, changes, message, source, tmp_path):
    net = Network(3).conv(3, count, 1)
    ours = function(net, op, count)
    proto = onnx.load(net.save(tmp_path / "m.onnx", contract(3, count, **changes), classes=count))
    proto.functions.append(ours)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    onnx.save(proto, tmp_path / "m.onnx")
    if message is None:
        prepared(source, tmp_path / "m.onnx")
        return
    with pytest.raises(ContractError, match=message):
        prepared(source, tmp_path / "m.onnx")


@pytest.mark.parametrize("activation", ["none", "softmax"])
def test_softmax_over_another_axis_than_the_classes_is_refused(activation, source, tmp_path):
    net = Network(3).conv(3, 4, 1).add("Softmax", axis=3)
    model = net.save(tmp_path / "m.onnx", contract(3, 4, activation=activation), classes=4)
    with pytest.raises(
        ContractError, match="another axis than the classes" if activation == "none" else "probabilities already"
    ):
        prepared(source, model)


def test_logarithms_of_probabilities_have_no_right_activation_for_one_score(source, tmp_path):
    net = Network(3).conv(3, 1, 1).add("Neg").add("Softplus").add("Neg")
    model = net.save(tmp_path / "m.onnx", contract(3, 1, **BINARY, activation="sigmoid"), classes=1)
    with pytest.raises(ContractError, match=r"never be above 0, .*export it without the logarithm"):
        prepared(source, model)


@pytest.mark.parametrize("layout", ["NHWC", "flat"])
def test_forms_of_output(layout, source, tmp_path):
    """Classes on the last axis, or no axis for one score."""
    if layout == "flat":
        net = Network(3).conv(3, 1, 1).add("Sigmoid").add("Squeeze", np.array([1]))
        values, classes = contract(3, 1, **BINARY, activation="sigmoid"), ("n", "h", "w")
    else:
        net = (
            Network(3)
            .add("Transpose", perm=[0, 3, 1, 2])
            .conv(3, 4, 1)
            .add("Transpose", perm=[0, 2, 3, 1])
            .add("Softmax", axis=-1)
        )
        values, classes = contract(3, 4, layout="NHWC"), ("n", "h", "w", 4)
    model = net.save(tmp_path / "m.onnx", values, classes=4, out_shape=classes)
    if layout == "NHWC":
        proto = onnx.load(model)
        dims = proto.graph.input[0].type.tensor_type.shape.dim
        del dims[:]
        for size in (None, None, None, 3):
            dims.add(dim_value=size) if size else dims.add(dim_param=f"d{len(dims)}")
        onnx.save(proto, model)
    with pytest.raises(ContractError, match='set activation = "none"'):
        prepared(source, model)


@pytest.mark.parametrize("kind", ["argmax", "argmax, cast", "above a threshold", "rounded"])
def test_labels_under_a_contract_of_scores_come_with_a_command_that_uncovers_these(
    kind, source, tmp_path, segpipe, run_serial
):
    count = 1 if kind in ("above a threshold", "rounded") else 4
    task = BINARY if count == 1 else {}
    activation = "none" if count == 1 else "softmax"
    values = contract(3, count, **task, activation=activation)
    net = end(Network(3).conv(3, count, 1), kind)
    sizes = ("n", 1, "h", "w")
    dtype = onnx.TensorProto.INT64 if kind == "argmax" else onnx.TensorProto.FLOAT
    model = net.save(tmp_path / "m.onnx", values, classes=count, out_shape=sizes)
    proto = onnx.load(model)
    proto.graph.output[0].type.tensor_type.elem_type = dtype
    onnx.save(proto, model)
    said = r'is labels .*set activation = "labels" in the contract, or take its scores, the tensor'
    with pytest.raises(ContractError, match=said) as caught:
        prepared(source, model)
    command = str(caught.value).split("python -c '")[1].rstrip("'")
    exec(command)
    scores = run_serial(source, tmp_path / "m-scores.onnx", contract=sidecar(tmp_path / "c.toml", values))
    with rasterio.open(scores / "a.tif") as mask:
        assert len(np.unique(mask.read(1))) > 1


@pytest.mark.parametrize(("kind", "activation"), [("logits", "softmax"), ("softmax", "none"), ("sigmoid", "none")])
def test_deepness_metadata_does_not_say_it_and_the_graph_does(kind, activation, source, tmp_path):
    metadata = {"class_names": '{"0": "a", "1": "b", "2": "c", "3": "d"}', "tile_size": "64", "tiles_overlap": "25"}
    metadata |= {"standardization_mean": "[0.4, 0.5, 0.6]", "standardization_std": "[0.2, 0.2, 0.2]"}
    model = end(Network(3).conv(3, 4, 1), kind).save(tmp_path / "m.onnx", None, classes=4, metadata=metadata)
    assert prepared(source, model).run.model.contract.activation == activation
