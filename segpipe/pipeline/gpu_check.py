"""The trial before a run on a device: compare it with the CPU, and measure the device's memory."""

import logging
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import DeviceError, DeviceMemoryError
from segpipe.network.activation import by_class
from segpipe.network.device import DeviceMemory, open_session
from segpipe.network.neighbours import batch_tiles, depends_on_batch, one_by_one
from segpipe.network.noise import noise_tiles
from segpipe.network.output_graph import tail_of
from segpipe.network.outputs import check_output
from segpipe.network.scaling import Scaling, of_input, unscaled
from segpipe.network.spec import ModelSpec
from segpipe.pipeline.decide import Decision
from segpipe.pipeline.infer_gpu import BoundModel, lane_of
from segpipe.pipeline.memory import device_bytes
from segpipe.pipeline.tiles import Patch
from segpipe.process.machine import processors

LOG = logging.getLogger("segpipe")

LEAST_AGREEMENT = 0.99
"""Least share of labels equal to the CPU's: fp16 gives 99.9 % on random weights, a network that overflows gives noise."""

SHARE = 0.85
"""Share of the memory left by the network that is used: kernels, fragmentation and other processes take some."""

LEAST_SLACK = 2**28
"""Bytes that ONNX Runtime may take beyond its use in the trial."""

TRIAL_TILES = 2


def try_device(spec: ModelSpec) -> ModelSpec:
    """Run some tiles on the device and on the CPU; add the device's memory limits to the spec.

    Raises:
        DeviceError: labels differ from the CPU's by more than rounding explains, or scores are not finite.
        DeviceMemoryError: the memory is too small for a batch.
    """
    before = lane_of(spec).free()
    model = BoundModel(replace(spec, memory=None))
    noise = noise_tiles(spec, TRIAL_TILES)
    with model.arrays.here():
        scores = np.concatenate([_scored(model, tile[None]) for tile in noise])
        mixes = spec.batch > 1 and _mixes(model)
    after = model.lane.free()
    del model
    if mixes:
        return try_device(one_by_one(spec))
    host = _Host(spec)
    check_output(host.spec, by_class(host.raw(noise[:1]), spec), host.raw)
    check_agreement(spec, scores, host.scores(noise))
    if before is not None and after is not None:
        spec = replace(spec, memory=_device_memory(spec, before, after))
    return spec


def with_memory(spec: ModelSpec) -> ModelSpec:
    """Add the memory limits for several networks together, each of which was tried.

    Raises:
        DeviceMemoryError: the memory is too small for all of them.
    """
    before = lane_of(spec).free()
    model = BoundModel(replace(spec, memory=None))
    with model.arrays.here():
        _scored(model, noise_tiles(spec, 1))
    after = model.lane.free()
    return spec if before is None or after is None else replace(spec, memory=_device_memory(spec, before, after))


def _scored(model: BoundModel, batch: NDArray[Any]) -> NDArray[np.float32]:
    """Scores of tiles ``(tiles, channels, *tile)`` in the model's input form."""
    contract = model.spec.contract
    as_they_are = Scaling(np.ones(contract.input_channels), np.zeros(contract.input_channels))
    scaling = of_input(unscaled(contract), contract) if contract.scaling == "graph" else as_they_are
    pixels = batch if batch.dtype.kind in "iu" else batch.astype(np.float32)
    found, _ = model.score([Patch(tile, scaling=scaling) for tile in pixels])
    return np.asarray(found.cpu().numpy(), np.float32)


def _mixes(model: BoundModel) -> bool:
    """Whether scores depend on the batch; not compared with a batch of 1, which may use other kernels.

    Kernels that round differently from call to call would give the same symptom, and smaller batches do not help then.
    """
    tiles = batch_tiles(model.spec)
    scores = _scored(model, tiles)
    if _scored(model, tiles).tobytes() != scores.tobytes():
        LOG.warning(
            "scores of %s differ from call to call on %s: so may masks, by rounding", model.spec.path, model.spec.device
        )
        return False
    return depends_on_batch(partial(_scored, model), tiles, scores, alone=False)


def _device_memory(spec: ModelSpec, before: int, after: int) -> DeviceMemory:
    """Memory limits from the free memory without and with the network."""
    network, way = before - after, device_bytes(spec)
    strip = int(after * SHARE) - way
    if strip < 0:
        raise DeviceMemoryError(
            f"the device has {after / 1e9:.1f} GB left beside the network, and tiles of a batch of {spec.batch} take "
            f"{way / 1e9:.1f} GB on their way: lower --batch"
        )
    return DeviceMemory(limit=network + max(network // 10, LEAST_SLACK), strip=strip)


class _Host:
    """ONNX Runtime on the CPU, tile by tile where the model allows it."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = replace(spec, device="cpu", batch=spec.batch if spec.batch_is_fixed else 1)
        self._session = open_session(str(spec.path), "cpu", False, processors())  # threads do not change labels

    def raw(self, batch: NDArray[Any]) -> NDArray[Any]:
        """The network's raw output for some tiles; the batch is filled up if its size is fixed."""
        spec = self.spec
        batch = np.concatenate([batch, np.repeat(batch[-1:], max(0, spec.batch - len(batch)), axis=0)])
        batch = batch.transpose(spec.contract.layout.from_first)
        (raw,) = self._session.run([spec.output], {spec.input: np.ascontiguousarray(batch, dtype=spec.input_dtype)})
        return np.asarray(raw)

    def scores(self, tiles: NDArray[Any]) -> NDArray[np.float32]:
        """Scores ``(tiles, classes, *tile)``."""
        found = []
        for tile in tiles:
            raw = self.raw(tile[None])
            tail = tail_of(self.spec, raw.shape)
            if tail is not None:
                (raw,) = open_session(tail, "cpu", True).run(None, {"scores": raw.astype(np.float32)})
            found.append(np.asarray(raw[:1], np.float32))
        return np.concatenate(found)


def check_agreement(spec: ModelSpec, found: NDArray[np.float32], truth: NDArray[np.float32]) -> None:
    """Compare the device's labels with the CPU's, for scores ``(tiles, classes, *tile)``."""
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
