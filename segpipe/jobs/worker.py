"""A worker process: it waits for orders of the first process, and ends with it."""

import logging
import os
import pickle
import threading
import time
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import NoReturn

from segpipe.errors import SegpipeError, WorkerError
from segpipe.formats.registry import release
from segpipe.jobs.attempts import loaded
from segpipe.jobs.orders import (
    Alive,
    End,
    GiveUp,
    LoadAhead,
    Order,
    PixelsDone,
    Ready,
    Report,
    RunTask,
    Setup,
    TaskEnded,
    TaskFailed,
    Warned,
)
from segpipe.jobs.task_runner import TaskRunner, warnings_sent
from segpipe.jobs.tasks import Task
from segpipe.network.session import close_kept
from segpipe.pipeline.infer import LoadedModel, load_ahead, load_model
from segpipe.process.environment import clean_environment
from segpipe.process.garbage import loading
from segpipe.vectors.area import remember_area

LOG = logging.getLogger("segpipe")

BEAT = 5.0
"""Seconds between two signs of life."""

AHEAD = ("segpipe.formats.raster.source", "segpipe.formats.raster.sink", "numpy.ma")
"""Modules that are loaded at first use, and that nearly each run uses: 0.03 s. Rasterio writes with ``numpy.ma``."""


def serve(connection: "Connection[Report, Order]") -> None:
    """Carry out orders until the last, or until the first process is gone; does not return."""
    worker = Worker(connection)
    with warnings_sent(lambda text: worker.report(Warned(text))):
        worker.run()


class Worker:
    """Carries out the orders of a connection, one after the other."""

    def __init__(self, connection: "Connection[Report, Order]") -> None:
        self._connection, self._sending = connection, threading.Lock()
        self._orders: SimpleQueue[LoadAhead | Setup | RunTask | End] = SimpleQueue()
        self._stop = threading.Event()
        """Stops the task in progress."""
        self._model: LoadedModel | None = None

    def run(self) -> NoReturn:
        for name, do in (("orders", self._receive), ("signs", self._live)):
            threading.Thread(target=do, name=f"segpipe-{name}", daemon=True).start()
        self.report(Ready())
        self._load_ahead()
        while isinstance(order := self._orders.get(), LoadAhead):
            with suppress(Exception):  # the first process tries the same model, and says why it cannot be used
                load_ahead(order.model)
        if isinstance(order, Setup):
            self._prepare(order)
            runner = self._runner(order)
            while not isinstance(order := self._orders.get(), End):
                if isinstance(order, RunTask):
                    self.report(self._ended(order.task, runner))
        release()
        os._exit(0)  # nothing is left to do, and to take Python apart costs time

    def report(self, report: Report) -> None:
        """Send a report; without anybody who takes it, this process ends."""
        try:
            with self._sending:
                self._connection.send(report)
        except OSError:
            os._exit(1)

    def _receive(self) -> None:
        """Take orders also while a task runs."""
        while True:
            try:
                order = self._connection.recv()
            except (EOFError, OSError):
                os._exit(1)
            if isinstance(order, GiveUp):
                self._stop.set()
            else:
                self._orders.put(order)

    def _live(self) -> None:
        while True:
            time.sleep(BEAT)
            self.report(Alive())

    def _load_ahead(self) -> None:
        """Import more modules and clean the environment while idle: the first process may still be testing the model."""
        for name in AHEAD:
            if self._orders.empty():
                with loading():
                    import_module(name)
        if self._orders.empty():
            with suppress(SegpipeError):  # a run will say so
                _clean_environment()

    def _prepare(self, setup: Setup) -> None:
        """Load the model; if that fails, each task raises the reason."""
        os.environ.update(setup.environment)
        if (polygons := setup.unpacked()) is not None and setup.run.aoi is not None:
            remember_area(setup.run.aoi, polygons)
        _clean_environment()
        with suppress(Exception):
            self._model = load_model(setup.run.model)
        close_kept()

    def _runner(self, setup: Setup) -> TaskRunner:
        def model() -> LoadedModel:
            return self._model or loaded(setup.run)

        return TaskRunner(setup.run, setup.calls, model, lambda pixels: self.report(PixelsDone(pixels)))

    def _ended(self, task: Task, runner: TaskRunner) -> Report:
        try:
            results, taken = runner.carry_out(task, self._begun)
        except Exception as error:  # noqa: BLE001 - the first process decides what any error of a task means
            return TaskFailed(_portable(error))
        return TaskEnded(results, taken)

    def _begun(self, stop: threading.Event) -> None:
        self._stop = stop


def _clean_environment() -> None:
    """Clean the environment silently: the first process has already reported the ignored variables."""
    LOG.setLevel(logging.ERROR)
    try:
        clean_environment()
    finally:
        LOG.setLevel(logging.NOTSET)


def _portable(error: Exception) -> Exception:
    """The error, or one of the same words if other processes cannot read it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - an error may refuse to be written or read in any way
        return WorkerError(f"a task failed: {type(error).__name__}: {error}")
    return error
