"""Count the operations of a model for one tile."""

import json
import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, inliner

from segpipe.inspect.facts import Flops
from segpipe.inspect.graphs import free_inputs, graphs, with_subgraphs
from segpipe.network.shapes import inferred
from segpipe.network.spec import ModelSpec

WEIGHT_AT = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "ConvTranspose": 1}
PRODUCTS = frozenset({"MatMul", "MatMulInteger", "QLinearMatMul", "Gemm"})
COUNTED = PRODUCTS | WEIGHT_AT.keys()
NOT_COUNTED = frozenset({"Attention", "DeformConv", "Einsum", "GRU", "LSTM", "RNN"})

KEPT_VALUES = 1024
"""Most elements of constants that keep their values for shape inference: sizes and axes, never weights."""

Sizes = Sequence[int | None] | None
"""Shape of a tensor; None for an unknown size, or an unknown shape."""

Shaped = tuple[str, list[list[int]], list[int]]
"""A counted node: operator, shapes of its inputs, shape of its output."""


def count_flops(proto: onnx.ModelProto, spec: ModelSpec | None, *, runs: bool = True) -> Flops | None:
    """Operations for one tile: the contract's, else the file's own if its sizes are fixed.

    Shapes come from ONNX's shape inference, or from ONNX Runtime's profiler where inference leaves any unknown. Both were
    tried on the bundled network, the 12 models of ``shared/data`` and four exports with fixed and with free sizes:
    inference takes 0.01 to 0.3 s, runs nothing (a volume of 256³ included) and agrees with the profiler wherever it knows
    all sizes, but loses them in the Shape and Reshape arithmetic of three of the four with free sizes (LR-ASPP, SegFormer,
    UPerNet). The profiler knows every shape, branches included, and costs one tile, as a run's first check does. Without
    ``runs``, the model does not run to its end, and is not run.
    """
    feed = _feed(proto, spec)
    if feed is None:
        return None
    nodes = _inferred(proto, feed.shapes)
    if nodes is None and spec and runs:
        nodes = _profiled(spec, feed.batch)
    if nodes is None:
        return None
    by_operator: Counter[str] = Counter()
    for op, inputs, output in nodes:
        by_operator[op] += operations(op, inputs, output) // feed.batch
    return Flops(by_operator.total(), feed.tile, dict(by_operator.most_common()), _not_counted(proto))


def operations(op: str, inputs: Sequence[Sequence[int]], output: Sequence[int]) -> int:
    """Two per multiply-add of a node, from the shapes of its inputs and its output; the weight's shape reflects groups.

    >>> operations("Conv", [(1, 4, 8, 8), (16, 2, 3, 3)], (1, 16, 8, 8)) == 2 * (16 * 8 * 8) * (2 * 3 * 3)
    True
    """
    first = inputs[0]
    if op == "ConvTranspose":  # a kernel spreads each input pixel
        return 2 * math.prod(first) * math.prod(inputs[1][1:])
    if op in WEIGHT_AT:
        return 2 * math.prod(output) * math.prod(inputs[WEIGHT_AT[op]][1:])
    inner = math.prod(first) // output[0] if op == "Gemm" else first[-1]  # Gemm's first input may be transposed
    return 2 * math.prod(output) * inner


@dataclass(frozen=True, slots=True)
class _Fed:
    """What a graph gets for one tile, or for a batch if the file fixes it."""

    batch: int
    shapes: dict[str, Sequence[int]]
    tile: list[int]
    """Shape of the input of pixels, the first of several, for one tile."""


def _feed(proto: onnx.ModelProto, spec: ModelSpec | None) -> _Fed | None:
    if spec is None:
        return _fed_alone(free_inputs(proto))
    batch = spec.batch if spec.batch_is_fixed else 1
    shapes: dict[str, Sequence[int]] = {feed.name: feed.shape((batch, *spec.batch_shape[1:])) for feed in spec.feeds}
    first = next(feed for feed in spec.feeds if feed.name == spec.input)
    return _Fed(batch, shapes, list(first.shape((1, *spec.batch_shape[1:]))))


def _fed_alone(images: Sequence[onnx.ValueInfoProto]) -> _Fed | None:
    """By the file alone, if it fixes all sizes of one input."""
    dims = [d.dim_value for d in images[0].type.tensor_type.shape.dim] if len(images) == 1 else []
    if not dims or not all(dims[1:]):
        return None
    return _Fed(dims[0] or 1, {images[0].name: [dims[0] or 1, *dims[1:]]}, [1, *dims[1:]])


def _not_counted(proto: onnx.ModelProto) -> list[str]:
    functions = {function.name for function in proto.functions}
    nodes = [node for graph in graphs(proto) for node in graph.node if node.op_type not in functions]
    foreign = {f"{n.domain}.{n.op_type}" for n in nodes if n.domain not in ("", "ai.onnx")}
    return sorted(foreign | {n.op_type for n in nodes if n.op_type in NOT_COUNTED})


def _inferred(proto: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> list[Shaped] | None:
    """Counted nodes with inferred shapes; None where a shape is unknown, or a branch decides."""
    if (graph := inferred(_fixed(proto, shapes))) is None:
        return None
    if any(node.op_type in COUNTED for inner in with_subgraphs(graph) if inner is not graph for node in inner.node):
        return None
    sizes: dict[str, Sizes] = {t.name: list(t.dims) for t in graph.initializer}
    sizes |= {value.name: _sizes(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    counted = [node for node in graph.node if node.op_type in COUNTED]
    if not all(_known(sizes.get(name)) for node in counted for name in (*node.input, node.output[0]) if name):
        return None
    known = {name: [n or 0 for n in shape or ()] for name, shape in sizes.items()}
    return [(node.op_type, [known[name] for name in node.input if name], known[node.output[0]]) for node in counted]


def _known(shape: Sizes) -> bool:
    return shape is not None and None not in shape


def _sizes(value: onnx.ValueInfoProto) -> Sizes:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]


def _fixed(proto: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """The graph without weights and value_info, with fixed shapes of its inputs."""
    light = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    light.graph.name = proto.graph.name
    light.graph.node.extend(proto.graph.node)
    light.graph.initializer.extend(_light(tensor) for tensor in proto.graph.initializer)
    for value in free_inputs(proto):
        kind = value.type.tensor_type.elem_type
        light.graph.input.append(helper.make_tensor_value_info(value.name, kind, shapes[value.name]))
    light.graph.output.extend(helper.make_empty_tensor_value_info(value.name) for value in proto.graph.output)
    return inliner.inline_local_functions(light) if light.functions else light


def _light(tensor: TensorProto) -> TensorProto:
    """A weight without its values; small constants, such as sizes, keep theirs."""
    if math.prod(tensor.dims) <= KEPT_VALUES and tensor.data_location != TensorProto.EXTERNAL:
        return tensor
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)


def _profiled(spec: ModelSpec, batch: int) -> list[Shaped] | None:
    """Counted nodes with their shapes in one run of ONNX Runtime; None if it fails."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")  # prepacked weights are not listed as inputs
    options.enable_profiling, options.enable_cpu_mem_arena, options.log_severity_level = True, False, 4
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/profile"
        try:
            session = onnxruntime.InferenceSession(str(spec.path), options, providers=["CPUExecutionProvider"])
            session.run(None, spec.given(np.zeros((batch, *spec.batch_shape[1:]), spec.input_dtype)))
        except Exception:  # noqa: BLE001 - onnxruntime raises its own classes, which share no base
            return None
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return [_shaped(e["args"]) for e in events if e["name"].endswith("_kernel_time") and e["args"]["op_name"] in COUNTED]


def _shaped(arguments: Mapping[str, Any]) -> Shaped:
    """Parse the profiler's ``[{"float": [1, 3, 8, 8]}, ...]``."""
    inputs, outputs = ([*map(_only, arguments[key])] for key in ("input_type_shape", "output_type_shape"))
    return arguments["op_name"], inputs, outputs[0]


def _only(tensor: Mapping[str, list[int]]) -> list[int]:
    (shape,) = tensor.values()
    return shape
