"""Noise for trial runs of a model: structured, seeded, in the range that its contract scales pixels to."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.network.spec import ModelSpec

GRAIN = 16
"""Correlation length of the noise in pixels, so that networks see structure."""


def noise_tiles(spec: ModelSpec, count: int, seed: int = 0) -> NDArray[np.generic]:
    """Tiles ``(count, channels, *tile)`` in the model's input type."""
    return _in_range(_structured((count, *spec.batch_shape[1:]), seed), spec)


def loud_tiles(spec: ModelSpec, count: int, seed: int = 1) -> NDArray[np.generic]:
    """Tiles of values far beyond those of `noise_tiles`; for integers, the full range of up to 16 bits."""
    noise, dtype = _structured((count, *spec.batch_shape[1:]), seed), np.dtype(spec.input_dtype)
    if dtype.kind == "f":
        loud = 30 * _in_range(noise, spec).astype(np.float32)
        return loud.clip(-60_000, 60_000).astype(spec.input_dtype)
    low, high = limits(dtype)
    return (noise * (high - low) + (high + low) / 2).clip(low, high).astype(dtype)


def _structured(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Patches of `GRAIN` pixels with deviation 1, plus fine noise of deviation 0.2; float32 throughout, for large tiles."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((*shape[:2], *(-(-n // GRAIN) for n in shape[2:])), np.float32)
    for axis, size in enumerate(shape[2:], 2):
        noise = np.repeat(noise, GRAIN, axis)[(slice(None),) * axis + (slice(size),)]
    fine = rng.standard_normal(shape, np.float32)
    fine *= np.float32(0.2)
    fine += noise
    return fine


def _in_range(noise: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.generic]:
    """Noise of deviation 1 as scaled pixels, or as stored pixels for a model that scales them itself."""
    contract, dtype = spec.contract, np.dtype(spec.input_dtype)
    inside, fixed = contract.scaling == "graph", set(contract.normalizations) <= {"fixed", "zscore"}
    x = noise if fixed else np.clip(np.float32(0.5) + np.float32(0.2) * noise, 0, 1)
    if inside:
        x = _stored(x, contract)
    if dtype.kind == "f":
        return x.astype(dtype)
    low, high = limits(dtype)
    return np.rint(x * 255 if not fixed and x.max(initial=0) <= 1 else x).clip(low, high).astype(dtype)


def _stored(x: NDArray[np.float32], contract: Contract) -> NDArray[np.float32]:
    """Stored pixels that a graph scales to ``x``, by its contract."""
    slices = 2 * contract.neighbours + 1

    def column(values: list[float]) -> NDArray[np.float32]:
        return np.array(values * slices, np.float32).reshape(-1, *[1] * (x.ndim - 2))

    if contract.fixed:
        mean, std = contract.fixed
        x = x * column(std) + column(mean)
    return np.asarray((x - column(contract.column("offset"))) / column(contract.column("scale")), np.float32)


def limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Least and largest pixel value of an integer type; wider types hold pixels of 16 bits."""
    info = np.iinfo(dtype if dtype.itemsize <= 2 else np.uint16)
    return int(info.min), int(info.max)
