"""The executor for this machine: worker processes, each of which gets a task when it has none."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait

from segpipe.errors import ModelError, SegpipeError, WorkerError
from segpipe.jobs.lost_workers import (
    ALONE,
    GIVING_UP,
    RETRIES,
    TICK,
    HungError,
    cannot_start,
    failures,
    hung_reason,
    lost_reason,
    split_job,
)
from segpipe.jobs.orders import End, GiveUp, PixelsDone, Ready, Report, RunTask, Setup, TaskEnded, TaskFailed, Warned
from segpipe.jobs.plan import Job, Plan
from segpipe.jobs.task_queue import TaskQueue
from segpipe.jobs.tasks import Halt, Outcome, Progress, Task, Watcher
from segpipe.jobs.worker_process import LostError, WorkerProcess, start_worker, take_spare
from segpipe.messages.printable import and_more
from segpipe.network.device import gpus
from segpipe.results.run import Run
from segpipe.timing.spans import absorb, span

LOG = logging.getLogger("segpipe")

STARTS = 3
"""Times that a worker may be lost before it is ready, per worker, until the run gives up."""

SILENT, STARTING = 60.0, 300.0
"""Seconds of silence after which a worker counts as frozen. One that starts may load libraries from a slow disk."""


@dataclass
class _Attempt:
    """A task, and how often it has been tried."""

    task: Task
    number: int = 1
    began: float = 0.0


@dataclass(eq=False)
class _Worker:
    """A worker process and its current task."""

    process: WorkerProcess
    slot: int
    """Its number among the workers, which a worker that replaces it takes over with the GPU."""
    is_ready: bool = False
    attempt: _Attempt | None = None
    silence: float = 0.0
    """Seconds since its last report, in which this process listened."""

    @property
    def patience(self) -> float:
        """Seconds of silence after which it is restarted."""
        return SILENT if self.is_ready else STARTING


def processes(plan: Plan, run: Run, watcher: Watcher, halt: Halt) -> Iterator[Outcome]:
    """Run every job in worker processes of this machine.

    Raises:
        WorkerError: they cannot be started.
    """
    dispatcher = _Dispatcher(plan, run, watcher.progress)
    with dispatcher.workers():
        yield from dispatcher.carry_out(halt)


@dataclass
class _Losses:
    """Workers that were lost before they were ready."""

    most: int
    count: int = 0

    def add(self, why: str) -> None:
        """Note a loss.

        Raises:
            WorkerError: there were too many in a row.
        """
        self.count += 1
        if self.count >= self.most:
            raise cannot_start(why)
        LOG.warning("warning: a worker process was lost while it started: %s; starting again", why)


class _Dispatcher:
    """Gives tasks to worker processes and takes their results, all in one thread."""

    def __init__(self, plan: Plan, run: Run, progress: Progress) -> None:
        self._run, self._progress = run, progress
        self._count = plan.workers
        self._setup = Setup.of(run, plan.calls)
        self._devices = [] if run.model.on_host else gpus()
        self._queue = TaskQueue(plan, run)
        self._workers: list[_Worker] = []
        self._again: list[_Attempt] = []
        """Tasks to be tried once more."""
        self._suspects: list[_Attempt] = []
        """Tasks to be tried once more without any other."""
        self._losses = _Losses(STARTS * plan.workers)
        self._heard = time.monotonic()
        self._stopped: float | None = None
        """When the output was found to be unwritable."""

    @contextmanager
    def workers(self) -> Iterator[None]:
        """Start the workers, and end them at the end of the block: those that still work, at once."""
        if self._devices and (spare := take_spare()) is not None:
            spare.close()  # it was started without a device
        try:
            with span("workers"):
                self._fill()
            yield
        finally:
            with span("workers"):
                self._end()

    def carry_out(self, halt: Halt) -> Iterator[Outcome]:
        while self._busy() or (not self._is_ending(halt) and self._has_tasks()):
            if not self._is_ending(halt):
                self._fill()
                self._give()
            elif self._stopped is not None and time.monotonic() - self._stopped > GIVING_UP:
                return
            yield from self._listen()
            yield from self._end_hanging()

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.attempt is not None]

    def _has_tasks(self) -> bool:
        return bool(self._queue or self._again or self._suspects)

    def _is_ending(self, halt: Halt) -> bool:
        """Whether nothing more may be started."""
        return halt.is_set() or self._stopped is not None

    def _fill(self) -> None:
        """Start workers in place of those that are missing; one may have been started ahead."""
        taken = {worker.slot for worker in self._workers}
        for slot in [slot for slot in range(self._count) if slot not in taken]:
            # the device of a worker is chosen before CUDA is loaded
            device = {"CUDA_VISIBLE_DEVICES": self._devices[slot % len(self._devices)]} if self._devices else {}
            try:
                process = take_spare() or start_worker(device)
            except (OSError, RuntimeError) as error:
                raise cannot_start(str(error)) from error
            self._workers.append(_Worker(process, slot))

    def _give(self) -> None:
        """Give a task to each idle worker; a suspect runs when no other task does."""
        for worker in self._workers:
            if worker.is_ready and worker.attempt is None and (attempt := self._next()) is not None:
                worker.attempt, attempt.began = attempt, time.monotonic()
                worker.process.send(RunTask(attempt.task))

    def _next(self) -> _Attempt | None:
        running = [worker.attempt for worker in self._busy()]
        if any(attempt is not None and attempt.number >= ALONE for attempt in running):
            return None
        if self._again:
            return self._again.pop(0)
        if self._queue:
            return _Attempt(self._queue.take())
        return self._suspects.pop() if self._suspects and not running else None

    def _listen(self) -> Iterator[Outcome]:
        """Take the reports that have arrived, or arrive within a moment."""
        connections = {worker.process.connection: worker for worker in self._workers}
        if self._busy():
            ready = wait([*connections], TICK)
        else:
            with span("workers"):  # they start
                ready = wait([*connections], TICK)
        now = time.monotonic()
        # while this process was stopped, nobody was silent
        since, self._heard = min(now - self._heard, 2 * TICK), now
        for connection, worker in connections.items():
            worker.silence = 0.0 if connection in ready else worker.silence + since
            if connection in ready:
                yield from self._hear(worker)

    def _hear(self, worker: _Worker) -> Iterator[Outcome]:
        try:
            for report in worker.process.reports():
                yield from self._take(worker, report)
        except LostError as lost:
            yield from self._lose(worker, str(lost))

    def _take(self, worker: _Worker, report: Report) -> Iterator[Outcome]:
        if isinstance(report, Ready):
            worker.is_ready, self._losses.count = True, 0
            worker.process.send(self._setup)
        elif isinstance(report, PixelsDone):
            self._progress(report.count)
        elif isinstance(report, Warned):
            LOG.warning("%s", report.text)
        elif isinstance(report, TaskEnded | TaskFailed) and (attempt := worker.attempt) is not None:
            worker.attempt = None
            yield from self._end_of(attempt, report)

    def _end_of(self, attempt: _Attempt, report: TaskEnded | TaskFailed) -> Iterator[Outcome]:
        if isinstance(report, TaskFailed):
            yield from self._repeat(attempt, report.error)
            return
        absorb(report.taken)
        if self._stopped is None and any(isinstance(one, Outcome) and one.unwritable for one in report.results):
            self._stop()
        yield from self._queue.ended(attempt.task, report.results)

    def _lose(self, worker: _Worker, why: str) -> Iterator[Outcome]:
        """Another worker takes the place and the task of one that is lost."""
        self._workers.remove(worker)
        if not worker.is_ready:
            self._losses.add(why)
        if (attempt := worker.attempt) is not None:
            yield from self._repeat(attempt, LostError(why))

    def _repeat(self, attempt: _Attempt, error: Exception) -> Iterator[Outcome]:
        """Try a task once more, if that may help: its worker was lost, or it has hung, or ended with an error."""
        if isinstance(error, ModelError | WorkerError):
            raise error  # from a late worker: no case can be done with another model
        if tasks := split_job(attempt.task):
            self._queue.put_back(tasks)
        elif isinstance(error, LostError | HungError) and attempt.number <= RETRIES:
            self._again.append(_Attempt(attempt.task, attempt.number + 1))
        elif attempt.number < ALONE and not isinstance(error, SegpipeError):
            self._suspects.append(_Attempt(attempt.task, ALONE))
        else:
            yield from self._queue.ended(attempt.task, failures(attempt.task, self._run, lost_reason(error)))

    def _end_hanging(self) -> Iterator[Outcome]:
        """Restart silent workers, and those whose task exceeds the time limit; such a task is retried a few times."""
        limit = self._run.settings.job_timeout
        for worker in list(self._workers):
            attempt = worker.attempt
            if attempt is not None and time.monotonic() - attempt.began >= limit:
                worker.process.close()
                self._workers.remove(worker)
                LOG.warning("%s has hung for %g s, and its worker is restarted", _named(attempt.task), limit)
                yield from self._repeat(attempt, HungError(hung_reason(limit, attempt.number)))
            elif worker.silence > worker.patience:
                worker.process.close()
                yield from self._lose(worker, f"its process was silent for {worker.patience:g} s")

    def _stop(self) -> None:
        """Give up all running tasks, because the output is unwritable."""
        self._stopped = time.monotonic()
        for worker in self._busy():
            worker.process.send(GiveUp())

    def _end(self) -> None:
        """End the workers: idle ones release their resources, busy ones are killed."""
        idle = [worker for worker in self._workers if worker.is_ready and worker.attempt is None]
        for worker in self._workers:
            if worker not in idle:
                worker.process.close()
            else:
                worker.process.send(End())
        for worker in idle:
            worker.process.join()
        self._workers = []


def _named(task: Task) -> str:
    """Names of the cases of a task, in a log."""
    return and_more([case.name for case in task.cases], 1) if isinstance(task, Job) else task.case.case.name
