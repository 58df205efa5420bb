"""Where the windows along one axis start: evenly spread, as few as possible."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import overload


@dataclass(frozen=True, slots=True)
class Spread(Sequence[int]):
    """Starts of ``number`` windows from 0 to ``last``, evenly spread; computed on access, not stored."""

    number: int
    last: int

    def __len__(self) -> int:
        return self.number

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...

    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(self.number)[index])
        i = range(self.number)[index]
        return self._start(i) if i else 0

    @abstractmethod
    def _start(self, i: int) -> int:
        """Start of a window that is not the first."""


@dataclass(frozen=True, slots=True)
class Starts(Spread):
    """Starts at multiples of ``align``; ``last`` counts these."""

    align: int

    def _start(self, i: int) -> int:
        return self.align * (i * self.last // (self.number - 1))

    @property
    def nearest(self) -> int:
        """Smallest distance between neighbours; 0 for a single window."""
        return self.align * (self.last // (self.number - 1)) if self.number > 1 else 0


@dataclass(frozen=True, slots=True)
class NearestStarts(Spread):
    """Starts in pixels, each rounded to the nearest pixel, as nnU-Net spreads them."""

    def _start(self, i: int) -> int:
        return round(self.last / (self.number - 1) * i)

    @property
    def nearest(self) -> int:
        """Smallest distance between neighbours; 0 for a single window."""
        return min((b - a for a, b in pairwise(self)), default=0)


def nearest_starts(size: int, tile: int) -> NearestStarts:
    """Starts of windows half a tile apart or less; a tile of one pixel, as of a slice, starts at each."""
    if size <= tile:
        return NearestStarts(1, 0)
    step = tile / 2 if tile > 1 else 1
    return NearestStarts(math.ceil((size - tile) / step) + 1, size - tile)


def axis_starts(size: int, tile: int, overlap: int, align: int) -> Starts:
    """Starts of the windows along one axis, all multiples of ``align``.

    Neighbours share at least ``overlap`` pixels; the last window ends less than ``align`` behind the case. A case that is
    not larger than the tile has one window.
    """
    if size <= tile:
        return Starts(1, 0, align)
    last = -(-(size - tile) // align)
    step = (tile - overlap) // align
    return Starts(-(-last // step) + 1, last, align)
