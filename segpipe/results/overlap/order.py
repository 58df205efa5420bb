"""Rank cases by the overlap rule, and find those that share ground."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from segpipe.array_types import Float
from segpipe.choices import OverlapRule
from segpipe.errors import OverlapError
from segpipe.geometry.extents import are_apart, meeting
from segpipe.messages.printable import printable
from segpipe.results.overlap.finished import CaseNeighbours, FinishedCase, opened_both
from segpipe.results.overlap.mask_stack import LEAST, DecisionCache, MaskStack
from segpipe.results.overlap.shared import grid_key
from segpipe.storage import Store


@dataclass(frozen=True, eq=False)
class GridGroup:
    """All cases on one grid. A time series of 5,000 scenes has twelve million pairs, but only one grid."""

    members: list[int] = field(default_factory=list)
    beside: "list[GridGroup]" = field(default_factory=list)
    """Other grids that may share ground with this one."""

    @property
    def is_shared(self) -> bool:
        """Whether several cases may share ground here."""
        return len(self.members) > 1 or bool(self.beside)

    @property
    def near(self) -> list[int]:
        """Sorted indices of the cases of this grid and of the grids beside it."""
        return sorted([*self.members, *(k for group in self.beside for k in group.members)])


@dataclass(frozen=True)
class Neighbourhood:
    """Cases sorted by name, and the cases that each may share ground with."""

    cases: Sequence[FinishedCase]
    groups: Sequence[GridGroup]
    """Group of each case; cases of one grid have the same."""
    rank: Sequence[int]
    """Position of each case in the order of the rule."""
    rule: OverlapRule
    stacks: Sequence[tuple[Sequence[int], MaskStack]] = ()
    """Cases of one grid, and the stack that compares their confidences; empty unless the rule is ``confidence``."""

    @classmethod
    def of(
        cls, output: Store, cases: Sequence[FinishedCase], extents: Sequence[Float], rule: OverlapRule
    ) -> "Neighbourhood":
        """Relate the cases of an output, which are sorted by name, by their extents.

        Raises:
            OverlapError: a case that shares ground lacks what the rule needs.
        """
        groups = _grid_groups(cases, extents)
        together = [k for k, group in enumerate(groups) if group.is_shared]
        check_overlap([cases[k] for k in together], rule)
        stacks = _stacks(output, cases, together) if rule == "confidence" else ()
        return cls(cases, groups, _ranks(cases, rule), rule, stacks)

    @property
    def by_stack(self) -> list[int]:
        """Indices of all cases, stack by stack, so that few stacks keep their decisions in memory at once."""
        stacked = [k for members, _ in self.stacks for k in members]
        return [*stacked, *sorted({*range(len(self.cases))}.difference(stacked))]

    def meets(self, k: int) -> bool:
        """Whether a case may share ground with another one."""
        return self.groups[k].is_shared

    def around(self, k: int) -> CaseNeighbours:
        """The cases that may share ground with a case, in the order of names."""
        near = self.groups[k].near
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


def _grid_groups(cases: Sequence[FinishedCase], extents: Sequence[Float]) -> list[GridGroup]:
    """The group of each case."""
    found: dict[object, GridGroup] = {}
    own = [found.setdefault(_key(k, case, extents[k]), GridGroup()) for k, case in enumerate(cases)]
    for k, group in enumerate(own):
        group.members.append(k)
    each = list(found.values())
    first = [group.members[0] for group in each]
    for group, others in zip(each, meeting(np.reshape([extents[k] for k in first], (-1, 2, 3))), strict=True):
        group.beside.extend(each[n] for n in others if not _are_apart(cases[group.members[0]], cases[first[n]]))
    return own


def _key(k: int, case: FinishedCase, extent: Float) -> object:
    """Key of a case's grid; a case has a key of its own if its record states no grid, or if its extent is unknown."""
    return k if case.ground is None or np.isnan(extent).any() else grid_key(case.ground, case.shape)


def _are_apart(one: FinishedCase, other: FinishedCase) -> bool:
    """Whether two cases certainly share no ground, such as adjacent tiles of one lattice."""
    if one.ground is None or other.ground is None:
        return False
    return are_apart(one.ground, one.shape, other.ground, other.shape)


def _stacks(output: Store, cases: Sequence[FinishedCase], together: Sequence[int]) -> list[tuple[Sequence[int], MaskStack]]:
    """Stack the cases of each grid on which many share ground; the rank of a case is its position."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for k in together:
        if (ground := cases[k].ground) is not None:
            groups.setdefault(grid_key(ground, cases[k].shape), []).append(k)
    cache = DecisionCache()
    many = [members for members in groups.values() if len(members) >= LEAST]
    return [(members, _stack(output, [cases[k] for k in members], members, cache)) for members in many]


def _stack(output: Store, cases: Sequence[FinishedCase], ranks: Sequence[int], cache: DecisionCache) -> MaskStack:
    first = cases[0]
    assert first.ground is not None  # it has a grid key
    return MaskStack(
        ground=first.ground,
        shape=first.shape,
        nodata=[case.nodata for case in cases],
        ranks=np.array(ranks),
        opening=lambda position: opened_both(output, cases[position]),
        cache=cache,
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
    """Rank of each case: by ``newest`` the latest first, ties by name; by the other rules the order of names."""
    order = list(range(len(cases)))
    if rule == "newest":
        order.sort(key=lambda k: (-_seconds(cases[k]), k))
    ranks = [0] * len(cases)
    for position, k in enumerate(order):
        ranks[k] = position
    return ranks


def _seconds(case: FinishedCase) -> float:
    return 0.0 if case.acquired is None else case.acquired.time.timestamp()
