"""Where overlapping tiles give different labels: each tile votes before blending, and a strip of its own counts the votes.

Votes are added as scores are, so that neither parts nor arrays change them; all sums are whole numbers that float32 holds.
"""

from dataclasses import dataclass
from functools import reduce
from operator import or_

import numpy as np

from segpipe.network.arrays import FLOAT, Array, Arrays
from segpipe.pipeline.decision import Decision
from segpipe.pipeline.memory import VOTE_BASE

DOUBLE = np.dtype(np.float64)


@dataclass(frozen=True)
class Votes:
    """The votes of tiles by the rule of a decision, in the arrays of the decision."""

    decision: Decision

    @property
    def _arrays(self) -> Arrays:
        return self.decision.arrays

    def of(self, scores: Array, weights: Array) -> Array:
        """Votes ``(channels, *tile)`` of weighted scores ``(classes, *tile)``; without weight a tile has no vote.

        The first channel counts tiles. The others: of exclusive classes, each digit of the label and its square; else 1 for
        each class that is present.
        """
        there = self._arrays.cast(weights > 0, FLOAT)
        if self.decision.needs_total:
            present = self._arrays.cast(self.decision.above(scores, weights), FLOAT)
            return self._arrays.xp.stack([there, *(there * one for one in present)])
        labels, _ = self._arrays.most_likely(scores, self.decision.dtype)
        several = self.decision.contract.scores > VOTE_BASE
        digits = [labels % VOTE_BASE, labels // VOTE_BASE] if several else [labels]
        digits = [self._arrays.cast(one, FLOAT) for one in digits]
        return self._arrays.xp.stack([there, *(there * part for one in digits for part in (one, one * one))])

    def differ(self, sums: Array) -> Array:
        """Where tiles differ, shape ``box``, from the sums of their votes.

        Of equal labels, and of these only, count times the sum of squares is the square of the sum. Where all tiles agree,
        their blend agrees with them, too; elsewhere, one of them differs from it.
        """
        found = self._arrays.cast(sums, DOUBLE)
        count = found[0]
        if self.decision.needs_total:
            return ((found[1:] > 0) & (found[1:] < count)).any(0)
        each = (count * squares != total * total for total, squares in zip(found[1::2], found[2::2], strict=True))
        return reduce(or_, each)
