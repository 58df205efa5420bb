"""Statistics of the valid pixels of a case, accumulated block by block: moments, range, percentiles."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Channels = NDArray[np.float64]
"""One number per channel."""

AT_ONCE = 2**18
"""Pixels that are counted at once, so that arrays of their bits stay in the cache."""

HALF = 16
"""Bits of a float32 that one pass over the pixels resolves."""


class Moments:
    """Mean and population standard deviation in float64, merged block by block (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self._count, self._mean, self._squares = 0, np.zeros(1), np.zeros(1)

    def add(self, block: NDArray[np.float32]) -> None:
        """Add pixels of shape ``(channels, pixels)``."""
        n = block.shape[1]
        if not n:
            return
        here = block.mean(axis=1, dtype=np.float64)
        spread = np.square(block - here[:, None]).sum(axis=1)
        delta = here - self._mean
        self._mean = self._mean + delta * n / (self._count + n)
        self._squares = self._squares + spread + delta**2 * self._count * n / (self._count + n)
        self._count += n

    def center_and_spread(self) -> tuple[Channels, Channels] | None:
        """Mean and deviation; None without pixels."""
        return (self._mean, np.sqrt(self._squares / self._count)) if self._count else None


class Extent:
    """Minimum and maximum of the pixels."""

    def __init__(self) -> None:
        self._low: Channels | None = None
        self._high: Channels | None = None

    def add(self, block: NDArray[np.float32]) -> None:
        """Add pixels of shape ``(channels, pixels)``."""
        if block.shape[1]:
            b = block.astype(np.float64)
            self._low = b.min(axis=1) if self._low is None else np.minimum(self._low, b.min(axis=1))
            self._high = b.max(axis=1) if self._high is None else np.maximum(self._high, b.max(axis=1))

    def center_and_spread(self) -> tuple[Channels, Channels] | None:
        """Minimum, and maximum minus minimum; None without pixels."""
        return None if self._low is None or self._high is None else (self._low, self._high - self._low)


class Coarse:
    """First pass of exact percentiles of one channel: a histogram of the upper 16 bits of the values.

    Two passes over a case find any order statistic of float32 values exactly, in 1 MB, whatever the order of the blocks.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(1 << HALF, np.int64)

    def add(self, pixels: NDArray[np.float32]) -> None:
        for keys in _keys(pixels):
            self._counts += np.bincount(keys >> HALF, minlength=1 << HALF)

    def finer(self, percentiles: Sequence[float]) -> "Fine":
        """The second pass, for percentiles between 0 and 100; requires pixels."""
        return Fine(self._counts, [p / 100 * (int(self._counts.sum()) - 1) for p in percentiles])

    def __len__(self) -> int:
        return int(self._counts.sum())


class Fine:
    """Second pass: a histogram of the lower 16 bits, for pixels whose upper bits are those of a wanted order statistic."""

    def __init__(self, counts: NDArray[np.int64], places: Sequence[float]) -> None:
        self._places, self._ends = places, np.cumsum(counts)
        wanted = {self._bucket(rank) for place in places for rank in (math.floor(place), math.ceil(place))}
        self._counts = {bucket: np.zeros(1 << HALF, np.int64) for bucket in wanted}

    def _bucket(self, rank: int) -> int:
        return int(np.searchsorted(self._ends, rank, side="right"))

    def add(self, pixels: NDArray[np.float32]) -> None:
        for keys in _keys(pixels):
            upper = keys >> HALF
            for bucket in self._counts:
                self._counts[bucket] += np.bincount(keys[upper == bucket] & ((1 << HALF) - 1), minlength=1 << HALF)

    def values(self) -> list[float]:
        """The percentiles, interpolated linearly between order statistics as ``numpy.percentile`` does."""
        return [self._between(place) for place in self._places]

    def _between(self, place: float) -> float:
        low, high = self._at(math.floor(place)), self._at(math.ceil(place))
        return low + (high - low) * (place - math.floor(place))

    def _at(self, rank: int) -> float:
        bucket = self._bucket(rank)
        before = int(self._ends[bucket - 1]) if bucket else 0
        lower = int(np.searchsorted(np.cumsum(self._counts[bucket]), rank - before, side="right"))
        return _value(bucket << HALF | lower)


def _keys(pixels: NDArray[np.float32]) -> Iterator[NDArray[np.intp]]:
    """Yield 32-bit integers that sort as the values do, some at a time."""
    for start in range(0, len(pixels), AT_ONCE):
        bits = np.ascontiguousarray(pixels[start : start + AT_ONCE], np.float32).view(np.uint32)
        yield np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.intp)


def _value(key: int) -> float:
    bits = key ^ (1 << 31) if key >> 31 else key ^ 0xFFFFFFFF
    return float(np.uint32(bits).view(np.float32))
