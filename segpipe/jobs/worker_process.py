"""Worker processes of this machine, as the first process sees them."""

import atexit
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING
from weakref import WeakSet

from segpipe.choices import Executor
from segpipe.process import spawning
from segpipe.process.spawning import WORKER_ENVIRONMENT, without_signals

if TYPE_CHECKING:
    from segpipe.jobs.orders import Order, Report

SERVE = ("segpipe.jobs.worker", "serve")
"""Module and function of a worker; the module is heavy, and not needed in the first process."""

ENDING_SECONDS = 10.0
"""Seconds for a worker to release its resources."""


class LostError(Exception):
    """A worker process has ended unasked."""


class WorkerProcess:
    """A process that carries out orders; it ends with this process, whatever ends that.

    Raises:
        OSError: the machine allows no more processes.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.parent = os.getpid()
        self.connection: Connection[Order, Report]
        self.connection, theirs = Pipe()
        try:
            self._process = spawning.start(*SERVE, theirs, environment={**WORKER_ENVIRONMENT, **environment})
        except OSError:
            self.connection.close()
            raise
        finally:
            theirs.close()
        _STARTED.add(self)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid or 0

    def send(self, order: "Order") -> None:
        """Give an order; a worker that is gone is noticed when it is heard."""
        with suppress(OSError):
            self.connection.send(order)

    def reports(self) -> "Iterator[Report]":
        """Reports that have arrived.

        Raises:
            LostError: the process has ended, and there are no more.
        """
        while self.connection.poll():
            try:
                yield self.connection.recv()
            except (EOFError, OSError):
                raise LostError(self._end()) from None

    def _end(self) -> str:
        """How the process ended."""
        self._process.join(ENDING_SECONDS)
        code = self._process.exitcode
        self.close()
        if code is not None and code < 0:
            return f"its process was ended by {_name(-code)}"
        return f"its process ended with exit code {code}"

    def join(self) -> None:
        """Wait a while for the end of a worker that was asked to end; then end it."""
        self._process.join(ENDING_SECONDS)
        self.close()

    def close(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.join()
        self.connection.close()


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def start_worker(environment: Mapping[str, str] | None = None) -> WorkerProcess:
    """Start a worker that no signal reaches.

    Raises:
        OSError, RuntimeError: the machine allows no more processes or threads.
    """
    return without_signals(lambda: WorkerProcess(environment or {}))


_STARTED: "WeakSet[WorkerProcess]" = WeakSet()
"""Workers started by this process, or by the one that it was forked from."""


def _end_workers() -> None:
    """Kill workers that have not been closed: at exit Python would send SIGTERM, which they ignore, and wait for them."""
    for worker in [worker for worker in _STARTED if worker.parent == os.getpid()]:
        worker.close()


atexit.register(_end_workers)

_spare: list[WorkerProcess] = []
"""A worker that was started before anybody knew which run it is for; it imports meanwhile what workers need."""


@contextmanager
def spare_worker(executor: Executor) -> Iterator[None]:
    """Start a worker before the model is tried and the cases are planned, if the run will need one; end it if it was not."""
    started = None
    if executor == "processes":
        with suppress(OSError, RuntimeError):  # the executor tries again, and says why
            started = start_worker()
            _spare.append(started)
    try:
        yield
    finally:
        if started in _spare:
            _spare.remove(started)
            started.close()


def tell_spare(order: "Order") -> None:
    """Give an order to the worker that was started ahead, if there is one."""
    for worker in [*_spare]:
        worker.send(order)


def take_spare() -> WorkerProcess | None:
    """The worker that was started ahead; None if there is none, or if it is another run's."""
    with suppress(IndexError):
        return _spare.pop()
    return None
