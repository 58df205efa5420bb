"""The command line in the process of the tests: what it says and its exit code, without the seconds that a start takes."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from warm import warm_workers

from segpipe.cli import main
from segpipe.process.signals import ENDING

SIGNALS = (*ENDING, signal.SIGALRM)


def invoke(arguments: Sequence[Any], cwd: Path) -> subprocess.CompletedProcess[str]:
    """``segpipe`` with these arguments in that folder; an exception that it lets out is one of the test.

    Its workers are forks (``warm.py``).
    """
    words = ["segpipe", *map(str, arguments)]
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        with chdir(cwd), _descriptor(1, out), _descriptor(2, err), _own_signals(), _own_logging(), _own_argv(words):
            code = _exit_code(words[1:])
        return subprocess.CompletedProcess(words, code, _text(out), _text(err))


def _exit_code(arguments: list[str]) -> int:
    try:
        with warm_workers():
            main(arguments, prog_name="segpipe")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def _text(stream: IO[str]) -> str:
    stream.seek(0)
    return stream.read()


@contextmanager
def _descriptor(number: int, stream: IO[str]) -> Iterator[None]:
    """A standard stream as a file: for Python, for libraries in C, and for processes that begin meanwhile."""
    name = ["stdin", "stdout", "stderr"][number]
    before, kept = getattr(sys, name), os.dup(number)
    before.flush()
    os.dup2(stream.fileno(), number)
    setattr(sys, name, open(number, "w", closefd=False, errors="backslashreplace", buffering=1))  # noqa: SIM115
    try:
        yield
    finally:
        getattr(sys, name).flush()
        setattr(sys, name, before)
        os.dup2(kept, number)
        os.close(kept)


@contextmanager
def _own_signals() -> Iterator[None]:
    """A run takes signals and the alarm for itself, and keeps them; those of pytest come back."""
    handlers, alarm = {number: signal.getsignal(number) for number in SIGNALS}, signal.getitimer(signal.ITIMER_REAL)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.setitimer(signal.ITIMER_REAL, *alarm)


@contextmanager
def _own_logging() -> Iterator[None]:
    """No handlers and the first levels, as a process has them when it starts."""
    root, own = logging.getLogger(), logging.getLogger("segpipe")
    handlers, levels = root.handlers[:], (root.level, own.level)
    root.handlers[:] = []
    own.setLevel(logging.NOTSET)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        own.setLevel(levels[1])


@contextmanager
def _own_argv(words: list[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = words
    try:
        yield
    finally:
        sys.argv = before
