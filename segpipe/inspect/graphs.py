"""Parts of an ONNX graph: subgraphs, free inputs, names of types."""

from collections.abc import Iterator

import onnx
from onnx import TensorProto


def free_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Inputs that are not weights."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in weights]


def type_name(element: int) -> str:
    """``float32`` for ONNX's ``FLOAT``."""
    name = str(TensorProto.DataType.Name(element)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """Yield the graph, its local functions, and all branches and loop bodies in them."""
    for top in (proto.graph, *proto.functions):
        yield from with_subgraphs(top)


def with_subgraphs(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """Yield a graph or function, and all branches and loop bodies in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from with_subgraphs(inner)
