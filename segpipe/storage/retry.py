"""Faults of storage that pass by themselves, told from what stays as it is however often it is tried."""

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
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
"""What an operating system says of a file server, a disk or a network that is not itself just now. A full disk,
a file that is gone and one that may not be read are not among them: a wait mends none of these."""

FULL = frozenset(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS") if hasattr(errno, name))
"""What keeps all that comes after from being written, too."""

FULL_WORDS = {os.strerror(number): number for number in FULL}
"""GDAL hands on what the operating system says, but not its number."""

FIRST_WAIT = 1.0

T = TypeVar("T")


def is_passing(error: BaseException | None) -> bool:
    """Whether a storage fault that may pass lies behind an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in PASSING:
            return True
        error = error.__cause__ or error.__context__
    return False


def unwritable(error: BaseException | None, *, writing: bool) -> str | None:
    """Why nothing else can be written either, in the operating system's words; None where that is not so.

    Args:
        error: that ended a case.
        writing: whether it came of writing: an input/output error of an input says nothing of the output.
    """
    if isinstance(error, SourceError):
        return None  # a full folder of temporary files, which only some inputs need
    last = FULL | {errno.EIO} if writing else FULL
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None and error.errno in last:
            return os.strerror(error.errno)
        if said := next((words for words in FULL_WORDS if words in str(error)), None):
            return said
        error = error.__cause__ or error.__context__
    return None


def waits(retries: int) -> Iterator[float]:
    """Seconds before each new try: every one twice the last.

    >>> list(waits(4))
    [1.0, 2.0, 4.0, 8.0]
    """
    return (FIRST_WAIT * 2**n for n in range(retries))


def persistently(do: Callable[[], T], retries: int) -> T:
    """Do something that may be done twice; after a fault that may pass, it is done anew."""
    for wait in waits(retries):
        try:
            return do()
        except Exception as error:
            if not is_passing(error):
                raise
            tell(str(error), wait)
            time.sleep(wait)
    return do()


def tell(error: str, wait: float) -> None:
    """Say what is tried again, and when."""
    LOG.warning("%s: tried again in %g s", error, wait)
