"""Run ``segpipe`` in processes that send themselves signals when functions are entered: moments that no clock chooses.

Reads an order from stdin, a line of JSON: ``arguments``, ``folder``, ``log``, and ``strikes``, each a moment and the number
of a signal. A moment is ``module:function``, with ``:3`` behind it for the third time, or ``module:<module>`` for an import.

With ``warm`` as argument it imports everything once, and each order, which then has an ``environment``, is a fork in a
session of its own, and, with the number of a process as ``within``, among the mounts of that. With ``forked`` its workers
are forks, too. It answers with the fork's number, and the order ``end`` of such a number with its exit code.
"""

import ctypes
import gc
import inspect
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

HEAVY = (
    "segpipe.cli segpipe.commands.run segpipe.commands.tune segpipe.commands.inspect segpipe.commands.export.attach "
    "segpipe.terminal.progress segpipe.terminal.profile segpipe.terminal.plan segpipe.terminal.chosen "
    "segpipe.terminal.state segpipe.export.show segpipe.terminal.journal segpipe.jobs.launch segpipe.jobs.trial "
    "segpipe.tune.measure segpipe.tune.show segpipe.export.attach segpipe.inspect.file segpipe.inspect.show "
    "segpipe.formats.dicom.sink segpipe.storage.bucket segpipe.commands.status segpipe.api.running "
    "segpipe.process.isolation segpipe.process.interruption segpipe.formats.raster.sink rasterio.shutil numpy.ma "
    "numpy.random forked"
)
"""All that a run loads: what is left out, each fork loads again."""


class Striker:
    """Sends this process a signal at each moment, one after the other.

    Functions that are imported say themselves when they are entered. Others are seen by a profiler, with which a run takes
    a quarter longer.
    """

    def __init__(self, strikes: list[tuple[str, int]]) -> None:
        self._strikes = [(*f"{moment}:1".split(":")[:3], number) for moment, number in strikes]
        self._told, self._seen = set[Any](), 0

    def start(self) -> None:
        """Look out for the next moment, if there is one."""
        sys.setprofile(None)
        self._seen, self._next = 0, self._strikes[0][:2] if self._strikes else ("", "")
        functions = functions_of(*self._next)
        for function in functions - self._told:
            tell(function, partial(self._entered, self._next))
        self._told |= functions
        if self._strikes and not functions:
            threading.setprofile(self._look)
            sys.setprofile(self._look)

    def _look(self, frame: Any, event: str, argument: Any) -> None:
        """At every call and every return, so nothing slow comes before the name."""
        if event == "call" and frame.f_code.co_name == self._next[1]:
            self._entered((frame.f_globals.get("__name__"), frame.f_code.co_name))

    def _entered(self, which: tuple[Any, str]) -> None:
        self._seen += which == self._next
        if which == self._next and self._seen == int(self._strikes[0][2]):
            number = self._strikes.pop(0)[3]
            self.start()
            os.kill(os.getpid(), number)


def functions_of(module: str, name: str) -> set[Any]:
    """Functions and methods of a module that is imported."""
    values = [*vars(sys.modules.get(module, object)).values()]
    values += [member for value in values if isinstance(value, type) for member in vars(value).values()]
    functions = {inner for inner in map(inspect.unwrap, values) if isinstance(inner, FunctionType)}
    return {inner for inner in functions if (inner.__globals__.get("__name__"), inner.__code__.co_name) == (module, name)}


def tell(function: FunctionType, entered: Callable[[], None]) -> None:
    """Have a function call another one when it is entered; a generator, whenever it goes on."""
    own = FunctionType(*(getattr(function, f"__{part}__") for part in ("code", "globals", "name", "defaults", "closure")))
    own.__kwdefaults__ = function.__kwdefaults__

    def plain(*arguments: Any, **named: Any) -> Any:
        entered()
        return own(*arguments, **named)

    def generator(*arguments: Any, **named: Any) -> Any:
        entered()
        with closing(own(*arguments, **named)) as found:
            for each in found:
                yield each
                entered()

    instead = f"_instead_of_{id(function)}"
    own.__globals__[instead] = generator if inspect.isgeneratorfunction(own) else plain
    call = eval(f"lambda *arguments, **named: {instead}(*arguments, **named)")
    function.__code__ = call.__code__.replace(co_freevars=own.__code__.co_freevars)  # who holds the function calls the other
    function.__defaults__ = function.__kwdefaults__ = None


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
    for name in sys.modules["forked"].WORKERS:
        __import__(name)
    sys.modules["segpipe.results.device_kind"].versions()  # looked up once in each process
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
        if order["forked"]:
            sys.modules["forked"].fork_workers()
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
