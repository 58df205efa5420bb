"""How a command ends that is asked to, at any moment from its first line on: this module imports nothing heavy."""

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
"""What asks a process to end: Ctrl-C, a batch system, a terminal that is gone."""

STOPPING = 60.0
"""Seconds that a run has to end in order once it is stopped; the next run clears up after one that needs longer."""

PATIENCE = 5.0
"""Seconds that the main thread has to hear a signal. It hears none while a call into C does not return."""

LOOK = 1.0
"""Seconds between two looks at the clock."""

AGAIN = 0.05
"""Seconds after which an interruption is raised again that got lost in a callback."""


class Halt(Protocol):
    """Asks a run to begin nothing more."""

    concluding: bool

    def set(self) -> None: ...

    def is_set(self) -> bool: ...


class _Watch:
    """A thread that ends the process where the main thread does not."""

    def __init__(self) -> None:
        self.patience = math.inf
        """Seconds that the main thread has from a signal on."""
        self.limit = math.inf
        """When the process ends, by the monotonic clock."""
        self.code = INTERRUPTED
        self.spares: Callable[[], bool] = lambda: False
        """Whether the main thread is at what nothing should stop."""

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
                self.patience = min(self.patience, PATIENCE)  # from a second one
        if self.code == INTERRUPTED:
            _leave()
            time.sleep(LOOK)
        os._exit(self.code)

    def rest(self) -> None:
        """Leave it to the main thread, which hears signals or is to hear none."""
        self.patience = self.limit = math.inf


_WATCH = _Watch()
_LAST_LINE = [b"interrupted: run the same command again to go on\n"]


def say(line: bytes) -> None:
    """A line on stderr, unless it would wait for a reader or has none."""
    with suppress(OSError, ValueError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, line)


def _leave(number: int = 0, frame: FrameType | None = None) -> None:
    """Go at once: nothing is begun, and an exception raised while modules are imported may get lost."""
    del number, frame
    with suppress(IndexError):  # another thread is here already, or this one is
        say(_LAST_LINE.pop())
        os._exit(INTERRUPTED)


def _listen(handler: Callable[[int, FrameType | None], Any]) -> None:
    """Answer what asks to end; of a terminal that is gone only where nobody has said not to, as nohup does."""
    for number in ENDING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def answer() -> None:
    """Answer signals in this process from now on, also where the main thread does not: for a command's first line."""
    make_steady()  # before a pipe takes the number of a stream that is closed
    leave_at_once()
    _WATCH.patience = 0.0
    _WATCH.start()


def leave_at_once() -> None:
    """From now on a signal ends the process: nothing is begun that would have to be put in order."""
    _listen(_leave)


def interrupt() -> None:
    """From now on the first signal raises ``KeyboardInterrupt``, so that what is half-written goes."""
    _WATCH.rest()
    _WATCH.patience = STOPPING
    _listen(_interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Once is enough, and a second must not hurt."""
    del frame
    hear_no_more()
    _WATCH.limit = time.monotonic() + STOPPING
    raise KeyboardInterrupt(number)


def hear_no_more() -> None:
    """Signals are ignored from now on, also while Python ends, which puts back what else would kill the process."""
    _WATCH.rest()
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (*ENDING, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


def end(code: int) -> None:
    """The work is done: a thread or worker that does not end must not keep the process."""
    _WATCH.code, _WATCH.spares, _WATCH.limit = code, lambda: False, time.monotonic() + STOPPING


def halt_first(halt: Halt, grace: float) -> None:
    """From now on the first signal asks to begin nothing more; the second, or the end of the grace, stops what runs."""

    def stop(number: int) -> None:
        """Once is enough, and one more must not hurt; but the exception may get lost in a callback."""
        hear_no_more()
        _WATCH.limit = time.monotonic() + STOPPING
        signal.signal(signal.SIGALRM, once_more)
        sys.unraisablehook = lost
        raise KeyboardInterrupt(number)

    def once_more(number: int, frame: FrameType | None) -> None:
        del frame
        if not halt.concluding:
            raise KeyboardInterrupt(number)

    def lost(unraisable: "sys.UnraisableHookArgs") -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, AGAIN)
        else:
            sys.__unraisablehook__(unraisable)

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        if halt.concluding:
            return
        if halt.is_set() or not grace:
            halt.set()
            stop(number)
        halt.set()
        say(f"interrupted: running jobs have {grace:g} s to finish; interrupt once more to stop it now\n".encode())
        signal.setitimer(signal.ITIMER_REAL, grace)

    atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)  # the last thing before Python forgets who hears of it
    signal.signal(signal.SIGALRM, ask)
    _WATCH.spares, _WATCH.patience = lambda: halt.concluding, grace + PATIENCE
    _listen(ask)


@contextmanager
def halting(halt: Halt, grace: float) -> Iterator[None]:
    """``halt_first``, and once the block has ended well, signals are ignored: the exit code tells what is on the disk."""
    halt_first(halt, grace)
    yield
    hear_no_more()
