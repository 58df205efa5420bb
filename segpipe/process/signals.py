"""End a command on request, at any moment from its first line on: this module imports nothing heavy."""

import atexit
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Protocol

from segpipe.messages.streams import make_steady

INTERRUPTED = 75

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a process to end: from Ctrl-C, a batch system, a closed terminal."""

STOPPING = 60.0
"""Seconds for a stopped run to end in order; the next run cleans up after one that takes longer."""

PATIENCE = 5.0
"""Seconds for the main thread to handle a signal; it handles none during a call into C."""

LOOK = 1.0
"""Seconds between two checks of the clock."""

AGAIN = 0.05
"""Seconds after which an interruption that was lost in a callback is repeated."""


class Halt(Protocol):
    """Asks a run to start nothing more."""

    concluding: bool

    def set(self) -> None:
        """Ask the run to start nothing more."""
        ...

    def is_set(self) -> bool:
        """Whether the run was asked to end."""
        ...

    def conclude_within(self, seconds: float) -> None:
        """Ask the run to end, and to leave out tables that take longer than ``seconds``."""
        ...


class _Watch:
    """A thread that ends the process if the main thread does not."""

    def __init__(self) -> None:
        self.patience = math.inf
        """Seconds that the main thread has after a signal."""
        self.limit = math.inf
        """Time at which the process ends, by the monotonic clock."""
        self.code = INTERRUPTED
        self.spares: Callable[[], bool] = lambda: False
        """Whether the main thread is doing work that must not be stopped."""

    def start(self) -> None:
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._run, args=(read,), name="segpipe-signals", daemon=True).start()

    def _run(self, read: int) -> None:
        while self.spares() or time.monotonic() < self.limit:
            left = LOOK if self.spares() else max(0.0, self.limit - time.monotonic())
            ready, _, _ = select.select([read], [], [], min(LOOK, left))
            if ready and os.read(read, 1)[0] in ENDING and self.patience < math.inf:
                self.limit = min(self.limit, time.monotonic() + self.patience)
                self.patience = min(self.patience, PATIENCE)  # applies to a second signal
        if self.code == INTERRUPTED:
            _leave()
            time.sleep(LOOK)
        os._exit(self.code)

    def rest(self) -> None:
        """Leave signals to the main thread, which handles or ignores them."""
        self.patience = self.limit = math.inf


_WATCH = _Watch()
_LAST_LINE = [b"interrupted: run the same command again to go on\n"]


def say(line: bytes) -> None:
    """Write a line to stderr, unless that would block or fail."""
    with suppress(OSError, ValueError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, line)


def _leave(number: int = 0, frame: FrameType | None = None) -> None:
    """Exit at once: no work has begun, and an exception during imports may be lost."""
    del number, frame
    with suppress(IndexError):  # another thread is exiting already, or this one is
        say(_LAST_LINE.pop())
        os._exit(INTERRUPTED)


def _listen(handler: Callable[[int, FrameType | None], Any]) -> None:
    """Install a handler for the ending signals; for SIGHUP only if it is not ignored, as nohup does."""
    for number in ENDING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def handle_signals() -> None:
    """Handle signals in this process from now on, even if the main thread does not; call at a command's first line."""
    make_steady()  # before a pipe takes the descriptor of a closed stream
    leave_at_once()
    _WATCH.patience = 0.0
    _WATCH.start()


def leave_at_once() -> None:
    """Let a signal end the process at once from now on: there is no work to put in order."""
    _listen(_leave)


def interrupt() -> None:
    """Let the first signal raise ``KeyboardInterrupt`` from now on, so that unfinished files are removed."""
    _WATCH.rest()
    _WATCH.patience = STOPPING
    _listen(_interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise once, and ignore further signals."""
    del frame
    ignore_signals()
    _WATCH.limit = time.monotonic() + STOPPING
    raise KeyboardInterrupt(number)


def ignore_signals() -> None:
    """Ignore signals from now on, also while Python exits, which restores handlers that would kill the process."""
    _WATCH.rest()
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (*ENDING, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


def end(code: int) -> None:
    """Set the exit code of finished work: a thread or worker that does not end must not keep the process alive."""
    _WATCH.code, _WATCH.spares, _WATCH.limit = code, lambda: False, time.monotonic() + STOPPING


class _RunHandler:
    """Handler of signals during a run: the first asks for an end, the second, or the end of the grace period, stops."""

    def __init__(self, halt: Halt, grace: float) -> None:
        self._halt, self._grace = halt, grace

    def __call__(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._halt.concluding:
            self._leave_tables_out()
        elif self._halt.is_set() or not self._grace:
            self._stop(number)
        else:
            self._halt.set()
            say(grace_left("running jobs have", self._grace, "stop it now"))
            signal.setitimer(signal.ITIMER_REAL, self._grace)

    def _leave_tables_out(self) -> None:
        if not self._halt.is_set():
            say(grace_left("tables have", self._grace, "leave them out"))
        self._halt.conclude_within(self._grace)

    def _stop(self, number: int) -> None:
        """Raise once, and ignore further signals; the exception is repeated if a callback loses it."""
        self._halt.set()
        ignore_signals()
        _WATCH.limit = time.monotonic() + STOPPING
        signal.signal(signal.SIGALRM, self._once_more)
        sys.unraisablehook = _repeat_lost
        raise KeyboardInterrupt(number)

    def _once_more(self, number: int, frame: FrameType | None) -> None:
        del frame
        if not self._halt.concluding:
            raise KeyboardInterrupt(number)


def grace_left(what: str, grace: float, otherwise: str) -> bytes:
    """Message for a user who interrupts a run: how long it may still take, and what a second signal does."""
    return f"interrupted: {what} {grace:g} s to finish; interrupt once more to {otherwise}\n".encode()


def _repeat_lost(unraisable: "sys.UnraisableHookArgs") -> None:
    """Repeat an interruption that was lost in a callback."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, AGAIN)
    else:
        sys.__unraisablehook__(unraisable)


def halt_first(halt: Halt, grace: float) -> None:
    """Let the first signal ask to start nothing more; the second, or the end of the grace period, stops running work."""
    handler = _RunHandler(halt, grace)
    atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)  # the last action before Python removes the handlers
    signal.signal(signal.SIGALRM, handler)
    _WATCH.spares, _WATCH.patience = lambda: halt.concluding, grace + PATIENCE
    _listen(handler)


@contextmanager
def halting(halt: Halt, grace: float) -> Iterator[None]:
    """``halt_first``; after the block has succeeded, ignore signals, so that the exit code matches the files on disk."""
    halt_first(halt, grace)
    yield
    ignore_signals()
