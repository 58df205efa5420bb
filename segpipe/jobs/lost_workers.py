"""What executors do about workers that are lost, fail or hang: how often, and how long until, a task is tried again."""

from segpipe.errors import SegpipeError, WorkerError, one_line
from segpipe.jobs.plan import Job
from segpipe.jobs.tasks import JoinJob, Outcome, Result, Task
from segpipe.results.done import done_pixels
from segpipe.results.run import Run

RETRIES = 2
"""Number of times that a job goes to another worker after its own was lost."""

ALONE = RETRIES + 2
"""Number of the attempt in which a task that lost its worker runs without any other."""

GIVING_UP = 60.0
"""Seconds for tasks to end after the output has become unwritable."""

TICK = 0.5
"""Seconds between two checks for hanging tasks, silent workers and a halt."""


class HungError(SegpipeError):
    """A task has exceeded its time limit."""


def split_job(task: Task) -> list[Task]:
    """Split a job that has lost its worker into single cases; empty if it has only one."""
    if not isinstance(task, Job) or len(task.cases) == 1:
        return []
    return [Job((case,), unopened=task.unopened) for case in task.cases]


def failures(task: Task, run: Run, error: str) -> list[Result]:
    """A failure for each case of a task, except for those that were finished before it was lost."""
    cases = task.cases if isinstance(task, Job) else (task.case.case,)
    whole = isinstance(task, Job | JoinJob)
    pixels = [done_pixels(case, run) if whole else None for case in cases]
    return [Outcome(c, 0.0, n or 0, None if n is not None else error) for c, n in zip(cases, pixels, strict=True)]


def lost_reason(error: BaseException) -> str:
    """The reason why a task is not tried again."""
    why = one_line(error) or type(error).__name__  # some errors lose their words on the way
    lost = WorkerError(f"the worker that held this case was lost again and again, or failed: {why}")
    return str(error if isinstance(error, SegpipeError) else lost)


def hung_reason(limit: float, attempts: int) -> str:
    """The reason why a task that exceeds its time limit is not tried again."""
    return f"the job took longer than {limit:g} s{'' if attempts == 1 else f' {attempts} times'}: see --job-timeout"


def cannot_start(why: str) -> WorkerError:
    """The error of a machine on which no worker process starts."""
    return WorkerError(f"worker processes cannot be started: {why.rstrip('.')}: try --executor serial")
