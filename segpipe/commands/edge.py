"""The edge of a command: errors become one line on stderr and an exit code."""

import errno
import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec

from segpipe.errors import SegpipeError, of_system
from segpipe.messages.console import echo
from segpipe.process import signals

Words = ParamSpec("Words")

SOME_FAILED = 1
"""Exit code of a command that did its work, with a case or a check that failed."""

NOT_STARTED = 2
"""Exit code of a command that did nothing: a setting, a file or the machine is not as it must be."""


def guarded(*, writes: bool = False) -> Callable[[Callable[Words, int]], Callable[Words, NoReturn]]:
    """Let a command that returns its exit code end with it, or with that of its error.

    Args:
        writes: the command writes files, so that an interruption must first remove the unfinished ones.
    """

    def guard(command: Callable[Words, int]) -> Callable[Words, NoReturn]:
        @functools.wraps(command)
        def ending(*words: Words.args, **options: Words.kwargs) -> NoReturn:
            (signals.interrupt if writes else signals.leave_at_once)()
            sys.exit(_code(lambda: command(*words, **options)))

        return ending

    return guard


def _code(command: Callable[[], int]) -> int:
    try:
        return command()
    except SegpipeError as error:
        echo(f"error: {error}", err=True)
        return NOT_STARTED
    except OSError as error:
        return system_failed(error)
    except KeyboardInterrupt:
        echo("interrupted: run the same command again", err=True)
        return signals.INTERRUPTED


def system_failed(error: OSError) -> int:
    """Report an unexpected error of the operating system, and return the exit code.

    Raises:
        OSError: the reader of stdout has closed the pipe.
    """
    if error.errno == errno.EPIPE:
        raise error
    echo(f"error: {_of_system(error)}", err=True)
    return NOT_STARTED


def _of_system(error: OSError) -> str:
    """Describe an error of the operating system, with the file."""
    logging.getLogger("segpipe").info("unforeseen error of the system", exc_info=error)
    name = error.filename if isinstance(error.filename, str | bytes) else None
    what = "a file" if name is None else os.fsdecode(name)
    return f"{what} cannot be read or written: {of_system(error)}"
