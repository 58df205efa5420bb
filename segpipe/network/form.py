"""Check the form of a graph: its inputs and outputs, as far as its file shows them."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx

from segpipe.errors import ModelError
from segpipe.geometry.layout import Layout, likely_layout
from segpipe.network.ending import Ending, ending_of
from segpipe.network.signature import TensorSpec, signature

RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}


QUANTISED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger"}


def is_quantised(proto: onnx.ModelProto) -> bool:
    """Whether a graph computes in integers of 8 bits where it can."""
    return any(node.op_type in QUANTISED for node in proto.graph.node)


def check_graph(proto: onnx.ModelProto, path: Path, image: TensorSpec, scores: TensorSpec) -> None:
    """Check that a model gives scores, the same each time.

    Raises:
        ModelError: with the mend.
    """
    _, outputs = signature(proto)
    if changing := sorted(set(_changing(proto))):
        raise ModelError(
            f"{path} must give the same scores each time, and does not ({', '.join(changing)}): export it in evaluation mode"
        )
    ending = ending_of(proto, scores.name)
    if ending.labels:
        raise ModelError(
            f"{path} must give a score per class, which are blended where tiles overlap, and its output {scores.name} is "
            f"labels ({ending}); models of labels are not supported yet: {_uncover(proto, path, image, ending, outputs)}"
        )
    if scores.is_integer and score_count(scores, likely_layout(image.shape)) in (1, None):
        raise ModelError(
            f"{path} must give a score per class, as floats, and its output {scores} holds {scores.dtype}, labels or "
            "quantized scores: export it without the step that makes integers of scores"
        )


def _changing(proto: onnx.ModelProto) -> Iterator[str]:
    """Yield operators whose results change from call to call: random ones, and those with running statistics."""
    for node in _nodes([*proto.graph.node, *(node for function in proto.functions for node in function.node)]):
        if node.op_type in RANDOM:
            yield node.op_type
        elif node.op_type == "BatchNormalization" and any(a.name == "training_mode" and a.i for a in node.attribute):
            yield "batch normalisation in training mode"


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
            return f'set output = "{other.name}" in the contract, if that is its scores'
    names = f'"{path}", "{path.with_stem(path.stem + "-scores")}", ["{image.name}"], ["{ending.scores}"]'
    command = f"python -c 'import onnx; onnx.utils.extract_model({names})'"
    return f"its scores are the tensor {ending.scores}, which becomes the output by: {command}"


def score_count(tensor: TensorSpec, layout: Layout) -> int | None:
    """Number of scores per pixel of an output; None if its shape does not say; 1 without a class axis."""
    has_classes = layout.has_class_axis(tensor.shape)
    if has_classes is None:
        return None
    return layout.channels(tensor.shape) if has_classes else 1
