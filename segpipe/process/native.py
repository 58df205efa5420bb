"""Calls into native code that may never return, each in a thread of its own."""

import math
import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

Result = TypeVar("Result")

ASKED = 0.1
"""Seconds between two requests to end."""

LOOK = 0.2
"""Seconds between two looks whether a signal has come: one that comes just before a wait begins does not end it."""


class Stoppable(Protocol):
    """What calls into native code; another thread can ask it to end them."""

    def stop(self) -> None: ...


OnOpen = Callable[[Stoppable], None]
"""Callback that receives what a call has opened, as soon as that can be stopped."""


class TooLongError(Exception):
    """A call exceeds its time limit."""


class _Thread(threading.Thread):
    """A thread of a call."""


class NativeCall(Generic[Result]):
    """A call in a thread of its own, since Python handles signals only between two steps of the main thread.

    If Python ended during the call, the thread would come back to an interpreter that is not there, and libraries would be
    taken apart while it uses them: the process would abort. So ``result`` waits for the end of a call that it gives up. If
    the call goes on all the same (``left_behind``), the process must end by ``os._exit``.
    """

    def __init__(self, do: Callable[[OnOpen], Result], *, name: str) -> None:
        self._do = do
        self._thread = _Thread(target=self._run, name=name, daemon=True)
        self._opened: list[Stoppable] = []
        self._result: list[Result] = []
        self._error: BaseException | None = None
        self._begun = self._given_up = False
        self._ended = threading.Event()

    def result(self, seconds: float | None, *, patience: float) -> Result:
        """Wait for the result; if that is interrupted, or takes too long, end the call.

        Args:
            seconds: the time limit; None: there is none.
            patience: seconds to wait for the end of a call that is given up.

        Raises:
            TooLongError: the call exceeds the time limit.
            Exception: the call's own.
        """
        try:
            self._thread.start()  # a signal may come before this returns, when the thread runs already
            self._wait(math.inf if seconds is None else seconds)
        except (KeyboardInterrupt, TooLongError):
            self._give_up(patience)
            raise
        if self._error is not None:
            raise self._error
        return self._result[0]

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._ended.wait(max(0.0, min(LOOK, until - time.monotonic()))):
            if time.monotonic() >= until:
                raise TooLongError

    def _run(self) -> None:
        self._begun = True
        try:
            if not self._given_up:
                self._result.append(self._do(self._opened.append))
        except BaseException as error:  # noqa: BLE001 - the waiting thread raises it
            self._error = error
        finally:
            self._ended.set()

    def _give_up(self, patience: float) -> None:
        """Ask the call to end until it does: it may open sessions after the first request."""
        self._given_up = True
        until = time.monotonic() + patience
        while self._begun and not self._ended.is_set() and time.monotonic() < until:
            for opened in [*self._opened]:
                opened.stop()
            self._ended.wait(ASKED)


def left_behind() -> bool:
    """Whether a call is still running in its thread."""
    return any(isinstance(thread, _Thread) for thread in threading.enumerate())
