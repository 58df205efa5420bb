"""The rule by which one of several masks counts where they share ground; zones, totals and mosaics all follow it.

A pixel counts in the mask that goes before: by ``first`` in the first case by name, by ``newest`` in the one acquired last,
by ``confidence`` in the one whose label has the higher probability. Ties go by name. A mask without data there comes last.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Bools


@dataclass(frozen=True, eq=False)
class Observation:
    """What a mask has at some places, as arrays of one shape."""

    covered: Bools
    """Which of them lie on its grid."""
    seen: Bools
    """Where it has data; only where it is covered."""
    confidence: NDArray[np.uint8] | None = None
    """Stored confidence of its labels, for the rule ``confidence``; undefined where nothing is seen."""

    @classmethod
    def nothing(cls, shape: tuple[int, ...], *, confidence: bool) -> "Observation":
        """Places on no grid at all."""
        none = np.zeros(shape, np.bool_)
        return cls(none, none, np.zeros(shape, np.uint8) if confidence else None)


def goes_before(one: Observation, other: Observation, *, earlier: Bools | bool) -> Bools:
    """Where a mask counts instead of another one; at each place, exactly one of two that cover it goes before.

    Args:
        one: the mask.
        other: the other one.
        earlier: whether the first one comes before the other in the order of the cases; at each place, if it is several.
    """
    both = one.seen & other.seen & _is_preferred(one, other, earlier)
    only = ~other.seen & (one.seen | earlier)
    return np.asarray(one.covered & (~other.covered | both | only))


def _is_preferred(one: Observation, other: Observation, earlier: Bools | bool) -> Bools | bool:
    """Which of two that have data counts."""
    if one.confidence is None or other.confidence is None:
        return earlier
    return np.asarray((one.confidence > other.confidence) | ((one.confidence == other.confidence) & earlier))
