"""Small seeded networks in the forms that models really have, and what ONNX Runtime gives for the windows of an image."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from networks import Network
from numpy.typing import NDArray
from onnx import TensorProto, helper

FIRST = {"NCHW": None, "NHWC": [0, 3, 1, 2], "NCDHW": None, "NDHWC": [0, 4, 1, 2, 3]}
"""Permutation that brings an input of a layout to channels first."""

LAST = {"NCHW": None, "NHWC": [0, 2, 3, 1], "NCDHW": None, "NDHWC": [0, 2, 3, 4, 1]}


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a model takes and gives."""

    layout: str = "NCHW"
    out_layout: str | None = None
    """None: that of the input."""
    dtype: int = TensorProto.FLOAT
    inside: float | None = None
    """Factor of the pixels inside the graph."""
    ending: str = "logits"
    """``logits``, ``softmax``, ``sigmoid``, ``argmax``, ``argmax flat``, ``argmax float``, ``argmax int32``, ``above``."""
    classes: int = 4
    sizes: Sequence[int | str] = ("h", "w")
    stride: int = 1
    """Of a strided convolution, which makes the output coarser."""
    declared: bool = True
    """Whether the file says the shape of its output."""

    @property
    def ndim(self) -> int:
        return len(self.layout) - 2

    @property
    def keys(self) -> dict[str, Any]:
        """Keys of the contract that say so."""
        keys: dict[str, Any] = {"layout": self.layout} if self.layout != "NCHW" else {}
        if self.out_layout not in (None, self.layout):
            keys["output_layout"] = self.out_layout
        if self.inside is not None:
            keys["scaling"] = "graph"
        kinds = {"argmax": "labels", "above": "labels", "softmax": "none", "sigmoid": "none"}
        keys["activation"] = kinds.get(self.ending.split()[0], "softmax")
        if self.ending in ("sigmoid", "above"):
            keys["task"] = "multilabel"
        return keys

    def labels(self, given: NDArray[Any]) -> NDArray[Any]:
        """Labels ``(bands, *image)`` of what it gives, ``(channels, *image)``."""
        if self.keys["activation"] == "labels":
            return given
        multilabel = self.keys.get("task") == "multilabel"
        return np.asarray(given > 0.5 if multilabel else given.argmax(axis=0)[None])


FORMS = {
    "channels last in, first out": Form(layout="NHWC", out_layout="NCHW"),
    "channels first in, last out": Form(layout="NCHW", out_layout="NHWC"),
    "sizes that the file leaves open": Form(layout="NHWC", out_layout="NCHW", declared=False),
    "uint8": Form(dtype=TensorProto.UINT8, inside=1 / 255),
    "uint8, channels last in, first out": Form(layout="NHWC", out_layout="NCHW", dtype=TensorProto.UINT8, inside=1 / 255),
    "uint16": Form(dtype=TensorProto.UINT16, inside=1 / 255),
    "int16": Form(dtype=TensorProto.INT16, inside=1 / 255),
    "int32": Form(dtype=TensorProto.INT32, inside=1 / 255),
    "float16": Form(dtype=TensorProto.FLOAT16),
    "float16, raw": Form(dtype=TensorProto.FLOAT16, inside=1 / 255),
    "double": Form(dtype=TensorProto.DOUBLE),
    "argmax": Form(ending="argmax"),
    "argmax, channels last": Form(layout="NHWC", ending="argmax"),
    "argmax, without a channel axis": Form(ending="argmax flat"),
    "argmax, as floats": Form(ending="argmax float"),
    "a threshold for each class": Form(ending="above"),
    "softmax inside": Form(ending="softmax"),
    "sigmoids inside": Form(ending="sigmoid"),
    "a fixed tile of 75": Form(sizes=(75, 75)),
    "uint8, argmax": Form(layout="NHWC", dtype=TensorProto.UINT8, inside=1 / 255, ending="argmax flat"),
}
"""By name: what ``benchmarks/forms.py`` measures."""


def make(path: Path, form: Form, *, seed: int = 0, channels: int = 3, batch: int | str = "n") -> Path:
    """Write a network of a form, without a contract."""
    net = Network(channels, seed, form.ndim)
    if form.dtype != TensorProto.FLOAT:
        net.add("Cast", to=TensorProto.FLOAT)
    if FIRST[form.layout]:
        net.add("Transpose", perm=FIRST[form.layout])
    if form.inside is not None:
        net.add("Mul", np.float32(form.inside)).add("Sub", np.float32(0.5))
    net.conv(channels, 8, 3).add("Relu")
    for _ in range(int(math.log2(form.stride))):
        w = net.rng.normal(size=(8, 8, *[3] * form.ndim)) * 0.2
        net.add("Conv", w.astype(np.float32), pads=[1] * 2 * form.ndim, strides=[2] * form.ndim).add("Relu")
    net.conv(8, form.classes, 3)
    kind = _end(net, form)
    spatial = iter(form.sizes)
    shape = [{"N": batch, "C": channels}.get(axis) or next(spatial) for axis in form.layout]
    return _save(path, net, form, shape, kind)


def _end(net: Network, form: Form) -> int:
    """Append the ending; return the element type of the output."""
    out = form.out_layout or form.layout
    if form.ending in ("softmax", "sigmoid"):
        net.add(form.ending.capitalize(), **({"axis": 1} if form.ending == "softmax" else {}))
    if form.ending == "above":
        net.add("Sigmoid").add("Greater", np.float32(0.5))
    if form.ending.startswith("argmax"):
        net.add("ArgMax", axis=1, keepdims=int("flat" not in form.ending))
    casts = {"argmax float": TensorProto.FLOAT, "argmax int32": TensorProto.INT32}
    if form.ending in casts:
        net.add("Cast", to=casts[form.ending])
    if LAST[out] and "flat" not in form.ending:
        net.add("Transpose", perm=LAST[out])
    kinds = {"above": TensorProto.BOOL, "argmax": TensorProto.INT64, "argmax flat": TensorProto.INT64} | casts
    return kinds.get(form.ending, TensorProto.FLOAT)


def _save(path: Path, net: Network, form: Form, shape: list[int | str], kind: int) -> Path:
    net.nodes.append(helper.make_node("Identity", [net.last], ["scores"]))
    image = helper.make_tensor_value_info("image", form.dtype, shape)
    rank = form.ndim + 2 - ("flat" in form.ending)
    made = helper.make_tensor_value_info("scores", kind, None)
    graph = helper.make_graph(net.nodes, "form", [image], [made], net.weights)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    if form.declared:
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    else:  # as tf2onnx leaves them
        free = [f"u{k}" for k in range(rank)]
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("scores", kind, free))
    onnx.save(model, str(path))
    return path


Pixels = NDArray[Any]
Scale = Callable[[Pixels], Pixels]


def of_windows(
    model: Path,
    image: Pixels,
    form: Form,
    *,
    tile: Sequence[int],
    overlap: Sequence[int],
    align: Sequence[int],
    scale: Scale,
) -> Pixels:
    """What ONNX Runtime gives for each pixel ``(channels, *image)`` in the window that is nearest to it.

    Args:
        model: the file.
        image: stored pixels ``(channels, *image)``.
        form: its form.
        tile: sizes of a window.
        overlap: least overlap.
        align: starts are multiples of it.
        scale: from stored pixels to the network's input.
    """
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    axes = [starts(*axis) for axis in zip(image.shape[1:], tile, overlap, align, strict=True)]
    padding = [(0, max(0, each[-1] + t - n)) for each, t, n in zip(axes, tile, image.shape[1:], strict=True)]
    padded = np.pad(image, [(0, 0), *padding], mode="reflect")
    whole: Pixels | None = None
    for index in np.ndindex(*map(len, axes)):
        at = [each[i] for each, i in zip(axes, index, strict=True)]
        own = [_nearest(each, i, t, n) for each, i, t, n in zip(axes, index, tile, image.shape[1:], strict=True)]
        window = padded[(slice(None), *(slice(a, a + t) for a, t in zip(at, tile, strict=True)))]
        found = _scored(session, scale(window), form)
        if whole is None:
            whole = np.zeros((len(found), *image.shape[1:]), found.dtype)
        inner = tuple(slice(a - s, b - s) for (a, b), s in zip(own, at, strict=True))
        whole[(slice(None), *(slice(a, b) for a, b in own))] = found[(slice(None), *inner)]
    assert whole is not None
    return whole


def _scored(session: onnxruntime.InferenceSession, window: Pixels, form: Form) -> Pixels:
    given = window[None].astype(helper.tensor_dtype_to_np_dtype(form.dtype))
    given = given.transpose(LAST[form.layout]) if LAST[form.layout] else given
    (found,) = session.run(None, {"image": np.ascontiguousarray(given)})
    if "flat" in form.ending:
        return found  # type: ignore[no-any-return]
    order = FIRST[form.out_layout or form.layout]
    return found.transpose(order)[0] if order else found[0]


def starts(size: int, tile: int, overlap: int, align: int) -> list[int]:
    """Starts of windows along an axis, by the formula of docs/explanation/seams.md."""
    if size <= tile:
        return [0]
    last, step = math.ceil((size - tile) / align), (tile - overlap) // align
    count = math.ceil(last / step) + 1
    return [align * (i * last // (count - 1)) for i in range(count)]


def _nearest(each: Sequence[int], i: int, tile: int, size: int) -> tuple[int, int]:
    """The pixels that are nearest to one window: neighbours meet in the middle of what they share."""
    low = 0 if not i else each[i] + (each[i - 1] + tile - each[i]) // 2
    high = size if i + 1 == len(each) else each[i + 1] + (each[i] + tile - each[i + 1]) // 2
    return low, min(high, size)
