"""What a model's file says of its output: scores or labels, of how many classes, in which axis order and on which grid."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from segpipe.geometry.layout import Layout
from segpipe.network.ending import Ending, ending_of
from segpipe.network.form import gives_labels, score_count
from segpipe.network.shapes import inferred
from segpipe.network.signature import TensorSpec, signature

PRESENCE = frozenset({"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Not", "And", "Or", "Xor", "Round"})
"""Operators that give 0 or 1 for a class by itself."""


@dataclass(frozen=True)
class OutputFacts:
    """An output, as far as the file shows it."""

    name: str
    layout: Layout
    """Axis order."""
    classes: int | None
    """Number of scores, or of labels; None if the file does not say."""
    sizes: tuple[int | None, ...]
    """Spatial sizes for one tile; None where the file does not say."""
    is_labels: bool
    ending: Ending

    @property
    def task(self) -> str:
        """The task that it looks like."""
        if self.classes == 1 or (self.is_labels and self.ending.operator in PRESENCE and self.classes in (None, 1)):
            return "binary"
        one_each = self.ending.operator in PRESENCE or self.ending.operator.endswith("Sigmoid")
        return "multilabel" if one_each and self.classes else "multiclass"

    @property
    def activation(self) -> str:
        """Activation by the looks of the output; ``labels`` if it holds these, ``none`` if it holds probabilities."""
        if self.is_labels:
            return "labels"
        if self.ending.is_probability:
            return "none"
        return "softmax" if self.task == "multiclass" else "sigmoid"


def output_facts(
    proto: onnx.ModelProto, image: TensorSpec, layout: Layout, tile: Sequence[int], output: TensorSpec
) -> OutputFacts:
    """What the file says of an output for one tile.

    Args:
        proto: the model.
        image: its input of pixels.
        layout: axis order of the input.
        tile: sizes of a tile.
        output: the output.
    """
    shapes = _shapes(proto, image, layout, tile)
    known = TensorSpec(output.name, output.dtype, shapes.get(output.name, output.shape))
    ending, labels = ending_of(proto, output.name), gives_labels(proto, known, image)
    order = likely_order(layout, tile, known.shape)
    count = score_count(known, order)
    if labels and ending.operator in ("ArgMax", "ArgMin", "TopK") and ending.scores is not None:
        count = _decided_among(proto, shapes.get(ending.scores, ()))
    elif labels and count == 1 and ending.operator not in PRESENCE:
        count = None
    spatial = order.spatial(known.shape) if order.has_class_axis(known.shape) else known.shape[1:]
    return OutputFacts(output.name, order, count, spatial, labels, ending)


def likely_order(layout: Layout, tile: Sequence[int], shape: Sequence[int | None]) -> Layout:
    """The axis order of an output: that of the input unless its sizes cannot be those of a tile, and another's can."""
    if not layout.has_class_axis(shape) or _is_tile(layout.spatial(shape), tile):
        return layout
    others = (one for one in Layout if one.ndim == layout.ndim and one is not layout)
    return next((one for one in others if _is_tile(one.spatial(shape), tile)), layout)


def _is_tile(sizes: Sequence[int | None], tile: Sequence[int]) -> bool:
    """Whether sizes may be those of a tile on some grid: with one ratio, or one difference, along all axes."""
    known = [(t, s) for t, s in zip(tile, sizes, strict=True) if s is not None]
    ratios, differences = {-(-t // s) for t, s in known}, {t - s for t, s in known}
    return all(s <= t for t, s in known) and (len(ratios) <= 1 or len(differences) == 1)


def _decided_among(proto: onnx.ModelProto, shape: tuple[int | None, ...]) -> int | None:
    """Size of the axis that the last ArgMax or TopK runs over."""
    node = next(n for n in reversed(proto.graph.node) if n.op_type in ("ArgMax", "ArgMin", "TopK"))
    default = -1 if node.op_type == "TopK" else 0
    axis = next((a.i for a in node.attribute if a.name == "axis"), default)
    return shape[axis] if -len(shape) <= axis < len(shape) else None


def _shapes(
    proto: onnx.ModelProto, image: TensorSpec, layout: Layout, tile: Sequence[int]
) -> dict[str, tuple[int | None, ...]]:
    """Shapes of all tensors for one tile, by shape inference; those in the file where that fails."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for value in copy.graph.input:
        if value.name == image.name and len(value.type.tensor_type.shape.dim) == len(layout):  # a series has an axis more
            _fix(value, layout.shape((1, layout.channels(image.shape), *tile)))
    del copy.graph.value_info[:]
    declared = [TensorSpec(one.name, one.dtype, one.shape) for one in signature(proto)[1]]
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    if (graph := inferred(copy)) is None:
        return {one.name: one.shape for one in declared}
    found = {value.name: _shape(value) for value in (*graph.value_info, *graph.output)}
    for one in declared:
        sizes = found.get(one.name) or ()
        if len(sizes) != len(one.shape):
            found[one.name] = one.shape
        else:
            found[one.name] = tuple(b if a is None else a for a, b in zip(sizes, one.shape, strict=True))
    return found


def _fix(value: onnx.ValueInfoProto, shape: Sequence[int | None]) -> None:
    """Fix the free axes of an input; one with an axis of dates, which ``shape`` lacks, stays as it is."""
    if len(value.type.tensor_type.shape.dim) != len(shape):
        return
    for axis, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
        if size is not None and not axis.dim_value:
            axis.dim_value = size


def _shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    tensor = value.type.tensor_type
    return tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in tensor.shape.dim)
