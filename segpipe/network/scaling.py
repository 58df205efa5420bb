"""From stored pixels to what the network was trained on: one affine map per channel."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract


@dataclass(frozen=True)
class Scaling:
    """``x = clip(pixel * gain + bias, low, high)`` per channel, folded from the contract's steps.

    Each array has shape ``(channels,)``. Invalid pixels become 0 after the map: what stands for the mean.
    """

    gain: NDArray[np.float64]
    bias: NDArray[np.float64]
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None
    fill: NDArray[np.float64] | None = None
    """What invalid pixels become, 0 if None."""

    def __call__(self, pixels: NDArray[Any], invalid: NDArray[np.bool_] | None) -> NDArray[np.float32]:
        """Scale pixels of shape ``(channels, *tile)``; ``invalid`` of shape ``tile`` marks those to fill."""
        kind = np.float32 if pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32 else np.float64
        gain, bias = (_column(v, pixels.ndim).astype(kind) for v in (self.gain, self.bias))
        x = np.multiply(pixels, gain, dtype=kind)
        x += bias
        if self.low is not None and self.high is not None:
            np.clip(x, _column(self.low, x.ndim).astype(kind), _column(self.high, x.ndim).astype(kind), out=x)
        if invalid is not None:
            np.copyto(x, 0 if self.fill is None else _column(self.fill, x.ndim).astype(kind), where=invalid)
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and its scores are refused
            return np.asarray(x, np.float32)

    def then(self, gain: NDArray[np.float64], bias: NDArray[np.float64]) -> Self:
        """This map followed by another, increasing one."""
        clip = [None if limit is None else limit * gain + bias for limit in (self.low, self.high)]
        return type(self)(self.gain * gain, self.bias * gain + bias, *clip)


def _column(values: NDArray[np.float64], ndim: int) -> NDArray[np.float64]:
    return values.reshape(-1, *[1] * (ndim - 1))


def fixed_scaling(contract: Contract, tags: tuple[NDArray[np.float64], NDArray[np.float64]] | None) -> Scaling:
    """What the contract says without looking at the pixels.

    Args:
        contract: with its scale, offset, clip, mean and std.
        tags: scale and offset of the file's bands, where the contract wants physical values.
    """
    count = contract.channel_count
    scaling = Scaling(np.ones(count), np.zeros(count))
    if tags is not None:
        scaling = scaling.then(*tags)
    scaling = scaling.then(np.array(contract.column("scale")), np.array(contract.column("offset")))
    if contract.clip:
        low, high = contract.clip
        scaling = Scaling(scaling.gain, scaling.bias, np.full(count, low), np.full(count, high))
    if contract.normalize == "fixed":
        scaling = standardised(scaling, np.array(contract.column("mean")), np.array(contract.column("std")))
    return scaling


def unscaled(contract: Contract) -> Scaling:
    """Raw pixels for a model that scales them inside; invalid ones become the raw value that it scales to 0."""
    count = contract.channel_count
    fill = np.zeros(count)
    if contract.normalize == "fixed":
        raw = (np.array(contract.column("mean")) - np.array(contract.column("offset"))) / np.array(contract.column("scale"))
        fill = np.rint(raw)
    return Scaling(np.ones(count), np.zeros(count), fill=fill)


def standardised(scaling: Scaling, center: NDArray[np.float64], spread: NDArray[np.float64]) -> Scaling:
    """``(x - center) / spread``; a channel without spread becomes 0."""
    gain = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
    return scaling.then(gain, -center * gain)


def case_scaling(contract: Contract, scaling: Scaling, blocks: Iterable[NDArray[np.float32]]) -> Scaling:
    """Add the case's own z-score or min-max.

    Args:
        contract: ``normalize`` is ``zscore`` or ``minmax``.
        scaling: the fixed part.
        blocks: the scaled valid pixels of the case, each ``(channels, pixels)``, in an order that depends on its
            shape alone.
    """
    statistics = _moments(blocks) if contract.normalize == "zscore" else _extent(blocks)
    return scaling if statistics is None else standardised(scaling, *statistics)


def _moments(blocks: Iterable[NDArray[np.float32]]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Mean and population standard deviation in float64, merged block by block (Chan, Golub and LeVeque 1979)."""
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    for block in blocks:
        n = block.shape[1]
        if not n:
            continue
        here = block.mean(axis=1, dtype=np.float64)
        spread = np.square(block - here[:, None]).sum(axis=1)
        delta = here - mean
        mean = mean + delta * n / (count + n)
        squares = squares + spread + delta**2 * count * n / (count + n)
        count += n
    return (mean, np.sqrt(squares / count)) if count else None


def _extent(blocks: Iterable[NDArray[np.float32]]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None
    for block in blocks:
        if block.shape[1]:
            b = block.astype(np.float64)
            low = b.min(axis=1) if low is None else np.minimum(low, b.min(axis=1))
            high = b.max(axis=1) if high is None else np.maximum(high, b.max(axis=1))
    return None if low is None or high is None else (low, high - low)
