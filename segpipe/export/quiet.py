"""Lines of an export on stderr, and none of the libraries': torch's exporter alone may write thousands."""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import TextIO

from segpipe.messages.printable import printable_lines

Say = Callable[[str], None]


@contextlib.contextmanager
def quiet(verbose: bool) -> Iterator[Say]:
    """Keep what anything writes to stdout and stderr from the terminal, but for what is said by the function given.

    Also what libraries in C++ write to the descriptors. An error leaves the block as it is.
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
        if terminal is sys.stderr:  # a stream of somebody's own, as of a test
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield lambda line: print(printable_lines(line), file=terminal, flush=True)


@contextlib.contextmanager
def _aside(stream: TextIO) -> Iterator[TextIO]:
    """A second way to where a stream leads, if it is the process's own."""
    if not _is_process_own(stream):
        yield stream
        return
    stream.flush()
    with os.fdopen(os.dup(stream.fileno()), "w", encoding=stream.encoding, errors="backslashreplace") as copy:
        yield copy


def _is_process_own(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 2
    except (OSError, ValueError):  # closed, or no file
        return False


@contextlib.contextmanager
def _swallowed(number: int) -> Iterator[None]:
    """Let a descriptor lead to a file that is thrown away."""
    try:
        kept = os.dup(number)
    except OSError:  # closed from the start
        yield
        return
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), number)
        try:
            yield
        finally:
            _flush()
            os.dup2(kept, number)
            os.close(kept)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            if stream is not None:
                stream.flush()
