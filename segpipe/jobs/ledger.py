"""How every case of a run has ended, in a byte a case."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from enum import IntEnum

from segpipe.formats.cases import Case


class State(IntEnum):
    """How far a case is."""

    MISSING = 0
    DONE = 1
    SKIPPED = 2
    """Done before."""
    FAILED = 3


class Ledger:
    """States of cases that are sorted by name, each once.

    Names are not kept a second time: with 100,000 cases they would be most of what the first process holds.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        self._cases = cases
        self._states = bytearray(len(cases))

    def note(self, name: str, state: State) -> None:
        self._states[bisect_left(self._cases, name, key=lambda case: case.name)] = state

    def state(self, name: str) -> State:
        return State(self._states[bisect_left(self._cases, name, key=lambda case: case.name)])

    def cases(self, *states: State) -> Iterator[Case]:
        """Cases in one of these states, in order."""
        return (case for case, state in zip(self._cases, self._states, strict=True) if state in states)

    def count(self, state: State) -> int:
        return self._states.count(state)

    def names(self, state: State) -> list[str]:
        return [case.name for case in self.cases(state)]
