"""The end of a run: its tables, and what it leaves of its parts."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from segpipe.errors import on_failure
from segpipe.formats.case import Case
from segpipe.jobs.case_states import CaseState, CaseStates
from segpipe.jobs.prepare import Prepared
from segpipe.jobs.summary import Summary
from segpipe.jobs.tasks import Halt, HaltedError
from segpipe.results.done import done_cases
from segpipe.results.overlap.totals import run_totals
from segpipe.results.parts import FOLDER, forget_parts, has_parts, parts_folder
from segpipe.results.run import Run
from segpipe.results.tables import (
    area_columns,
    counts_any,
    lesion_columns,
    write_areas,
    write_audit_trail,
    write_audit_windows,
    write_lesions,
)
from segpipe.results.totals import ADDED_UP
from segpipe.results.zones.stage import ZonesTask, make_tables
from segpipe.storage import Store
from segpipe.storage.files import output_errors
from segpipe.storage.ownership import AUDIT_TRAIL, AUDIT_WINDOWS, LESIONS, ZONES, forget_table
from segpipe.storage.retry import persistently
from segpipe.vectors.written import clear

LOG = logging.getLogger("segpipe")

Table = Callable[[Prepared, Summary], None]


def conclude(prepared: Prepared, summary: Summary, halt: Halt) -> None:
    """Write the tables, each regardless of errors in the others, and leave nothing half-written.

    Totals of shared ground and zones read masks again, which takes minutes for thousands of cases: they are left out, and
    the run is interrupted, if it is asked to end and they do not within the seconds of grace.
    """
    output, retries = prepared.run.output, prepared.run.settings.retries
    if summary.interrupted or summary.problems:
        # workers may have finished cases that they could not report
        for case in done_cases(summary.states.cases(CaseState.MISSING), prepared.run):
            summary.states.set(case.name, CaseState.DONE)
    with summary.noting():
        persistently(partial(_tidy_parts, output, summary.states), retries)
    tables: list[Table] = [
        _areas,
        _lesions,
        _audit_trail,
        _audit_windows,
        partial(_totals, halt=halt),
        partial(_zones, halt=halt),
    ]
    for table in tables:
        with summary.noting():
            persistently(partial(table, prepared, summary), retries)


def _areas(prepared: Prepared, summary: Summary) -> None:
    write_areas(prepared.run.output, summary.good, area_columns(prepared.cases))


def _lesions(prepared: Prepared, summary: Summary) -> None:
    """Write the table of lesions, or remove that of an earlier run."""
    run = prepared.run
    if run.lesions is None:
        forget_table(run.output, LESIONS)
    else:
        columns = lesion_columns(prepared.cases, run.model.contract, confidence=run.settings.confidence)
        write_lesions(run.output, summary.good, columns)


def _audit_trail(prepared: Prepared, summary: Summary) -> None:
    write_audit_trail(prepared.run.output, summary.good)


def _audit_windows(prepared: Prepared, summary: Summary) -> None:
    """Write the table of an audit, or remove that of an earlier run."""
    output, most = prepared.run.output, prepared.run.settings.audit
    if most is None:
        forget_table(output, AUDIT_WINDOWS)
    else:
        write_audit_windows(output, summary.good, most)


def _totals(prepared: Prepared, summary: Summary, *, halt: Halt) -> None:
    """Add up the cases; ground that several share counts once."""
    run, cases = prepared.run, list(summary.good)
    if cases and len(cases) <= ADDED_UP and not summary.interrupted:
        with _interrupting(summary):
            summary.totals = run_totals(run.output, cases, run.settings.overlap_rule, checkpoint=halt.check)


def _zones(prepared: Prepared, summary: Summary, *, halt: Halt) -> None:
    """Write the tables of zones, or remove those of an earlier run if this run cannot measure its zones."""
    run, cases = prepared.run, list(summary.good)
    task = ZonesTask.of(run.settings)
    with on_failure(partial(_forget_zones, run)):
        if prepared.zones is None or task is None or not cases:
            _forget_zones(run)
        elif not summary.interrupted:
            with _interrupting(summary):
                make_tables(task, prepared.zones, run.output, cases, checkpoint=halt.check)
    if summary.interrupted and prepared.zones is not None:
        _forget_zones(run)
        LOG.warning("%s is written at the end of a run, and this one was interrupted", run.output.path(ZONES))


def _forget_zones(run: Run) -> None:
    """Remove the tables of zones of an earlier run, which may lack cases or belong to another model."""
    forget_table(run.output, ZONES)
    if run.settings.zones_out is not None:
        with output_errors(run.settings.zones_out):
            clear(run.settings.zones_out)


def forget_outdated(run: Run, again: Iterable[Case]) -> None:
    """Remove the tables of an earlier run if they count a case that is done again.

    The new tables are written at the end of a run: after a kill, old ones would contradict the masks.

    Raises:
        OutputError: a table can be neither read nor removed.
    """
    if counts_any(run.output, again):
        _forget_zones(run)
        for name in (LESIONS, AUDIT_WINDOWS, AUDIT_TRAIL, "areas.csv"):
            forget_table(run.output, name)


@contextmanager
def _interrupting(summary: Summary) -> Iterator[None]:
    """A block that is halted ends; the run is interrupted then."""
    try:
        yield
    except HaltedError:
        summary.interrupted = True


def _tidy_parts(output: Store, states: CaseStates) -> None:
    """Keep only the parts that a later run can continue from."""
    with output_errors(output.path(FOLDER)):
        there = set(output.folders(FOLDER))
        for case in states.cases(*CaseState) if there else ():
            # a run was stopped after a case was finished but before its parts were removed, or this run did the case whole
            over = states.state(case.name) in (CaseState.DONE, CaseState.SKIPPED)
            if parts_folder(case) in there and (over or not has_parts(output, case)):
                forget_parts(output, case)
        if not there:
            output.remove_folder(FOLDER)
