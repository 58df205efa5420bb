"""Tasks of a run, their results, and the protocol of watchers."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from segpipe.formats.case import Case
from segpipe.geometry.windows import Part
from segpipe.jobs.plan import Job, PlannedCase


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of a case."""

    case: Case
    seconds: float
    pixels: int = 0
    error: str | None = None
    passing: bool = False
    """Whether a transient storage fault was the reason."""
    short: bool = False
    """Whether the memory of the device was too small."""
    warnings: tuple[str, ...] = ()
    """Unusual properties of its pixels."""
    unwritable: str | None = None
    """The reason why no other case can be written either; None if others can."""
    outside: bool = False
    """Whether the case lies outside the area of interest, so that nothing was written."""


@dataclass(frozen=True, slots=True)
class Returned:
    """A case that its job has handed back, with its plan if it was opened."""

    case: Case
    planned: PlannedCase | None = None


@dataclass(frozen=True, slots=True)
class Damaged:
    """Damaged parts of a case, which its join has removed, to be processed again."""

    case: Case
    parts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MeasureJob:
    """Compute the statistics of a whole case, by which its parts are scaled."""

    case: PlannedCase


@dataclass(frozen=True, slots=True)
class PartJob:
    """Process one part of a case."""

    case: PlannedCase
    number: int
    part: Part


@dataclass(frozen=True, slots=True)
class JoinJob:
    """Write the mask and the record of a case whose parts are finished."""

    case: PlannedCase
    parts: tuple[Part, ...]
    seconds: float
    """Time that the parts took."""


Task = Job | MeasureJob | PartJob | JoinJob


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A case that was stopped because the output is unwritable."""

    case: Case


Result = Outcome | Returned | Damaged | GivenUp
"""The result of one case of a task."""


Progress = Callable[[int], None]
"""Called with the number of pixels finished since the last call."""


class HaltedError(Exception):
    """The run was asked to end, and has no time left for a table."""


class Halt:
    """Asks a run to start nothing more. A signal may set it at any moment, so it uses no lock."""

    concluding = False
    """Whether the run is only writing its tables, which are left out only where they take long."""

    _is_set = False
    _limit = math.inf
    """Time at which tables are left out, by the monotonic clock."""

    def set(self) -> None:
        """Ask the run to start nothing more."""
        self._is_set = True

    def is_set(self) -> bool:
        """Whether the run was asked to end."""
        return self._is_set

    def conclude_within(self, seconds: float) -> None:
        """Leave out tables that take longer than ``seconds`` from now; at once if the halt was set before."""
        self._limit = time.monotonic() + (0 if self._is_set else seconds)
        self._is_set = True

    def check(self) -> None:
        """Check that there is time for a table.

        Raises:
            HaltedError: there is none left.
        """
        if time.monotonic() >= self._limit:
            raise HaltedError


class Watcher(Protocol):
    """Receives the events of a run."""

    def progress(self, pixels: int) -> None:
        """Receive the number of pixels that were finished since the last call."""
        ...

    def outcome(self, outcome: Outcome) -> None:
        """Receive the outcome of a case."""
        ...

    def note(self, line: str) -> None:
        """Receive an information line."""
