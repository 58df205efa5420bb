"""What graphs end in: ranges against what ONNX Runtime gives for wild input."""

import numpy as np
import onnx
import onnxruntime
import pytest
from networks import Network, contract
from onnx import TensorProto, helper

from segpipe.network.ending import ending_of

HALF, ONE = np.array(0.5, np.float32), np.array(1, np.float32)


def end(net, kind):
    """Append what a graph may end in."""
    for op, constants, attributes in ENDS[kind][0]:
        net.add(op, *constants, **attributes)
    return net


def node(op, *constants, **attributes):
    return op, constants, attributes


UPSAMPLED = (np.array([], np.float32), np.array([1, 1, 2, 2], np.float32))
ENDS = {
    "logits": ([], "Conv", "open"),
    "residual": ([node("Add", ONE)], "Add", "open"),
    "leaky": ([node("LeakyRelu")], "LeakyRelu", "open"),
    "relu": ([node("Relu")], "Relu", "open"),
    "tanh": ([node("Tanh")], "Tanh", "open"),
    "log-softmax": ([node("LogSoftmax", axis=1)], "LogSoftmax", "open"),
    "log of a sigmoid": ([node("Sigmoid"), node("Log")], "Log", "open"),
    "scaled to bytes": ([node("Sigmoid"), node("Mul", np.array(255, np.float32))], "Mul", "open"),
    "sigmoid": ([node("Sigmoid")], "Sigmoid", "probability"),
    "hard sigmoid": ([node("HardSigmoid")], "HardSigmoid", "probability"),
    "softmax": ([node("Softmax", axis=1)], "Softmax", "probability"),
    "softmax, transposed": ([node("Softmax", axis=1), node("Transpose", perm=[0, 2, 3, 1])], "Softmax", "probability"),
    "sigmoid, cast": ([node("Sigmoid"), node("Cast", to=TensorProto.FLOAT16)], "Sigmoid", "probability"),
    "sigmoid, sliced": (
        [node("Sigmoid"), node("Slice", np.array([0]), np.array([2]), np.array([1]))],
        "Sigmoid",
        "probability",
    ),
    "sigmoid, upsampled": ([node("Sigmoid"), node("Resize", *UPSAMPLED, mode="linear")], "Sigmoid", "probability"),
    "sigmoid, bicubic": ([node("Sigmoid"), node("Resize", *UPSAMPLED, mode="cubic")], "Sigmoid", "probability"),
    "sigmoid, quantized": (
        [
            node("Sigmoid"),
            node("QuantizeLinear", np.array(1 / 255, np.float32), np.array(0, np.uint8)),
            node("DequantizeLinear", np.array(1 / 255, np.float32), np.array(0, np.uint8)),
        ],
        "Sigmoid",
        "probability",
    ),
    "sigmoid by hand": ([node("Neg"), node("Exp"), node("Add", ONE), node("Reciprocal")], "Reciprocal", "probability"),
    "tanh to 0..1": ([node("Tanh"), node("Mul", HALF), node("Add", HALF)], "Add", "probability"),
    "exp of log-softmax": ([node("LogSoftmax", axis=1), node("Exp")], "Exp", "probability"),
    "clipped": ([node("Clip", np.array(0, np.float32), ONE)], "Clip", "probability"),
    "relu6 / 6": (
        [node("Relu"), node("Clip", *(np.array(n, np.float32) for n in (0, 6))), node("Mul", ONE / 6)],
        "Mul",
        "probability",
    ),
    "unknown": ([node("Shrink", bias=0.0, lambd=0.5)], "Shrink", "unknown"),
    "argmax": ([node("ArgMax", axis=1)], "ArgMax", "labels"),
    "argmax, cast": ([node("ArgMax", axis=1), node("Cast", to=TensorProto.FLOAT)], "ArgMax", "labels"),
    "above a threshold": ([node("Sigmoid"), node("Greater", HALF), node("Cast", to=TensorProto.FLOAT)], "Greater", "labels"),
    "rounded": ([node("Sigmoid"), node("Round")], "Round", "labels"),
}


@pytest.mark.parametrize("kind", ENDS)
def test_what_graphs_end_in(kind, tmp_path):
    net = end(Network(3).conv(3, 4, 1), kind)
    proto = onnx.load(net.save(tmp_path / "m.onnx", contract(3, 4), classes=4))
    ending, (_, operator, form) = ending_of(proto, "scores"), ENDS[kind]
    assert ending.operator == operator
    assert ending.labels == (form == "labels")
    if form != "labels":
        assert (ending.is_open, ending.is_probability) == (form == "open", form == "probability")


@pytest.mark.parametrize("kind", ENDS)
def test_ranges_hold_for_wild_input(kind, tmp_path):
    net = end(Network(3).conv(3, 4, 1), kind)
    proto = onnx.load(net.save(tmp_path / "m.onnx", contract(3, 4), classes=4))
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].CopyFrom(helper.make_empty_tensor_value_info("scores"))
    ending = ending_of(proto, "scores")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    noise = np.random.default_rng(0).normal(size=(2, 3, 32, 32)) * np.array([1, 1000]).reshape(2, 1, 1, 1)
    with np.errstate(over="ignore"):
        (found,) = session.run(None, {"image": noise.astype(np.float32)})
    if ending.range is not None:
        assert ending.range[0] - 1e-3 <= np.nanmin(found)
        assert np.nanmax(found) <= ending.range[1] + 1e-3


def test_scores_behind_labels_are_named(tmp_path):
    net = Network(3).conv(3, 4, 1).add("Softmax", axis=1).add("ArgMax", axis=1).add("Cast", to=TensorProto.UINT8)
    proto = onnx.load(net.save(tmp_path / "m.onnx", contract(3, 4), classes=4))
    assert ending_of(proto, "scores").scores == "t1"
