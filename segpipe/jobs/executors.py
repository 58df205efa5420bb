"""Executors, which run the jobs of a plan with the same outcomes: a loop, processes of this machine, or a Dask cluster."""

from collections.abc import Callable, Iterator

from segpipe.choices import Executor
from segpipe.jobs.attempts import attempt, loaded
from segpipe.jobs.dask_executor import dask
from segpipe.jobs.plan import Job, Plan
from segpipe.jobs.processes import processes
from segpipe.jobs.task_queue import TaskQueue
from segpipe.jobs.tasks import Halt, Outcome, Watcher
from segpipe.jobs.work import Context
from segpipe.results.run import Run
from segpipe.timing.spans import span


def serial(plan: Plan, run: Run, watcher: Watcher, halt: Halt) -> Iterator[Outcome]:
    """Run every job in this process, one after the other: the reference executor."""
    with span("model"):
        queue, context = TaskQueue(plan, run), Context(run, loaded(run), plan.calls, watcher.progress)
    while queue and not halt.is_set() and not context.stop.is_set():
        task = queue.take()
        if not isinstance(task, Job):
            yield from queue.ended(task, list(attempt(task, context)))
            continue
        for result in attempt(task, context):  # its cases are reported one by one
            yield from queue.ended(task, [result])
            if halt.is_set():
                return


EXECUTORS: dict[Executor, Callable[[Plan, Run, Watcher, Halt], Iterator[Outcome]]] = {
    "serial": serial,
    "processes": processes,
    "dask": dask,
}
"""How the jobs of a plan are run. The last argument asks to start nothing more; running tasks may end."""
