"""Standard streams whose failures lose lines, not masks: a full disk, or a closed reader."""

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

STREAMS = ("stdin", "stdout", "stderr")

_failed: dict[int, OSError] = {}
"""First error of each stream, by descriptor."""


class _Raw(io.FileIO):
    """A descriptor that accepts everything; what cannot be written is lost."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            _failed.setdefault(self.fileno(), error)
            return memoryview(data).nbytes


def make_steady() -> None:
    """Let the standard streams continue after errors; redirect closed ones to nowhere."""
    for number in range(len(STREAMS)):
        try:
            os.fstat(number)
        except OSError:  # a file opened later would get this descriptor, and the output
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
    for number, name in enumerate(STREAMS[1:], 1):
        stream = getattr(sys, name)
        if stream is None or (stream is getattr(sys, f"__{name}__") and _number(stream) == number):
            setattr(sys, name, _opened(number, stream))


def _number(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


def _opened(number: int, stream: TextIO | None) -> io.TextIOWrapper:
    raw = _Raw(number, "w", closefd=False)
    lines, encoding = raw.isatty() or number == 2, None if stream is None else stream.encoding
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=lines)


def failure() -> OSError | None:
    """Error by which lines on stdout were lost; None if there was none, or only the reader has closed."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    error = _failed.get(1)
    return None if error is None or error.errno == errno.EPIPE else error
