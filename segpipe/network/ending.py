"""The end of a graph: the operator that makes an output, and the range of the values that it can take."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import onnx
from onnx import TensorProto, helper, numpy_helper

Range = tuple[float, float]

OPEN: Range = (-math.inf, math.inf)
UNIT: Range = (0.0, 1.0)

DEEPEST = 60
"""Most operators to follow from the output towards the input."""

OVERSHOOT = 0.45
"""Overshoot of cubic interpolation on two axes as a share of the input's range: absolute weights sum to 1.375²."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a graph, as far as its operators reveal it."""

    operator: str
    """The last operator that computes; moving, casting and resizing are skipped. ``input`` if there is none."""
    range: Range | None
    """Range that the output cannot leave, whatever the input; None where an operator is unknown."""
    labels: bool = False
    """Whether the output is the result of a decision, such as ArgMax."""
    scores: str | None = None
    """For labels: name of the tensor that the decision was made on."""

    @property
    def is_probability(self) -> bool:
        """Whether the operators guarantee that the output lies within [0, 1]."""
        return self.range is not None and 0 < self.range[1] <= 1 + OVERSHOOT and -self.range[0] <= OVERSHOOT * self.range[1]

    @property
    def is_open(self) -> bool:
        """Whether the operators are known, and the output may leave [0, 1]."""
        return self.range is not None and not self.is_probability

    def __str__(self) -> str:
        return "its output is its input" if self.operator == "input" else f"the graph ends in {self.operator}"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


MOVES = _names(
    "Identity Cast CastLike Transpose Reshape Flatten Squeeze Unsqueeze Slice Gather Split Dropout Expand Tile DepthToSpace "
    "SpaceToDepth QuantizeLinear DequantizeLinear Resize Upsample MaxPool AveragePool GlobalAveragePool GlobalMaxPool "
    "ReduceMean ReduceMax ReduceMin Pad"
)
"""Operators whose output lies within the range of their first input."""

DECIDES = _names("ArgMax ArgMin Greater GreaterOrEqual Less LessOrEqual Equal Not And Or Xor Round Floor Ceil Sign")

LINEAR = _names(
    "Conv ConvTranspose Gemm MatMul Einsum BatchNormalization InstanceNormalization LayerNormalization GroupNormalization "
    "QLinearConv QLinearMatMul QGemm ConvInteger MatMulInteger MatMulNBits LeakyRelu PRelu Elu Celu Selu Gelu HardSwish "
    "Mish Log LpNormalization MeanVarianceNormalization"
)
"""Operators whose output may take (nearly) any value."""

FIXED: dict[str, Range] = {
    "Sigmoid": UNIT,
    "QLinearSigmoid": UNIT,
    "HardSigmoid": UNIT,
    "Softmax": UNIT,
    "QLinearSoftmax": UNIT,
    "Hardmax": UNIT,
    "LogSoftmax": (-math.inf, 0.0),
    "Tanh": (-1.0, 1.0),
    "Softsign": (-1.0, 1.0),
    "Erf": (-1.0, 1.0),
    "Sin": (-1.0, 1.0),
    "Cos": (-1.0, 1.0),
    "Softplus": (0.0, math.inf),
    "ThresholdedRelu": (0.0, math.inf),
}
"""Operators with a fixed output range."""

AT_LEAST_0 = frozenset({"Relu", "Exp", "Abs", "Sqrt"})
"""Operators whose output is never negative, whatever else is known."""


def ending_of(proto: onnx.ModelProto, output: str) -> Ending:
    """Describe how an output of a graph is made."""
    graph = _Graph(proto)
    node, name = graph.last(output)
    if node is None:
        return Ending("input", graph.range(output))
    if node.op_type in DECIDES or (node.op_type == "TopK" and name != node.output[0]):
        return Ending(node.op_type, graph.range(output), labels=True, scores=graph.decided_on(node))
    return Ending(node.op_type, graph.range(output))


class _Graph:
    """A graph's nodes by the tensors that they make, and its constants."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._makers = {name: node for node in proto.graph.node for name in node.output if name}
        self._weights = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._inputs = {value.name for value in proto.graph.input} - self._weights.keys()
        self._known: dict[str, Range | None] = {}

    def last(self, name: str) -> tuple[onnx.NodeProto | None, str]:
        """The operator that computes a tensor, skipping those that only move values, and its output; None for an input."""
        node = self._makers.get(name)
        while node is not None and node.op_type in MOVES and node.input:
            name = node.input[0]
            node = self._makers.get(name)
        return node, name

    def decided_on(self, node: onnx.NodeProto) -> str:
        """Name of the tensor of scores that a decision was made on; for several decisions in a row, that of the first."""
        name: str = node.input[0]
        for _ in range(DEEPEST):
            inner, _ = self.last(name)
            if inner is None or inner.op_type not in DECIDES:
                break
            name = inner.input[0]
        while (maker := self._makers.get(name)) is not None and maker.op_type in ("Transpose", "Identity", "Cast"):
            name = maker.input[0]
        return name

    def range(self, name: str, depth: int = 0) -> Range | None:
        """Range that a tensor cannot leave; None where it is unknown."""
        if name not in self._known:
            self._known[name] = self._computed(name, depth)
        return self._known[name]

    def _computed(self, name: str, depth: int) -> Range | None:
        node = self._makers.get(name)
        if node is None:
            return OPEN if name in self._inputs else _range_of(self._weights.get(name))
        if node.op_type == "Constant":
            return _range_of(next((a.t for a in node.attribute if a.name == "value"), None))
        if node.op_type in LINEAR or node.op_type in FIXED:
            return FIXED.get(node.op_type, OPEN)
        if depth > DEEPEST:
            return None
        if node.op_type == "Clip":
            return self._clip(node, depth)
        return self._combined(node, depth)

    def _combined(self, node: onnx.NodeProto, depth: int) -> Range | None:
        """Range by the rule of an operator whose range depends on its inputs."""
        rule = _RULES.get(node.op_type)
        if rule is None and node.op_type in DECIDES - {"Round", "Floor", "Ceil", "Sign", "ArgMax", "ArgMin"}:
            return UNIT
        if rule is None and node.op_type not in MOVES:
            return None
        names = [node.input[0]] if rule is None else list(node.input)[1:] if node.op_type == "Where" else list(node.input)
        given = [self.range(name, depth + 1) for name in names]
        known = [one for one in given if one is not None]
        if len(known) < len(given):
            return (0.0, math.inf) if node.op_type in AT_LEAST_0 else None
        return _moved(node, known[0]) if rule is None else rule(known)

    def _clip(self, node: onnx.NodeProto, depth: int) -> Range:
        inner = self.range(node.input[0], depth + 1) or OPEN
        limits = [
            self.range(node.input[i], depth + 1) or OPEN if len(node.input) > i and node.input[i] else OPEN for i in (1, 2)
        ]
        named = {a.name: a.f for a in node.attribute}
        low, high = named.get("min", limits[0][0]), named.get("max", limits[1][1])
        return (min(max(inner[0], low), high), max(min(inner[1], high), low))


def _range_of(tensor: TensorProto | None) -> Range | None:
    """Range of a constant; None where the file does not contain it, or it is not numeric."""
    if tensor is None or tensor.data_location == TensorProto.EXTERNAL or tensor.data_type == TensorProto.STRING:
        return None
    values = numpy_helper.to_array(tensor)
    return (float(values.min()), float(values.max())) if values.size else None


def _moved(node: onnx.NodeProto, inner: Range) -> Range | None:
    """Range after an operator that moves values: padding may add zeros, and cubic interpolation overshoots."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Pad" and attributes.get("mode", b"constant") == b"constant":
        return (min(inner[0], 0.0), max(inner[1], 0.0))
    if node.op_type in ("Resize", "Upsample") and attributes.get("mode") in (b"cubic", b"bicubic"):
        more = OVERSHOOT * (inner[1] - inner[0])
        return (inner[0] - more, inner[1] + more)
    return inner


def _product(a: Range, b: Range) -> Range:
    ends = [0.0 if 0 in (x, y) else x * y for x in a for y in b]  # 0 times infinity counts as 0
    return (min(ends), max(ends))


def _inverse(a: Range) -> Range:
    if a[0] > 0 or a[1] < 0:
        return (1 / a[1], 1 / a[0])
    return (0.0, math.inf) if a[0] == 0 and a[1] > 0 else OPEN


def _sum(ranges: list[Range]) -> Range:
    return (sum(a for a, _ in ranges), sum(b for _, b in ranges))


def _negative(a: Range) -> Range:
    return (-a[1], -a[0])


def _exp(x: float) -> float:
    return math.inf if x > 700 else math.exp(x)


def _hull(ranges: list[Range]) -> Range:
    return (min(a for a, _ in ranges), max(b for _, b in ranges))


def _extreme(choose: Callable[..., float], ranges: list[Range]) -> Range:
    return (choose(a for a, _ in ranges), choose(b for _, b in ranges))


_RULES: Mapping[str, Callable[[list[Range]], Range]] = {
    "Relu": lambda r: (max(r[0][0], 0.0), max(r[0][1], 0.0)),
    "Exp": lambda r: (_exp(r[0][0]), _exp(r[0][1])),
    "Abs": lambda r: (0.0, max(abs(r[0][0]), abs(r[0][1]))),
    "Sqrt": lambda r: (0.0, math.sqrt(max(r[0][1], 0.0))),
    "Neg": lambda r: _negative(r[0]),
    "Reciprocal": lambda r: _inverse(r[0]),
    "Add": _sum,
    "Sum": _sum,
    "Sub": lambda r: _sum([r[0], _negative(r[1])]),
    "Mul": lambda r: _product(r[0], r[1]),
    "Div": lambda r: _product(r[0], _inverse(r[1])),
    "Mean": _hull,
    "Concat": _hull,
    "Where": _hull,
    "Max": partial(_extreme, max),
    "Min": partial(_extreme, min),
}
