"""Inputs and outputs of a graph: names, element types, shapes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

_FLOATS: dict[int, type[np.generic]] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.DOUBLE: np.float64,
}
_INTEGERS: dict[int, type[np.generic]] = {
    TensorProto.UINT8: np.uint8,
    TensorProto.INT8: np.int8,
    TensorProto.UINT16: np.uint16,
    TensorProto.INT16: np.int16,
    TensorProto.INT32: np.int32,
    TensorProto.INT64: np.int64,
}


_BOOLEAN: dict[int, type[np.generic]] = {TensorProto.BOOL: np.bool_}


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of a graph's input or output; None stands for free sizes."""

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.name} ({', '.join('?' if n is None else str(n) for n in self.shape)})"

    @property
    def is_integer(self) -> bool:
        """Whether it holds integers or booleans."""
        return self.dtype is not None and self.dtype.kind in "iub"


def signature(proto: onnx.ModelProto) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs other than weights, and outputs."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [_tensor(value) for value in proto.graph.input if value.name not in weights]
    return inputs, [_tensor(value) for value in proto.graph.output]


def _tensor(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = (_FLOATS | _INTEGERS | _BOOLEAN).get(tensor.elem_type)
    sizes = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in tensor.shape.dim)
    return TensorSpec(value.name, None if dtype is None else np.dtype(dtype), sizes)
