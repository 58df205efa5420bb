"""The order in which cases count by a rule, and which of them meet."""

from collections.abc import Sequence
from dataclasses import dataclass, field

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


@dataclass(frozen=True, eq=False)
class Place:
    """The cases of one grid: a time series of 5,000 scenes has twelve million pairs, and one grid."""

    members: list[int] = field(default_factory=list)
    beside: "list[Place]" = field(default_factory=list)
    """Those of other grids that may share ground with it."""

    @property
    def is_shared(self) -> bool:
        """Whether several cases may share its ground."""
        return len(self.members) > 1 or bool(self.beside)

    @property
    def near(self) -> list[int]:
        """Its cases and those beside it, in order."""
        return sorted([*self.members, *(k for place in self.beside for k in place.members)])


@dataclass(frozen=True)
class Neighbourhood:
    """Cases in the order of their names, and those that each of them may share ground with."""

    cases: Sequence[FinishedCase]
    places: Sequence[Place]
    """Where each of them lies; those of one grid have one place."""
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
        places = _places(cases, extents)
        together = [k for k, place in enumerate(places) if place.is_shared]
        check_overlap([cases[k] for k in together], rule)
        stacks = _stacks(output, cases, together) if rule == "confidence" else ()
        return cls(cases, places, _ranks(cases, rule), rule, stacks)

    @property
    def by_stack(self) -> list[int]:
        """All cases, those of a stack one after the other: what has been decided of few stacks is kept at once."""
        stacked = [k for members, _ in self.stacks for k in members]
        return [*stacked, *sorted({*range(len(self.cases))}.difference(stacked))]

    def meets(self, k: int) -> bool:
        """Whether a case may share ground with another one."""
        return self.places[k].is_shared

    def around(self, k: int) -> CaseNeighbours:
        """The cases around one of them, in the order of names."""
        near = self.places[k].near
        before = [self.cases[n] for n in near if self.rank[n] < self.rank[k]]
        after = [self.cases[n] for n in near if self.rank[n] > self.rank[k]]
        met = [(members, stack) for members, stack in self.stacks if not set(near).isdisjoint(members)]
        stacked = frozenset(self.cases[n].case for members, _ in met for n in members)
        return CaseNeighbours(
            before=before,
            after=after,
            rule=self.rule,
            rank=self.rank[k],
            stacks=[stack for _, stack in met],
            stacked=stacked,
        )


def _places(cases: Sequence[FinishedCase], extents: Sequence[Float]) -> list[Place]:
    """The place of each case."""
    found: dict[object, Place] = {}
    own = [found.setdefault(_grid_key(k, case, extents[k]), Place()) for k, case in enumerate(cases)]
    for k, place in enumerate(own):
        place.members.append(k)
    each = list(found.values())
    first = [place.members[0] for place in each]
    for place, others in zip(each, meeting(np.reshape([extents[k] for k in first], (-1, 2, 3))), strict=True):
        place.beside.extend(each[n] for n in others if not _are_apart(cases[place.members[0]], cases[first[n]]))
    return own


def _grid_key(k: int, case: FinishedCase, extent: Float) -> object:
    """The same for cases of one grid; one of its own for a case whose record does not say its grid, or that lies nowhere."""
    return k if case.ground is None or np.isnan(extent).any() else place_of(case.ground, case.shape)


def _are_apart(one: FinishedCase, other: FinishedCase) -> bool:
    """Whether the records of two cases say that they share no ground, as tiles of one grid that lie side by side."""
    if one.ground is None or other.ground is None:
        return False
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
