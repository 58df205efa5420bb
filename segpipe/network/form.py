"""Check the form of a graph: its inputs and outputs, as far as its file shows them."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx

from segpipe.contract import Contract
from segpipe.errors import ContractError, ModelError
from segpipe.geometry.layout import Layout, likely_layout
from segpipe.network.ending import Ending, ending_of
from segpipe.network.signature import TensorSpec, signature

RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}


QUANTISED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger"}


def is_quantised(proto: onnx.ModelProto) -> bool:
    """Whether a graph computes in integers of 8 bits where it can."""
    return any(node.op_type in QUANTISED for node in proto.graph.node)


def check_graph(
    proto: onnx.ModelProto, path: Path, image: TensorSpec, scores: TensorSpec, contract: Contract | None = None
) -> None:
    """Check that a model gives scores or labels, as its contract says, the same each time.

    Raises:
        ModelError: with the mend.
        ContractError: it gives labels, and its contract says scores.
    """
    _, outputs = signature(proto)
    for tensor in (image, scores):
        _check_tensor(proto, path, tensor.name)
    if changing := sorted(set(_changing(proto))):
        raise unsteady(path, ", ".join(changing))
    if contract is not None and not contract.gives_labels and gives_labels(proto, scores, image):
        ending = ending_of(proto, scores.name)
        raise ContractError(
            f"{path}: its output {scores} is labels ({_why(ending, scores)}), and the contract says activation = "
            f'"{contract.activation}", which is for scores: set activation = "labels" in the contract'
            + (f", or {_uncover(proto, path, image, ending, outputs)}" if ending.labels else "")
        )


def unsteady(path: Path, what: str) -> ModelError:
    """The error of a graph whose scores change from call to call."""
    return ModelError(f"{path} must give the same scores each time, and does not ({what}): export it in evaluation mode")


def may_drop(proto: onnx.ModelProto) -> bool:
    """Whether dropout may be in training mode: ONNX Runtime leaves it out in most places of a graph, but not in all."""
    return any(node.op_type == "Dropout" and len(node.input) > 2 for node in all_nodes(proto))


def _check_tensor(proto: onnx.ModelProto, path: Path, name: str) -> None:
    """Check that an input or output is a tensor.

    Raises:
        ModelError: it is something else, such as a sequence of tensors.
    """
    kind = next(v.type.WhichOneof("value") for v in (*proto.graph.output, *proto.graph.input) if v.name == name)
    if kind not in ("tensor_type", None):
        raise ModelError(
            f"{path}: {name} must be a tensor, and is a {str(kind).removesuffix('_type')}: export it with a tensor there"
        )


def gives_labels(proto: onnx.ModelProto, output: TensorSpec, image: TensorSpec) -> bool:
    """Whether an output is labels: the result of a decision such as ArgMax, or one integer per pixel."""
    if ending_of(proto, output.name).labels:
        return True
    return output.is_integer and score_count(output, likely_layout(image.shape)) in (1, None)


def _why(ending: Ending, output: TensorSpec) -> str:
    return str(ending) if ending.labels or output.dtype is None else f"it holds {output.dtype}"


def _changing(proto: onnx.ModelProto) -> Iterator[str]:
    """Yield operators whose results change from call to call: random ones, and those with running statistics."""
    for node in all_nodes(proto):
        if node.op_type in RANDOM:
            yield node.op_type
        elif node.op_type == "BatchNormalization" and any(a.name == "training_mode" and a.i for a in node.attribute):
            yield "batch normalisation in training mode"


def all_nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of its local functions, including those of branches and loops."""
    yield from _nodes([*proto.graph.node, *(node for function in proto.functions for node in function.node)])


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes, including those of branches and loops."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _nodes([*attribute.g.node, *(inner for graph in attribute.graphs for inner in graph.node)])


def _uncover(proto: onnx.ModelProto, path: Path, image: TensorSpec, ending: Ending, outputs: Sequence[TensorSpec]) -> str:
    """Say how to get at the scores that labels were made from."""
    for other in outputs:
        if not ending_of(proto, other.name).labels and not other.is_integer:
            return f'output = "{other.name}", if that is its scores'
    names = f'"{path}", "{path.with_stem(path.stem + "-scores")}", ["{image.name}"], ["{ending.scores}"]'
    command = f"python -c 'import onnx; onnx.utils.extract_model({names})'"
    return f"take its scores, the tensor {ending.scores}, which becomes the output by: {command}"


def score_count(tensor: TensorSpec, layout: Layout) -> int | None:
    """Number of scores per pixel of an output; None if its shape does not say; 1 without a class axis."""
    has_classes = layout.has_class_axis(tensor.shape)
    if has_classes is None:
        return None
    return layout.channels(tensor.shape) if has_classes else 1
