"""Write the exported file: one graph with its contract inside, under a hidden name until it is verified."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import helper

from segpipe.contract import METADATA_KEY, Contract
from segpipe.errors import SegpipeError, of_system
from segpipe.export.deepness import deepness_metadata
from segpipe.export.large import SUFFIX, write
from segpipe.network.model_file import external_data, read_model
from segpipe.network.read import read_spec
from segpipe.network.spec import ModelSpec
from segpipe.settings import Settings
from segpipe.storage.existence import is_file
from segpipe.storage.files import commit, output_errors, partial, unlinked

READ_BY_DEEPNESS = {
    *("model_type", "class_names", "names", "resolution", "tile_size", "tiles_size", "tiles_overlap"),
    *("standardization_mean", "standardization_std", "seg_thresh"),
}
"""Keys that the plugin reads; those of an older contract must be removed."""


@contextmanager
def draft(output: Path) -> Iterator[Path]:
    """Yield a hidden path beside the output; rename the file at the end, or remove it if anything fails.

    Files of weights beside it that were written meanwhile, and that the finished file does not use, go as well.
    """
    temporary = partial(output)
    with output_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        before, kept = _weights_of(output), set[Path]()
        try:
            yield unlinked(temporary)
            files = external_data(temporary, read_model(temporary)) if _weights_of(output) - before else []
            commit(temporary, output)
            kept.update(files)
        except SegpipeError as error:  # show the final name, not the hidden one
            raise type(error)(str(error).replace(temporary.name, output.name)) from None
        finally:
            temporary.unlink(missing_ok=True)
            for file in _weights_of(output) - before - kept:
                file.unlink(missing_ok=True)


def _weights_of(output: Path) -> set[Path]:
    """Files of weights that `save` wrote for an output of this name, whichever of them it uses."""
    name = re.compile(rf"{re.escape(output.stem)}\.[0-9a-f]{{16}}{re.escape(SUFFIX)}")
    return {file for file in output.parent.iterdir() if name.fullmatch(file.name)}


def save(proto: onnx.ModelProto, contract: Contract, path: Path) -> None:
    """Write the graph with its contract and Deepness's metadata, replacing older ones; `draft` gives the path."""
    inside = json.dumps(contract.model_dump(mode="json", exclude_none=True), ensure_ascii=False, allow_nan=False)
    ours = {METADATA_KEY: inside, **deepness_metadata(contract, input_dtype=_input_type(proto))}
    kept = {p.key: p.value for p in proto.metadata_props if p.key not in READ_BY_DEEPNESS}
    del proto.metadata_props[:]
    helper.set_model_props(proto, {**kept, **ours})
    write(proto, path, Path(path.name.removeprefix(".").removesuffix(".partial")).stem)


def contract_beside(model: Path) -> list[str]:
    """A note if a contract lies beside a finished model, or if that cannot be determined."""
    beside = model.with_suffix(".toml")
    try:
        return [f"{beside} beside the model is its contract in a run, in place of the one inside"] if is_file(beside) else []
    except OSError as error:
        return [f"{beside} cannot be read ({of_system(error)}): if it exists, a run takes it for the contract of the model"]


def _input_type(proto: onnx.ModelProto) -> str:
    weights = {tensor.name for tensor in proto.graph.initializer}
    image = next(value for value in proto.graph.input if value.name not in weights)
    return str(helper.tensor_dtype_to_np_dtype(image.type.tensor_type.elem_type))


def spec_of(path: Path) -> ModelSpec:
    """Read the file as a run on the CPU does."""
    return read_spec(Settings(input=("-",), model=path, device="cpu"))
