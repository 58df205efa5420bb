"""Run ``segpipe`` in processes that send themselves signals when functions are entered: moments that no clock chooses.

Reads an order from stdin, a line of JSON: ``arguments``, ``folder``, ``log``, and ``strikes``, each a moment and the number
of a signal. A moment is ``module:function``, with ``:3`` behind it for the third time, or ``module:<module>`` for an import.

With ``warm`` as argument it imports everything once, and each order, which then has an ``environment``, is a fork in a
session of its own, and, with the number of a process as ``within``, among the mounts of that. It answers with the fork's
number, and the order ``end`` of such a number with its exit code.
"""

import ctypes
import gc
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

HEAVY = (
    "segpipe.cli segpipe.commands.run segpipe.commands.tune segpipe.commands.inspect segpipe.commands.export.attach "
    "segpipe.terminal.progress segpipe.terminal.profile segpipe.terminal.plan segpipe.terminal.chosen "
    "segpipe.terminal.state segpipe.terminal.exported segpipe.terminal.journal segpipe.jobs.launch segpipe.jobs.trial "
    "segpipe.tune.measure segpipe.tune.show segpipe.export.attach segpipe.inspect.file segpipe.inspect.show "
    "segpipe.formats.dicom.sink segpipe.storage.bucket segpipe.commands.status"
)


class Striker:
    """A profiler that sends this process a signal at each moment, one after the other."""

    def __init__(self, strikes: list[tuple[str, int]]) -> None:
        self._strikes = [(*f"{moment}:1".split(":")[:3], number) for moment, number in strikes]
        self._seen, self._name = 0, ""
        self._next()

    def _next(self) -> None:
        self._seen, self._name = 0, self._strikes[0][1] if self._strikes else ""

    def start(self) -> None:
        threading.setprofile(self._look)
        sys.setprofile(self._look)

    def _look(self, frame: Any, event: str, argument: Any) -> None:
        """At every call and every return, so nothing slow comes before the name."""
        if event != "call" or frame.f_code.co_name != self._name or not self._strikes:
            return
        module, _, count, number = self._strikes[0]
        self._seen += frame.f_globals.get("__name__") == module
        if self._seen == int(count):
            del self._strikes[0]
            self._next()
            if not self._strikes:
                sys.setprofile(None)  # what comes is as quick as without
            os.kill(os.getpid(), number)


def become(order: dict[str, Any]) -> None:
    """Turn this process into the command, all but its first line."""
    os.chdir(order["folder"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(log, number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.argv = ["segpipe", *order["arguments"]]


def begin(order: dict[str, Any]) -> None:
    if order["strikes"]:
        Striker(order["strikes"]).start()
    from segpipe.__main__ import start

    start()


def serve() -> None:
    """Carry out orders in forks, until there are no more."""
    for name in HEAVY.split():
        __import__(name)
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        sys.stdout.write(f"{exit_code(order['end']) if 'end' in order else fork(order)}\n")
        sys.stdout.flush()


def fork(order: dict[str, Any]) -> int:
    """Process number of a fork that has its session, folder and log."""
    if (threads := len([*Path("/proc/self/task").iterdir()])) > 1:
        raise RuntimeError(f"only a process of one thread may fork, got {threads}")
    ready, tell = os.pipe()
    if not (child := os.fork()):
        os.setsid()
        if order["within"]:
            enter(order["within"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(order["environment"])
        become(order)
        for end in (ready, tell):
            os.close(end)
        begin(order)
    os.close(tell)
    os.read(ready, 1)
    os.close(ready)
    return child


def enter(holder: int) -> None:
    """See the mounts of another process, as the user that may change them."""
    library, ends = ctypes.CDLL(None, use_errno=True), [f"/proc/{holder}/ns/{kind}" for kind in ("user", "mnt")]
    for end in [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in ends]:
        if library.setns(end, 0):
            raise OSError(ctypes.get_errno(), f"the mounts of process {holder} cannot be entered")
        os.close(end)


def exit_code(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    if sys.argv[1:] == ["warm"]:
        serve()
    else:
        order = json.loads(sys.stdin.readline())
        become(order)
        begin(order)
