"""The total stride of a network, as far as the strides of its operators show it."""

from collections.abc import Sequence

import onnx
from onnx import helper

from segpipe.contract import DEFAULT_ALIGN

REDUCES = frozenset({"Conv", "MaxPool", "AveragePool", "LpPool", "QLinearConv", "ConvInteger", "QLinearAveragePool"})

LONGEST = 64
"""Longest stride that is believed: products of strides beyond it come from graphs that upsample in between."""


def graph_stride(proto: onnx.ModelProto) -> int | None:
    """The largest product of strides on a path through the graph, over all axes; None if there is none to be believed.

    Convolutions and pools multiply it, transposed convolutions divide it, all else passes on the largest of its inputs.
    Patches that a graph makes by reshaping are not seen.
    """
    strides: dict[str, int] = {}
    most = 1
    for node in proto.graph.node:  # in topological order, as ONNX requires
        stride = max((strides.get(name, 1) for name in node.input), default=1)
        own = _own(node)
        if node.op_type in REDUCES:
            stride *= own
        elif node.op_type == "ConvTranspose":
            stride = max(1, stride // own)
        elif node.op_type in ("SpaceToDepth", "DepthToSpace"):
            block = next((a.i for a in node.attribute if a.name == "blocksize"), 1)
            stride = stride * block if node.op_type == "SpaceToDepth" else max(1, stride // block)
        strides |= dict.fromkeys(node.output, stride)
        most = max(most, stride)
    return most if 1 < most <= LONGEST else None


def _own(node: onnx.NodeProto) -> int:
    found = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "strides"), [1])
    return max(found)


def likely_align(stride: int | None, tile: Sequence[int], *, fixed: bool) -> int:
    """Where windows of a tile may start: at multiples of the stride, of 32 where that is a multiple of it or it is unknown.

    A tile that the graph fixes need not be a multiple of it, if it has space for two strides.

    >>> likely_align(14, (518, 518), fixed=True), likely_align(8, (513, 513), fixed=True)
    (14, 32)
    """
    align = DEFAULT_ALIGN if stride is None or DEFAULT_ALIGN % stride == 0 else stride
    if all(n % align == 0 for n in tile) or (fixed and min(tile) >= 2 * align):
        return align
    return _divisor(align, tile)


def _divisor(align: int, tile: Sequence[int]) -> int:
    """The largest divisor of ``align`` that divides every side of a tile."""
    return next(n for n in range(align, 0, -1) if align % n == 0 and all(t % n == 0 for t in tile))
