"""Graphs whose weights do not fit into one file: they lie in a second file beside the first, ONNX's external data."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper

from segpipe.errors import ExportError
from segpipe.storage.existence import is_file
from segpipe.storage.files import commit, digest_of, partial, unlinked

LARGEST = 2**31 - 2**20
"""Most bytes of a graph with its weights in one file: protobuf counts in 31 bits; the rest is left to the contract."""

LEAST = 1024
"""Fewest bytes of a tensor that moves to the second file; shapes and axes stay, as ONNX's checks read them."""

PAGE = 4096
"""Tensors begin at multiples of it in the second file, so that ONNX Runtime can map them into memory."""

SUFFIX = ".data"


def is_large(proto: onnx.ModelProto) -> bool:
    """Whether a graph and its weights need two files."""
    try:
        return bool(proto.ByteSize() > LARGEST)
    except EncodeError:
        return True


def write(proto: onnx.ModelProto, path: Path, stem: str) -> Path | None:
    """Write a graph to a file, and its weights to a second one if they do not fit.

    The second file is named ``<stem>.<hash of its content>.data``, so that it never replaces the weights of another model.

    Returns:
        The second file, if there is one.

    Raises:
        ExportError: the rest of the graph does not fit into a file either.
    """
    if not is_large(proto):
        path.write_bytes(proto.SerializeToString())
        return None
    heavy = [tensor for tensor in proto.graph.initializer if len(tensor.raw_data) >= LEAST]
    digest = hashlib.sha256()
    for chunk in _chunks(heavy):
        digest.update(chunk)
    data = path.with_name(f"{stem}.{digest.hexdigest()[:16]}{SUFFIX}")
    if not (is_file(data) and digest_of(data) == digest.hexdigest()):
        _write_whole(data, heavy)
    light = _copied(proto, {tensor.name: entry for tensor, entry in zip(heavy, _entries(heavy, data.name), strict=True)})
    if is_large(light):
        raise ExportError(
            f"weights above 2 GB must be initializers of the main graph, and {light_bytes(light)} of {path.name} are "
            "elsewhere, such as in constants or branches: export the model without them"
        )
    path.write_bytes(light.SerializeToString())
    return data


def light_bytes(light: onnx.ModelProto) -> str:
    """Bytes of a graph for a message."""
    try:
        return f"{light.ByteSize():,} bytes"
    except EncodeError:
        return "more than 2 GB"


def _write_whole(data: Path, tensors: list[TensorProto]) -> None:
    temporary = unlinked(partial(data))
    try:
        with temporary.open("wb") as stream:
            for chunk in _chunks(tensors):
                stream.write(chunk)
        commit(temporary, data)
    finally:
        temporary.unlink(missing_ok=True)


def _chunks(tensors: list[TensorProto]) -> Iterator[bytes]:
    """Yield the content of the second file."""
    for tensor in tensors:
        raw = tensor.raw_data
        yield raw
        yield bytes(-len(raw) % PAGE)


def _entries(tensors: list[TensorProto], name: str) -> Iterator[dict[str, str]]:
    """Yield where each tensor lies."""
    offset = 0
    for tensor in tensors:
        length = len(tensor.raw_data)
        yield {"location": name, "offset": str(offset), "length": str(length)}
        offset += length + -length % PAGE


def light_copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a graph, with an input in place of each large weight; the graph itself if it is not large.

    ONNX's functions that check, merge and infer shapes work on it: they need sizes of weights, and values of small ones.
    """
    if not is_large(proto):
        return proto
    return _copied(proto, {t.name: None for t in proto.graph.initializer if len(t.raw_data) >= LEAST})


def refilled(light: onnx.ModelProto, proto: onnx.ModelProto) -> onnx.ModelProto:
    """Put the weights of a graph back into what was made from its light copy."""
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    inputs = [value for value in light.graph.input if value.name not in weights]
    light.graph.initializer.extend(weights[value.name] for value in light.graph.input if value.name in weights)
    del light.graph.input[:]
    light.graph.input.extend(inputs)
    return light


def _copied(proto: onnx.ModelProto, moved: dict[str, dict[str, str] | None]) -> onnx.ModelProto:
    """Copy a graph without the values of some weights: with where they lie, or as inputs."""
    light = onnx.ModelProto()
    _copy_fields(proto, light, "graph")
    _copy_fields(proto.graph, light.graph, "initializer")
    for tensor in proto.graph.initializer:
        entry = moved.get(tensor.name, {})
        if entry is None:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
            continue
        copy = light.graph.initializer.add()
        _copy_fields(tensor, copy, "raw_data" if entry else "")
        if entry:
            copy.data_location = TensorProto.EXTERNAL
        for key, value in entry.items():
            copy.external_data.add(key=key, value=value)
    return light


def _copy_fields(source: Any, target: Any, left_out: str) -> None:
    """Copy all fields of a message but one."""
    for kind, value in source.ListFields():
        if kind.name == left_out:
            continue
        if kind.is_repeated:
            getattr(target, kind.name).extend(value)
        elif kind.type == kind.TYPE_MESSAGE:
            getattr(target, kind.name).CopyFrom(value)
        else:
            setattr(target, kind.name, value)


@contextmanager
def loadable(proto: onnx.ModelProto) -> Iterator[bytes | str]:
    """Yield what ONNX Runtime opens a graph from: its bytes, or the path of a temporary file if it is large."""
    if not is_large(proto):
        yield proto.SerializeToString()
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.onnx")
        write(proto, path, "graph")
        yield str(path)
