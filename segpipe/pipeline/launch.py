"""A whole run: check, plan, execute, and leave the tables."""

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from segpipe.pipeline.cases import Case, find_cases, is_remote, searched_root
from segpipe.pipeline.cluster import crew
from segpipe.pipeline.config import Settings
from segpipe.pipeline.errors import OutputError, SegpipeError
from segpipe.pipeline.files import output_errors, write_json
from segpipe.pipeline.ledger import Ledger, State
from segpipe.pipeline.lock import locked
from segpipe.pipeline.machine import processors
from segpipe.pipeline.model import try_out
from segpipe.pipeline.output import sweep
from segpipe.pipeline.parts import FOLDER, forget_parts, sweep_parts
from segpipe.pipeline.plan import Failure, Plan, keep_cut, make_plan
from segpipe.pipeline.records import Run, device_kind, is_done, versions, write_areas
from segpipe.pipeline.run import Outcome, Watcher
from segpipe.pipeline.schedule import EXECUTORS
from segpipe.pipeline.spec import read_spec

LOG = logging.getLogger("segpipe")


class Halt(threading.Event):
    """Asks a run to begin nothing more."""

    concluding = False
    """Whether the run only writes its tables by now, which nothing should stop."""


@dataclass
class Summary:
    """What came of a run."""

    ledger: Ledger
    failed: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    pixels: int = 0
    interrupted: bool = False
    problems: list[str] = field(default_factory=list)
    """What went wrong beside the cases."""

    def add(self, outcome: Outcome) -> None:
        """Note how a case ended."""
        if outcome.error is None:
            self.ledger.note(outcome.case.name, State.DONE)
            self.pixels += outcome.pixels
        else:
            self.fail(Failure(outcome.case, outcome.error))

    def fail(self, failure: Failure) -> None:
        self.ledger.note(failure.case.name, State.FAILED)
        self.failed.append(failure)

    @property
    def done(self) -> list[str]:
        """Names of the cases that this run did."""
        return self.ledger.names(State.DONE)

    @property
    def skipped(self) -> list[str]:
        """Names of the cases that were done before."""
        return self.ledger.names(State.SKIPPED)

    @property
    def good(self) -> Iterator[Case]:
        """Cases that have their mask."""
        return self.ledger.cases(State.DONE, State.SKIPPED)

    @property
    def megapixels_per_second(self) -> float:
        return self.pixels / 1e6 / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Prepared:
    """A run that has passed every check that needs no inference."""

    run: Run
    cases: Sequence[Case]
    plan: Plan


def prepare(settings: Settings, *, look: bool = False) -> Prepared:
    """Check settings, model, contract, inputs and output, and plan; nothing is inferred or written.

    Args:
        settings: of the run.
        look: into every case, however many there are.

    Raises:
        SegpipeError: the run cannot start; a single bad case is a failure in the plan instead.
    """
    run = Run(try_out(read_spec(settings)), settings)
    cases = find_cases(settings.input)
    check_output(settings.output, settings.input, cases)
    return Prepared(run, cases, make_plan(cases, run, crew(settings) or processors(), look=look))


def check_output(output: Path, inputs: Sequence[str], cases: Sequence[Case]) -> None:
    """The output must be a writable folder where no later run takes it for input, and no mask replaces an input."""
    if is_remote(str(output)) or re.match(r"\w+:/", str(output)):  # Path has made s3:/ of s3://
        raise OutputError(f"the output must be a folder of this machine, got {output}")
    folder = output.resolve()
    for text in inputs:
        root = searched_root(text)
        if root is not None and folder.is_relative_to(root.resolve()):
            raise OutputError(
                f"the output must not lie inside the input, where the next run would take masks for scenes, "
                f"got {output} in {text}: name another folder with --output"
            )
    real = cache(os.path.realpath)  # of a folder once, not for each of its cases
    for case in cases:
        path = Path(case.path)
        path = path.resolve() if path.is_symlink() else path
        if not is_remote(case.path) and Path(real(path.parent), path.stem) == folder / case.name:
            raise OutputError(f"the mask of {case.path} would lie on or beside it: name another folder with --output")
    _check_writable(output)


def _check_writable(output: Path) -> None:
    nearest = next(path for path in (output, *output.resolve().parents) if path.exists())
    if not nearest.is_dir():
        raise OutputError(f"the output must be a folder, and {nearest} is a file: name another with --output")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(
            f"the output must be writable, and {nearest} is not: mend its permissions, or name another with --output"
        )


def carry_out(prepared: Prepared, watcher: Watcher, halt: Halt | None = None) -> Summary:
    """Execute a plan and write ``areas.csv`` and ``run.json``, also where some or all cases fail.

    Args:
        prepared: what to do.
        watcher: told how it goes.
        halt: once set, nothing more is begun, and the run ends as interrupted when what runs has ended.

    Raises:
        OutputError: the output folder cannot be made, or another run holds it.
    """
    run, plan = prepared.run, prepared.plan
    LOG.info(
        "%d cases in parts, %d in one piece and %d not looked at, on %d workers with %d calls each",
        len(plan.cuts),
        len(plan.small),
        len(plan.unseen),
        plan.workers,
        plan.calls,
    )
    with output_errors(run.output):
        run.output.mkdir(parents=True, exist_ok=True)
    halt = halt or Halt()
    with locked(run.output) as killed:
        if killed:
            sweep(run.output)
        started = time.perf_counter()
        summary = _opened(prepared)
        write_json(run.output / "run.json", _record(run, summary, "running"))
        try:
            _execute(prepared, watcher, summary, halt)
        except KeyboardInterrupt:
            summary.interrupted = True
        except SegpipeError as error:
            summary.problems.append(str(error))
        halt.concluding = True
        summary.interrupted |= halt.is_set()
        summary.seconds = time.perf_counter() - started
        _conclude(prepared, summary)
    return summary


def _opened(prepared: Prepared) -> Summary:
    """The summary of a run that has not done anything yet."""
    summary = Summary(Ledger(prepared.cases))
    for case in prepared.plan.done:
        summary.ledger.note(case.name, State.SKIPPED)
    for failure in prepared.plan.failed:
        summary.fail(failure)
    return summary


def _conclude(prepared: Prepared, summary: Summary) -> None:
    """Leave the tables, each whatever becomes of the other, and nothing half-written."""
    output = prepared.run.output
    if summary.interrupted or summary.problems:
        # workers may have finished cases that nobody was left to be told of
        for case in summary.ledger.cases(State.MISSING):
            if is_done(case, prepared.run):
                summary.ledger.note(case.name, State.DONE)
    sweep(output)
    if (output / FOLDER).is_dir():
        for case in summary.ledger.cases(State.MISSING, State.FAILED):
            sweep_parts(output, case)
        # a run was stopped between the last word of a case and the end of its parts, or this one did it whole
        for case in summary.good:
            forget_parts(output, case)
    with _noting(summary):
        write_areas(output, summary.good)
    with _noting(summary):
        write_json(output / "run.json", _record(prepared.run, summary, "interrupted" if summary.interrupted else "ended"))


@contextmanager
def _noting(summary: Summary) -> Iterator[None]:
    try:
        yield
    except SegpipeError as error:
        summary.problems.append(str(error))


def _execute(prepared: Prepared, watcher: Watcher, summary: Summary, halt: threading.Event) -> None:
    run, plan = prepared.run, prepared.plan
    for failure in plan.failed:
        watcher.outcome(Outcome(failure.case, 0.0, error=failure.error))
    if not len(plan) or (plan.failed and run.settings.fail_fast):
        return
    for cut in plan.cuts:
        keep_cut(cut, run)
    outcomes = EXECUTORS[run.settings.executor](plan, run, watcher, halt)
    for outcome in outcomes:
        watcher.outcome(outcome)
        summary.add(outcome)
        if outcome.error is not None and run.settings.fail_fast:
            break


def _record(run: Run, summary: Summary, state: str) -> dict[str, Any]:
    return {
        "state": state,
        "command": ["segpipe", *sys.argv[1:]],
        "folder": str(Path.cwd()),
        "settings": run.settings.model_dump(mode="json"),
        "resolved": run.label_settings | {"batch": run.model.batch, "device": run.model.device},
        "model": {"path": str(run.model.path), "sha256": run.model.sha256, "contract": run.model.contract_origin},
        "versions": versions(),
        "device": device_kind(run.model),
        "seconds": round(summary.seconds, 3),
        "megapixels_per_second": round(summary.megapixels_per_second, 3),
        "interrupted": summary.interrupted,
        "done": summary.done,
        "skipped": summary.skipped,
        "failed": [{"case": failure.case.name, "error": failure.error} for failure in summary.failed],
    }
