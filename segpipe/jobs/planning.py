"""Plan a run before anything is inferred: open its cases, choose the workers, and cut the cases that are too large."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from segpipe.errors import OutputError, OutsideError, case_errors
from segpipe.formats.case import Case, Failure
from segpipe.formats.registry import environment
from segpipe.jobs.cuts import cut_large
from segpipe.jobs.plan import Plan, PlannedCase, as_planned
from segpipe.jobs.worker_pool import WorkerPool, local_pool
from segpipe.network.spec import ModelSpec
from segpipe.pipeline.findings import findings_of, with_findings
from segpipe.pipeline.memory import most_memory
from segpipe.pipeline.opening import open_checked
from segpipe.results.done import done_cases
from segpipe.results.name_conflicts import refuse_taken
from segpipe.results.run import Run
from segpipe.storage.retry import is_passing

MOST_OPENED = 500
"""Most cases whose headers are read before inference, in about half a second. Beyond that, each case is triage only by
its job: opening a picture twice costs more than all other bookkeeping."""


def make_plan(
    cases: Sequence[Case], run: Run, processors: int, pool: WorkerPool | None = None, *, open_all: bool = False
) -> Plan:
    """Skip finished cases, open the rest unless there are too many, and cut the large ones.

    Args:
        cases: cases of the run.
        run: the run.
        processors: those of this machine, which are distributed over workers.
        pool: the workers of a cluster; None: workers of this machine.
        open_all: open all cases, however many there are, and sample some of their pixels.
    """
    done = [] if run.settings.overwrite else done_cases(cases, run)
    finished = {id(case) for case in done}
    rest = [case for case in cases if id(case) not in finished] if done else cases
    if len(rest) > MOST_OPENED and not open_all:
        pool = pool or local_pool([], len(rest), run, processors)
        return Plan(workers=pool.workers, calls=pool.calls, threads=pool.threads, unopened=rest, done=done)
    triage = _Triage()
    with environment():
        for case in rest:
            _open(case, run, triage, sample=open_all)
    planned = _without_collisions(run, triage)
    pool = pool or local_pool(planned, len(triage.unopened), run, processors)
    total = sum(case.windows for case in planned)
    # labels of a list are joined row by row, whatever the size of a case
    cuts = () if run.model.listed else tuple(cut_large(planned, run, pool.workers, total))
    in_parts = {cut.case.case.name for cut in cuts}
    return Plan(
        workers=pool.workers,
        calls=pool.calls,
        threads=pool.threads,
        small=tuple(case for case in planned if case.case.name not in in_parts),
        cuts=cuts,
        unopened=triage.unopened,
        done=done,
        failed=tuple(triage.failed),
        outside=triage.outside,
    )


@dataclass
class _Triage:
    """Cases by what an attempt to open them has shown, each in one list."""

    planned: list[PlannedCase] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    unopened: list[Case] = field(default_factory=list)
    """Their jobs try again later."""
    outside: list[Case] = field(default_factory=list)


def _open(case: Case, run: Run, triage: _Triage, *, sample: bool) -> None:
    """Open a case; with ``sample``, sample some of its pixels, too."""
    with case_errors(case.path) as caught:
        source, info = open_checked(case, _uncropped(run.model), run.overrides, memory=most_memory(run.settings))
        with closing(source):
            if sample:
                found = findings_of(source, run.model.contract)
                info = with_findings(case, info, found, allow=run.settings.unusual_values == "allow")
            if (cleaning := run.cleaning) is not None:
                cleaning.weights(info.grid, case.path)  # refuses a unit that the case does not have
            triage.planned.append(as_planned(case, info))
    if isinstance(caught.error, OutsideError):
        triage.outside.append(case)
    elif is_passing(caught.error):
        triage.unopened.append(case)
    elif caught.error is not None:
        triage.failed.append(Failure(case, str(caught.error)))


def _uncropped(model: ModelSpec) -> ModelSpec:
    """The model, for a case of which no pixel is read yet: its job finds the crop, and ``cut_large`` that of a large one."""
    if model.contract.crop is None:
        return model
    return replace(model, contract=model.contract.model_copy(update={"crop": None}))


def _without_collisions(run: Run, triage: _Triage) -> list[PlannedCase]:
    """Fail the cases whose mask would replace a source of any case, or a file that segpipe did not write."""
    sources = {file for case in triage.planned for file in case.files}
    kept = []
    for case in triage.planned:
        try:
            refuse_taken(case.case, run, sources)
            kept.append(case)
        except OutputError as error:
            if is_passing(error):
                triage.unopened.append(case.case)
            else:
                triage.failed.append(Failure(case.case, str(error)))
    return kept
