"""Sizes inside a graph for inputs of given shapes, by ONNX's shape inference."""

from collections.abc import Mapping, Sequence

import onnx

from segpipe.geometry.layout import Layout

Shapes = Mapping[str, Sequence[int]]
"""Shapes of inputs by name, each in the input's own order of axes."""


def with_shapes(proto: onnx.ModelProto, given: Shapes) -> onnx.GraphProto | None:
    """A copy of the graph with the shapes that follow from those of its inputs; None where they cannot be inferred."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for value in copy.graph.input:
        for axis, size in zip(value.type.tensor_type.shape.dim, given.get(value.name, ()), strict=False):
            axis.dim_value = size
    for value in copy.graph.output:  # sizes that the file leaves open may have names that contradict those
        value.type.tensor_type.ClearField("shape")
    return inferred(copy)


def inferred(proto: onnx.ModelProto) -> onnx.GraphProto | None:
    """The graph with the shapes that ONNX infers; None where it cannot."""
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except Exception:  # noqa: BLE001 - onnx passes on whatever its inference in C++ raises
        return None


def output_sizes(proto: onnx.ModelProto, given: Shapes, scores: str, layout: Layout) -> tuple[int, ...] | None:
    """Spatial sizes of an output for inputs of given shapes; None where they are not known."""
    graph = with_shapes(proto, given)
    if graph is None:
        return None
    (found,) = (value for value in graph.output if value.name == scores)
    sizes = tuple(axis.dim_value for axis in found.type.tensor_type.shape.dim)
    has_classes = layout.has_class_axis(sizes)
    if not sizes or has_classes is None:
        return None
    spatial = tuple(layout.spatial(sizes) if has_classes else sizes[1:])
    return None if 0 in spatial else spatial


def margin_by_size(tile: Sequence[int], sizes: Sequence[int]) -> tuple[int, ...] | None:
    """The margin of an output that is the middle of the tile; None if it cannot be.

    >>> margin_by_size((572, 572), (388, 388)), margin_by_size((9,), (4,))
    ((92, 92), None)
    """
    less = [t - s for t, s in zip(tile, sizes, strict=True)]
    return None if min(less) < 0 or any(n % 2 for n in less) else tuple(n // 2 for n in less)
