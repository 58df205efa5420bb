"""Convert graphs to lower precision: fp16, and static int8 calibrated on real tiles."""

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16

from segpipe.errors import ExportError
from segpipe.export.large import is_large, loadable, write
from segpipe.export.settings import Precision


def converted(proto: onnx.ModelProto, precision: Precision, images: Sequence[NDArray[np.float32]]) -> onnx.ModelProto:
    """Convert the graph to another precision; input and scores stay float32.

    Args:
        proto: a float32 graph.
        precision: fp32 leaves the graph unchanged.
        images: scaled tiles ``(channels, rows, cols)`` from which int8 takes its ranges.
    """
    if precision == "fp16":
        return _fp16(proto)
    return _int8(proto, images) if precision == "int8" else proto


def _fp16(proto: onnx.ModelProto) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about weights too small for fp16; verification decides about them
        with loadable(proto) as graph:  # a path is read by means that large graphs need
            half: onnx.ModelProto = convert_float_to_float16(graph if isinstance(graph, str) else proto, keep_io_types=True)
    _once(half.graph)
    return half


def _once(graph: onnx.GraphProto) -> None:
    """Remove duplicate casts: the converter adds one per node that stays in float, all with one name."""
    nodes: dict[tuple[str, ...], onnx.NodeProto] = {}
    for node in graph.node:
        nodes.setdefault(tuple(node.output), node)
    kept = list(nodes.values())
    del graph.node[:]
    graph.node.extend(kept)


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Gives ONNX Runtime's calibration one image per call."""

    def __init__(self, name: str, images: Sequence[NDArray[np.float32]]) -> None:
        self._feeds = iter([{name: image[None]} for image in images])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._feeds, None)


def _int8(proto: onnx.ModelProto, images: Sequence[NDArray[np.float32]]) -> onnx.ModelProto:
    """Quantise convolutions and products to int8: weights per channel, activations by the ranges seen in ``images``."""
    if not images:
        raise ExportError("int8 needs tiles with valid pixels to find its ranges, and --calibrate gave none")
    feeds = _Images(proto.graph.input[0].name, images)
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        float32, int8 = str(Path(folder, "float32.onnx")), str(Path(folder, "int8.onnx"))
        write(proto, Path(float32), "float32")  # passed the graph itself, the quantiser would remove its weights
        large = {"use_external_data_format": is_large(proto)}
        quantize_static(float32, int8, feeds, nodes_to_exclude=_last_product(proto), **_QUANTIZATION, **large)
        return onnx.load(int8)


def _last_product(proto: onnx.ModelProto) -> list[str]:
    """Name the node that makes the scores: it stays in float, 1 % slower, so that scores are not rounded to 256 steps.

    The first one is quantised: in float, 0.20 % instead of 0.32 % of labels would differ, but a U-Net on ResNet-18 would be
    2.4 instead of 2.9 times as fast, because the following nodes lose their layout.
    """
    return [node.name for node in proto.graph.node if node.op_type in _PRODUCTS][1:][-1:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser's advice in the root logger: torch's exporter has folded batch normalisation already."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


_PRODUCTS = ("Conv", "MatMul", "Gemm")

# Measured on the bundled network, AMD EPYC with AVX512-VNNI, one thread, ONNX Runtime 1.31: 2.2 times as fast as fp32, and
# 0.32 % of valid labels differ (benchmarks/precision.py); comments give the result of other choices there.
_QUANTIZATION: dict[str, Any] = {
    "quant_format": QuantFormat.QDQ,
    "activation_type": QuantType.QUInt8,  # int8: 1.45 times; symmetric: 2.0 times and 0.45 %
    "weight_type": QuantType.QInt8,  # uint8: 0.95 times, as VNNI multiplies unsigned by signed
    "per_channel": True,  # else 0.37 %
    "calibrate_method": CalibrationMethod.MinMax,  # entropy gives the same; percentiles take 2 GB for 21 tiles of 256 pixels
    # Relu and Clip are fused into the preceding node: without them 2.0 times, 0.4 %. Without Concat and MaxPool: 2.1.
    # ConvTranspose has no int8 kernel. Mul, Sigmoid and Softmax: EfficientNet 10 % faster for 0.5 dB, SegFormer slower.
    "op_types_to_quantize": [*_PRODUCTS, "Relu", "Clip", "MaxPool", "Concat", "Add"],
}
