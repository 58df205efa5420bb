"""The form of a graph: what a run can use is taken, all else is refused with the mend."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import contract
from onnx import TensorProto, helper

from segpipe.contract import parse_contract
from segpipe.errors import ContractError, ModelError
from segpipe.geometry.layout import Layout
from segpipe.network.form import check_graph, may_drop, score_count
from segpipe.network.signature import TensorSpec, signature

PATH = Path("m.onnx")
SHAPE = ["n", 3, "h", "w"]


def value(name, kind=TensorProto.FLOAT, shape=SHAPE):
    return helper.make_tensor_value_info(name, kind, shape)


def model(*nodes, inputs=("image",), outputs=(("scores", TensorProto.FLOAT),)):
    graph = helper.make_graph(list(nodes), "g", [value(n) for n in inputs], [value(n, kind) for n, kind in outputs])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def check(proto: onnx.ModelProto, terms=None) -> None:
    inputs, outputs = signature(proto)
    check_graph(proto, PATH, inputs[0], outputs[0], terms)


RELU = helper.make_node("Relu", ["image"], ["scores"])


def test_scores_of_one_image_are_taken():
    check(model(RELU))


def within(node):
    """The node in the branch of a condition."""
    branch = helper.make_graph([node], "b", [], [value("inner")])
    same = helper.make_graph([helper.make_node("Identity", ["image"], ["same"])], "s", [], [value("same")])
    condition = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("", TensorProto.BOOL, [], [True]))
    return [condition, helper.make_node("If", ["c"], ["scores"], then_branch=branch, else_branch=same)]


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(
    ("op", "given", "said"),
    [
        ("RandomNormalLike", ["image"], "RandomNormalLike"),
        ("Bernoulli", ["image"], "Bernoulli"),
        ("BatchNormalization", ["image", "a", "b", "c", "d"], "batch normalisation in training mode"),
    ],
)
def test_scores_that_change_from_call_to_call_are_refused(op, given, said, deep):
    options = {"training_mode": 1} if op == "BatchNormalization" else {}
    node = helper.make_node(op, given, ["inner" if deep else "scores"], **options)
    with pytest.raises(ModelError, match=rf"the same scores each time, and does not \({said}\)"):
        check(model(*(within(node) if deep else [node])))


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(("given", "may"), [(["image", "a", "training"], True), (["image", "a"], False), (["image"], False)])
def test_dropout_that_may_be_in_training_mode(given, may, deep):
    node = helper.make_node("Dropout", given, ["inner" if deep else "scores"])
    assert may_drop(model(*(within(node) if deep else [node]))) is may


def test_an_output_that_is_no_tensor_is_refused():
    proto = model(helper.make_node("SequenceConstruct", ["image"], ["scores"]), outputs=())
    proto.graph.output.append(helper.make_tensor_sequence_value_info("scores", TensorProto.FLOAT, None))
    with pytest.raises(
        ModelError, match=r"m.onnx: scores must be a tensor, and is a sequence: export it with a tensor there"
    ):
        check(proto)


SCORES = parse_contract(contract(3, 3), "c.toml")
LABELS = parse_contract(contract(3, 3, activation="labels"), "c.toml")


def test_labels_under_a_contract_of_scores_are_refused_with_the_way_to_these():
    nodes = [helper.make_node("Relu", ["image"], ["raw"]), helper.make_node("ArgMax", ["raw"], ["labels"], axis=1)]
    with pytest.raises(ContractError, match=r"or take its scores, the tensor raw, which becomes the output by: python -c"):
        check(model(*nodes, outputs=(("labels", TensorProto.INT64),)), SCORES)
    both = (("labels", TensorProto.INT64), ("raw", TensorProto.FLOAT))
    with pytest.raises(ContractError, match=r'or output = "raw", if that is its scores'):
        check(model(*nodes, outputs=both), SCORES)
    check(model(*nodes, outputs=both), LABELS)
    check(model(*nodes, outputs=both))


def test_one_integer_per_pixel_is_a_label():
    flat = model(helper.make_node("Cast", ["image"], ["scores"], to=TensorProto.INT32), outputs=())
    flat.graph.output.append(value("scores", TensorProto.INT32, ["n", 1, "h", "w"]))
    with pytest.raises(ContractError, match=r'is labels \(it holds int32\), .*set activation = "labels" in the contract$'):
        check(flat, SCORES)
    check(flat, LABELS)


@pytest.mark.parametrize(
    ("layout", "shape", "count"),
    [
        (Layout.NCHW, (1, 7, 64, 64), 7),
        (Layout.NCHW, (None, None, None, None), None),
        (Layout.NCHW, (1, 64, 64), 1),
        (Layout.NHWC, (1, 64, 64, 7), 7),
        (Layout.NCDHW, (1, 7, 8, 64, 64), 7),
        (Layout.NCHW, (5,), None),
    ],
)
def test_scores_per_pixel_by_the_shape(layout, shape, count):
    assert score_count(TensorSpec("scores", np.dtype(np.float32), shape), layout) == count
