"""Scaling of stored pixels to the network's input: one affine map per channel."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.network.intensity import Channels, Coarse, Extent, Moments

Block = NDArray[np.float32] | list[NDArray[np.float32]]
"""Scaled valid pixels ``(channels, pixels)``; or one array ``(1, pixels)`` per channel, where channels differ in number."""

Blocks = Callable[[Any], Iterable[Block]]
"""Yields all blocks of a case, scaled by its argument, in an order that depends on the shape of the case alone."""


@dataclass(frozen=True)
class Scaling:
    """``x = clip(pixel * gain + bias, low, high)`` per channel, folded from the contract's steps.

    Each array has shape ``(channels,)``. Invalid pixels become 0 after the map, which stands for the mean.
    """

    gain: NDArray[np.float64]
    bias: NDArray[np.float64]
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None
    fill: NDArray[np.float64] | None = None
    """Value of invalid pixels; 0 if None."""
    blank: NDArray[np.float64] | None = None
    """Stored pixel value that means no signal, and becomes 0; NaN for a channel without one."""

    def __call__(self, pixels: NDArray[Any], invalid: NDArray[np.bool_] | None) -> NDArray[np.float32]:
        """Scale pixels of shape ``(channels, *tile)``; ``invalid`` of shape ``tile`` marks pixels to fill."""
        kind = np.float32 if pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32 else np.float64
        gain, bias = (_column(v, pixels.ndim).astype(kind) for v in (self.gain, self.bias))
        with np.errstate(over="ignore"):  # of nodata such as -3.4e38, which is filled; a valid pixel becomes infinite
            x = np.multiply(pixels, gain, dtype=kind)
            x += bias
        if self.low is not None and self.high is not None:
            np.clip(x, _column(self.low, x.ndim).astype(kind), _column(self.high, x.ndim).astype(kind), out=x)
        if self.blank is not None:
            np.copyto(x, 0, where=self.is_blank(pixels))
        if invalid is not None:
            np.copyto(x, 0 if self.fill is None else _column(self.fill, x.ndim).astype(kind), where=invalid)
        with np.errstate(over="ignore"):  # values beyond float32 become infinite, and their scores are refused
            return np.asarray(x, np.float32)

    def is_blank(self, pixels: NDArray[Any]) -> NDArray[np.bool_]:
        """Mask of the stored pixels ``(channels, *tile)`` that mean no signal."""
        if self.blank is None:
            return np.zeros(pixels.shape, np.bool_)
        kind = np.float32 if pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32 else np.float64
        return np.asarray(pixels.astype(kind, copy=False) == _column(self.blank, pixels.ndim).astype(kind))

    def without_blank(self, stored: NDArray[Any], pixels: NDArray[Any]) -> NDArray[Any]:
        """Pixels as floats, with the value that is scaled to 0 in place of blank ones."""
        zero = np.divide(-self.bias, self.gain, out=np.zeros_like(self.bias), where=self.gain != 0)
        return np.where(self.is_blank(stored), _column(zero, pixels.ndim).astype(pixels.dtype), pixels)

    def then(self, gain: NDArray[np.float64], bias: NDArray[np.float64]) -> Self:
        """This map followed by another one, which must increase."""
        clip = [None if limit is None else limit * gain + bias for limit in (self.low, self.high)]
        return type(self)(self.gain * gain, self.bias * gain + bias, clip[0], clip[1], blank=self.blank)

    def repeated(self, times: int) -> Self:
        """This map repeated for ``times`` slices."""
        arrays = {key.name: getattr(self, key.name) for key in fields(self)}
        return replace(self, **{key: np.tile(value, times) for key, value in arrays.items() if value is not None})


def _column(values: NDArray[np.float64], ndim: int) -> NDArray[np.float64]:
    return values.reshape(-1, *[1] * (ndim - 1))


def fixed_scaling(contract: Contract, tags: tuple[NDArray[np.float64], NDArray[np.float64]] | None) -> Scaling:
    """The part of the scaling that does not depend on the pixels.

    Args:
        contract: provides scale, offset, clip, mean and std.
        tags: scale and offset of the file's bands, where the contract asks for physical values.
    """
    count = contract.channel_count
    scaling = Scaling(np.ones(count), np.zeros(count))
    if tags is not None:
        scaling = scaling.then(*tags)
    scaling = scaling.then(np.array(contract.column("scale")), np.array(contract.column("offset")))
    if contract.limits:
        low, high = contract.limits
        scaling = Scaling(scaling.gain, scaling.bias, np.array(low), np.array(high))
    if contract.fixed:
        mean, std = contract.fixed
        scaling = standardised(scaling, np.array(mean), np.array(std))
    return scaling


def _of_kind(contract: Contract, kind: str) -> NDArray[np.bool_]:
    """Mask of the channels with this kind of ``normalize``."""
    return np.array([one == kind for one in contract.normalizations])


def blank_of(contract: Contract, tags: tuple[Channels, Channels] | None, dtype: np.dtype[Any]) -> Channels | None:
    """Stored pixel that maps to 0, per channel, for a contract that excludes it; NaN if no pixel has that value."""
    if not any(contract.over_nonzero):
        return None
    return np.where(contract.over_nonzero, stored_zero(contract, tags, dtype), np.nan)


def stored_zero(contract: Contract, tags: tuple[Channels, Channels] | None, dtype: np.dtype[Any]) -> Channels:
    """Stored pixel of value 0, per channel; NaN if no pixel has that value."""
    count = contract.channel_count
    if tags is None or contract.pixel == "stored":
        return np.zeros(count)
    stored = -tags[1] / tags[0]
    if dtype.kind == "f":
        return stored
    whole = np.rint(stored)
    return np.where(np.abs(stored - whole) <= 1e-6 * np.maximum(1, np.abs(stored)), whole, np.nan)


def unscaled(contract: Contract) -> Scaling:
    """Identity for a model that scales pixels itself; invalid pixels become the raw value that it scales to 0."""
    count = contract.channel_count
    fill = np.zeros(count)
    if contract.fixed:
        raw = (np.array(contract.fixed[0]) - np.array(contract.column("offset"))) / np.array(contract.column("scale"))
        fill = np.rint(raw)
    return Scaling(np.ones(count), np.zeros(count), fill=fill)


def of_input(scaling: Scaling, contract: Contract) -> Scaling:
    """Scaling of the network's input, whose channels may be those of several slices."""
    return scaling.repeated(2 * contract.neighbours + 1) if contract.neighbours else scaling


def standardised(scaling: Scaling, center: NDArray[np.float64], spread: NDArray[np.float64]) -> Scaling:
    """``(x - center) / spread``; a channel without spread becomes 0."""
    gain = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
    return scaling.then(gain, -center * gain)


def case_scaling(contract: Contract, scaling: Scaling, blocks: Blocks) -> Scaling:
    """Add clipping, z-score or min-max by the case's own statistics.

    Percentiles are found first; the statistics are those of the clipped pixels.

    Args:
        contract: one whose ``is_measured`` is True.
        scaling: the part that does not depend on the pixels.
        blocks: yields the valid pixels of the case.
    """
    if contract.statistics_of == "case":
        blocks = partial(_pooled, blocks)
    if contract.clip_percentiles is not None:
        low, high = _percentiles(contract, scaling, blocks, contract.clip_percentiles)
        scaling = replace(scaling, low=low, high=high)
    if (found := _statistics(contract, scaling, blocks)) is not None:
        center, spread = found
        scaling = standardised(scaling, center, np.where(spread > 0, spread + contract.epsilon, 0))
    return scaling


def _pooled(blocks: Blocks, scaling: Scaling) -> Iterator[NDArray[np.float32]]:
    """Yield the pixels of all channels as those of one."""
    for block in blocks(scaling):
        yield np.concatenate([np.ravel(channel) for channel in block])[None]


def _percentiles(
    contract: Contract, scaling: Scaling, blocks: Blocks, percentiles: tuple[float, float]
) -> tuple[Channels, Channels]:
    """Two percentiles per channel, found in two passes; both 0 for a channel without pixels."""
    coarse = [Coarse() for _ in (scaling.gain if contract.statistics_of == "channel" else range(1))]
    for block in blocks(scaling):
        for count, channel in zip(coarse, block, strict=True):
            count.add(np.ravel(channel))
    fine = [count.finer(percentiles) if len(count) else None for count in coarse]
    for block in blocks(scaling):
        for finer, channel in zip(fine, block, strict=True):
            if finer is not None:
                finer.add(np.ravel(channel))
    low, high = np.array([(0.0, 0.0) if one is None else one.values() for one in fine]).T
    shape = scaling.gain.shape
    return np.broadcast_to(low, shape).copy(), np.broadcast_to(high, shape).copy()


def _statistics(contract: Contract, scaling: Scaling, blocks: Blocks) -> tuple[Channels, Channels] | None:
    """Centre and spread per channel; None if no channel needs them, or no pixel is valid."""
    wanted = {kind: where for kind in _STATISTICS if (where := _of_kind(contract, kind)).any()}
    found = _looked_through(wanted, blocks(scaling)) if wanted else {}
    if contract.range_percentiles is not None:
        low, high = _percentiles(contract, scaling, blocks, contract.range_percentiles)
        found["minmax"] = [(low, high - low)]
    if all(one is None for own in found.values() for one in own):
        return None
    center, spread = np.zeros(len(scaling.gain)), np.ones(len(scaling.gain))
    for kind, where in wanted.items():
        for channel, one in zip(np.flatnonzero(where), _per_channel(found[kind], where), strict=True):
            center[channel], spread[channel] = one
    return center, spread


_STATISTICS: dict[str, type[Moments] | type[Extent]] = {"zscore": Moments, "minmax": Extent}


def _looked_through(wanted: Iterable[str], blocks: Iterable[Block]) -> dict[str, list[tuple[Channels, Channels] | None]]:
    """For each kind, the statistics of all channels together, or of each."""
    sums: dict[str, list[Moments | Extent]] = {kind: [] for kind in wanted}
    for block in blocks:
        together = [block] if isinstance(block, np.ndarray) else block
        for kind, own in sums.items():
            own.extend(_STATISTICS[kind]() for _ in together[len(own) :])
            for one, part in zip(own, together, strict=True):
                one.add(part)
    return {kind: [one.center_and_spread() for one in own] for kind, own in sums.items()}


def _per_channel(found: list[tuple[Channels, Channels] | None], where: NDArray[np.bool_]) -> Iterator[tuple[float, float]]:
    """Yield centre and spread of the channels of a kind; a channel without pixels has no spread."""
    each = found if len(found) > 1 or found[0] is None else [(c, s) for c, s in zip(*found[0], strict=True)]
    each = each * len(where) if len(each) == 1 else each  # those of all channels together
    for channel in np.flatnonzero(where):
        one = each[channel]
        yield (0.0, 0.0) if one is None else (float(np.ravel(one[0])[0]), float(np.ravel(one[1])[0]))
