"""The executor for a Dask cluster: workers of this machine, of an existing scheduler, or of a batch system."""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from segpipe.errors import ModelError, SegpipeError, WorkerError
from segpipe.jobs.batch_system import read_cluster
from segpipe.jobs.cluster import connected, dashboard
from segpipe.jobs.dask_worker import ClientInfo, give_up, plugin_of, run_on_worker
from segpipe.jobs.lost_workers import ALONE, GIVING_UP, RETRIES, TICK, failures, hung_reason, lost_reason, split_job
from segpipe.jobs.plan import Plan
from segpipe.jobs.task_queue import TaskQueue
from segpipe.jobs.tasks import Halt, Outcome, Progress, Result, Task, Watcher
from segpipe.results.run import Run
from segpipe.timing.spans import ProcessRecord, Timed, absorb, span

if TYPE_CHECKING:
    from distributed import Client, Future

LOG = logging.getLogger("segpipe")

GONE = "the scheduler is gone, and the jobs that were running are lost: start it, then run the same command again"

FETCH = 10.0
"""Seconds for fetching a finished result."""

ROLL_CALL = 10.0
"""Seconds between two checks for connected workers."""

LONGEST_WITHOUT_WORKERS = 300.0
"""Seconds without any worker after which the run fails: a restarted one is back within a minute."""


def dask(plan: Plan, run: Run, watcher: Watcher, halt: Halt) -> Iterator[Outcome]:
    """Run every job as a task of a ``distributed`` cluster: local processes, or the cluster in the settings."""
    with Timed("workers", connected(run, plan.workers)) as client:
        if line := dashboard(client):
            watcher.note(line)
        info = ClientInfo.of(run, uuid4().hex)
        plugin = plugin_of(run, info.identity)
        with span("workers"):
            client.register_plugin(plugin)
        try:
            yield from _Dispatcher(client, plan, run, watcher.progress, info).carry_out(halt)
        finally:
            if run.settings.scheduler is not None:  # its workers outlive the run
                with suppress(Exception):  # the cluster and its workers may have ended
                    client.unregister_worker_plugin(plugin.name)


@dataclass
class _Running:
    """A task submitted to the cluster."""

    task: Task
    future: "Future[Any]"
    attempt: int
    worker: str | None = None
    """Address of the worker that has started it."""
    began: float = 0.0


class _Dispatcher:
    """Submits tasks to a cluster, few at a time, so that the scheduler never holds more than two per worker."""

    def __init__(self, client: "Client", plan: Plan, run: Run, progress: Progress, info: ClientInfo) -> None:
        self._client, self._plan, self._run, self._progress, self._info = client, plan, run, progress, info
        self._queue = TaskQueue(plan, run)
        self._running: dict[str, _Running] = {}
        self._suspects: list[Task] = []
        self._ended: SimpleQueue[str] = SimpleQueue()
        self._called = self._attended = time.monotonic()
        self._stopped: float | None = None
        """When the output was found to be unwritable."""
        client.subscribe_topic(info.topic, self._hear)

    def _hear(self, event: tuple[float, Any]) -> None:
        """Handle a message from a worker, in the client's own thread."""
        message = event[1]
        if "pixels" in message:
            self._progress(message["pixels"])
        elif "warning" in message:
            LOG.warning("%s", message["warning"])
        elif running := self._running.get(message["began"]):
            running.worker, running.began = message["worker"], time.monotonic()

    def carry_out(self, halt: Halt) -> Iterator[Outcome]:
        try:
            while self._running or (not self._is_ending(halt) and (self._queue or self._suspects)):
                while self._queue and not self._is_ending(halt) and len(self._running) < 2 * self._plan.workers:
                    self._submit(self._queue.take(), 1)
                if self._is_ending(halt):
                    self._recall()
                    if self._stopped is not None and time.monotonic() - self._stopped > GIVING_UP:
                        return
                elif self._suspects and not self._running:
                    self._submit(self._suspects.pop(), ALONE)
                yield from self._wait()
                yield from self._end_hanging()
                self._call_roll()
        finally:
            # after Ctrl-C or --fail-fast nothing more is started
            self._client.cancel([running.future for running in self._running.values()])

    def _is_ending(self, halt: Halt) -> bool:
        """Whether nothing more may be started."""
        return halt.is_set() or self._stopped is not None

    def _stop(self) -> None:
        """Give up all running tasks, because the output is unwritable."""
        self._stopped = time.monotonic()
        keys = [key for key, running in self._running.items() if running.worker is not None]
        with suppress(OSError, TimeoutError):  # no answer: futures report a lost scheduler
            self._client.run(give_up, keys, on_error="ignore", wait=False)

    def _submit(self, task: Task, attempt: int) -> None:
        key = f"segpipe-{uuid4().hex}"
        future = self._client.submit(run_on_worker, key, task, self._run, self._plan.calls, self._info, key=key, pure=False)
        self._running[key] = _Running(task, future, attempt)
        future.add_done_callback(lambda done: self._ended.put(done.key))

    def _recall(self) -> None:
        """Cancel tasks that no worker has started."""
        for key, running in list(self._running.items()):
            if running.worker is None:
                del self._running[key]
                running.future.cancel()

    def _wait(self) -> Iterator[Outcome]:
        try:
            running = self._running.pop(self._ended.get(timeout=TICK), None)
        except Empty:
            return
        if running is None:
            return
        try:
            yield from self._finish(running)
        except _UnfetchedError:  # others may end meanwhile, or the loss of all workers is detected
            key = str(running.future.key)
            self._running[key] = running
            self._ended.put(key)

    def _finish(self, running: _Running) -> Iterator[Outcome]:
        future, task = running.future, running.task
        if future.cancelled():
            raise WorkerError(GONE)
        error = _exception(future)
        if isinstance(error, ModelError | WorkerError):
            raise error  # from a late worker: no case can be done with another model, or in several threads
        if error is not None and (tasks := split_job(task)):
            self._queue.put_back(tasks)
        elif error is not None and running.attempt < ALONE and not isinstance(error, SegpipeError):
            # the scheduler blames all tasks of a lost worker, started or not: try once more without other tasks
            self._suspects.append(task)
        else:
            results = _results(future, task, self._run)
            if self._stopped is None and any(isinstance(one, Outcome) and one.unwritable for one in results):
                self._stop()
            yield from self._queue.ended(task, results)

    def _call_roll(self) -> None:
        """Check that there are workers: without any, no task ends and no error occurs.

        Raises:
            WorkerError: there has been none for a long time.
        """
        now = time.monotonic()
        if now - self._called < ROLL_CALL:
            return
        self._called = now
        with suppress(OSError, TimeoutError):  # no answer: futures report a lost scheduler
            if self._client.nthreads():
                self._attended = now
        cluster = self._run.settings.cluster
        patience = LONGEST_WITHOUT_WORKERS if cluster is None else max(LONGEST_WITHOUT_WORKERS, read_cluster(cluster).wait)
        if now - self._attended > patience:
            raise WorkerError(
                f"no worker has been connected for {patience:g} s, and their jobs are lost: run the same command again"
            )

    def _end_hanging(self) -> Iterator[Outcome]:
        """Restart workers whose task exceeds the time limit; retry the task a limited number of times."""
        limit = self._run.settings.job_timeout
        for key, running in list(self._running.items()):
            if running.worker is None or time.monotonic() - running.began < limit:
                continue
            if running.future.done():
                continue  # it ended while another worker was restarted, which this thread waits for
            if running.worker not in self._client.nthreads():
                running.worker = None  # it was lost, and the task waits for another worker
                continue
            del self._running[key]
            running.future.cancel()
            LOG.warning("%s has hung for %g s on %s, which is restarted", key, limit, running.worker)
            with suppress(KeyError, ValueError):  # it has just gone, or has no nanny: another takes the task
                self._client.restart_workers([running.worker], raise_for_error=False)
            if tasks := split_job(running.task):
                self._queue.put_back(tasks)
            elif running.attempt <= RETRIES:
                self._submit(running.task, running.attempt + 1)
            else:
                text = hung_reason(limit, running.attempt)
                yield from self._queue.ended(running.task, failures(running.task, self._run, text))


class _UnfetchedError(Exception):
    """A finished result was lost with its worker while it was fetched; the task runs again if there is a worker."""


def _exception(future: "Future[Any]") -> BaseException | None:
    try:
        error: BaseException | None = future.exception(timeout=FETCH)
    except TimeoutError:
        raise _UnfetchedError from None
    return error


def _results(future: "Future[Any]", task: Task, run: Run) -> list[Result]:
    """Results of a task; if it was lost with its worker, failures of its cases."""
    error = _exception(future)
    if error is None:
        try:
            ended: tuple[list[Result], ProcessRecord | None] = future.result(timeout=FETCH)
        except TimeoutError:
            raise _UnfetchedError from None
        except (OSError, CancelledError):  # the scheduler was lost before the result could be fetched
            raise WorkerError(GONE) from None
        except SegpipeError:
            raise
        except Exception as again:  # noqa: BLE001 - a lost result is computed again, which may fail
            error = again
        else:
            results, taken = ended
            absorb(taken)
            return results
    return failures(task, run, lost_reason(error))
