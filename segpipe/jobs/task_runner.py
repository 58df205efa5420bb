"""Carry out a task on a worker, whatever kind of executor it belongs to, and say how it goes."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from segpipe.formats.redaction import hidden_inputs
from segpipe.jobs import attempts
from segpipe.jobs.plan import Job
from segpipe.jobs.tasks import Progress, Result, Task
from segpipe.jobs.work import Context
from segpipe.pipeline.infer import LoadedModel
from segpipe.results.run import Run
from segpipe.timing.spans import ProcessRecord, recording

LOG = logging.getLogger("segpipe")

PROGRESS_SECONDS = 0.3
"""Seconds between two progress reports of a worker."""


class Throttled:
    """Accumulates progress and reports it at intervals: each message costs the first process time."""

    def __init__(self, report: Progress) -> None:
        self._report, self._pixels, self._sent = report, 0, time.monotonic()

    def __call__(self, pixels: int) -> None:
        self._pixels += pixels
        if time.monotonic() - self._sent > PROGRESS_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Report what has not been reported yet."""
        self._report(self._pixels)
        self._pixels, self._sent = 0, time.monotonic()


@dataclass(frozen=True)
class TaskRunner:
    """Carries out the tasks of a run on a worker."""

    run: Run
    calls: int
    """Calls of the model in flight."""
    model: Callable[[], LoadedModel]
    """Returns the loaded model, or raises the reason why there is none."""
    progress: Progress
    """Called a few times a second with the number of pixels finished since its last call."""

    def carry_out(
        self, task: Task, on_start: Callable[[threading.Event], None]
    ) -> tuple[list[Result], ProcessRecord | None]:
        """Return the results of a task, and its profile if one is recorded.

        ``on_start`` is called before the first case, with the event that stops the task.
        """
        settings, throttled = self.run.settings, Throttled(self.progress)
        hidden = hidden_inputs(settings, task.cases if isinstance(task, Job) else (task.case.case,))
        with recording(on=bool(settings.profile)) as recorded, hidden:
            context = Context(self.run, self.model(), self.calls, throttled)
            on_start(context.stop)
            results = list(attempts.attempt(task, context))
        throttled.flush()
        return results, recorded.taken


@contextmanager
def warnings_sent(send: Callable[[str], None]) -> Iterator[None]:
    """Send warnings to the first process, since nobody reads a worker's log."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: send(record.getMessage())  # type: ignore[method-assign]
    LOG.addHandler(handler)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
