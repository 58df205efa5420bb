"""Run a model over files, for the command line and for Python."""

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from segpipe.api.command_line import command_of
from segpipe.api.list_runs import after_models, runs_of_list
from segpipe.api.model import Model, Paths, paths
from segpipe.api.results import RunResult
from segpipe.errors import ModelError, SettingsError
from segpipe.formats.redaction import hidden_inputs
from segpipe.formats.registry import unchanged
from segpipe.jobs.case_states import CaseState
from segpipe.jobs.dask_options import unchanged_dask
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import Prepared, prepare
from segpipe.jobs.summary import Summary
from segpipe.jobs.tasks import Halt, Outcome, Watcher
from segpipe.jobs.trial import choose_split
from segpipe.jobs.worker_process import spare_worker
from segpipe.messages.printable import printable
from segpipe.network.spec import ModelSpec
from segpipe.process.interruption import interruptible
from segpipe.process.isolation import isolated
from segpipe.settings import Settings, load_settings
from segpipe.terminal.journal import Journal
from segpipe.terminal.plan import note_lines
from segpipe.terminal.progress import watcher

LOG = logging.getLogger("segpipe")

GRACE = 0.0
"""Seconds that running jobs have after Ctrl-C in Python, where it stops a call at once, unless ``grace`` is given."""


@dataclass(frozen=True)
class RunHost:
    """What a run needs from its caller: a watcher, a receiver of notes, and a way to stop."""

    watching: Callable[[Prepared], AbstractContextManager[Watcher]]
    """Receives the events while its block lasts."""
    note: Callable[[str], None]
    """Receives notes on cases and on the trial, line by line."""
    stopping: Callable[[Halt, float], AbstractContextManager[object]]
    """Makes the context in which signals stop the run, from the halt and the seconds of grace."""


def execute(prepared: Prepared, host: RunHost) -> Summary:
    """Carry out a prepared run; a bad case never raises.

    Raises:
        SegpipeError: the run cannot start.
    """
    if prepared.run.model.listed:
        return _execute_list(prepared, host)
    prepared, halt = _settled(prepared, host), Halt()
    with host.stopping(halt, prepared.run.settings.grace):
        return _watched(prepared, host, halt)


def _execute_list(prepared: Prepared, host: RunHost) -> Summary:
    """The runs of the models, and the one that joins their labels: one halt for all, and for what lies between them."""
    runs = list(runs_of_list(prepared))  # all models are tried before the first one runs for hours
    halt = Halt()

    def carry(own: Prepared, title: str) -> Summary:
        host.note(title)
        return _watched(_settled(own, host), host, halt)

    with host.stopping(halt, prepared.run.settings.grace):
        joined = after_models(prepared, runs, carry, halt)
        return _watched(_settled(joined, host), host, halt)


def _settled(prepared: Prepared, host: RunHost) -> Prepared:
    """The run with the split of processors that is fastest here, after its notes."""
    for line in note_lines(prepared):
        host.note(printable(line))
    run, plan = choose_split(prepared.run, prepared.plan, host.note)
    return replace(prepared, run=run, plan=plan)


def _watched(prepared: Prepared, host: RunHost, halt: Halt) -> Summary:
    with ExitStack() as stack:
        watcher: Watcher = stack.enter_context(host.watching(prepared))
        journal = None
        if prepared.run.settings.log_file:
            watcher = journal = stack.enter_context(Journal(prepared.run.settings.log_file, watcher))
            journal.begun(prepared)
        summary = carry_out(prepared, watcher, halt)
        if journal:
            journal.ended(summary)
            summary.problems += journal.lost
    return summary


def run(
    inputs: Paths,
    model: Paths | Model,
    output: str | os.PathLike[str] = "segpipe-out",
    *,
    progress: bool | None = None,
    **settings: Any,
) -> RunResult:
    """Segment every case of the inputs with one model: the same as ``segpipe run``, with the same bytes.

    Args:
        inputs: a path or several: files, folders, globs, lists (``.txt``, ``.csv``), ``s3://`` or ``/vsi...`` paths.
        model: an ONNX file, several whose scores are averaged, or a loaded model, whose files and settings are used.
        output: a folder, or ``s3://bucket/prefix``, for masks, records and tables. What is done there already is skipped.
        progress: whether to show a progress bar; None: only in a notebook.
        settings: the keys of a configuration file, such as ``workers=2``, ``confidence=True`` or ``tile=512``.

    Returns:
        The result. Cases that failed are in ``result.failed``, with the reason.

    Raises:
        SegpipeError: the run cannot start: a setting, the model, its contract, the inputs or the output do not fit.
        KeyboardInterrupt: Ctrl-C, or a notebook's interrupt; finished cases are kept, and the same call continues. Running
            jobs are stopped at once unless ``grace`` gives them seconds to finish.

    Environment, loggers, signal handlers and GDAL are as before at the end. A call may be made in any thread, and in
    a worker of a pool, of Dask or of Celery.

    >>> import segpipe
    >>> result = segpipe.run("examples/scenes", "examples/crops.onnx", out, executor="serial")
    >>> result.done
    ['danube', 'morava', 'pirai']
    >>> result.failed
    {}
    >>> list(result.totals)[:3]
    ['water', 'forest', 'built-up']
    """
    chosen = _settings(inputs, model, output, settings)
    with isolated(unchanged, unchanged_dask), spare_worker(chosen.runs_in), hidden_inputs(chosen):
        prepared = replace(prepare(_with_grace(chosen)), command=command_of(chosen))
        if isinstance(model, Model) and "contract" not in settings:
            _check_same(model, prepared.run.model)
        summary = execute(prepared, RunHost(_watching(progress), LOG.info, interruptible))
    result = RunResult.of(prepared, summary)
    if result.interrupted:
        missing = summary.states.count(CaseState.MISSING)
        raise KeyboardInterrupt(f"{missing} of {len(prepared.cases)} cases are not done: the same call continues")
    return result


def _settings(inputs: Paths, model: Paths | Model, output: str | os.PathLike[str], settings: dict[str, Any]) -> Settings:
    if "input" in settings:
        raise SettingsError("segpipe.run: input is the first argument: leave input= out")
    loaded = model.settings if isinstance(model, Model) else {"model": paths(model)}
    places = {"input": paths(inputs), "output": os.fspath(output)}
    return load_settings(None, {**loaded, **settings, **places}, "segpipe.run")


def _check_same(loaded: Model, found: ModelSpec) -> None:
    """Check that the files of a loaded model, which are read again, are those that were loaded.

    Raises:
        ModelError: they are not.
    """
    if loaded.spec.sha256 != found.sha256:
        raise ModelError(
            f"the model of a run must be the one that was loaded, and {found.path.absolute()} is another file, or has "
            "another contract, now: load it again with segpipe.load"
        )


def _with_grace(settings: Settings) -> Settings:
    return settings if "grace" in settings.model_fields_set else settings.model_copy(update={"grace": GRACE})


class _Silent:
    """Shows nothing and logs the notes."""

    def progress(self, pixels: int) -> None: ...

    def outcome(self, outcome: Outcome) -> None: ...

    def note(self, line: str) -> None:
        LOG.info("%s", line)


def _watching(progress: bool | None) -> Callable[[Prepared], AbstractContextManager[Watcher]]:
    if progress is False:
        return lambda _: nullcontext(_Silent())
    from segpipe.api.notebook import NotebookBar, in_notebook

    if in_notebook():
        return NotebookBar
    return watcher if progress else lambda _: nullcontext(_Silent())
