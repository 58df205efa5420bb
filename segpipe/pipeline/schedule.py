"""Who runs the jobs of a plan: a loop, or a Dask cluster. Both give the same outcomes."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from segpipe.pipeline.agenda import Agenda
from segpipe.pipeline.errors import WorkerError
from segpipe.pipeline.model import Model
from segpipe.pipeline.plan import Job, Plan
from segpipe.pipeline.records import Run, is_done
from segpipe.pipeline.run import JoinJob, Outcome, Progress, Task, run_job, work

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster, Worker

TOPIC = "segpipe-progress"
WORKER_MODEL = "segpipe_model"
"""Attribute of a Dask worker that holds the loaded model."""

PROGRESS_SECONDS = 0.3
"""How often a worker tells of its progress."""

RETRIES = 2
"""How often a job goes to another worker when its own was lost."""

WORKER_ENVIRONMENT = {"MALLOC_TRIM_THRESHOLD_": str(2**26), "MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_ARENA_MAX": "1"}
"""Let glibc keep what a tile has freed for the next one. Dask's own setting gives it back to the kernel at once, and every
tile then faults its pages in again: 0.6 s of 7.1 for a network of 0.1 M parameters (measured)."""

Executor = Callable[[Plan, Run, Progress], Iterator[Outcome]]


def serial(plan: Plan, run: Run, progress: Progress) -> Iterator[Outcome]:
    """Every job in this process, one after the other: the reference."""
    model, agenda = Model(run.model), Agenda(plan, run)
    while agenda:
        task = agenda.take()
        if isinstance(task, Job):  # its cases are told of one by one
            yield from run_job(task, run, model, plan.calls, progress)
        else:
            yield from agenda.ended(task, list(work(task, run, model, plan.calls, progress)))


def dask(plan: Plan, run: Run, progress: Progress) -> Iterator[Outcome]:
    """Every job as a task of a ``distributed`` cluster of processes on this machine, started and ended here."""
    _quieten()
    from distributed import Client

    with _started(plan) as cluster, Client(cluster, set_as_default=False) as client:
        client.subscribe_topic(TOPIC, lambda event: progress(event[1]))
        client.register_plugin(_plugin(run))
        yield from _run_tasks(client, plan, run)


def _started(plan: Plan) -> "LocalCluster":
    try:
        with _deaf_children():
            return _local_cluster(plan)
    except (OSError, RuntimeError, TimeoutError) as error:
        raise WorkerError(f"worker processes cannot be started: {error}: try --executor serial") from error


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal; workers that are started here leave the answer to this one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _quieten() -> None:
    """Keep distributed's log to itself, here and in its processes: what fails comes back with its future.

    It reads this when it is first imported.
    """
    import dask.config

    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")
        dask.config.set({"logging.distributed": "critical"})


def _run_tasks(client: "Client", plan: Plan, run: Run) -> Iterator[Outcome]:
    """Submit jobs as others end, so that the scheduler never holds more than two per worker."""
    from distributed import Future, as_completed

    agenda = Agenda(plan, run)
    running: dict[Future[Any], Task] = {}
    waiting = as_completed(loop=client.loop)
    try:
        while agenda or running:
            while agenda and len(running) < 2 * plan.workers:
                task = agenda.take()
                future = client.submit(_work, task, run, plan.calls, pure=False)
                running[future] = task
                waiting.add(future)
            future = next(waiting)
            task = running.pop(future)
            if future.exception() is not None and isinstance(task, Job) and len(task.cases) > 1:
                # one of them has taken the worker with it: each alone, so that it takes no other
                agenda.put_back([Job((case,)) for case in task.cases])
            else:
                yield from agenda.ended(task, _outcomes(future, task, run))
    finally:
        # whoever leaves early, by Ctrl-C or --fail-fast, begins nothing more
        client.cancel(list(running))


def _work(task: Task, run: Run, calls: int) -> list[Outcome]:
    """A task on a worker, with the model that its plugin has loaded."""
    from distributed import get_worker

    worker = get_worker()
    progress = _Throttled(lambda pixels: worker.log_event(TOPIC, pixels))
    outcomes = list(work(task, run, getattr(worker, WORKER_MODEL), calls, progress))
    progress.flush()
    return outcomes


def _outcomes(future: "Future[Any]", task: Task, run: Run) -> list[Outcome]:
    """What a task gave; one that was lost with its worker fails its cases, and only those."""
    error = future.exception()
    if error is None:
        outcomes: list[Outcome] = future.result()
        return outcomes
    lost = str(WorkerError(f"the worker that held this case was lost {RETRIES + 1} times, or failed: {error}"))
    cases = task.cases if isinstance(task, Job) else (task.case,)
    told = isinstance(task, Job | JoinJob)
    return [Outcome(c.case, 0.0, c.pixels, None if told and is_done(c.case, run) else lost) for c in cases]


class _Throttled:
    """Adds up progress and tells of it now and then: messages cost the scheduler time."""

    def __init__(self, tell: Progress) -> None:
        self._tell, self._pixels, self._told = tell, 0, time.monotonic()

    def __call__(self, pixels: int) -> None:
        self._pixels += pixels
        if time.monotonic() - self._told > PROGRESS_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._tell(self._pixels)
        self._pixels, self._told = 0, time.monotonic()


def _plugin(run: Run) -> Any:
    """A worker plugin that loads the model once per worker process."""
    from distributed import WorkerPlugin

    class ModelPlugin(WorkerPlugin):
        name = "segpipe-model"

        def setup(self, worker: "Worker") -> None:
            setattr(worker, WORKER_MODEL, Model(run.model))

    return ModelPlugin()


def _local_cluster(plan: Plan) -> "LocalCluster":
    import dask.config
    from distributed import LocalCluster

    dask.config.set({"distributed.scheduler.allowed-failures": RETRIES})
    # glibc reads these when a process starts: Dask sets only this key early enough
    dask.config.set({f"distributed.nanny.pre-spawn-environ.{key}": value for key, value in WORKER_ENVIRONMENT.items()})
    return LocalCluster(
        n_workers=plan.workers,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        # the plan bounds memory; Dask's own limit would kill workers for GDAL's cache
        memory_limit=0,
        silence_logs=logging.CRITICAL,
    )


EXECUTORS: dict[str, Executor] = {"serial": serial, "dask": dask}
