"""Tasks of a run, their results, and the protocol of watchers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from segpipe.formats.cases import Case
from segpipe.geometry.windows import Part
from segpipe.jobs.plan import Job, PlannedCase


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a case ended."""

    case: Case
    seconds: float
    pixels: int = 0
    error: str | None = None
    passing: bool = False
    """Whether a storage fault that may pass was the reason."""
    short: bool = False
    """Whether the memory of the device was too small for it."""
    warnings: tuple[str, ...] = ()
    """What is unusual about its pixels."""
    unwritable: str | None = None
    """Why no other case can be written either, where that is so."""


@dataclass(frozen=True, slots=True)
class Returned:
    """A case that its job has handed back, and what was seen of it if it was opened."""

    case: Case
    seen: PlannedCase | None = None


@dataclass(frozen=True, slots=True)
class Damaged:
    """Parts of a case that its last job has found damaged, and taken away: they are to be made again."""

    case: Case
    parts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MeasureJob:
    """Take the statistics of all of a case, by which its parts are scaled."""

    case: PlannedCase


@dataclass(frozen=True, slots=True)
class PartJob:
    """Do one part of a case."""

    case: PlannedCase
    number: int
    part: Part


@dataclass(frozen=True, slots=True)
class JoinJob:
    """Make the mask and the record of a case whose parts are all done."""

    case: PlannedCase
    parts: tuple[Part, ...]
    seconds: float
    """That the parts took."""


Task = Job | MeasureJob | PartJob | JoinJob


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A case that was stopped because nothing can be written any more."""

    case: Case


Result = Outcome | Returned | Damaged | GivenUp
"""The result of one case of a task."""


Progress = Callable[[int], None]
"""Called with the number of pixels finished since the last call."""


class Halt:
    """Asks a run to begin nothing more. A signal may set it at any moment, so it holds no lock."""

    concluding = False
    """Whether the run only writes its tables by now, which nothing should stop."""

    _is_set = False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set


class Watcher(Protocol):
    """Receives the events of a run."""

    def progress(self, pixels: int) -> None: ...

    def outcome(self, outcome: Outcome) -> None: ...

    def note(self, line: str) -> None:
        """Something to know that is no error."""
