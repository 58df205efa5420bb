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
from segpipe.overlap.finished import CaseNeighbours, FinishedCase, opened_both
from segpipe.overlap.mask_stack import LEAST, Kept, MaskStack
from segpipe.overlap.shared import place_of
from segpipe.storage import Store


@dataclass(frozen=True)
class Neighbourhood:
    """Cases in the order of their names, and those that each of them may share ground with."""

    cases: Sequence[FinishedCase]
    near: Sequence[Sequence[int]]
    """Indices of the others that may share ground with each."""
    rank: Sequence[int]
    """Position of each in the order of the rule."""
    rule: OverlapRule
    stacks: Sequence[tuple[Sequence[int], MaskStack]] = ()
    """Cases of one grid, and how they are compared by the rule ``confidence``; none by other rules."""

    @classmethod
    def of(
        cls, output: Store, cases: Sequence[FinishedCase], extents: Sequence[Float], rule: OverlapRule
    ) -> "Neighbourhood":
        """Cases of an output sorted by name, with their extents.

        Raises:
            OverlapError: a case that meets another one lacks what the rule needs.
        """
        near = [
            [n for n in others if not _are_apart(cases[k], cases[n])]
            for k, others in enumerate(meeting(np.reshape(extents, (-1, 2, 3))))
        ]
        together = sorted(set(chain.from_iterable(near)))
        check_overlap([cases[k] for k in together], rule)
        stacks = _stacks(output, cases, together) if rule == "confidence" else ()
        return cls(cases, near, _ranks(cases, rule), rule, stacks)

    @property
    def by_stack(self) -> list[int]:
        """All cases, those of a stack one after the other: what has been decided of few stacks is kept at once."""
        stacked = [k for members, _ in self.stacks for k in members]
        return [*stacked, *sorted({*range(len(self.cases))}.difference(stacked))]

    def around(self, k: int) -> CaseNeighbours:
        """The cases around one of them, in the order of names."""
        before = [self.cases[n] for n in self.near[k] if self.rank[n] < self.rank[k]]
        after = [self.cases[n] for n in self.near[k] if self.rank[n] > self.rank[k]]
        near = {k, *self.near[k]}
        met = [(members, stack) for members, stack in self.stacks if not near.isdisjoint(members)]
        stacked = frozenset(self.cases[n].case for members, _ in met for n in members)
        return CaseNeighbours(
            before=before,
            after=after,
            rule=self.rule,
            rank=self.rank[k],
            stacks=[stack for _, stack in met],
            stacked=stacked,
        )


def _are_apart(one: FinishedCase, other: FinishedCase) -> bool:
    """Whether the records of two cases say that they share no ground, as tiles of one grid that lie side by side."""
    if one.ground is None or other.ground is None:
        return False
    if tuple(one.ground.transform) == tuple(other.ground.transform) and one.shape == other.shape:
        return False  # scenes of a time series, of which there are a million pairs
    return are_apart(one.ground, one.shape, other.ground, other.shape)


def _stacks(output: Store, cases: Sequence[FinishedCase], together: Sequence[int]) -> list[tuple[Sequence[int], MaskStack]]:
    """Cases of one grid, of those that share ground; their ranks are their positions."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for k in together:
        if (ground := cases[k].ground) is not None:
            groups.setdefault(place_of(ground, cases[k].shape), []).append(k)
    kept = Kept()
    many = [members for members in groups.values() if len(members) >= LEAST]
    return [(members, _stack(output, [cases[k] for k in members], members, kept)) for members in many]


def _stack(output: Store, cases: Sequence[FinishedCase], ranks: Sequence[int], kept: Kept) -> MaskStack:
    first = cases[0]
    assert first.ground is not None  # it has a place
    return MaskStack(
        ground=first.ground,
        shape=first.shape,
        nodata=[case.nodata for case in cases],
        ranks=np.array(ranks),
        opening=lambda position: opened_both(output, cases[position]),
        kept=kept,
    )


def check_overlap(cases: Sequence[FinishedCase], rule: OverlapRule) -> None:
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


def _ranks(cases: Sequence[FinishedCase], rule: OverlapRule) -> list[int]:
    """Position of each case, of which names decide ties: the latest first by ``newest``, else by name."""
    order = list(range(len(cases)))
    if rule == "newest":
        order.sort(key=lambda k: (-_seconds(cases[k]), k))
    ranks = [0] * len(cases)
    for position, k in enumerate(order):
        ranks[k] = position
    return ranks


def _seconds(case: FinishedCase) -> float:
    return 0.0 if case.acquired is None else case.acquired.time.timestamp()
