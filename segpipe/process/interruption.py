"""Handle Ctrl-C during a run in a process that outlives it: a notebook, a script, a service."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from segpipe.process.signals import AGAIN, Halt, grace_left, say

PATIENCE = 10.0
"""Seconds for a stopped run to end in order, before another Ctrl-C interrupts that, too."""


@contextmanager
def interruptible(halt: Halt, grace: float) -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` on Ctrl-C so that the run can end in order; restore Ctrl-C afterwards.

    With a ``grace``, the first Ctrl-C sets ``halt``; the second, or the end of ``grace`` seconds, raises. Only the main
    thread receives Ctrl-C. A handler other than Python's own stays in force.
    """
    if threading.current_thread() is not threading.main_thread() or (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    handler, hook = _InterruptHandler(halt, grace), sys.unraisablehook
    signal.signal(signal.SIGINT, handler)
    sys.unraisablehook = handler.lost
    try:
        yield
    finally:
        handler.end()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = hook


class _InterruptHandler:
    """Handler of SIGINT during a run."""

    def __init__(self, halt: Halt, grace: float) -> None:
        self._halt, self._grace, self._hook = halt, grace, sys.unraisablehook
        self._stopped: float | None = None
        """Time of the last interruption."""
        self._ended = False
        self._lock = threading.Lock()
        self._timers: list[threading.Timer] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._ended or self._is_stopping:
            return
        if self._halt.concluding:
            if not self._halt.is_set():
                say(grace_left("tables have", self._grace, "leave them out"))
            self._halt.conclude_within(self._grace)
            return
        if self._grace and not self._halt.is_set():
            self._halt.set()
            say(grace_left("running jobs have", self._grace, "stop it now"))
            self._again(self._grace)
            return
        self._halt.set()
        self._stopped = time.monotonic()
        raise KeyboardInterrupt(number)

    @property
    def _is_stopping(self) -> bool:
        return self._stopped is not None and time.monotonic() - self._stopped < PATIENCE

    def lost(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Repeat an interruption that was lost in a callback."""
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._stopped = None
            self._again(AGAIN)
        else:
            self._hook(unraisable)

    def _again(self, seconds: float) -> None:
        timer = threading.Timer(seconds, self._interrupt)
        timer.daemon = True
        timer.start()
        self._timers.append(timer)

    def _interrupt(self) -> None:
        with self._lock:
            if not self._ended and (main := threading.main_thread().ident) is not None:
                signal.pthread_kill(main, signal.SIGINT)

    def end(self) -> None:
        """Stop raising interruptions."""
        with self._lock:
            self._ended = True
        for timer in self._timers:
            timer.cancel()
