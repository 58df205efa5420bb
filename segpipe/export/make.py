"""Export a model: build, measure, convert, compare; the file gets its name last."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from segpipe import __version__
from segpipe.contract import Contract
from segpipe.errors import ExportError
from segpipe.export.families import Network
from segpipe.export.file import contract_beside, draft, save, spec_of
from segpipe.export.graph import Scorer, output_stride, own_score, scaled_inside, score, to_onnx, topologically_sorted
from segpipe.export.joined import joined
from segpipe.export.large import light_copy, loadable, refilled
from segpipe.export.mlm import mlm_item, with_weights
from segpipe.export.network import library_versions, open_network, weights_digest
from segpipe.export.outputs import check_not_stretched, find_scores
from segpipe.export.precision import converted
from segpipe.export.settings import ExportSettings
from segpipe.export.stride import Stride, measure_stride, named_stride
from segpipe.export.terms import Terms, draw_up, read_terms
from segpipe.export.tiles import Samples, Tiles, noise, random_tiles, raw_tiles, scene_samples
from segpipe.export.verify import BATCHES, Verification, check_agreement, check_steady, compare
from segpipe.geometry.layout import Layout
from segpipe.messages.printable import counted, dims
from segpipe.network.device import open_session
from segpipe.network.model_file import external_data, read_model
from segpipe.network.scaling import fixed_scaling, of_input
from segpipe.network.signature import signature
from segpipe.network.spec import ModelSpec
from segpipe.network.view import Probe, measured_margin
from segpipe.overrides import Overrides
from segpipe.pipeline.infer import HostNetwork
from segpipe.pipeline.model_check import try_out
from segpipe.storage.folder import Folder

CALIBRATION_TILES = 48
VERIFICATION_TILES = sum(BATCHES)
SAME_SIZE = 1e-4
"""Largest difference, relative to the largest score, at which a graph counts as correct at another size."""

Say = Callable[[str], None]
LOG = logging.getLogger("segpipe")


@dataclass(frozen=True)
class Exported:
    """Result of an export."""

    path: Path
    contract: Contract
    agreement: Verification
    stride: Stride
    free_size: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Traced:
    """A network, its contract and its float32 graph, from which files of each precision are made."""

    network: Network
    scorer: Scorer
    """The reference for verification."""
    contract: Contract
    stride: Stride
    proto: onnx.ModelProto
    free_size: bool


def export_model(settings: ExportSettings, say: Say = LOG.info) -> Exported:
    """Export a trained network; the file appears only if ONNX Runtime agrees with torch.

    Args:
        settings: what to export, and how.
        say: called with one line per step.

    Raises:
        SegpipeError: the export failed; no file is left.
    """
    return write(trace(settings, say), settings, say)


def trace(settings: ExportSettings, say: Say = LOG.info) -> Traced:
    """Load a network, measure its stride, and make its graph with torch."""
    terms = read_terms(settings)
    say(f"loading {settings.weights}")
    network = open_network(settings, terms)
    network, contract = joined(network, draw_up(terms, network.known, settings))
    network, scorer, shape = _scorer(network, contract, settings)
    contract = _with_margin(contract, terms, network.margin)
    say("measuring the stride")
    stride = _stride(network, scorer, shape, contract)
    contract = contract.model_copy(update={"align": stride.align, "equivariant": stride.equivariant})
    say("exporting")
    proto, free_size = _graph(network, scorer, shape, stride, settings)
    return Traced(network=network, scorer=scorer, contract=contract, stride=stride, proto=proto, free_size=free_size)


def write(traced: Traced, settings: ExportSettings, say: Say = LOG.info) -> Exported:
    """Convert to the chosen precision, compare with torch, and write the file; the traced graph is unchanged."""
    proto, contract, network = traced.proto, traced.contract, traced.network
    with draft(settings.output) as path:
        _save(proto, contract, settings, path)
        spec = try_out(spec_of(path))
        calibration, verification = _tiles(settings, spec)
        say(f"converting to {settings.precision}")
        proto = converted(proto, settings.precision, calibration)
        if proto is not traced.proto:
            _save(topologically_sorted(proto), contract, settings, path)
        say(f"comparing with torch on {counted(len(verification), 'tile')}")
        agreement = _compare(traced.scorer, path, verification, settings)
        check_agreement(agreement, settings)
        figures = {**agreement.figures(), "shift_error": float(f"{traced.stride.error:.3g}")}
        figures |= {"output": network.scores} if network.scores else {}
        provenance = {**_origin(network, settings, proto), **contract.provenance, "verification": figures}
        contract = contract.model_copy(update={"provenance": provenance})
        _save(proto, contract, settings, path)
    if settings.stac_mlm:
        _write_item(settings.output, settings.stac_mlm, contract)
    return Exported(
        path=settings.output,
        contract=contract,
        agreement=agreement,
        stride=traced.stride,
        free_size=traced.free_size,
        notes=_notes(network, settings),
    )


def _scorer(network: Network, contract: Contract, settings: ExportSettings) -> tuple[Network, Scorer, tuple[int, ...]]:
    """Wrap the network as the reference, after checking that its scores fit the contract and are reproducible."""
    shape = (contract.input_channels, *_tile(contract))
    name, others = find_scores(network.module, (1, *shape), contract.scores, settings.score)
    if others:
        note = f"scores are the network's output {name}; left out: {', '.join(others)}"
        network = replace(network, notes=(*network.notes, note))
    margin = _margin(Scorer(network.module, name), shape, contract)
    network, scorer = replace(network, scores=name, margin=margin), Scorer(network.module, name, margin)
    check_steady(partial(score, scorer), [noise(shape, seed) for seed in (1, 2)])
    return network, scorer, shape


def _margin(scorer: Scorer, shape: tuple[int, ...], contract: Contract) -> tuple[int, ...] | None:
    """The margin: measured where the network's own output is smaller than the image, else that of the contract.

    Raises:
        ExportError: the contract has another.
        ModelError: nothing says whether the output is the middle of the image.
    """
    named = contract.axes("margin", contract.ndim)
    visible = output_stride(scorer.network, np.zeros((1, *shape), np.float32))
    tile, loud = noise(shape, 2)[None], 30 * noise(shape, 3)[None]
    probe = Probe(lambda image: own_score(scorer, image)[0], tile, loud, (visible,) * contract.ndim)
    if probe.sizes == probe.tile:
        return named
    margin = measured_margin(probe, "the network")
    if margin is None:
        check_not_stretched(probe.sizes, probe.tile)
    if named is not None and any(named) and named != margin:
        raise ExportError(
            f"margin must be the network's, measured as {'none' if margin is None else list(margin)} from the scores "
            f"{dims(probe.sizes)} of a tile of {dims(probe.tile)}, got {list(named)}: leave it out"
        )
    return margin


def _with_margin(contract: Contract, terms: Terms, margin: tuple[int, ...] | None) -> Contract:
    """The contract with a measured margin; neighbours share less then, unless the user says how much."""
    if margin is None or not any(margin):
        return contract
    tile = _tile(contract)
    shared = [max(0, size // 4 - 2 * less) for size, less in zip(tile, margin, strict=True)]
    values = {"margin": list(margin)} | ({} if "overlap" in terms.values else {"overlap": shared})
    return contract.model_copy(update=values)


def _tile(contract: Contract) -> tuple[int, int]:
    tile = contract.axes("tile", contract.ndim)
    if tile is None or contract.layout is not Layout.NCHW:
        raise ExportError(f'torch networks of two spatial axes have layout "NCHW" and a tile, got "{contract.layout}"')
    return tile[0], tile[1]


def _stride(network: Network, scorer: Scorer, shape: tuple[int, ...], contract: Contract) -> Stride:
    """The measured stride; a value in the contract must be a multiple of it."""
    visible = output_stride(network.module, np.zeros((1, *shape), np.float32))
    stride = measure_stride(partial(score, scorer), shape[0], _tile(contract), visible)
    return named_stride(stride, contract.axes("align", contract.ndim), visible)


def _graph(
    network: Network, scorer: Scorer, shape: tuple[int, ...], stride: Stride, settings: ExportSettings
) -> tuple[onnx.ModelProto, bool]:
    """Export with free rows and columns if the graph is correct at two other sizes, else with the tile's size."""
    if not (settings.fixed_size or network.traced):
        sizes = _other_sizes(shape, stride.align * -(-32 // stride.align), padded=network.margin is None)
        try:
            proto = to_onnx(network, shape, free_size=True)
            if all(_right_at(proto, scorer, size) for size in sizes):
                return proto, True
        except ExportError:  # not every network can be exported with free sizes
            pass
    return to_onnx(network, shape, free_size=False), False


def _other_sizes(shape: tuple[int, ...], unit: int, *, padded: bool) -> list[tuple[int, ...]]:
    channels, rows, cols = shape
    if not padded:  # only multiples of the unit more fit
        return [(channels, rows + unit, cols + 2 * unit), (channels, rows + unit, cols)]
    half = [-(-size // (2 * unit)) * unit for size in (rows, cols)]
    return [(channels, half[0] + unit, half[1] + 2 * unit), (channels, rows + unit, cols)]


def _right_at(proto: onnx.ModelProto, scorer: Scorer, shape: tuple[int, ...]) -> bool:
    image = noise(shape, 3)[None]
    silent = onnxruntime.RunOptions()
    silent.log_severity_level = 4  # a size that does not run is a valid result
    try:
        wanted = score(scorer, image)
        with loadable(proto) as graph:
            (found,) = open_session(graph, arena="none").run(None, {"image": image}, silent)
    except Exception:  # noqa: BLE001 - any error of torch or ONNX Runtime means that this size does not work
        return False
    return bool(wanted.shape == found.shape and np.abs(wanted - found).max() <= SAME_SIZE * np.abs(wanted).max())


def _save(proto: onnx.ModelProto, contract: Contract, settings: ExportSettings, path: Path) -> None:
    """Write the graph, with the scaling prepended for raw pixels."""
    if settings.raw:
        copy = onnx.ModelProto()
        copy.CopyFrom(light_copy(proto))
        proto = refilled(scaled_inside(copy, of_input(fixed_scaling(contract, None), contract), settings.raw), proto)
    save(proto, contract, path)


def _tiles(settings: ExportSettings, spec: ModelSpec) -> tuple[Tiles, Samples]:
    """Scaled tiles for calibration, and others for comparison."""
    overrides = Overrides(settings.scene_bands, resample=True)  # as a run with --resample reads them
    count = CALIBRATION_TILES + VERIFICATION_TILES
    samples = scene_samples(settings.calibrate, spec, overrides, count) if settings.calibrate else []
    seen = [pixels for pixels, _ in samples]
    if settings.verify:
        return seen, scene_samples(settings.verify, spec, overrides, VERIFICATION_TILES)
    if not seen:
        return [], [(tile, None) for tile in random_tiles(spec, VERIFICATION_TILES, settings.seed)]
    step = max(1, len(seen) // VERIFICATION_TILES)
    held = set(range(0, len(seen), step)[:VERIFICATION_TILES])
    rest = [tile for k, tile in enumerate(seen) if k not in held]
    return rest or seen, [samples[k] for k in sorted(held)]


def _compare(scorer: Scorer, path: Path, samples: Samples, settings: ExportSettings) -> Verification:
    """Compare the file, read as in a run, with the network."""
    spec = spec_of(path)
    contract = spec.contract
    source = ", ".join(Path(s).name for s in settings.verify or settings.calibrate) or f"noise, seed {settings.seed}"
    tiles, invalid = [pixels for pixels, _ in samples], [where for _, where in samples]
    taken: Sequence[NDArray[Any]] = tiles
    if settings.raw:  # not every value can be stored: both sides get stored values
        taken = raw_tiles(tiles, contract, settings.raw)
        scaling = of_input(fixed_scaling(contract, None), contract)
        tiles = [scaling(raw, None) for raw in taken]
    model = HostNetwork(spec, arena="none")
    pairs = list(zip(tiles, taken, strict=True))
    return compare(partial(score, scorer), model, pairs, contract, source, invalid=invalid)


def _origin(network: Network, settings: ExportSettings, proto: onnx.ModelProto) -> dict[str, Any]:
    """Provenance of the model; the contract's own values take precedence."""
    provenance = {
        "architecture": network.architecture,
        "framework": library_versions(),
        "exporter": f"segpipe {__version__}",
        "weights": settings.weights.name,
        "weights_sha256": weights_digest(settings.weights),
        "parameters": sum(p.numel() for p in network.module.parameters()),
        "precision": settings.precision,
        "opset": next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")),
        "date": datetime.now(UTC).date().isoformat(),
    }
    if network.scores:
        provenance["score"] = network.scores
    return {**provenance, "notes": list(network.notes)} if network.notes else provenance


def _write_item(model: Path, item: Path, contract: Contract) -> None:
    proto = read_model(model)
    (image,), (scores,) = signature(proto)
    weights = {file: weights_digest(file) for file in external_data(model, proto)}
    values = mlm_item(model, contract, sha256=weights_digest(model), tensors=(image, scores))
    Folder(item.parent).write_json(item.name, with_weights(values, weights))


def _notes(network: Network, settings: ExportSettings) -> tuple[str, ...]:
    return (*network.notes, *contract_beside(settings.output))
