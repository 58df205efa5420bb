"""A contract for a model that was made elsewhere: checked on the model, then kept inside its file."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from segpipe import __version__
from segpipe.export.file import draft, save, spec_of
from segpipe.export.stride import Stride, measure_stride
from segpipe.export.tiles import random_tiles
from segpipe.pipeline.contract import DEFAULT_ALIGN, Contract, read_contract
from segpipe.pipeline.errors import ExportError, ModelError
from segpipe.pipeline.model import Model, try_out
from segpipe.pipeline.spec import ModelSpec

STEADY = 1e-4
"""Largest change of a score, relative to the largest, that a batch may make."""


@dataclass(frozen=True)
class Attached:
    """What came of it."""

    path: Path
    contract: Contract
    stride: Stride | None
    """None where the contract names it, or the model takes no noise."""
    notes: tuple[str, ...]


def attach(model: Path, contract: Path, output: Path | None = None) -> Attached:
    """Write a contract into an ONNX file, once the two have been found to fit.

    The model is run on noise: its scores must be finite, the same each time, and no matter what is beside a tile in its
    batch. ``align`` is measured where the contract does not name it.

    Args:
        model: the file; weights that lie outside it are taken in.
        contract: TOML.
        output: a new file; the model itself where None.

    Raises:
        SegpipeError: they do not fit, or the model is not fit to run; nothing is changed.
    """
    proto = _load(model)
    terms = read_contract(contract)
    with draft(output or model) as path:
        save(proto, terms, path)
        spec = try_out(spec_of(path))
        score = Model(spec, arena=False)
        _check_steady(score, spec)
        stride = None if terms.align is not None else _measure(score, spec)
        terms = _completed(terms, model.name, stride)
        save(proto, terms, path)
    beside = (output or model).with_suffix(".toml")
    notes = (f"{beside} beside the model is its contract in a run, in place of the one inside",) if beside.is_file() else ()
    return Attached(output or model, terms, stride, notes)


def _load(path: Path) -> onnx.ModelProto:
    """The whole model, with weights that lie beside it.

    Raises:
        ModelError: it is no ONNX file, damaged, or without its weights.
        ExportError: weights are not finite.
    """
    try:
        proto = onnx.load(str(path))
    except Exception as error:  # noqa: BLE001 - protobuf and onnx raise classes of their own
        raise ModelError(f"{path} is not a whole ONNX file: {error}") from None
    if not proto.graph.node:
        raise ModelError(f"{path} is not an ONNX file: it holds no graph")
    floats = (t for t in proto.graph.initializer if t.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16))
    broken = [t.name for t in floats if not np.isfinite(numpy_helper.to_array(t)).all()]
    if broken:
        raise ExportError(f"weights of {path} must be finite, got NaN or infinity in {', '.join(broken[:10])}")
    return proto


def _check_steady(score: Model, spec: ModelSpec) -> None:
    tiles = random_tiles(spec, max(2, spec.batch), 0)
    first = _scored(score, tiles[: spec.batch])
    room = STEADY * (float(np.abs(first).max()) or 1.0)
    if not np.isfinite(first).all():
        raise ExportError(f"scores of {spec.path.name} must be finite, got NaN or infinity on noise: see its weights")
    if np.abs(_scored(score, tiles[: spec.batch]) - first).max() > room:
        raise ExportError("the model must give the same scores each time, and does not: export it in evaluation mode")
    if spec.batch == 1 and _batch_free(spec):
        both = _scored(score, [tiles[0], 3 * tiles[1] + 1])
        if np.abs(both[:1] - first).max() > room:
            raise ExportError(
                "a tile's scores must not depend on the tiles beside it in a batch, and they do: "
                "export the model in evaluation mode"
            )


def _batch_free(spec: ModelSpec) -> bool:
    graph = onnx.load(str(spec.path), load_external_data=False).graph
    image = next(value for value in graph.input if value.name == spec.input)
    return not image.type.tensor_type.shape.dim[0].dim_value


def _scored(score: Model, tiles: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return score(np.stack([_as_pixels(tile, score.spec.input_dtype) for tile in tiles]))


def _as_pixels(tile: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Noise as a model of integers takes it: over the middle of the type's range."""
    if np.dtype(dtype).kind == "f":
        return tile
    limits = np.iinfo(dtype)
    middle, spread = (int(limits.max) + int(limits.min)) / 2, (int(limits.max) - int(limits.min)) / 8
    return np.asarray(np.clip(tile * spread + middle, limits.min, limits.max))


def _measure(score: Model, spec: ModelSpec) -> Stride | None:
    if len(spec.tiling.tile) != 2 or spec.batch != 1:
        return None
    rows, cols = spec.tiling.tile
    fallback = int(np.gcd.reduce([DEFAULT_ALIGN, rows, cols]))
    return measure_stride(lambda x: _scored(score, list(x)), spec.contract.channel_count, (rows, cols), fallback)


def _completed(contract: Contract, model: str, stride: Stride | None) -> Contract:
    """The contract with what was measured, and who attached it when."""
    told: dict[str, Any] = {"exporter": f"segpipe {__version__}, attached", "date": datetime.now(UTC).date().isoformat()}
    told |= {"model": model} | contract.provenance
    measured: dict[str, Any] = {}
    if stride is not None:
        measured = {"align": stride.align, "equivariant": stride.equivariant}
        told["verification"] = {"shift_error": float(f"{stride.error:.3g}"), "runtime": "finite, steady, free of its batch"}
    return contract.model_copy(update={**measured, "provenance": told})
