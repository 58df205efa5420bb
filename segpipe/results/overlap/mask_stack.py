"""Masks of one grid by the rule ``confidence``: segpipe decides once per pixel which of them counts.

By this rule, every date of a place can take pixels from every other one. For a thousand dates, comparing pairs reads a
million masks; deciding once reads a thousand.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Bools
from segpipe.formats.registry import OpenMask
from segpipe.geometry.ground import Ground
from segpipe.geometry.lookup import Hits
from segpipe.geometry.windows import Window
from segpipe.results.overlap.decisions import Decisions, Keys
from segpipe.results.overlap.rule import Observation, goes_before

LEAST = 3
"""Fewest masks of one grid that make a stack; two are compared with each other."""
MOST_CACHED = 16
"""Most stacks of which the decisions are kept at once, on disk: four bytes for each pixel."""

VALID_BIT, CONFIDENCE_SHIFT = 31, 23
"""Bits of a key, which is larger for a mask that goes before: whether it has data, its confidence, and how early it is."""
LAST = 2**CONFIDENCE_SHIFT - 1
"""Key of the first mask if it has no data."""


Opening = Callable[[int], AbstractContextManager[tuple[OpenMask, OpenMask]]]
"""Opens the mask and the confidence of a member, by its position."""

DecisionCache = OrderedDict[int, Decisions]
"""Decisions of the stacks that were asked last, by the rank of the first mask."""


@dataclass(frozen=True, eq=False)
class MaskStack:
    """Masks of one grid, in the order in which they count."""

    ground: Ground
    shape: tuple[int, ...]
    nodata: Sequence[int | None]
    """Of each mask."""
    ranks: NDArray[np.intp]
    """Positions among all cases, increasing."""
    opening: Opening
    cache: DecisionCache = field(default_factory=OrderedDict)
    """Shared by stacks that are asked in turn."""

    def keys(self, window: Window) -> Keys:
        """The largest key of all masks.

        Raises:
            OutputError: a mask cannot be read, or TMPDIR has no space.
        """
        name = int(self.ranks[0])
        if name not in self.cache:
            while len(self.cache) >= MOST_CACHED:
                self.cache.popitem(last=False)
            self.cache[name] = Decisions(self.shape)
        self.cache.move_to_end(name)
        return self.cache[name].read(window, self._decided)

    def _decided(self, window: Window) -> Keys:
        best = np.zeros(window.shape, np.uint32)
        for position, nodata in enumerate(self.nodata):
            with self.opening(position) as (mask, sure):
                labels = mask.read(window)
                seen = np.ones(window.shape, np.bool_) if nodata is None else labels != nodata
                own = np.where(seen, sure.read(window), 0).astype(np.uint32) << CONFIDENCE_SHIFT
            own |= seen.astype(np.uint32) << VALID_BIT
            own |= LAST - position
            np.maximum(best, own, out=best)
        return best

    def of(self, rank: int) -> "StackNeighbours":
        """The masks of the stack as one case sees them, which may be one of them."""
        return StackNeighbours(self, rank)


@dataclass(frozen=True)
class StackNeighbours:
    """The masks of a stack but for that of one case."""

    stack: MaskStack
    rank: int
    """Of the case."""
    earlier: bool = True
    """Some may come before it."""

    @property
    def ground(self) -> Ground:
        """Grid of all these masks on the ground."""
        return self.stack.ground

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stack.shape

    def before(self, hits: Hits, mine: Observation) -> Bools:
        """Where one of them goes before the mask of the case.

        Raises:
            OutputError: a mask cannot be read, or TMPDIR has no space.
        """
        keys = hits.of(self.stack.keys(hits.window)).astype(np.uint32)
        ranks = self.stack.ranks[LAST - (keys & LAST)]
        seen = hits.covered & (keys >> VALID_BIT).astype(np.bool_)
        theirs = Observation(hits.covered & (ranks != self.rank), seen, ((keys >> CONFIDENCE_SHIFT) & 255).astype(np.uint8))
        return goes_before(theirs, mine, earlier=ranks < self.rank)
