"""The candidates: tiles, overlaps and batches that a model's file and contract allow."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from segpipe.errors import ContractError, SettingsError
from segpipe.geometry.windows import Tiling
from segpipe.network.device import resolve_device
from segpipe.network.fit import image_of
from segpipe.network.form import is_quantised
from segpipe.network.model_file import read_model
from segpipe.network.openvino_session import has_bf16
from segpipe.network.read import read_spec
from segpipe.network.signature import signature
from segpipe.network.spec import ModelSpec
from segpipe.pipeline.memory import network_bytes
from segpipe.pipeline.model_check import try_out
from segpipe.process.machine import memory
from segpipe.tune.settings import TuneSettings

Axes = tuple[int, ...]

FACTORS = (1.0, 2.0, 0.5)
"""Multiples of the contract's tile, in order of preference."""

SHARES = (0.25, 0.125, 0.0625, 0.0)
"""Overlaps as shares of the tile."""

MEMORY_SHARE = 0.4
"""Share of the machine's memory that one call on a whole box may take."""

BATCHES = {"cpu": (1, 2, 4), "openvino": (1, 2, 4), "cuda": (8, 16, 32)}


@dataclass(frozen=True, eq=False)
class TunedNetwork:
    """A model file as a run uses it, and which of its sizes are free."""

    spec: ModelSpec
    """Model with the contract's tile, overlap and batch."""
    free_size: bool
    free_batch: bool
    device: str | None = None
    """``--device`` of the run; None: the default."""
    precision: str | None = None
    """``--precision`` of the run; None: the default."""

    @property
    def is_local(self) -> bool:
        """Whether inference of a whole image in one call is the ideal that tiles approximate."""
        return self.free_size and self.spec.contract.equivariant is not False

    def takes_whole(self, shape: Axes) -> bool:
        """Whether one call on a box of this shape is the reference: the network is local, and memory suffices."""
        batches = math.prod(self.seen(shape)) / (self.spec.batch * math.prod(self.spec.tiling.input))
        return self.is_local and network_bytes(self.spec, 1, batches=batches) <= memory() * MEMORY_SHARE

    def seen(self, scored: Axes) -> Axes:
        """What the network sees of a part that it scores: the part with the margin, which is the tile of a run."""
        return tuple(n + 2 * margin for n, margin in zip(scored, self.spec.tiling.margin, strict=True))

    @property
    def name(self) -> str:
        """Name of the file and, for another engine, of the engine and its precision."""
        engine = self.spec.engine
        return self.spec.path.name if engine is None else f"{self.spec.path.name} (openvino, {engine.precision})"

    @property
    def flags(self) -> list[str]:
        """Flags of the run that belong to the file and how it is computed."""
        chosen = {"--model": str(self.spec.path), "--device": self.device, "--precision": self.precision}
        return [part for flag, value in chosen.items() if value is not None for part in (flag, value)]

    def with_tiling(self, tiling: Tiling, batch: int | None = None) -> ModelSpec:
        """The model with other windows and, if it is given, another batch."""
        return replace(self.spec, tiling=tiling, batch=batch or self.spec.batch)


@dataclass(frozen=True)
class Candidate:
    """A file, a tile and an overlap, which determine the labels."""

    network: TunedNetwork
    tiling: Tiling

    @property
    def is_own(self) -> bool:
        """Whether it is the contract's own tiling."""
        return self.tiling == self.network.spec.tiling


def open_networks(settings: TuneSettings) -> list[TunedNetwork]:
    """Open the model and its other files, and run a trial of each.

    Raises:
        SegpipeError: a file cannot be run.
        ContractError: their classes differ.
    """
    networks = [_open(settings, *kind) for path in (settings.model, *settings.also) for kind in _kinds(settings, path)]
    if not networks:
        raise SettingsError(
            f"no file can be computed in {' or '.join(settings.precisions)} on this device: leave --precision out"
        )
    first, *others = networks
    for other in others:
        if _meaning(other) != _meaning(first):
            raise ContractError(
                f"--also names another file of the same network, and the classes of {other.spec.path} are not those of "
                f"{first.spec.path}: tune it by itself"
            )
    return networks


def _kinds(settings: TuneSettings, path: Path) -> Iterator[tuple[Path, str | None, str | None]]:
    """Yield what a file is measured with: device and precision, as flags of a run, None where the default is meant."""
    quantised = is_quantised(read_model(path))
    own = "int8" if quantised else "fp32"
    for device in _devices(settings):
        also = not quantised and device is not None and device.startswith("openvino") and has_bf16(device)
        there = [own, *(["bf16"] if also else [])]
        for precision in there:
            if not settings.precisions or precision in settings.precisions:
                yield path, device, precision if precision == "bf16" else None


def _devices(settings: TuneSettings) -> list[str | None]:
    """The device of a run, and OpenVINO beside a CPU if it is installed and no device was named."""
    named = settings.device
    beside = named in (None, "auto") and resolve_device("auto")[0] == "cpu" and find_spec("openvino") is not None
    return [named, "openvino"] if beside else [named]


def _open(settings: TuneSettings, path: Path, device: str | None, precision: str | None) -> TunedNetwork:
    spec = try_out(read_spec(settings.of_run(path, device, precision)))
    shape = image_of(signature(read_model(path))[0], spec.contract, path).shape
    sizes = spec.contract.layout.spatial(shape)
    free_batch = shape[0] is None and _keeps_scores(spec, settings)
    return TunedNetwork(spec, not any(sizes), free_batch, device, precision)


def _keeps_scores(spec: ModelSpec, settings: TuneSettings) -> bool:
    """Whether a run would use larger batches: a model whose scores depend on them runs tile by tile."""
    several = max(settings.batches or BATCHES[spec.device])
    return several in (1, spec.batch) or try_out(replace(spec, batch=several)).batch == several


def _meaning(network: TunedNetwork) -> object:
    contract = network.spec.contract
    return contract.task, [(c.id, c.name) for c in contract.mask_classes]


def candidates(networks: Sequence[TunedNetwork], settings: TuneSettings) -> list[Candidate]:
    """All candidates in order of preference: the contracts' own tilings, then others.

    Raises:
        SettingsError: the model does not allow a requested tile or overlap.
    """
    own = [Candidate(network, network.spec.tiling) for network in networks]
    tilings = [list(_tilings(network, settings)) for network in networks]
    longest = max(map(len, tilings))
    others = [Candidate(n, ts[i]) for i in range(longest) for n, ts in zip(networks, tilings, strict=True) if i < len(ts)]
    return list(dict.fromkeys([*own, *others]))


def _tilings(network: TunedNetwork, settings: TuneSettings) -> Iterator[Tiling]:
    own = network.spec.tiling
    for tile in _tiles(network, settings.tiles):
        asked = [(overlap,) * len(tile) for overlap in settings.overlaps]
        ours = not settings.tiles and tile != own.tile
        for overlap in asked or _shares(tile, own.align):
            if not (ours and max(overlap) >= min(tile)):  # a requested overlap may be too large for half the tile
                yield replace(own, tile=tile, overlap=overlap)


def _tiles(network: TunedNetwork, asked: Sequence[int]) -> Iterable[Axes]:
    own = network.spec.tiling
    if asked and network.free_size:
        return [_scored(side, own) for side in asked]
    if asked and any((side,) * len(own.tile) != own.input for side in asked):
        raise SettingsError(f"the sizes of {network.spec.path} are fixed to its tile: leave --tile out")
    if not network.free_size:
        return [own.tile]
    scale = _with_margin if any(own.margin) else _multiple
    return dict.fromkeys(tuple(scale(*axis, factor) for axis in zip(own.tile, own.align, strict=True)) for factor in FACTORS)


def _multiple(tile: int, align: int, factor: float) -> int:
    return max(align, round(tile * factor) // align * align)


def _with_margin(tile: int, align: int, factor: float) -> int:
    """As ``_multiple``, by whole strides more or less: poolings must divide it as they divide the contract's."""
    more = round(tile * (factor - 1) / align) * align
    return tile + more if tile + more >= align else tile


def _scored(side: int, own: Tiling) -> Axes:
    """What a tile of this side scores.

    Raises:
        SettingsError: it is not larger than twice the margin.
    """
    scored = tuple(side - 2 * margin for margin in own.margin)
    if min(scored) < 1:
        raise SettingsError(
            f"the tile must be larger than twice the margin, got --tile {side} and margin "
            f"{','.join(map(str, own.margin))}: name a larger one"
        )
    return scored


def _shares(tile: Axes, align: Axes) -> Iterable[Axes]:
    """Overlaps suggested for a tile: multiples of the stride, so that all give different windows."""
    aligned = [tuple(round(t * share / a) * a for t, a in zip(tile, align, strict=True)) for share in SHARES]
    return dict.fromkeys(o for o in aligned if all(t - x >= a for t, x, a in zip(tile, o, align, strict=True)))


def batches(network: TunedNetwork, tile: Axes, settings: TuneSettings) -> tuple[int, ...]:
    """Batch sizes to try; several only for tiles up to the contract's: a larger tile keeps a device busy by itself."""
    own = network.spec
    if not network.free_batch:
        return (own.batch,)
    if settings.batches:
        return settings.batches
    wanted = BATCHES[own.device]
    return wanted if all(t <= o for t, o in zip(tile, own.tiling.tile, strict=True)) else wanted[:1]
