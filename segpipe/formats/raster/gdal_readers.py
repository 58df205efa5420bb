"""Which threads of a process read sources at once, so that what GDAL's own threads say is said of the right case.

GDAL's own threads write to one log for the process. While one thread reads, all in it is of what that one reads. If
others read meanwhile, it may be of any: what was read is then read again while nobody else reads.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class WhoseError(Exception):
    """GDAL's own threads have said something, while several threads read. ``pinned`` answers it."""


class _Thread(threading.local):
    shared: Callable[[], bool] | None = None
    """While this thread reads, or reads alone."""


_thread = _Thread()
_changed = threading.Condition()
_reading, _begun, _alone = 0, 0, False
"""Threads that read; how often one has begun; whether one reads alone, or waits until it does."""


@contextmanager
def reading() -> Iterator[Callable[[], bool]]:
    """Read beside other threads; yields what says whether any other has read since then."""
    if _thread.shared is not None:
        yield _thread.shared
        return
    _thread.shared = _enter()
    try:
        yield _thread.shared
    finally:
        _thread.shared = None
        _leave()


def _enter() -> Callable[[], bool]:
    global _reading, _begun  # as GDAL's log: one for the process
    with _changed:
        _changed.wait_for(lambda: not _alone)
        beside = _reading > 0
        _reading, _begun = _reading + 1, _begun + 1
        begun = _begun
    return lambda: beside or _begun > begun


def _leave() -> None:
    global _reading  # noqa: PLW0603
    with _changed:
        _reading -= 1
        _changed.notify_all()


@contextmanager
def _no_other() -> Iterator[None]:
    """Read while no other thread does: those that read end first, others wait."""
    global _alone  # noqa: PLW0603
    with _changed:
        _changed.wait_for(lambda: not _alone)
        _alone = True
        _changed.wait_for(lambda: _reading == 0)
    _thread.shared = lambda: False
    try:
        yield
    finally:
        _thread.shared = None
        with _changed:
            _alone = False
            _changed.notify_all()


def pinned(read: Callable[[], T], again: Callable[[], T] | None = None) -> T:
    """What ``read`` returns; if nobody knows of whom GDAL spoke, what it, or ``again``, returns while nobody else reads.

    Blocks that GDAL has decoded it does not decode again: whatever reads again opens the file anew.
    """
    try:
        return read()
    except WhoseError:
        with _no_other():
            return (again or read)()
