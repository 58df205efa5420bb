"""The state of every case of a run, one byte each."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from enum import IntEnum

from segpipe.formats.case import Case


class CaseState(IntEnum):
    """State of one case."""

    MISSING = 0
    DONE = 1
    SKIPPED = 2
    """Done by an earlier run."""
    FAILED = 3
    OUTSIDE = 4
    """Outside the area of interest: there is nothing to do."""


class CaseStates:
    """States of cases that are sorted by name, without duplicates.

    Names are not stored again: for 100,000 cases they would take most of the first process's memory.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        self._cases = cases
        self._states = bytearray(len(cases))

    def set(self, name: str, state: CaseState) -> None:
        """Set the state of a case."""
        self._states[bisect_left(self._cases, name, key=lambda case: case.name)] = state

    def state(self, name: str) -> CaseState:
        """State of a case."""
        return CaseState(self._states[bisect_left(self._cases, name, key=lambda case: case.name)])

    def cases(self, *states: CaseState) -> Iterator[Case]:
        """Cases in one of these states, in order."""
        return (case for case, state in zip(self._cases, self._states, strict=True) if state in states)

    @property
    def total(self) -> int:
        """Number of all cases."""
        return len(self._cases)

    def count(self, state: CaseState) -> int:
        """Number of cases in a state."""
        return self._states.count(state)

    def names(self, state: CaseState) -> list[str]:
        """Names of the cases in a state, sorted."""
        return [case.name for case in self.cases(state)]
