"""Show an export's own lines on stderr, and nothing of its libraries: torch's exporter may write thousands of lines."""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import TextIO

from segpipe.messages.printable import printable_lines
from segpipe.process.leave import flush_streams

Say = Callable[[str], None]


@contextlib.contextmanager
def quiet(verbose: bool) -> Iterator[Say]:
    """Discard all output to stdout and stderr except for lines passed to the yielded function.

    This includes what C++ libraries write to the file descriptors. Exceptions propagate unchanged.
    """
    if verbose:
        yield lambda line: print(printable_lines(line), file=sys.stderr, flush=True)  # noqa: T201
        return
    with contextlib.ExitStack() as stack:
        terminal = stack.enter_context(_aside(sys.stderr or io.StringIO()))  # None where stderr is closed
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            if stream is not None:
                stack.enter_context(_swallowed(number))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if terminal is sys.stderr:  # a replaced stream, as in a test
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield lambda line: print(printable_lines(line), file=terminal, flush=True)


@contextlib.contextmanager
def _aside(stream: TextIO) -> Iterator[TextIO]:
    """Yield a duplicate of the process's own stream, or the stream itself if it was replaced."""
    if not _is_process_own(stream):
        yield stream
        return
    stream.flush()
    with os.fdopen(os.dup(stream.fileno()), "w", encoding=stream.encoding, errors="backslashreplace") as copy:
        yield copy


def _is_process_own(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 2
    except (OSError, ValueError):  # closed, or not a file
        return False


@contextlib.contextmanager
def _swallowed(number: int) -> Iterator[None]:
    """Redirect a descriptor to a temporary file, which is discarded."""
    try:
        kept = os.dup(number)
    except OSError:  # closed already
        yield
        return
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), number)
        try:
            yield
        finally:
            flush_streams()
            os.dup2(kept, number)
            os.close(kept)
