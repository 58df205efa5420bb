"""Retry tasks: after storage faults, and with half the batch after a device ran out of memory."""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from segpipe.jobs.plan import Job
from segpipe.jobs.tasks import GivenUp, Outcome, Result, Task
from segpipe.jobs.work import Context, work
from segpipe.pipeline.infer import LoadedModel, load_model
from segpipe.results.run import Run
from segpipe.storage.retry import log_retry, persistently, waits

LOG = logging.getLogger("segpipe")


def loaded(run: Run) -> LoadedModel:
    """Load the model of a run; retry storage faults with backoff."""
    return persistently(partial(load_model, run.model), run.settings.retries)


def attempt(task: Task, context: Context) -> Iterator[Result]:
    """Run a task and yield one result per case; retry storage faults with backoff."""
    for wait in waits(context.run.settings.retries):
        stopped: list[Outcome] = []
        for result in _fitting(task, context):
            if isinstance(result, Outcome) and result.passing:
                stopped.append(result)
            else:
                yield result
        if not stopped:
            return
        if context.stop.is_set():
            yield from (GivenUp(outcome.case) for outcome in stopped)
            return
        for outcome in stopped:
            log_retry(str(outcome.error), wait)
            context.progress(-outcome.pixels)
        time.sleep(wait)
        task = _only(task, stopped)
    for result in _fitting(task, context):
        if isinstance(result, Outcome) and result.unwritable:  # the fault is permanent
            context.stop.set()
        yield result


def _fitting(task: Task, context: Context) -> Iterator[Result]:
    """Run a task; repeat, with half the batch, the cases for which the device's memory was too small."""
    short: list[Outcome] = []
    for result in work(task, context):
        if isinstance(result, Outcome) and result.short:
            context.progress(-result.pixels)
            short.append(result)
        else:
            yield result
    if short and context.model.shrink():
        names = ", ".join(outcome.case.name for outcome in short)
        LOG.warning("%s; starting again with batches of %d: %s", short[0].error, context.model.spec.batch, names)
        yield from _fitting(_only(task, short), context)
    else:
        yield from short


def _only(task: Task, outcomes: list[Outcome]) -> Task:
    """Restrict a task to the cases of some outcomes."""
    names = {outcome.case.name for outcome in outcomes}
    return replace(task, cases=tuple(case for case in task.cases if case.name in names)) if isinstance(task, Job) else task
