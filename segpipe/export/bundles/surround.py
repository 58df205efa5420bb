"""Put operators before and behind a network: steps that a contract cannot express, and another order of axes."""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segpipe.errors import ExportError
from segpipe.export.bundles.steps import LARGEST, Affine, Clip, Numbers, Pointwise
from segpipe.geometry.layout import Layout

Operation = Affine | Clip | Pointwise


def surrounded(
    proto: onnx.ModelProto,
    layout: Layout,
    tensors: tuple[str, str],
    before: Sequence[Operation] = (),
    after: Sequence[Operation] = (),
) -> onnx.ModelProto:
    """A copy of a model with operations on its input and on its output, whose names stay.

    Args:
        proto: the model.
        layout: axes of both tensors.
        tensors: names of the image and of the scores.
        before: operations on the image, in order.
        after: operations on the scores, in order.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    if before:
        nodes = _Nodes("before", layout)
        _rename(copy.graph.node, tensors[0], inner := f"{tensors[0]}/given")
        nodes.chain(before, tensors[0], inner)
        _put(copy, nodes, first=True)
    if after:
        nodes = _Nodes("after", layout)
        _rename(copy.graph.node, tensors[1], inner := f"{tensors[1]}/made")
        nodes.chain(after, inner, tensors[1])
        _put(copy, nodes, first=False)
    return copy


def transposed(proto: onnx.ModelProto, layout: Layout, tensors: tuple[str, str]) -> onnx.ModelProto:
    """A copy of a model whose image and scores have their spatial axes in the reverse order."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    values = {value.name: value for value in (*copy.graph.input, *copy.graph.output)}
    for name, suffix, first in ((tensors[0], "given", True), (tensors[1], "made", False)):
        sizes = values[name].type.tensor_type.shape.dim
        if len(sizes) != len(layout):
            raise ExportError(f"{name} must have the axes {layout}, as its description says, got {len(sizes)} axes")
        order = _reverse(layout)
        reverse = [onnx.TensorShapeProto.Dimension.FromString(sizes[k].SerializeToString()) for k in order]
        del sizes[:]
        sizes.extend(reverse)
        inner = f"{name}/{suffix}"
        _rename(copy.graph.node, name, inner)
        ends = (name, inner) if first else (inner, name)
        node = helper.make_node("Transpose", [ends[0]], [ends[1]], f"{name}/transposed", perm=order)
        copy.graph.node.insert(0 if first else len(copy.graph.node), node)
    return copy


def _reverse(layout: Layout) -> list[int]:
    """Permutation that reverses the spatial axes.

    >>> _reverse(Layout.NDHWC)
    [0, 3, 2, 1, 4]
    """
    space = [axis for axis, letter in enumerate(layout) if letter not in "NC"]
    moved = dict(zip(space, reversed(space), strict=True))
    return [moved.get(axis, axis) for axis in range(len(layout))]


def _rename(nodes: Sequence[onnx.NodeProto], old: str, new: str) -> None:
    """Rename a tensor wherever it is used, also in branches and loops."""
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                _rename(graph.node, old, new)


class _Nodes:
    """Nodes in a row, with their constants."""

    def __init__(self, prefix: str, layout: Layout) -> None:
        self._prefix, self._layout = prefix, layout
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def chain(self, operations: Sequence[Operation], start: str, end: str) -> None:
        """Append operations from one tensor to another."""
        pairs = [pair for operation in operations for pair in self._operators(operation)]
        last = start
        for k, (operator, value) in enumerate(pairs):
            name = end if k == len(pairs) - 1 else f"{self._prefix}/{k}"
            inputs = [last] if value is None else [last, self._constant(value)]
            self.nodes.append(helper.make_node(operator, inputs, [name], f"{self._prefix}/{operator}{k}"))
            last = name
        for node in self.nodes:
            if node.op_type == "Softmax":
                node.attribute.append(helper.make_attribute("axis", self._layout.channel_axis))
            if node.op_type == "Cast":
                node.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))

    def _operators(self, operation: Operation) -> Iterator[tuple[str, Numbers | None]]:
        if isinstance(operation, Affine):
            yield "Mul", operation.gain
            yield "Add", operation.bias
        elif isinstance(operation, Clip):
            yield from (("Max", (operation.low,)),) if operation.low > -LARGEST else ()
            yield from (("Min", (operation.high,)),) if operation.high < LARGEST else ()
        elif operation.kind == "binarize":
            yield "Greater", operation.threshold
            yield "Cast", None
        else:
            yield {"sigmoid": "Sigmoid", "softmax": "Softmax"}[operation.kind], None

    def _constant(self, values: Numbers) -> str:
        name = f"{self._prefix}/constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(self._column(values), name))
        return name

    def _column(self, values: Numbers) -> NDArray[np.float32]:
        """Numbers along the channel axis."""
        column = np.array(values, np.float32)
        return column if self._layout.channels_last else column.reshape(-1, *[1] * self._layout.ndim)


def _put(proto: onnx.ModelProto, nodes: _Nodes, *, first: bool) -> None:
    own = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes.nodes, *own] if first else [*own, *nodes.nodes])
    proto.graph.initializer.extend(nodes.constants)
