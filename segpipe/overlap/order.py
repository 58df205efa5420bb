"""The order in which cases count by a rule, and which of them meet."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from segpipe.choices import OverlapRule
from segpipe.errors import OverlapError
from segpipe.geometry.extents import are_apart, meeting
from segpipe.geometry.grid import Float
from segpipe.messages.printable import printable
from segpipe.overlap.finished import Around, Finished


@dataclass(frozen=True)
class Neighbourhood:
    """Cases in the order of their names, and those that each of them may share ground with."""

    cases: Sequence[Finished]
    near: Sequence[Sequence[int]]
    """Indices of the others that may share ground with each."""
    rank: Sequence[int]
    """Position of each in the order of the rule."""
    rule: OverlapRule

    @classmethod
    def of(cls, cases: Sequence[Finished], extents: Sequence[Float], rule: OverlapRule) -> "Neighbourhood":
        """Cases sorted by name, with their extents.

        Raises:
            OverlapError: a case that meets another one lacks what the rule needs.
        """
        near = [
            [n for n in others if not _are_apart(cases[k], cases[n])]
            for k, others in enumerate(meeting(np.reshape(extents, (-1, 2, 3))))
        ]
        together = sorted(set(chain.from_iterable(near)))
        check([cases[k] for k in together], rule)
        return cls(cases, near, _ranks(cases, rule), rule)

    def around(self, k: int) -> Around:
        """The cases around one of them, in the order of names."""
        before = [self.cases[n] for n in self.near[k] if self.rank[n] < self.rank[k]]
        after = [self.cases[n] for n in self.near[k] if self.rank[n] > self.rank[k]]
        return Around(before, after, self.rule)


def _are_apart(one: Finished, other: Finished) -> bool:
    """Whether the records of two cases say that they share no ground, as tiles of one grid that lie side by side."""
    if one.ground is None or other.ground is None:
        return False
    if tuple(one.ground.transform) == tuple(other.ground.transform) and one.shape == other.shape:
        return False  # scenes of a time series, of which there are a million pairs
    return are_apart(one.ground, one.shape, other.ground, other.shape)


def check(cases: Sequence[Finished], rule: OverlapRule) -> None:
    """Check that cases that share ground have what the rule needs.

    Raises:
        OverlapError: a date or a confidence is missing.
    """
    for case in cases:
        name = printable(case.case)
        if rule == "newest" and case.acquired is None:
            raise OverlapError(
                f"--overlap-rule newest needs the time at which each case was acquired, and neither the metadata nor the "
                f"name of {name} says it: give --overlap-rule first, or a name such as {name}_20230615T100031"
            )
        if rule == "confidence" and case.confidence is None:
            raise OverlapError(
                f"--overlap-rule confidence compares the confidence of cases, and {name} has none: "
                "run again with --confidence, or give --overlap-rule first"
            )


def _ranks(cases: Sequence[Finished], rule: OverlapRule) -> list[int]:
    """Position of each case, of which names decide ties: the latest first by ``newest``, else by name."""
    order = list(range(len(cases)))
    if rule == "newest":
        order.sort(key=lambda k: (-_seconds(cases[k]), k))
    ranks = [0] * len(cases)
    for position, k in enumerate(order):
        ranks[k] = position
    return ranks


def _seconds(case: Finished) -> float:
    return 0.0 if case.acquired is None else case.acquired.time.timestamp()
