"""Before a run on a device: a trial there, beside the same on the CPU, and the memory that it takes."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from segpipe.pipeline.batches import Tile
from segpipe.pipeline.bound import BoundModel, bytes_under_way, lane_of
from segpipe.pipeline.cases import Case
from segpipe.pipeline.device import Room, open_session
from segpipe.pipeline.errors import DeviceError, DeviceMemoryError
from segpipe.pipeline.labels import Decision
from segpipe.pipeline.machine import processors
from segpipe.pipeline.scaling import Scaling, unscaled
from segpipe.pipeline.spec import ModelSpec
from segpipe.pipeline.tail import tail_of

LEAST_AGREEMENT = 0.99
"""Share of labels that must be the CPU's: fp16 gives 99.9 % on random weights, and a network that overflows gives noise."""

SHARE = 0.85
"""Of what the network leaves of a device's memory that is used: kernels, fragments and another process take some."""

LEAST_SLACK = 2**28
"""Bytes that ONNX Runtime may take beyond what it took in the trial."""

TRIAL_TILES = 2
GRAIN = 16
"""Pixels over which the noise of a trial is correlated, so that networks see structure."""


def try_device(spec: ModelSpec) -> ModelSpec:
    """Run some tiles there and on the CPU; note what memory there is, and what the network takes of it.

    Raises:
        DeviceError: labels differ from the CPU's by more than rounding explains, or scores are not finite.
        DeviceMemoryError: there is no memory for a batch.
    """
    before = lane_of(spec).free()
    model = BoundModel(replace(spec, room=None))
    with model.arrays.here():
        tiles = trial_tiles(spec)
        scores = np.concatenate([model.score([tile]).cpu().numpy() for tile in tiles])
    after = model.lane.free()
    del model
    check_agreement(spec, scores, _on_host(spec, tiles))
    return spec if before is None or after is None else replace(spec, room=_room(spec, before, after))


def _room(spec: ModelSpec, before: int, after: int) -> Room:
    """From free memory without and with the network."""
    network, way = before - after, bytes_under_way(spec)
    strip = int(after * SHARE) - way
    if strip < 0:
        raise DeviceMemoryError(
            f"the device has {after / 1e9:.1f} GB left beside the network, and tiles of a batch of {spec.batch} take "
            f"{way / 1e9:.1f} GB on their way: lower --batch"
        )
    return Room(limit=network + max(network // 10, LEAST_SLACK), strip=strip)


def trial_tiles(spec: ModelSpec) -> list[Tile]:
    """Noise with structure, in the range of what the contract makes of pixels."""
    rng, contract = np.random.default_rng(0), spec.contract
    coarse = [-(-n // GRAIN) for n in spec.tiling.tile]
    scaling = Scaling(np.ones(contract.channel_count), np.zeros(contract.channel_count))
    if contract.scaling == "graph":
        scaling = unscaled(contract)
    tiles = []
    for _ in range(TRIAL_TILES):
        patches = np.kron(rng.normal(size=(contract.channel_count, *coarse)), np.ones((1, *[GRAIN] * len(coarse))))
        noise = patches[(slice(None), *(slice(0, n) for n in spec.tiling.tile))]
        noise = noise + 0.2 * rng.normal(size=noise.shape)
        tiles.append(Tile(Case("trial", ""), pixels=_in_range(noise, spec), scaling=scaling))
    return tiles


def _in_range(noise: NDArray[np.float64], spec: ModelSpec) -> NDArray[np.generic]:
    contract, dtype = spec.contract, np.dtype(spec.input_dtype)
    if contract.scaling == "graph":
        middle = unscaled(contract).fill
        assert middle is not None
        centre = np.maximum(middle, 1).reshape(-1, *[1] * (noise.ndim - 1))
        raw = centre * (1 + 0.3 * noise)
        return raw.clip(0, np.iinfo(dtype).max).astype(dtype) if dtype.kind in "iu" else raw.astype(np.float32)
    if contract.normalize in ("fixed", "zscore"):
        return noise.astype(np.float32)
    unit = np.clip(0.5 + 0.2 * noise, 0, 1).astype(np.float32)
    return np.rint(unit * 255).astype(dtype) if dtype.kind in "iu" else unit


def _on_host(spec: ModelSpec, tiles: list[Tile]) -> NDArray[np.float32]:
    """Scores of ONNX Runtime alone on the CPU, tile by tile where the model allows it."""
    session = open_session(str(spec.path), "cpu", False, processors())  # labels are compared, not bytes
    fixed = isinstance(session.get_inputs()[0].shape[0], int)
    alone = replace(spec, device="cpu", batch=spec.batch if fixed else 1)
    found = []
    for tile in tiles:
        assert tile.pixels is not None
        batch = np.repeat(tile.pixels[None], alone.batch, axis=0)
        batch = np.moveaxis(batch, 1, -1) if spec.contract.layout == "NHWC" else batch
        (raw,) = session.run([spec.output], {spec.input: np.ascontiguousarray(batch, dtype=spec.input_dtype)})
        tail = tail_of(alone, raw.shape)
        if tail is not None:
            (raw,) = open_session(tail, "cpu", True).run(None, {"scores": raw.astype(np.float32)})
        found.append(np.asarray(raw[:1], np.float32))
    return np.concatenate(found)


def check_agreement(spec: ModelSpec, found: NDArray[np.float32], truth: NDArray[np.float32]) -> None:
    """Labels of the device against the CPU's, for scores ``(tiles, classes, *tile)``."""
    if not np.isfinite(found).all():
        raise DeviceError(
            f"scores must be finite, and {spec.path} gives NaN or infinity on {spec.device}, and none on the CPU: "
            "export it with --precision fp32"
            if np.isfinite(truth).all()
            else f"scores must be finite, and {spec.path} gives NaN or infinity for noise, on the CPU, too: check the model"
        )
    decision, ones = Decision(spec.contract, spec.blend_on), np.ones(found.shape[2:], np.float32)
    there, here = ([decision.labels(tile, ones, None)[0] for tile in scores] for scores in (found, truth))
    agreement = float(np.mean(np.equal(there, here)))
    if agreement < LEAST_AGREEMENT:
        raise DeviceError(
            f"at least {LEAST_AGREEMENT:.0%} of the labels on {spec.device} must be the CPU's, got {agreement:.2%} on trial "
            f"tiles of {spec.path}: export it with --precision fp32, leave --tf32 out, or take --device cpu"
        )
