"""The exported file: one graph with its contract inside, written under a hidden name until it has proved itself."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import helper

from segpipe.export.deepness import deepness_metadata
from segpipe.pipeline.config import Settings
from segpipe.pipeline.contract import METADATA_KEY, Contract
from segpipe.pipeline.files import commit, output_errors, partial
from segpipe.pipeline.spec import ModelSpec, read_spec


@contextmanager
def draft(output: Path) -> Iterator[Path]:
    """A hidden name beside the output; the file gets its own name at the end, or none if anything fails."""
    temporary = partial(output)
    with output_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            commit(temporary, output)
        finally:
            temporary.unlink(missing_ok=True)


def save(proto: onnx.ModelProto, contract: Contract, path: Path) -> None:
    """Write the graph with its contract, and what QGIS's Deepness reads, in place of any older ones."""
    inside = json.dumps(contract.model_dump(mode="json", exclude_none=True), ensure_ascii=False)
    ours = {METADATA_KEY: inside, **deepness_metadata(contract, input_dtype=_input_type(proto))}
    kept = {p.key: p.value for p in proto.metadata_props if p.key not in ours}
    del proto.metadata_props[:]
    helper.set_model_props(proto, {**kept, **ours})
    path.write_bytes(proto.SerializeToString())


def _input_type(proto: onnx.ModelProto) -> str:
    weights = {tensor.name for tensor in proto.graph.initializer}
    image = next(value for value in proto.graph.input if value.name not in weights)
    return str(helper.tensor_dtype_to_np_dtype(image.type.tensor_type.elem_type))


def spec_of(path: Path) -> ModelSpec:
    """The file as a run on the CPU will read it."""
    return read_spec(Settings(input=("-",), model=path, device="cpu"))
