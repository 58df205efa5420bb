"""The trial before a run on a device: compare it with the CPU, and measure the device's memory."""

import logging
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import DeviceMemoryError
from segpipe.network.activation import by_class
from segpipe.network.batch_independence import batch_tiles, depends_on_batch, one_by_one
from segpipe.network.device import DeviceMemory
from segpipe.network.noise import noise_tiles
from segpipe.network.outputs import check_output
from segpipe.network.scaling import Scaling, of_input, unscaled
from segpipe.network.spec import ModelSpec
from segpipe.pipeline.agreement import CpuReference, checked_agreement
from segpipe.pipeline.infer_gpu import DeviceModel, streams_of
from segpipe.pipeline.memory import device_bytes
from segpipe.pipeline.tiles import Patch

LOG = logging.getLogger("segpipe")

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
    before = streams_of(spec).free()
    model = DeviceModel(replace(spec, memory=None))
    noise = noise_tiles(spec, TRIAL_TILES)
    with model.arrays.here():
        scores = np.concatenate([_scored(model, tile[None]) for tile in noise])
        mixes = spec.batch > 1 and _mixes(model)
    after = model.streams.free()
    del model
    if mixes:
        return try_device(one_by_one(spec))
    host = CpuReference(spec)
    check_output(host.spec, by_class(host.raw(noise[:1]), spec), host.raw)
    spec = replace(spec, agreement=checked_agreement(spec, scores, host.scores(noise)))
    if before is not None and after is not None:
        spec = replace(spec, memory=_device_memory(spec, before, after))
    return spec


def with_memory(spec: ModelSpec) -> ModelSpec:
    """Add the memory limits for several networks together, each of which was tried.

    Raises:
        DeviceMemoryError: the memory is too small for all of them.
    """
    before = streams_of(spec).free()
    model = DeviceModel(replace(spec, memory=None))
    with model.arrays.here():
        _scored(model, noise_tiles(spec, 1))
    after = model.streams.free()
    return spec if before is None or after is None else replace(spec, memory=_device_memory(spec, before, after))


def _scored(model: DeviceModel, batch: NDArray[Any]) -> NDArray[np.float32]:
    """Scores of tiles ``(tiles, channels, *tile)`` in the model's input form."""
    contract = model.spec.contract
    as_they_are = Scaling(np.ones(contract.input_channels), np.zeros(contract.input_channels))
    scaling = of_input(unscaled(contract), contract) if contract.scaling == "graph" else as_they_are
    pixels = batch if batch.dtype.kind in "iu" else batch.astype(np.float32)
    found, _ = model.score([Patch(tile, scaling=scaling) for tile in pixels])
    return np.asarray(found.cpu().numpy(), np.float32)


def _mixes(model: DeviceModel) -> bool:
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
