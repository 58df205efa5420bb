"""Ground that a mask shares with others: which of its pixels count in another one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Bools
from segpipe.formats.registry import OpenMask
from segpipe.geometry.ground import Ground
from segpipe.geometry.lookup import Hits, Lookup, common
from segpipe.geometry.windows import Window
from segpipe.results.overlap.mask_cache import CachedMask
from segpipe.results.overlap.mask_stack import StackNeighbours
from segpipe.results.overlap.rule import Observation, goes_before

CHUNK = 500_000
"""Number of pixels whose coordinates are computed at once."""


@dataclass(frozen=True)
class Neighbour:
    """A mask that may share ground with another one."""

    mask: OpenMask | CachedMask
    ground: Ground
    nodata: int | None
    earlier: bool
    """Whether it comes before the other one in the order of cases."""
    confidence: OpenMask | CachedMask | None = None
    """Its confidence, by which the rule may decide."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mask.grid.shape

    def before(self, hits: Hits, mine: Observation) -> Bools:
        """Where it goes before the other mask, of which ``mine`` is what it has there; errors as of ``observed``."""
        return goes_before(self.observed(hits), mine, earlier=self.earlier)

    def observed(self, hits: Hits) -> Observation:
        """What it has where the centres of some pixels lie.

        Raises:
            OutputError: the mask, or its confidence, cannot be read.
        """
        seen = hits.covered.copy()
        if self.nodata is not None:
            seen &= np.asarray(hits.of(self.mask.read(hits.window)) != self.nodata)
        return Observation(hits.covered, seen, self._confidence(hits))

    def _confidence(self, hits: Hits) -> NDArray[Any] | None:
        return None if self.confidence is None else hits.of(self.confidence.read(hits.window))


def grid_key(ground: Ground, shape: tuple[int, ...]) -> tuple[object, ...]:
    """The same for masks of one grid; PROJ takes a millisecond to compare two CRSs, and grids share theirs."""
    return (*ground.transform, *shape, id(ground.reference))


@dataclass(frozen=True, eq=False)
class _Reach:
    """Where another grid may lie on a mask, and the pixels in which it lies there."""

    window: Window
    lookup: Lookup

    @classmethod
    def of(cls, theirs: Ground, their_shape: tuple[int, ...], ground: Ground, shape: tuple[int, ...]) -> "_Reach | None":
        window = common(theirs, their_shape, ground, shape)
        return None if window is None else cls(window, Lookup(ground, theirs, their_shape))


class Shared:
    """Tells which pixels of a mask count in another one."""

    def __init__(
        self,
        ground: Ground,
        shape: tuple[int, ...],
        neighbours: Sequence[Neighbour | StackNeighbours],
        confidence: OpenMask | None = None,
    ) -> None:
        self._confidence = confidence
        reaches: dict[tuple[object, ...], _Reach | None] = {}  # scenes of a time series are all on one grid
        keys = [grid_key(one.ground, one.shape) for one in neighbours]
        for one, key in zip(neighbours, keys, strict=True):
            if key not in reaches:
                reaches[key] = _Reach.of(one.ground, one.shape, ground, shape)
        each = zip(neighbours, keys, strict=True)
        self._each = [(one, reach) for one, key in each if (reach := reaches[key]) is not None]

    @property
    def windows(self) -> list[Window]:
        """The parts of the mask on which neighbours may lie, each once; no others share ground."""
        return list(dict.fromkeys(reach.window for _, reach in self._each))

    def elsewhere(self, window: Window, unseen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The pixels of a window that count in another mask; ``unseen`` are those without data in this one.

        Raises:
            OutputError: another mask, or a confidence, cannot be read.
        """
        found = np.zeros(window.shape, np.bool_)
        left = self._left(found, unseen)
        for neighbour, reach in self._each:
            if left[neighbour.earlier] and self._take(neighbour, reach, window, unseen, found):
                left = self._left(found, unseen)
                if not any(left.values()):
                    break  # the others are not even opened
        return found

    def _left(self, found: NDArray[np.bool_], unseen: NDArray[np.bool_]) -> dict[bool, bool]:
        """Whether a neighbour that comes before (True), or later (False), may still take a pixel. If the order decides, one
        that comes later takes only pixels without data."""
        later = ~found if self._confidence is not None else unseen & ~found
        return {True: not found.all(), False: bool(later.any())}

    def _take(
        self,
        neighbour: Neighbour | StackNeighbours,
        reach: "_Reach",
        window: Window,
        unseen: NDArray[np.bool_],
        found: NDArray[np.bool_],
    ) -> bool:
        """Add the pixels that count in a neighbour; returns whether it was read."""
        looked = False
        for part in chunks(window.intersection(reach.window)):
            if (hits := reach.lookup.hits(part)) is not None:
                own = part.slices_from(window.start)
                found[own] |= neighbour.before(hits, self._mine(part, unseen[own]))
                looked = True
        return looked

    def _mine(self, part: Window, unseen: NDArray[np.bool_]) -> Observation:
        confidence = None if self._confidence is None else self._confidence.read(part)
        return Observation(np.ones(part.shape, np.bool_), ~unseen, confidence)


def chunks(window: Window) -> Iterator[Window]:
    """Rows of a window, few enough to be held; none of an empty one."""
    width = max(1, window.shape[1])
    return window.blocks((max(1, CHUNK // width), width))
