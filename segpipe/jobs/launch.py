"""Run the whole pipeline: check, plan, execute, and write the tables."""

import logging
import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from segpipe.choices import Executor
from segpipe.errors import InputError, OutputError, SegpipeError
from segpipe.formats.case import Case, Failure
from segpipe.formats.cases import find_input
from segpipe.formats.registry import FORMATS, by_suffix, split_suffix
from segpipe.formats.search import searched_root
from segpipe.formats.veil import hide_case, names_of
from segpipe.jobs.cluster import cluster_workers
from segpipe.jobs.disk import stopped
from segpipe.jobs.executors import EXECUTORS
from segpipe.jobs.ledger import Ledger, State
from segpipe.jobs.orders import Ahead
from segpipe.jobs.plan import Plan, PlannedCase, keep_cut, make_plan
from segpipe.jobs.tasks import Halt, Outcome, Watcher
from segpipe.jobs.worker_process import tell_spare
from segpipe.messages.printable import printable
from segpipe.messages.redact import is_cut
from segpipe.messages.veil import is_veiled, learn, without_names
from segpipe.network.listed import spec_of_run
from segpipe.network.spec import ModelSpec
from segpipe.overlap.totals import run_totals
from segpipe.pipeline.agreement import compare_engine
from segpipe.pipeline.memory import most_memory, refuse_large_tile
from segpipe.pipeline.model_check import try_out
from segpipe.process.environment import settle
from segpipe.process.machine import processors
from segpipe.results.parts import FOLDER, forget_parts, has_parts, parts_folder
from segpipe.results.records import (
    Run,
    device_facts,
    done_cases,
    record_name,
    recorded,
    storable,
    versions,
    without_reserved,
)
from segpipe.results.tables import area_columns, lesion_columns, write_areas, write_audit, write_doubtful, write_lesions
from segpipe.results.totals import ADDED_UP, StatedTotals
from segpipe.settings import Settings
from segpipe.storage import Store
from segpipe.storage.files import output_errors
from segpipe.storage.folder import DRAFTS, Folder
from segpipe.storage.lock import locked
from segpipe.storage.ownership import (
    DOUBTFUL,
    LESIONS,
    TABLES,
    TRACE_NAME,
    ZONES,
    forget_table,
    refuse_foreign,
    refuse_foreign_trace,
)
from segpipe.storage.retry import persistently, unwritable
from segpipe.timing.report import Profile, account, write_trace
from segpipe.timing.spans import begin, end, span
from segpipe.vectors.area import Area, polygons_of, read_area
from segpipe.vectors.file import Selection
from segpipe.zones.polygons import Zones
from segpipe.zones.stage import ZonesTask, check_place, make_tables, read_and_check

LOG = logging.getLogger("segpipe")


WARNED = 100
"""Most cases with unusual pixels that are named in ``run.json``; each has them in its record."""

NAMED = 20
"""Most cases with unusual pixels that are named on stderr."""


@dataclass
class Summary:
    """Result of a run."""

    ledger: Ledger
    folder: str = field(default_factory=lambda: str(Path.cwd()))
    """Working folder at the start, which may be gone at the end."""
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
            self.ledger.note(outcome.case.name, State.OUTSIDE)
            return
        self.unusual += bool(outcome.warnings)
        if self.unusual <= WARNED:
            self.warnings += [{"case": outcome.case.name, "warning": text} for text in outcome.warnings]
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
    def outside(self) -> list[str]:
        """Names of the cases outside the area of interest."""
        return self.ledger.names(State.OUTSIDE)

    @property
    def good(self) -> Iterator[Case]:
        """Cases that have a mask."""
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
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Number of input files that were not taken, by suffix."""
    problems: Sequence[str] = ()
    """Folders of the input that could not be read."""
    command: Sequence[str] = field(default_factory=lambda: ["segpipe", *sys.argv[1:]])
    """Words of the command that continues the run."""
    zones: Zones | None = None
    """Polygons in which classes are summed up."""
    spent: float = 0.0
    """Seconds that the runs of the models of a list took before this one."""


def prepare(settings: Settings, *, look: bool = False, age: float = 0.0, only: Collection[str] | None = None) -> Prepared:
    """Check settings, model, contract, inputs and output, and plan; nothing is inferred or written.

    Args:
        settings: settings of the run.
        look: open every case, however many there are.
        age: seconds since the start of a process that serves this run alone; included in the profile.
        only: names of the cases to take; None: all.

    Raises:
        SegpipeError: the run cannot start; a bad case is a failure in the plan instead.
    """
    settle()
    begin(bool(settings.profile), age)
    with span("model"):
        spec = spec_of_run(settings)
        model = spec if spec.listed else _tried(spec, settings)
    with span("plan"):
        pool = cluster_workers(settings)
        if pool is not None and pool.memory is not None and settings.memory is None:
            settings = settings.model_copy(update={"memory": pool.memory / 1e9})
        run = Run(model, settings, _area(settings))
        for cut in filter(is_cut, settings.input):
            raise InputError(f"a URL must be whole, and its token was cut from {cut}: give it with tonight's")
        found = find_input(settings.input, run.choice)
        if settings.case_name != "path":
            learn(names_of([*found.cases, *(failure.case for failure in found.refused)], settings.input))
        cases, refused = storable(found, run.output)
        cases, reserved = without_reserved(cases, run)
        refused = [*refused, *reserved]
        if only is not None:
            cases, refused = [c for c in cases if c.name in only], [f for f in refused if f.case.name in only]
        if run.lesions is not None:
            refuse_foreign(run.output, LESIONS)
        if run.settings.audit is not None:
            refuse_foreign(run.output, DOUBTFUL)
        check_output(run.output, settings.input, cases)
        _check_trace(run, cases)
        zones = _zones(run, cases)
        _warn_of_report(run, cases)
        plan = make_plan(cases, run, pool or processors(), look=look, values=look)
        plan = _without_names(replace(plan, failed=(*refused, *plan.failed)))
        if len(plan) and not model.listed:
            run = replace(run, model=compare_engine(model, cases, settings.overrides))
        everything = sorted([*cases, *(failure.case for failure in refused)], key=attrgetter("name")) if refused else cases
        return Prepared(run, everything, plan, found.left_out, [*map(without_names, found.problems)], zones=zones)


def _tried(spec: ModelSpec, settings: Settings) -> ModelSpec:
    """A model after its trial.

    Raises:
        ModelError, DeviceError: it does not fit into memory, or does not run.
    """
    refuse_large_tile(spec, most_memory(settings))
    if spec.engine is not None:
        tell_spare(Ahead(spec))
    return try_out(spec, keep=True)


def _without_names(plan: Plan) -> Plan:
    """A plan whose messages do not have the names of inputs that the run hides."""
    if not is_veiled():
        return plan

    def hidden(one: PlannedCase) -> PlannedCase:
        return replace(one, notes=tuple(hide_case(note, one.case) for note in one.notes))

    failed = tuple(replace(failure, error=hide_case(failure.error, failure.case)) for failure in plan.failed)
    cuts = tuple(replace(cut, case=hidden(cut.case)) for cut in plan.cuts)
    return replace(plan, failed=failed, small=tuple(map(hidden, plan.small)), cuts=cuts)


def _area(settings: Settings) -> Area | None:
    """The area of interest, if there is one; each kind of problem gives a warning."""
    if settings.aoi is None:
        return None
    area, warnings = read_area(Selection(settings.aoi, settings.aoi_layer, flag="--aoi"))
    for text in warnings:
        LOG.warning("%s: %s", printable(area.path), text)
    return area


def _warn_of_report(run: Run, cases: Sequence[Case]) -> None:
    """Warn if a report is requested and no case can have one."""
    if run.settings.report is not None and cases and not any(FORMATS[case.format].derives for case in cases):
        LOG.warning(
            "warning: --report %s writes nothing here: it is for DICOM series, and no case is one", run.settings.report
        )


def _zones(run: Run, cases: Sequence[Case]) -> Zones | None:
    """The polygons of ``--zones``, checked against the output and the first cases."""
    if (task := ZonesTask.of(run.settings)) is None:
        return None
    zones = read_and_check(task, run.output)
    check_place(zones, cases, run.model.contract, run.overrides)
    return zones


def _trace(run: Run) -> tuple[Store, str] | None:
    """Store and name of the profile's trace, if there is to be one."""
    place = run.settings.profile
    if isinstance(place, Path):
        return Folder(place.parent), place.name
    return (run.output, TRACE_NAME) if place else None


def _check_trace(run: Run, cases: Sequence[Case]) -> None:
    if (place := _trace(run)) is None:
        return
    store, name = place
    if isinstance(file := run.settings.profile, Path) and os.path.exists(file) and not file.is_file():  # noqa: PTH110
        raise OutputError(f"--profile replaces its file, and {file} is a folder or a device: name a file")
    with suppress(OSError):
        refuse_foreign_trace(store.path(name), store.read(name))
    taken = store.aliases(name)
    if any(run.output.is_among(record_name(case), taken) for case in cases):
        raise OutputError(
            f"the trace must not replace a record, got {store.path(name)}: name another file with --profile FILE"
        )


def check_output(output: Store, inputs: Sequence[str], cases: Sequence[Case]) -> None:
    """Check that the output is writable, that no later run takes it for input, and that no mask replaces an input."""
    for text in inputs:
        root = searched_root(text)
        if root is not None and output.is_inside(root):
            raise OutputError(
                f"the output must not lie inside the input, where the next run would take masks for scenes, "
                f"got {output} in {text}: name another folder with --output"
            )
    known = by_suffix()
    taken = output.beside(((case.path, case.name) for case in cases), lambda path: split_suffix(path, known)[0])
    if taken is not None:
        raise OutputError(f"the mask of {taken} would lie on or beside it: name another folder with --output")
    output.check()
    for name in TABLES:
        refuse_foreign(output, name)


def carry_out(prepared: Prepared, watcher: Watcher, halt: Halt | None = None) -> Summary:
    """Execute a plan and write ``areas.csv`` and ``run.json``, even if some or all cases fail.

    Args:
        prepared: the run.
        watcher: receives progress and outcomes.
        halt: once set, no more work is begun; the run ends as interrupted when the work in progress has ended.

    Raises:
        OutputError: the output folder cannot be created, or another run holds it.
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
    output = run.output
    with output_errors(str(output)):
        output.make()
    halt = halt or Halt()
    with locked(output) as killed:
        if killed:
            output.sweep()
        started = time.perf_counter()
        summary = _opened(prepared)
        output.write_json("run.json", _record(prepared, summary, "running"))
        try:
            _execute(prepared, watcher, summary, halt)
        except KeyboardInterrupt:
            summary.interrupted = True
        except SegpipeError as error:
            summary.problems.append(without_names(str(error)))
            if said := unwritable(error, writing=isinstance(error, OutputError)):
                summary.problems.append(_full(prepared, summary, said))
        halt.concluding = True
        _warn_of_rest(run, summary)
        _warn_of_outside(run, summary)
        summary.interrupted |= halt.is_set()
        summary.seconds = time.perf_counter() - started + prepared.spent
        with span("tables"):
            _conclude(prepared, summary)
        _write_profile(prepared, summary)
        with _noting(summary):
            record = _record(prepared, summary, "interrupted" if summary.interrupted else "ended")
            persistently(lambda: output.write_json("run.json", record), run.settings.retries)
        output.sweep()
    return summary


def _write_profile(prepared: Prepared, summary: Summary) -> None:
    """Summarise the profile so far, and write its trace."""
    recorder, settings, plan = end(), prepared.run.settings, prepared.plan
    place = _trace(prepared.run)
    if recorder is None or place is None:
        return
    model, calls = prepared.run.model, plan.workers * plan.calls
    on_cpu = model.on_host and model.threads == 1  # otherwise threads other than the call's do its work
    if on_cpu and not (settings.scheduler or settings.cluster):
        calls = min(calls, processors())
    summary.profile = account(recorder, workers=plan.workers, calls=calls, on_cpu=on_cpu)
    store, name = place
    summary.trace = store.path(name)
    with _noting(summary), store.writing(name) as stream:
        write_trace(stream, summary.profile.processes)
    if isinstance(prepared.run.settings.profile, Path):
        with suppress(OSError):  # another run may use it
            (prepared.run.settings.profile.parent / DRAFTS).rmdir()


def _opened(prepared: Prepared) -> Summary:
    """The summary of a run before its start."""
    summary = Summary(Ledger(prepared.cases), left_out=prepared.left_out, problems=list(prepared.problems))
    for case in prepared.plan.done:
        summary.ledger.note(case.name, State.SKIPPED)
    for failure in prepared.plan.failed:
        summary.fail(failure)
    for case in prepared.plan.outside:
        summary.ledger.note(case.name, State.OUTSIDE)
    return summary


def _conclude(prepared: Prepared, summary: Summary) -> None:
    """Write the tables, each regardless of errors in the others, and leave nothing half-written."""
    output, retries = prepared.run.output, prepared.run.settings.retries
    if summary.interrupted or summary.problems:
        # workers may have finished cases that they could not report
        for case in done_cases(summary.ledger.cases(State.MISSING), prepared.run):
            summary.ledger.note(case.name, State.DONE)
    with _noting(summary):
        _tidy_parts(output, summary.ledger)
    with _noting(summary):
        persistently(lambda: write_areas(output, summary.good, area_columns(prepared.cases)), retries)
    if prepared.run.lesions is None:
        with _noting(summary):
            persistently(lambda: forget_table(output, LESIONS), retries)
    else:
        columns = lesion_columns(prepared.cases, prepared.run.model.contract, confidence=prepared.run.settings.confidence)
        with _noting(summary):
            persistently(lambda: write_lesions(output, summary.good, columns), retries)
    with _noting(summary):
        persistently(lambda: write_audit(output, summary.good), retries)
    with _noting(summary):
        persistently(lambda: _conclude_audit(prepared, summary), retries)
    with _noting(summary):
        persistently(lambda: _conclude_totals(prepared, summary), retries)
    with _noting(summary):
        persistently(lambda: _conclude_zones(prepared, summary), retries)


def _conclude_audit(prepared: Prepared, summary: Summary) -> None:
    """Write the table of an audit, or remove that of an earlier run."""
    output, most = prepared.run.output, prepared.run.settings.audit
    if most is None:
        forget_table(output, DOUBTFUL)
    else:
        write_doubtful(output, summary.good, most)


def _conclude_totals(prepared: Prepared, summary: Summary) -> None:
    """Add up the cases; ground that several share counts once."""
    cases = list(summary.good)
    if cases and len(cases) <= ADDED_UP and not summary.interrupted:
        summary.totals = run_totals(prepared.run.output, cases, prepared.run.settings.overlap_rule)


def _conclude_zones(prepared: Prepared, summary: Summary) -> None:
    """Write the table of zones, or remove that of an earlier run, to which cases may have been added."""
    output, cases = prepared.run.output, list(summary.good)
    if prepared.zones is None:
        forget_table(output, ZONES)
    elif summary.interrupted:
        LOG.warning("%s is written at the end of a run, and this one was interrupted", output.path(ZONES))
    elif cases and (task := ZonesTask.of(prepared.run.settings)) is not None:
        make_tables(task, prepared.zones, output, cases)


def _tidy_parts(output: Store, ledger: Ledger) -> None:
    """Keep only the parts that a later run can continue from."""
    with output_errors(output.path(FOLDER)):
        there = set(output.folders(FOLDER))
        for case in ledger.cases(*State) if there else ():
            # a run was stopped after a case was finished but before its parts were removed, or this run did the case whole
            over = ledger.state(case.name) in (State.DONE, State.SKIPPED)
            if parts_folder(case) in there and (over or not has_parts(output, case)):
                forget_parts(output, case)
        if not there:
            output.remove_folder(FOLDER)


@contextmanager
def _noting(summary: Summary) -> Iterator[None]:
    try:
        yield
    except SegpipeError as error:
        summary.problems.append(without_names(str(error)))


def executor_of(settings: Settings, *, on_host: bool) -> Executor:
    """Where the jobs of a run go: to Dask's workers on GPUs, unless the user chose another executor."""
    return settings.runs_in if on_host or "executor" in settings.model_fields_set else "dask"


def _execute(prepared: Prepared, watcher: Watcher, summary: Summary, halt: Halt) -> None:
    run, plan = prepared.run, prepared.plan
    for failure in plan.failed:
        watcher.outcome(Outcome(failure.case, 0.0, error=failure.error))
    if not len(plan) or (plan.failed and run.settings.fail_fast):
        return
    for cut in plan.cuts:
        keep_cut(cut, run)
    full: list[str] = []
    outcomes = EXECUTORS[executor_of(run.settings, on_host=run.model.on_host)](plan, run, watcher, halt)
    for outcome in map(_hidden, outcomes):
        watcher.outcome(outcome)
        summary.add(outcome)
        if summary.unusual <= NAMED:
            for text in outcome.warnings:
                LOG.warning("warning: %s: %s", printable(outcome.case.name), text)
        if outcome.unwritable and not full:
            full.append(outcome.unwritable)
        if outcome.error is not None and run.settings.fail_fast:
            break
    summary.problems += [_full(prepared, summary, said) for said in full]


def _hidden(outcome: Outcome) -> Outcome:
    """An outcome without the names of inputs that the run hides."""
    if not is_veiled():
        return outcome
    error = None if outcome.error is None else hide_case(outcome.error, outcome.case)
    return replace(outcome, error=error, warnings=tuple(hide_case(text, outcome.case) for text in outcome.warnings))


def _full(prepared: Prepared, summary: Summary, said: str) -> str:
    """Message that the output is unwritable, and what to do."""
    left = summary.ledger.count(State.MISSING) + summary.ledger.count(State.FAILED)
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
    if run.aoi is None or not (outside := list(summary.ledger.cases(State.OUTSIDE))):
        return
    path = printable(run.aoi.path)
    if len(outside) == summary.ledger.total:
        polygons = polygons_of(run.aoi)
        west, south, east, north = polygons.bounds
        LOG.warning(
            "%s: no case lies inside: its coordinates are %.7g to %.7g, %.7g to %.7g in %s: is its CRS right?",
            *(path, west, east, south, north, polygons.crs.name),
        )
    if old := [case.name for case in outside if run.output.has(record_name(case))]:
        LOG.warning("%s: masks of an earlier run remain for cases outside, such as %s", path, printable(old[0]))


def _record(prepared: Prepared, summary: Summary, state: str) -> dict[str, Any]:
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
        **({"outside": summary.outside} if run.aoi is not None else {}),
        "failed": [{"case": failure.case.name, "error": failure.error} for failure in summary.failed],
        "left_out": dict(summary.left_out),
        "problems": summary.problems,
        "unusual_cases": summary.unusual,
        "warnings": summary.warnings,
        **({"totals": summary.totals.as_json()} if summary.totals else {}),
        **({"profile": summary.profile.as_json()} if summary.profile else {}),
    }
