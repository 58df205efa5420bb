"""The ONNX file of a model and the files beside it: its graph, its weights, and their hash."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from segpipe.contract import Contract
from segpipe.errors import ModelError, correct_path, of_system, one_line
from segpipe.storage.content import describe
from segpipe.storage.existence import ABSENT, exists, is_file, is_folder


def read_model(path: Path) -> onnx.ModelProto:
    """Read the graph of an ONNX file, without its external data.

    Raises:
        ModelError: it is none.
    """
    if is_folder(path):
        kind = describe(path)
        raise ModelError(f"the model must be an ONNX file, got the folder {path}" + (f": {kind}" if kind else ""))
    if not is_file(path):
        raise ModelError(f"the model must exist, got {path}: {correct_path(path)}")
    if path.suffix.lower() == ".toml":
        raise ModelError(f"the model must be an ONNX file here, got {path}: a list of models is for segpipe run")
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {of_system(error)}") from None
    except Exception as error:  # noqa: BLE001 - protobuf raises classes that depend on its implementation
        raise ModelError(f"{path} is not an ONNX file: {describe(path) or f'{one_line(error)}: copy it again'}") from None
    if not proto.graph.node:
        raise ModelError(f"{path} is not an ONNX file: {describe(path) or 'it holds no graph'}")
    return proto


def external_data(path: Path, proto: onnx.ModelProto) -> list[Path]:
    """Paths of the files beside the model that hold its weights, wherever in the graph they are named."""
    names = {
        entry.value
        for tensor in tensors(proto)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    folder = path.parent.resolve()
    for name in names:
        if not (folder / name).resolve().is_relative_to(folder):
            raise ModelError(f"{path}: external data of a model must lie in its folder, got {name}: move it there")
    return [path.parent / name for name in sorted(names)]


def check_lengths(path: Path, proto: onnx.ModelProto) -> None:
    """Check that files of external data hold all bytes that the graph says; a missing file has its own message."""
    for tensor in tensors(proto):
        if tensor.data_location == TensorProto.EXTERNAL:
            said = {entry.key: entry.value for entry in tensor.external_data}
            file = path.parent / said.get("location", "")
            try:
                end = int(said.get("offset") or 0) + int(said.get("length") or 0)
            except ValueError:
                raise ModelError(
                    f"{path}: the place of its tensor {tensor.name!r} cannot be read: export it again"
                ) from None
            if is_file(file) and (size := file.stat().st_size) < end:
                raise ModelError(
                    f"{path} needs its external data {file} of at least {end:,} bytes, got {size:,}: "
                    "it is cut off or another model's, so copy both files again"
                )


def digest(files: Sequence[Path], contract: Contract) -> str:
    """SHA-256 of everything that the scores depend on: the file, its external data, the contract in force."""
    digest = hashlib.sha256()
    for file in files:
        if exists(file) and not is_file(file):
            raise ModelError(f"{files[0]}: a model and its external data must be regular files, and {file} is not")
        try:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            if file == files[0] or error.errno not in ABSENT:
                raise ModelError(f"{file} cannot be read: {of_system(error)}") from None
            raise ModelError(
                f"{files[0]} needs its external data {file}: {error.strerror}: copy both files, one beside the other"
            ) from None
    digest.update(contract.model_dump_json().encode())
    return digest.hexdigest()


def tensors(message: Any) -> Iterator[TensorProto]:
    """Yield all tensors below a message, also in branches, bodies, functions, attributes and sparse initializers."""
    if isinstance(message, TensorProto):
        yield message
        return
    for kind, value in message.ListFields():
        if kind.type == kind.TYPE_MESSAGE:
            yield from chain.from_iterable(map(tensors, value if isinstance(value, Sequence) else [value]))
