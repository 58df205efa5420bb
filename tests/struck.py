"""Run ``segpipe`` in processes that send themselves signals when functions are entered: moments that no clock chooses.

Reads one order per line of stdin, as JSON: ``arguments``, ``folder``, ``log``, and ``strikes``, each a moment and the number
of a signal. A moment is ``module:function``, with ``:3`` behind it for the third time, or ``module:<module>`` for an import.
Writes the exit code of each. With ``warm`` as argument, everything is imported once, and each order is a fork.
"""

import json
import os
import signal
import sys
import threading
from typing import Any

HEAVY = (
    "segpipe.cli segpipe.commands.run segpipe.commands.tune segpipe.commands.inspect segpipe.commands.export.attach "
    "segpipe.terminal.progress segpipe.terminal.profile segpipe.terminal.plan segpipe.terminal.chosen "
    "segpipe.terminal.state segpipe.terminal.exported segpipe.terminal.journal segpipe.jobs.launch segpipe.jobs.trial "
    "segpipe.tune.measure segpipe.tune.show segpipe.export.attach segpipe.inspect.file segpipe.inspect.show"
)


class Striker:
    """A profiler that sends this process a signal at each moment, one after the other."""

    def __init__(self, strikes: list[tuple[str, int]]) -> None:
        self._strikes, self._seen = list(strikes), 0

    def start(self) -> None:
        threading.setprofile(self)
        sys.setprofile(self)

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        if event != "call" or not self._strikes:
            return
        moment, number = self._strikes[0]
        module, name, *count = moment.split(":")
        if frame.f_code.co_name != name or frame.f_globals.get("__name__") != module:
            return
        self._seen += 1
        if self._seen == int(*count or (1,)):
            self._seen = 0
            del self._strikes[0]
            if not self._strikes:
                sys.setprofile(None)  # what comes is as quick as without
            os.kill(os.getpid(), number)


def become(order: dict[str, Any]) -> None:
    """Turn this process into the command."""
    os.chdir(order["folder"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(log, number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.argv = ["segpipe", *order["arguments"]]
    Striker(order["strikes"]).start()
    from segpipe.__main__ import start

    start()


def main() -> None:
    warm = sys.argv[1:] == ["warm"]
    for name in HEAVY.split() if warm else ():
        __import__(name)
    for line in sys.stdin:
        order = json.loads(line)
        if not warm:
            become(order)
        child = os.fork()
        if not child:
            become(order)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
