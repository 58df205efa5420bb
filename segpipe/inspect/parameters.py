"""Count the parameters stored in an ONNX file."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator

import onnx
from onnx import TensorProto, helper

from segpipe.inspect.facts import Parameters
from segpipe.inspect.graphs import graphs, type_name

_QUANTISED = frozenset({1, 2, 4, 5, 6, 7})
NOT_WEIGHTS: dict[str, frozenset[int]] = {
    "Resize": frozenset({1, 2, 3}),
    "Upsample": frozenset({1}),
    "QuantizeLinear": frozenset({1, 2}),
    "DequantizeLinear": frozenset({1, 2}),
    "ConvInteger": frozenset({2, 3}),
    "MatMulInteger": frozenset({2, 3}),
    "QLinearConv": _QUANTISED,
    "QLinearMatMul": _QUANTISED,
}
"""Input positions of sizes, scales and zero points."""

BIASES = {"DequantizeLinear": 0, "QLinearConv": 8}
"""Input positions at which an int32 is a quantised bias; other 32- and 64-bit integers are sizes and indices."""

_SIZES = frozenset(getattr(TensorProto, name) for name in ("INT64", "UINT64", "UINT32", "BOOL", "STRING"))
_BITS = {"int4": 4, "uint4": 4, "float4e2m1": 4, "int2": 2, "uint2": 2, "float6e2m3": 6, "float6e3m2": 6}


def count_parameters(proto: onnx.ModelProto) -> Parameters:
    """Count the elements of all floating-point and quantised constants with at least one axis, by their dimensions alone."""
    nodes = [node for graph in graphs(proto) for node in graph.node]
    left_out = {name for node in nodes for name in _inputs_at(node, NOT_WEIGHTS.get(node.op_type, ()))}
    biases = {name for node in nodes for name in _inputs_at(node, [BIASES.get(node.op_type, -1)])}
    types: Counter[str] = Counter()
    for name, tensor in _constants(proto):
        integer = tensor.data_type in _SIZES or (tensor.data_type == TensorProto.INT32 and name not in biases)
        if tensor.dims and not integer and name not in left_out:
            types[type_name(tensor.data_type)] += math.prod(tensor.dims)
    return Parameters(types.total(), sum(-(-n * _bits(kind) // 8) for kind, n in types.items()), dict(types))


def _inputs_at(node: onnx.NodeProto, places: Iterable[int]) -> list[str]:
    return [node.input[place] for place in places if 0 <= place < len(node.input)]


def _bits(kind: str) -> int:
    return _BITS.get(kind) or 8 * helper.tensor_dtype_to_np_dtype(_element(kind)).itemsize


def _element(kind: str) -> int:
    name = {"float32": "float", "float64": "double"}.get(kind, kind)
    return int(TensorProto.DataType.Value(name.upper()))


def _constants(proto: onnx.ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Yield initializers and the tensors of Constant nodes, with the names that nodes refer to."""
    for graph in graphs(proto):
        yield from ((tensor.name, tensor) for tensor in getattr(graph, "initializer", ()))
        for node in graph.node:
            if node.op_type == "Constant":
                yield from ((node.output[0], a.t) for a in node.attribute if a.name == "value")
