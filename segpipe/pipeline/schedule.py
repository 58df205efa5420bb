"""Who runs the jobs of a plan: a loop, or a Dask cluster. Both give the same outcomes."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from segpipe.pipeline.errors import WorkerError
from segpipe.pipeline.model import Model
from segpipe.pipeline.plan import Job, Plan
from segpipe.pipeline.records import Run
from segpipe.pipeline.run import Outcome, Progress, run_job

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
    model = Model(run.model)
    for job in plan.jobs:
        yield from run_job(job, run, model, plan.calls, progress)


def dask(plan: Plan, run: Run, progress: Progress) -> Iterator[Outcome]:
    """Every job as a task of a ``distributed`` cluster of processes on this machine, started and ended here."""
    _quieten()
    from distributed import Client

    with _local_cluster(plan) as cluster, Client(cluster, set_as_default=False) as client:
        client.subscribe_topic(TOPIC, lambda event: progress(event[1]))
        client.register_plugin(_plugin(run))
        yield from _run_tasks(client, plan, run)


def _quieten() -> None:
    """Keep distributed's log to itself, here and in its processes: what fails comes back with its future.

    It reads this when it is first imported.
    """
    import dask.config

    if not logging.getLogger().isEnabledFor(logging.INFO):
        os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")
        dask.config.set({"logging.distributed": "critical"})


def _run_tasks(client: "Client", plan: Plan, run: Run) -> Iterator[Outcome]:
    """Submit jobs as others end, so that the scheduler never holds more than two per worker."""
    from distributed import as_completed

    jobs = iter(plan.jobs)
    tasks = {_submit(client, job, run, plan.calls): job for job in islice(jobs, 2 * plan.workers)}
    waiting = as_completed(list(tasks), loop=client.loop)
    for future in waiting:
        yield from _outcomes(future, tasks.pop(future))
        for job in islice(jobs, 1):
            task = _submit(client, job, run, plan.calls)
            tasks[task] = job
            waiting.add(task)


def _submit(client: "Client", job: Job, run: Run, calls: int) -> "Future[Any]":
    return client.submit(_work, job, run, calls, pure=False, retries=RETRIES)


def _work(job: Job, run: Run, calls: int) -> list[Outcome]:
    """A job on a worker, with the model that its plugin has loaded."""
    from distributed import get_worker

    worker = get_worker()
    progress = _Throttled(lambda pixels: worker.log_event(TOPIC, pixels))
    outcomes = list(run_job(job, run, getattr(worker, WORKER_MODEL), calls, progress))
    progress.flush()
    return outcomes


def _outcomes(future: "Future[Any]", job: Job) -> list[Outcome]:
    """What a task gave; one that was lost with its worker fails its cases, and only those."""
    error = future.exception()
    if error is None:
        outcomes: list[Outcome] = future.result()
        return outcomes
    lost = WorkerError(f"the worker that held this case was lost {RETRIES + 1} times, or failed: {error}")
    return [Outcome(planned.case, 0.0, error=str(lost)) for planned in job.cases]


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
