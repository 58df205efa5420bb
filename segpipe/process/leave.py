"""End the process of a command as soon as its exit functions have run; the system frees the rest."""

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from segpipe.process.native import left_behind


@contextmanager
def leaving() -> Iterator[None]:
    """Let this process end with the block's ``SystemExit`` as soon as all has been done that is registered for its end.

    Python would then search for garbage and take modules and libraries apart: 0.1 s (measured). A call into native code that
    goes on in another thread would abort the process meanwhile. Functions that were registered before this block, as by a
    measurement of coverage, run after the block's: Python's end waits for them, unless there is such a call.
    """
    earlier = atexit._ncallbacks()
    codes: list[int] = []

    def leave() -> None:
        gc.freeze()
        if codes and (not earlier or left_behind()):
            flush_streams()
            os._exit(codes[0])

    atexit.register(leave)
    try:
        yield
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            codes.append(ended.code or 0)
        raise


def flush_streams() -> None:
    """Flush stdout and stderr, as far as they are there."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
