"""Isolate a run in a process that also does other things: restore at the end what the run changes."""

import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from segpipe.process.environment import OPTIONS, clean_environment
from segpipe.process.spawning import unchanged_environment

VARIABLES = (*sorted(OPTIONS), "PROJ_LIB", "PROJ_DATA", "GDAL_DATA", "DASK_LOGGING__DISTRIBUTED", "NVIDIA_TF32_OVERRIDE")
"""Environment variables that a run removes or sets."""

LOGGERS = ("asyncio", "distributed", "distributed.client", "segpipe")
"""Loggers whose levels and filters a run sets."""

_lock = threading.Lock()
_running = 0
_restore: ExitStack | None = None


@contextmanager
def isolated(*others: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """Restore environment variables, loggers, warning filters and hooks at the end.

    For runs in several threads, the first one saves the state, and the last one restores it.

    Args:
        others: contexts that restore the process-wide state of libraries.
    """
    _enter(others)
    try:
        yield
    finally:
        _leave()


def _enter(others: tuple[Callable[[], AbstractContextManager[object]], ...]) -> None:
    global _running, _restore  # noqa: PLW0603 - one per process
    with _lock:
        _running += 1
        if _running == 1:
            _restore = ExitStack()
            own: list[Callable[[], AbstractContextManager[object]]]
            own = [_variables, _loggers, warnings.catch_warnings, _hooks]
            for context in (*own, *others):
                _restore.enter_context(context())


def _leave() -> None:
    global _running, _restore  # noqa: PLW0603 - one per process
    with _lock:
        _running -= 1
        if _running == 0 and _restore is not None:
            _restore.close()
            _restore = None


@contextmanager
def _variables() -> Iterator[None]:
    try:
        with unchanged_environment(VARIABLES):
            yield
    finally:
        clean_environment.cache_clear()  # the next run must remove them again


@contextmanager
def _loggers() -> Iterator[None]:
    loggers, factory = [logging.getLogger(name) for name in LOGGERS], logging.getLogRecordFactory()
    before = [(logger, logger.level, logger.filters[:]) for logger in loggers]
    try:
        yield
    finally:
        for logger, level, filters in before:
            logger.setLevel(level)
            logger.filters[:] = filters
        logging.setLogRecordFactory(factory)


@contextmanager
def _hooks() -> Iterator[None]:
    before = sys.unraisablehook
    try:
        yield
    finally:
        sys.unraisablehook = before
