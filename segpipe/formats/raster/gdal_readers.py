"""Track which threads read sources at once, so that messages of GDAL's own threads are assigned to the right case.

GDAL's own threads write to one log per process. While one thread reads, all messages concern its source. While several
read, a message may concern any of them: then the read is repeated while no other thread reads.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from segpipe.errors import SourceError

T = TypeVar("T")


class UnattributedError(Exception):
    """GDAL's own threads logged a message while several threads were reading. ``pinned`` handles it."""


class ReadableError(SourceError):
    """GDAL failed on local files that the operating system can read: they are damaged, or a storage fault has passed.

    ``pinned`` handles it.
    """


class _Thread(threading.local):
    shared: Callable[[], bool] | None = None
    """Set while this thread reads, or reads alone."""


_thread = _Thread()
_changed = threading.Condition()
_reading, _begun, _alone = 0, 0, False
"""The reading threads, the number of reads that have started, and whether a thread reads alone or waits for it."""


@contextmanager
def reading() -> Iterator[Callable[[], bool]]:
    """Read beside other threads; yield a function that says whether any other thread has read since then."""
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
    global _reading, _begun  # like GDAL's log, one per process
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
    """Read alone: reads in progress end first, new ones wait."""
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
    """Return ``read()``; repeat it (or call ``again``) alone if a message of GDAL may concern another thread, or a storage
    fault may have passed.

    GDAL does not decode blocks again that it has decoded, so the repetition must reopen the file.
    """
    if _thread.shared is not None:  # a part of a read that is repeated as a whole
        return read()
    try:
        return read()
    except UnattributedError:
        pass
    except SourceError as error:
        if not _may_have_passed(error):
            raise
    with _no_other():
        return (again or read)()


def _may_have_passed(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ReadableError):
        error = error.__cause__
    return error is not None
