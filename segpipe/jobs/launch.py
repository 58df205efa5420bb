"""Carry out a prepared run: execute its plan, and write the tables."""

import logging
import time
from functools import partial
from typing import Any

from segpipe.choices import Executor
from segpipe.errors import OutputError, SegpipeError
from segpipe.jobs.case_states import CaseState, CaseStates
from segpipe.jobs.conclude import conclude, forget_outdated
from segpipe.jobs.cuts import keep_cut
from segpipe.jobs.disk import stopped
from segpipe.jobs.executors import EXECUTORS
from segpipe.jobs.plan import Plan
from segpipe.jobs.prepare import Prepared
from segpipe.jobs.redaction import hide_outcome
from segpipe.jobs.summary import WARNED, Summary
from segpipe.jobs.tasks import Halt, Outcome, Watcher
from segpipe.jobs.trace import write_profile
from segpipe.messages.printable import printable
from segpipe.messages.redaction import without_names
from segpipe.results.case_record import recorded
from segpipe.results.device_kind import device_facts, versions
from segpipe.results.run import Run
from segpipe.results.targets import record_name
from segpipe.settings import Settings
from segpipe.storage.files import output_errors
from segpipe.storage.lock import locked
from segpipe.storage.retry import persistently, unwritable
from segpipe.timing.spans import span
from segpipe.vectors.area import polygons_of

LOG = logging.getLogger("segpipe")


NAMED = 20
"""Most cases with unusual pixels that are named on stderr."""


def carry_out(prepared: Prepared, watcher: Watcher, halt: Halt | None = None) -> Summary:
    """Execute a plan and write ``areas.csv`` and ``run.json``, even if some or all cases fail.

    Args:
        prepared: the run.
        watcher: receives progress and outcomes.
        halt: once set, no more work is begun; the run ends as interrupted when the work in progress has ended.

    Raises:
        OutputError: the output folder cannot be created, or another run holds it.
    """
    output, retries, halt = prepared.run.output, prepared.run.settings.retries, halt or Halt()
    halt.concluding = False  # it may have ended with the tables of another model of a list
    _log_plan(prepared.plan)
    with output_errors(str(output)):
        persistently(output.make, retries)
    with locked(output, retries) as killed:
        if killed:
            output.sweep()
        started = time.perf_counter()
        summary = _initial_summary(prepared)
        persistently(partial(output.write_json, "run.json", run_record(prepared, summary, "running")), retries)
        _execute_noting(prepared, watcher, summary, halt)
        halt.concluding = True
        _warn_of_rest(prepared.run, summary)
        _warn_of_outside(prepared.run, summary)
        summary.interrupted |= halt.is_set()
        summary.seconds = time.perf_counter() - started + prepared.spent
        _write_end(prepared, summary, halt)
        output.sweep()
    return summary


def _log_plan(plan: Plan) -> None:
    LOG.info(
        "%d cases in parts, %d in one piece and %d not looked at, on %d workers with %d calls each",
        len(plan.cuts),
        len(plan.small),
        len(plan.unopened),
        plan.workers,
        plan.calls,
    )


def _execute_noting(prepared: Prepared, watcher: Watcher, summary: Summary, halt: Halt) -> None:
    """Execute the plan; the summary says what stopped it, if anything did."""
    try:
        _execute(prepared, watcher, summary, halt)
    except KeyboardInterrupt:
        summary.interrupted = True
    except SegpipeError as error:
        summary.problems.append(without_names(str(error)))
        if said := unwritable(error, writing=isinstance(error, OutputError)):
            summary.problems.append(_unwritable_text(prepared, summary, said))


def _write_end(prepared: Prepared, summary: Summary, halt: Halt) -> None:
    """Write tables, profile and ``run.json``."""
    run = prepared.run
    with span("tables"):
        conclude(prepared, summary, halt)
    write_profile(run, prepared.plan, summary)
    with summary.noting():
        record = run_record(prepared, summary, "interrupted" if summary.interrupted else "ended")
        persistently(lambda: run.output.write_json("run.json", record), run.settings.retries)


def _initial_summary(prepared: Prepared) -> Summary:
    """The summary of a run before its start."""
    summary = Summary(CaseStates(prepared.cases), left_out=prepared.left_out, problems=list(prepared.problems))
    for case in prepared.plan.done:
        summary.states.set(case.name, CaseState.SKIPPED)
    for failure in prepared.plan.failed:
        summary.fail(failure)
    for case in prepared.plan.outside:
        summary.states.set(case.name, CaseState.OUTSIDE)
    return summary


def resolve_executor(settings: Settings, *, on_host: bool) -> Executor:
    """Where the jobs of a run go: to Dask's workers on GPUs, unless the user chose another executor."""
    return settings.runs_in if on_host or "executor" in settings.model_fields_set else "dask"


def _execute(prepared: Prepared, watcher: Watcher, summary: Summary, halt: Halt) -> None:
    run, plan = prepared.run, prepared.plan
    for failure in plan.failed:
        watcher.outcome(Outcome(failure.case, 0.0, error=failure.error))
    if not len(plan) or (plan.failed and run.settings.fail_fast):
        return
    with summary.noting():
        again = list(summary.states.cases(CaseState.MISSING))
        persistently(partial(forget_outdated, run, again), run.settings.retries)
    for cut in plan.cuts:
        persistently(partial(keep_cut, cut, run), run.settings.retries)
    full: list[str] = []
    outcomes = EXECUTORS[resolve_executor(run.settings, on_host=run.model.on_host)](plan, run, watcher, halt)
    for outcome in map(hide_outcome, outcomes):
        watcher.outcome(outcome)
        summary.add(outcome)
        _warn_of_unusual(outcome, summary)
        if outcome.unwritable and not full:
            full.append(outcome.unwritable)
        if outcome.error is not None and run.settings.fail_fast:
            break
    summary.problems += [_unwritable_text(prepared, summary, said) for said in full]


def _warn_of_unusual(outcome: Outcome, summary: Summary) -> None:
    """Warn of the unusual pixels of a case, if it is among the first."""
    if summary.unusual <= NAMED:
        for text in outcome.warnings:
            LOG.warning("warning: %s: %s", printable(outcome.case.name), text)


def _unwritable_text(prepared: Prepared, summary: Summary, said: str) -> str:
    """Why the output is unwritable, and what to do."""
    left = summary.states.count(CaseState.MISSING) + summary.states.count(CaseState.FAILED)
    return stopped(prepared.plan, prepared.run, left / max(1, len(prepared.cases)), said)


def _warn_of_rest(run: Run, summary: Summary) -> None:
    """Warn that more cases have unusual pixels than were named on stderr."""
    if (more := summary.unusual - NAMED) <= 0:
        return
    noun = "case has" if more == 1 else "cases have"
    named = f", which names the first {WARNED} cases; each record names its own" if summary.unusual > WARNED else ""
    LOG.warning('warning: %s more %s unusual pixels: see "warnings" in %s%s', more, noun, run.output.path("run.json"), named)


def _warn_of_outside(run: Run, summary: Summary) -> None:
    """Warn if no case lies in the area of interest, and of masks of cases that do not, which an earlier run wrote."""
    if run.aoi is None or not (outside := list(summary.states.cases(CaseState.OUTSIDE))):
        return
    path = printable(run.aoi.path)
    if len(outside) == summary.states.total:
        polygons = polygons_of(run.aoi)
        west, south, east, north = polygons.bounds
        LOG.warning(
            "%s: no case lies inside: its coordinates are %.7g to %.7g, %.7g to %.7g in %s: is its CRS right?",
            *(path, west, east, south, north, polygons.crs.name),
        )
    if old := [case.name for case in outside if run.output.has(record_name(case))]:
        LOG.warning("%s: masks of an earlier run remain for cases outside, such as %s", path, printable(old[0]))


def run_record(prepared: Prepared, summary: Summary, state: str) -> dict[str, Any]:
    """The content of ``run.json``; ``state`` is ``running``, ``ended`` or ``interrupted``."""
    run = prepared.run
    return {
        "state": state,
        "command": list(prepared.command),
        "folder": summary.folder,
        "settings": run.settings.model_dump(mode="json"),
        "resolved": run.label_settings
        | {"batch": run.model.batch, "device": run.model.device, "threads": run.model.threads},
        "model": recorded(run.model).as_json(),
        "versions": versions(),
        "device": device_facts(run.model),
        "seconds": round(summary.seconds, 3),
        "megapixels_per_second": round(summary.megapixels_per_second, 3),
        "interrupted": summary.interrupted,
        "done": summary.done,
        "skipped": summary.skipped,
        "missing": summary.missing,
        **({"outside": summary.outside} if run.aoi is not None else {}),
        "failed": [{"case": failure.case.name, "error": failure.error} for failure in summary.failed],
        "left_out": dict(summary.left_out),
        "problems": summary.problems,
        "unusual_cases": summary.unusual,
        "warnings": summary.warnings,
        **({"totals": summary.totals.as_json()} if summary.totals else {}),
        **({"profile": summary.profile.as_json()} if summary.profile else {}),
    }
