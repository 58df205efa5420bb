"""The profile of a run, and the file of its trace."""

from collections.abc import Sequence
from pathlib import Path

from segpipe.errors import OutputError
from segpipe.formats.case import Case
from segpipe.jobs.plan import Plan
from segpipe.jobs.summary import Summary
from segpipe.process.machine import processors
from segpipe.results.run import Run
from segpipe.results.targets import record_name
from segpipe.storage import Store
from segpipe.storage.existence import exists, is_file
from segpipe.storage.folder import UNLOCKED, Folder
from segpipe.storage.ownership import TRACE_NAME, refuse_foreign_trace
from segpipe.timing.report import account, write_trace
from segpipe.timing.spans import end


def check_trace(run: Run, cases: Sequence[Case]) -> None:
    """Check that the trace of a profile, if there is to be one, replaces only a trace.

    Raises:
        OutputError: there is something else, or a record of the run would have that name.
    """
    if (place := _trace(run)) is None:
        return
    store, name = place
    if isinstance(file := run.settings.profile, Path) and exists(file) and not is_file(file):
        raise OutputError(f"--profile replaces its file, and {file} is a folder or a device: name a file")
    if (data := store.read_if_there(name)) is not None:
        refuse_foreign_trace(store.path(name), data)
    taken = store.aliases(name)
    if any(run.output.is_among(record_name(case), taken) for case in cases):
        raise OutputError(
            f"the trace must not replace a record, got {store.path(name)}: name another file with --profile FILE"
        )


def write_profile(run: Run, plan: Plan, summary: Summary) -> None:
    """Summarise the profile so far, and write its trace."""
    recorder, place = end(), _trace(run)
    if recorder is None or place is None:
        return
    single = run.model.on_host and run.model.threads == 1
    calls = _calls_at_once(run, plan) if single else plan.workers * plan.calls
    on_cpu = single and run.model.engine is None  # otherwise threads other than the call's do its work
    summary.profile = account(recorder, workers=plan.workers, calls=calls, on_cpu=on_cpu)
    store, name = place
    with summary.noting():
        with store.writing(name) as stream:
            write_trace(stream, summary.profile.processes)
        summary.trace = store.path(name)
    if isinstance(run.settings.profile, Path):
        Folder(run.settings.profile.parent, UNLOCKED).tidy()


def _calls_at_once(run: Run, plan: Plan) -> int:
    """Calls of the model that compute at the same time on processors, which on one machine have no more."""
    calls, several = plan.workers * plan.calls, run.settings.scheduler or run.settings.cluster
    return calls if several else min(calls, processors())


def _trace(run: Run) -> tuple[Store, str] | None:
    """Store and name of the profile's trace, if there is to be one."""
    place = run.settings.profile
    if isinstance(place, Path):
        return Folder(place.parent, UNLOCKED), place.name
    return (run.output, TRACE_NAME) if place else None
