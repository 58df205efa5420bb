"""Smaller numbers: fp16, and static int8 calibrated on real tiles."""

import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.transformers.float16 import convert_float_to_float16

from segpipe.export.settings import Precision
from segpipe.pipeline.errors import ExportError


def converted(proto: onnx.ModelProto, precision: Precision, images: Sequence[NDArray[np.float32]]) -> onnx.ModelProto:
    """The graph at another precision; input and scores stay float32.

    Args:
        proto: a float32 graph.
        precision: fp32 leaves it as it is.
        images: scaled tiles ``(channels, rows, cols)`` that tell the ranges of int8.
    """
    if precision == "fp16":
        return _fp16(proto)
    return _int8(proto, images) if precision == "int8" else proto


def _fp16(proto: onnx.ModelProto) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of weights too small for fp16, which the verification judges
        return convert_float_to_float16(proto, keep_io_types=True)  # type: ignore[no-any-return]


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """One image per call, as ONNX Runtime's calibration asks for them."""

    def __init__(self, name: str, images: Sequence[NDArray[np.float32]]) -> None:
        self._feeds = iter([{name: image[None]} for image in images])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._feeds, None)


def _int8(proto: onnx.ModelProto, images: Sequence[NDArray[np.float32]]) -> onnx.ModelProto:
    """Convolutions and products in int8, weights per channel, activations by the ranges seen in ``images``."""
    if not images:
        raise ExportError("int8 needs tiles with valid pixels to find its ranges, and --calibrate gave none")
    quieted = logging.getLogger()
    level = quieted.level
    quieted.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            float32, int8 = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
            onnx.save(proto, str(float32))
            quantize_static(float32, int8, _Images(proto.graph.input[0].name, images), **_QUANTIZATION)
            return onnx.load(str(int8))
    finally:
        quieted.setLevel(level)


_QUANTIZATION: dict[str, Any] = {
    "quant_format": QuantFormat.QDQ,
    "per_channel": True,
    "activation_type": QuantType.QUInt8,
    "weight_type": QuantType.QInt8,
    "calibrate_method": CalibrationMethod.MinMax,
    "op_types_to_quantize": ["Conv", "ConvTranspose", "MatMul", "Gemm", "Concat", "MaxPool", "Add", "Relu"],
}
