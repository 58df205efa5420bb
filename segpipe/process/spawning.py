"""Start worker processes that do not import the main module of their parent, and that no signal reaches.

``multiprocessing`` runs the parent's script again in each spawned process, under another name. Workers do not need it:
their tasks contain only segpipe's own types. So a script without ``if __name__ == "__main__":`` runs once, and a program
read from stdin can start workers, too.
"""

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess, current_process
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from segpipe.process.garbage import loading
from segpipe.process.signals import ENDING

METHOD = "segpipe"
"""Name of the start method in Dask's configuration."""

LATE = 10.0
"""Seconds for a process to start and be closed, if its parent is interrupted while it starts."""

MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(2**26), "MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_ARENA_MAX": "1"}
"""Let glibc keep freed memory for the next tile. Dask's own setting returns it to the kernel at once, so that every tile
faults its pages in again: 0.6 s of 7.1 s for a network of 0.1 M parameters (measured)."""

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "GDAL_NUM_THREADS")
"""Libraries that would start a thread per processor in every worker; processors belong to the calls of the model."""

WORKER_ENVIRONMENT = MALLOC | dict.fromkeys(ONE_THREAD, "1")

_changing = threading.RLock()
"""Held while variables of this process change for a moment: another thread would take them for those from before."""


def _renew() -> None:
    """A fork has only the thread that made it: a lock that another one held would never be released."""
    global _changing  # noqa: PLW0603 - one per process
    _changing = threading.RLock()


os.register_at_fork(after_in_child=_renew)


class _Closing(Protocol):
    def close(self) -> object: ...


C = TypeVar("C", bound=_Closing)


@contextmanager
def unchanged_environment(names: Mapping[str, object] | tuple[str, ...]) -> Iterator[None]:
    """Restore variables of this process's environment at the end: processes that it starts take it over."""
    with _changing:
        before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        with _changing:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def start(module: str, name: str, connection: Connection, *, environment: Mapping[str, str]) -> context.SpawnProcess:
    """Start a process that calls a function of a module with a connection, and ends as soon as the other end is closed.

    It has more variables in its environment. Call this in ``without_signals``.

    Raises:
        OSError: the machine allows no more processes.
    """
    process = _Context().Process(target=_call, args=(module, name, connection), daemon=True)
    with _changing, unchanged_environment(environment):
        os.environ.update(environment)
        process.start()
    return process


def _call(module: str, name: str, connection: Connection) -> None:
    """Watch the connection before the module is imported, which takes a second or more."""
    descriptor = connection.fileno()
    signal.signal(signal.SIGCONT, lambda *_: _end_if_left(descriptor, 0))
    threading.Thread(target=_end_if_left, args=(descriptor, None), name="segpipe-parent", daemon=True).start()
    with loading():
        function = getattr(import_module(module), name)
    function(connection)


def _end_if_left(descriptor: int, milliseconds: int | None) -> None:
    """End this process when nobody holds the other end of a connection any more; wait for that so long.

    A process that was stopped and goes on asks before its next step, not only in a thread that runs beside it: its output
    may have been finished by another run meanwhile.
    """
    poll = select.poll()
    poll.register(descriptor, 0)  # reports only that it was hung up
    if poll.poll(milliseconds):
        os._exit(1)


def without_signals(make: Callable[[], C], given_up: Callable[[], object] = lambda: None) -> C:
    """Make an object in a thread whose signals are blocked, also in the threads and processes that it starts.

    If the caller is interrupted meanwhile, the object is closed.
    Ctrl-C reaches every process of a terminal, and stopping a service signals each of its processes; only the first
    process must handle this, in its main thread, which is not blocked while workers start.

    Args:
        make: makes the object.
        given_up: called if the object cannot be closed in time after an interruption.
    """
    ended: SimpleQueue[C | BaseException] = SimpleQueue()

    def run() -> None:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
            resource_tracker.ensure_running()  # this unblocks the signals
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
            ended.put(make())
        except BaseException as error:  # noqa: BLE001 - the waiting thread raises any error
            ended.put(error)

    threading.Thread(target=run, name="segpipe-workers", daemon=True).start()
    try:
        found = ended.get()
    except KeyboardInterrupt:
        _close_late(ended, given_up)
        raise
    if isinstance(found, BaseException):
        raise found
    return found


def _close_late(ended: "SimpleQueue[C | BaseException]", given_up: Callable[[], object]) -> None:
    """Close an object that is no longer awaited once it is made; wait for that for a while."""

    def close() -> None:
        if not isinstance(late := ended.get(), BaseException):
            late.close()

    thread = threading.Thread(target=close, name="segpipe-late-workers", daemon=True)
    thread.start()
    thread.join(LATE)
    if thread.is_alive():
        given_up()


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the origin of the main module from ``multiprocessing`` while a process is started."""
    main: Any = sys.modules["__main__"]
    spec, place = getattr(main, "__spec__", None), main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if place is not None:
            main.__file__ = place


class _Process(context.SpawnProcess):
    def start(self) -> None:
        """Also in a worker of a pool, of Dask or of Celery, which is daemonic: ``multiprocessing`` lets it have no children,
        as they would outlive it; these end with their connection."""
        own: Any = current_process()
        with _changing:
            daemon = own._config.pop("daemon", None)
            try:
                super().start()
            finally:
                if daemon is not None:
                    own._config["daemon"] = daemon

    @staticmethod
    def _Popen(process: BaseProcess) -> Any:  # noqa: N802 - the name that multiprocessing calls
        with _without_main():
            return context.SpawnProcess._Popen(process)


class _Context(context.SpawnContext):
    _name = METHOD
    Process = _Process


def register() -> str:
    """Register the start method with ``multiprocessing.get_context``, and return its name."""
    known: Any = context._concrete_contexts  # type: ignore[attr-defined]
    known.setdefault(METHOD, _Context())
    return METHOD
