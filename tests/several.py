"""Small seeded networks of several inputs, whose scores of a pixel depend on that pixel alone; and their labels."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from networks import contract
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CLASSES = 3
SCALE, OFFSET = 1 / 32, -4.0
"""Exact in float32: an oracle scales as the pipeline does."""


class Graph:
    """Nodes appended one by one; every weight comes from one seeded generator."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, *shape: int) -> str:
        return self.constant((self.rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:] or (1,)))).astype(np.float32))

    def constant(self, value: NDArray[Any]) -> str:
        self.weights.append(numpy_helper.from_array(value, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [f"t{len(self.nodes)}"], **attributes))
        return f"t{len(self.nodes) - 1}"

    def conv(self, given: str, inside: int, outside: int) -> str:
        return self.add("Conv", given, self.weight(outside, inside, 1, 1))

    def save(self, path: Path, inputs: dict[str, Sequence[int | str]], last: str, terms: dict[str, Any] | None) -> Path:
        self.nodes.append(helper.make_node("Identity", [last], ["scores"]))
        graph = helper.make_graph(
            self.nodes,
            "several",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in inputs.items()],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", CLASSES, "h", "w"])],
            self.weights,
        )
        model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
        if terms is not None:
            helper.set_model_props(model, {"segpipe": json.dumps(terms)})
        onnx.save(model, str(path))
        return path


def _two_images(graph: Graph) -> str:
    change = graph.add("Sub", graph.conv("before", 3, 8), graph.conv("after", 3, 8))
    return graph.conv(graph.add("Relu", change), 8, CLASSES)


def _two_sensors(graph: Graph) -> str:
    both = graph.add("Concat", graph.conv("s1", 2, 4), graph.conv("s2", 4, 8), axis=1)
    return graph.conv(graph.add("Relu", both), 12, CLASSES)


def _constant(graph: Graph) -> str:
    date = graph.add("MatMul", "date", graph.weight(2, 8))
    four = graph.add("Unsqueeze", date, graph.constant(np.array([2, 3])))
    scaled = graph.add("Mul", graph.conv("image", 3, 8), "scale")
    return graph.conv(graph.add("Relu", graph.add("Add", scaled, four)), 8, CLASSES)


def _series(axis: int) -> Callable[[Graph], str]:
    def build(graph: Graph) -> str:
        shape = [1, 1, 1, 1, 1]
        shape[axis] = 3
        weighted = graph.add("Mul", "image", graph.constant(np.array([1, -2, 0.5], np.float32).reshape(shape)))
        mixed = graph.add("ReduceSum", weighted, graph.constant(np.array([axis])), keepdims=0)
        return graph.conv(graph.add("Relu", graph.conv(mixed, 2, 8)), 8, CLASSES)

    return build


@dataclass(frozen=True)
class Form:
    """A form of network, what its contract says of its inputs, and how an image goes into them."""

    build: Callable[[Graph], str]
    shapes: dict[str, Sequence[int | str]]
    channels: int
    inputs: dict[str, dict[str, Any]]
    feed: Callable[[NDArray[np.float32]], dict[str, NDArray[np.float32]]]
    """Of scaled pixels ``(channels, rows, cols)``."""


DATE = [0.25, -1.5]

FORMS = {
    "two images": Form(
        _two_images,
        {"before": ("n", 3, "h", "w"), "after": ("n", 3, "h", "w")},
        6,
        {"before": {"channels": "0:3"}, "after": {"channels": [3, 4, 5]}},
        lambda x: {"before": x[None, :3], "after": x[None, 3:]},
    ),
    "two sensors": Form(
        _two_sensors,
        {"s1": ("n", 2, "h", "w"), "s2": ("n", 4, "h", "w")},
        6,
        {"s1": {"channels": [5, 1]}, "s2": {"channels": [0, 2, 3, 4]}},
        lambda x: {"s1": x[None, [5, 1]], "s2": x[None, [0, 2, 3, 4]]},
    ),
    "image and constants": Form(
        _constant,
        {"image": ("n", 3, "h", "w"), "date": ("n", 2), "scale": ()},
        3,
        {"image": {"channels": ":"}, "date": {"value": DATE}, "scale": {"value": 0.5}},
        lambda x: {"image": x[None], "date": np.array([DATE], np.float32), "scale": np.array(0.5, np.float32)},
    ),
    "dates before channels": Form(
        _series(1),
        {"image": ("n", 3, 2, "h", "w")},
        6,
        {"image": {"channels": ":", "axes": "NTCHW"}},
        lambda x: {"image": x.reshape(1, 3, 2, *x.shape[1:])},
    ),
    "channels before dates": Form(
        _series(2),
        {"image": ("n", 2, "t", "h", "w")},
        6,
        {"image": {"channels": ":", "axes": "NCTHW", "dates": 3}},
        lambda x: {"image": x.reshape(1, 3, 2, *x.shape[1:]).transpose(0, 2, 1, 3, 4)},
    ),
}


def several(path: Path, form: str, *, seed: int = 0, bare: bool = False, **changes: Any) -> Path:
    """Write a network of a form; ``bare``: without a contract."""
    own, graph = FORMS[form], Graph(seed)
    keys = {"inputs": own.inputs, "scale": SCALE, "offset": OFFSET} | changes
    terms = None if bare else contract(own.channels, CLASSES, **keys)
    return graph.save(path, own.shapes, own.build(graph), terms)


def labels_of(model: Path, form: str, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Labels of ONNX Runtime for a whole image ``(channels, rows, cols)``."""
    scaled = pixels.astype(np.float32) * np.float32(SCALE) + np.float32(OFFSET)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {name: np.ascontiguousarray(x) for name, x in FORMS[form].feed(scaled).items()})
    return scores[0].argmax(axis=0)
