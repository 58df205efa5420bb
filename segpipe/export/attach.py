"""Attach a contract to a model that was made elsewhere: check it on the model, then store it in the model's file."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from segpipe import __version__
from segpipe.contract import Contract
from segpipe.errors import ExportError, ModelError, SettingsError, of_system, one_line
from segpipe.export.file import contract_beside, draft, save, spec_of
from segpipe.export.large import light_copy
from segpipe.export.merge import Head, check_beside, combine, head_of, read_classes, whole
from segpipe.export.stride import Size, Stride, is_strided, measure_stride, named_stride, total_stride
from segpipe.export.tiles import random_tiles
from segpipe.network.batch_independence import SUSPECTS, cause
from segpipe.network.crop import probe_of
from segpipe.network.model_file import external_data, read_model
from segpipe.network.session import open_on_host, raw_scores
from segpipe.network.shapes import output_sizes, with_shapes
from segpipe.network.spec import ModelSpec
from segpipe.network.view import measured_margin
from segpipe.pipeline.infer import HostNetwork
from segpipe.pipeline.model_check import try_out
from segpipe.storage.existence import ABSENT, exists, is_file

STEADY = 1e-4
"""Largest change of a score by its batch, relative to the largest score."""


@dataclass(frozen=True)
class Attached:
    """Result of attaching a contract."""

    path: Path
    contract: Contract
    stride: Stride | None
    """None for volumes."""
    notes: tuple[str, ...]


def attach(model: Path, contract: Path, output: Path | None = None) -> Attached:
    """Write a contract into an ONNX file, after checking that the two fit.

    The model is run on noise: its scores must be finite, reproducible, and independent of the other tiles in a batch.
    ``align`` is measured; a value in the contract must be a multiple of it. ``margin`` is measured if the contract has none.

    Args:
        model: the model file; external weights are moved into it, or into one file beside it where they do not fit.
        contract: TOML, in which a class may have several outputs of the model.
        output: path of a new file; None: change the model itself.

    Raises:
        SegpipeError: they do not fit, or the model cannot be used; nothing is changed.
    """
    check_new(output, model)
    proto = load_whole(model)
    before = external_data(model, read_model(model))
    terms, groups = read_classes(contract)
    head = head_of(proto, terms, groups, model) if groups else None
    if head:
        check_beside(output or model)
    made = put(proto, terms, model.name, output or model, head)
    return made if output else replace(made, notes=(*made.notes, *_no_longer_needed(before, model)))


def check_new(output: Path | None, model: Path) -> None:
    """Check that an output does not exist, unless it is the model itself."""
    if output is not None and exists(output) and not (exists(model) and output.samefile(model)):
        raise SettingsError(f"the output must be new, got {output}, which exists: name another, or remove it")


def put(proto: onnx.ModelProto, terms: Contract, model: str, output: Path, head: Head | None = None) -> Attached:
    """Write a graph with a contract into a file, after checking that the two fit.

    Args:
        proto: the whole graph; its batch is fixed where it must be.
        terms: the contract, without what is measured.
        model: name of the file that the graph came from, for the record.
        output: path of the file.
        head: outputs to combine to the classes of the contract; None: they are the classes.

    Raises:
        SegpipeError: they do not fit; no file is written.
    """
    with draft(output) as path:
        terms, margin = _with_margin(terms, proto, path)
        if head:
            terms = _combined(proto, terms, head, path)
        save(proto, _aligned(terms), path)
        spec = try_out(spec_of(path))
        score = HostNetwork(spec, arena="none")
        alone = _why_alone(proto, score, spec) if _is_free(proto, spec) else None
        if alone:
            _fix_batch(proto, spec)
        _check_steady(score, spec, batch=1 if alone else max(spec.batch, 1 + _is_free(proto, spec)))
        stride = _measure(score, spec, proto, terms)
        terms = _dated(_completed(terms, model, stride), spec)
        save(proto, terms, path)
    return Attached(output, terms, stride, (*(head.notes() if head else ()), *_notes(output, alone, margin)))


def _no_longer_needed(before: list[Path], path: Path) -> Iterator[str]:
    """Name files of weights that only the model used, before it was changed itself."""
    kept = external_data(path, read_model(path))
    for file in before:
        if file not in kept:
            where = f"in {kept[0].name}" if kept else f"inside {path.name}"
            yield f"{file} is no longer needed by {path.name}: its weights are {where} now"


def _aligned(terms: Contract) -> Contract:
    return terms if terms.align is not None else terms.model_copy(update={"align": 1})


def _combined(proto: onnx.ModelProto, terms: Contract, head: Head, path: Path) -> Contract:
    """Combine outputs to classes, after trying the model as it is, whose logits or probabilities show then."""
    save(proto, _aligned(whole(terms, head)), path)
    try_out(spec_of(path))
    return combine(proto, terms, head)


def _why_alone(proto: onnx.ModelProto, score: HostNetwork, spec: ModelSpec) -> str | None:
    """Why a model with a free batch axis must take tiles one by one; None if it need not."""
    if any(node.op_type in SUSPECTS for node in proto.graph.node):
        return cause(proto)
    return None if _takes_two(score, spec) else "the model fails on two tiles at once, whatever its input says"


def _with_margin(terms: Contract, proto: onnx.ModelProto, path: Path) -> tuple[Contract, list[int] | None]:
    """The contract with the measured margin, if it has none and the output is smaller than the tile.

    Raises:
        ModelError: nothing says whether the output is the middle of the tile.
    """
    if terms.margin is not None:
        return terms, None
    save(proto, terms.model_copy(update={"align": 1}), path)
    spec = spec_of(path)
    sizes = output_sizes(light_copy(proto), _shapes(spec), spec.output, terms.scores_layout)
    if sizes is None or not any(a < b for a, b in zip(sizes, spec.tiling.input, strict=True)):
        return terms, None
    raw = partial(raw_scores, open_on_host(spec, arena="none"), spec)
    margin = measured_margin(probe_of(spec, raw), str(path))
    return (terms, None) if margin is None else (terms.model_copy(update={"margin": list(margin)}), list(margin))


def _shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs for a batch."""
    return {feed.name: feed.shape(spec.batch_shape) for feed in spec.feeds}


def _notes(path: Path, alone: str | None, margin: list[int] | None) -> Iterator[str]:
    if margin:
        yield f"margin = {margin} was measured: the model scores the middle of a tile"
    if alone:
        yield f"{alone}: its batch is fixed at 1 now"
    yield from contract_beside(path)


def load_whole(path: Path) -> onnx.ModelProto:
    """Load the whole model with its external weights.

    Raises:
        ModelError: the file is not ONNX, is damaged, or lacks its weights.
        ExportError: weights are not finite.
    """
    if not is_file(path):
        read_model(path)  # raises the error
    try:
        proto = onnx.load(str(path))
    except OSError as error:
        if error.errno in ABSENT:
            raise ModelError(f"{path} is not a whole ONNX file: {one_line(error)}") from None
        raise ModelError(f"{path} cannot be read: {of_system(error)}") from None
    except Exception as error:  # noqa: BLE001 - protobuf and onnx raise their own classes
        raise ModelError(f"{path} is not a whole ONNX file: {one_line(error)}") from None
    if not proto.graph.node:
        raise ModelError(f"{path} is not an ONNX file: it holds no graph")
    floats = (t for t in proto.graph.initializer if t.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16))
    broken = [t.name for t in floats if not np.isfinite(_array(t, path)).all()]
    if broken:
        raise ExportError(f"weights of {path} must be finite, got NaN or infinity in {', '.join(broken[:10])}")
    return proto


def _array(tensor: onnx.TensorProto, path: Path) -> NDArray[Any]:
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError) as error:  # values that do not fit the shape, or an unknown type
        raise ModelError(f"{path} is damaged: its tensor {tensor.name!r} cannot be read: {one_line(error)}") from None


def _check_steady(score: HostNetwork, spec: ModelSpec, *, batch: int) -> None:
    """Check that scores are reproducible, and independent of the other tiles in a batch."""
    tiles = random_tiles(spec, batch, 0)
    first = _scored(score, tiles[: spec.batch])
    tolerance = STEADY * (float(np.abs(first).max()) or 1.0)
    if not np.isfinite(first).all():
        raise ExportError(f"scores of {spec.path.name} must be finite, got NaN or infinity on noise: see its weights")
    if np.abs(_scored(score, tiles[: spec.batch]) - first).max() > tolerance:
        raise ExportError("the model must give the same scores each time, and does not: export it in evaluation mode")
    beside = _scored(score, [tiles[0], *(3 * tile + 1 for tile in tiles[1:])])
    if np.abs(beside[:1] - first[:1]).max() > tolerance:
        raise ExportError(
            "a tile's scores must not depend on the tiles beside it in a batch, and they do: "
            "export the model in evaluation mode"
        )


def _fix_batch(proto: onnx.ModelProto, spec: ModelSpec) -> None:
    """Fix the batch of all inputs at 1."""
    values = {value.name: value for value in proto.graph.input}
    for feed in spec.feeds:
        if feed.value is None or feed.per_tile:
            axis = feed.order.index(0) if feed.order else 0
            values[feed.name].type.tensor_type.shape.dim[axis].dim_value = 1


def _is_free(proto: onnx.ModelProto, spec: ModelSpec) -> bool:
    image = next(feed for feed in spec.feeds if feed.name == spec.input)
    value = next(value for value in proto.graph.input if value.name == spec.input)
    return not value.type.tensor_type.shape.dim[image.order.index(0)].dim_value


def _takes_two(score: HostNetwork, spec: ModelSpec) -> bool:
    try:
        _scored(score, random_tiles(spec, 2, 0))
    except ModelError:
        return False
    return True


def _scored(score: HostNetwork, tiles: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return score(np.stack([_as_pixels(tile, score.spec.input_dtype) for tile in tiles]))


def _as_pixels(tile: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Noise in a model's input type: for integers, in the middle of the range; wide types hold 16-bit pixels."""
    if np.dtype(dtype).kind == "f":
        return tile
    limits = np.iinfo(dtype if np.dtype(dtype).itemsize <= 2 else np.uint16)
    middle, spread = (int(limits.max) + int(limits.min)) / 2, (int(limits.max) - int(limits.min)) / 8
    return np.asarray(np.clip(tile * spread + middle, limits.min, limits.max))


def _measure(score: HostNetwork, spec: ModelSpec, proto: onnx.ModelProto, terms: Contract) -> Stride | None:
    if len(spec.tiling.tile) != 2:
        return None
    rows, cols = spec.tiling.input
    visible = total_stride(_sizes(proto, spec), (rows, cols))
    channels = spec.contract.input_channels
    found = measure_stride(lambda x: _scored(score, [x[0]] * spec.batch)[:1], channels, (rows, cols), visible)
    return named_stride(found, terms.axes("align", 2), visible)


def _sizes(proto: onnx.ModelProto, spec: ModelSpec) -> Iterator[tuple[Size, Size]]:
    """Yield rows and columns before and after each operator with a stride; nothing where shapes cannot be inferred."""
    graph = with_shapes(light_copy(proto), _shapes(spec))
    if graph is None:  # the stride is then only measured
        return
    values = (*graph.input, *graph.value_info, *graph.output)
    sizes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}
    for node in graph.node:
        before, after = (sizes.get(names[0], ()) if names else () for names in (node.input, node.output))
        if len(before) == len(after) == 4 and 0 not in (*before[2:], *after[2:]):
            pair = (before[2], before[3]), (after[2], after[3])
            unit = [list(a.ints) for a in node.attribute if a.name == "strides"] or [[1]]
            if not (node.op_type == "Conv" and set(unit[0]) == {1}) and is_strided(node.op_type, *pair):
                yield pair


def _dated(contract: Contract, spec: ModelSpec) -> Contract:
    """The contract with the number of dates of each input, so that a search for the files of a case knows it."""
    dates = {feed.name: feed.dates for feed in spec.feeds if feed.dates is not None}
    if contract.inputs is None or not dates:
        return contract
    inputs = {n: one.model_copy(update={"dates": dates[n]}) if n in dates else one for n, one in contract.inputs.items()}
    return contract.model_copy(update={"inputs": inputs})


def _completed(contract: Contract, model: str, stride: Stride | None) -> Contract:
    """The contract with the measured values, and with who attached it and when."""
    provenance: dict[str, Any] = {
        "exporter": f"segpipe {__version__}, attached",
        "date": datetime.now(UTC).date().isoformat(),
    }
    provenance |= {"model": model} | contract.provenance
    measured: dict[str, Any] = {}
    if stride is not None:
        align = contract.align if contract.align is not None else stride.align
        measured = {"align": align, "equivariant": stride.equivariant}
        figures = {"shift_error": float(f"{stride.error:.3g}"), "runtime": "finite, steady, free of its batch"}
        provenance["verification"] = figures
    return contract.model_copy(update={**measured, "provenance": provenance})
