"""What a run has done so far: outcomes of its cases, and problems that belong to none."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from segpipe.errors import SegpipeError
from segpipe.formats.case import Case, Failure
from segpipe.jobs.case_states import CaseState, CaseStates
from segpipe.jobs.tasks import Outcome
from segpipe.messages.redaction import without_names
from segpipe.results.totals import StatedTotals
from segpipe.timing.report import Profile

WARNED = 100
"""Most cases with unusual pixels that are named in ``run.json``; each has them in its record."""


@dataclass
class Summary:
    """Result of a run."""

    states: CaseStates
    folder: str = field(default_factory=lambda: str(Path.cwd()))
    """Working folder at the start; it may no longer exist at the end."""
    failed: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    pixels: int = 0
    interrupted: bool = False
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Number of input files that were not taken, by suffix."""
    problems: list[str] = field(default_factory=list)
    """Errors that do not belong to a case."""
    unusual: int = 0
    """Number of cases that this run did in spite of unusual pixels."""
    warnings: list[dict[str, str]] = field(default_factory=list)
    """Warnings of the first of these cases."""
    profile: Profile | None = None
    """The profile, if requested."""
    trace: str | None = None
    """Path or URL of the profile's trace."""
    totals: StatedTotals | None = None
    """Sums over all cases that have a mask; None if they were not added up, as of an interrupted run."""

    def add(self, outcome: Outcome) -> None:
        """Note the outcome of a case."""
        if outcome.outside:
            self.states.set(outcome.case.name, CaseState.OUTSIDE)
            return
        self.unusual += bool(outcome.warnings)
        if self.unusual <= WARNED:
            self.warnings += [{"case": outcome.case.name, "warning": text} for text in outcome.warnings]
        if outcome.error is None:
            self.states.set(outcome.case.name, CaseState.DONE)
            self.pixels += outcome.pixels
        else:
            self.fail(Failure(outcome.case, outcome.error))

    def fail(self, failure: Failure) -> None:
        """Note a case that failed."""
        self.states.set(failure.case.name, CaseState.FAILED)
        self.failed.append(failure)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note an error that does not belong to a case, and go on."""
        try:
            yield
        except SegpipeError as error:
            self.problems.append(without_names(str(error)))

    @property
    def done(self) -> list[str]:
        """Names of the cases that this run did."""
        return self.states.names(CaseState.DONE)

    @property
    def skipped(self) -> list[str]:
        """Names of the cases that were done before."""
        return self.states.names(CaseState.SKIPPED)

    @property
    def missing(self) -> list[str]:
        """Names of the cases that are still to be done."""
        return self.states.names(CaseState.MISSING)

    @property
    def outside(self) -> list[str]:
        """Names of the cases outside the area of interest."""
        return self.states.names(CaseState.OUTSIDE)

    @property
    def good(self) -> Iterator[Case]:
        """Cases that have a mask."""
        return self.states.cases(CaseState.DONE, CaseState.SKIPPED)

    @property
    def megapixels_per_second(self) -> float:
        """Pixels of the cases that this run did, per second of all of it."""
        return self.pixels / 1e6 / self.seconds if self.seconds else 0.0
