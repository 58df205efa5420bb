"""Distinguish transient storage faults from permanent ones, and retry the transient ones."""

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from segpipe.errors import SourceError

LOG = logging.getLogger("segpipe")

PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "EREMOTEIO", "ESTALE", "EAGAIN", "EINTR", "ENOLCK", "ETIMEDOUT", "EPIPE"),
        *("ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "ENOTCONN"),
        *("ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH"),
    )
    if hasattr(errno, name)
)
"""Errors of a file server, disk or network that may pass. A full disk, a missing file and a file without read permission
are not among them: waiting does not help."""

FULL = frozenset(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS") if hasattr(errno, name))
"""Errors after which nothing else can be written either."""

FULL_WORDS = {os.strerror(number): number for number in FULL}
"""GDAL passes on the operating system's message, but not its number."""

FIRST_WAIT = 1.0

T = TypeVar("T")


def is_passing(error: BaseException | None) -> bool:
    """Whether an error was caused by a transient storage fault."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in PASSING:
            return True
        error = error.__cause__ or error.__context__
    return False


def unwritable(error: BaseException | None, *, writing: bool) -> str | None:
    """Why nothing else can be written either, as the operating system's message; None where other files still can.

    Args:
        error: the error that ended a case.
        writing: whether it occurred while writing: an I/O error of an input says nothing about the output.
    """
    if isinstance(error, SourceError):
        return None  # the temporary folder is full, which only some inputs need
    last = FULL | {errno.EIO} if writing else FULL
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None and error.errno in last:
            return os.strerror(error.errno)
        if said := next((words for words in FULL_WORDS if words in str(error)), None):
            return said
        error = error.__cause__ or error.__context__
    return None


def waits(retries: int) -> Iterator[float]:
    """Seconds to wait before each retry: twice as long each time.

    >>> list(waits(4))
    [1.0, 2.0, 4.0, 8.0]
    """
    return (FIRST_WAIT * 2**n for n in range(retries))


def persistently(do: Callable[[], T], retries: int) -> T:
    """Call ``do``, which must be repeatable, and retry it with backoff after transient faults."""
    for wait in waits(retries):
        try:
            return do()
        except Exception as error:
            if not is_passing(error):
                raise
            log_retry(str(error), wait)
            time.sleep(wait)
    return do()


@dataclass
class Patience:
    """Repeats each of many short reads once after a transient fault, and waits only before the first repetition."""

    _has_waited: bool = False

    def read(self, do: Callable[[], T]) -> T:
        """Return ``do()``, repeated once after a transient fault."""
        try:
            return do()
        except OSError as error:
            if not is_passing(error):
                raise
            if not self._has_waited:
                log_retry(str(error), FIRST_WAIT)
                time.sleep(FIRST_WAIT)
                self._has_waited = True
        return do()


def log_retry(error: str, wait: float) -> None:
    """Log what is retried, and when."""
    LOG.warning("%s: tried again in %g s", error, wait)
