"""The edge of a command: errors become one line on stderr and an exit code."""

import functools
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec

from segpipe.errors import SegpipeError
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
    except KeyboardInterrupt:
        echo("interrupted: run the same command again", err=True)
        return signals.INTERRUPTED
