"""Scenes that take a second or two, what an undisturbed run makes of them, and how to compare what another made."""

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from command import invoke
from networks import Network, contract

SEGPIPE = [sys.executable, "-m", "segpipe.cli"]
STRUCK = [sys.executable, str(Path(__file__).with_name("struck.py"))]

PATIENCE = 250.0
"""Seconds after which a test gives up: no measure of anything, so that it holds on a machine that has much else to do."""

CASES = {"large": (300, 420), "large/inner": (130, 150), "a": (60, 60), "b": (64, 50), "sub/c": (40, 90), "sub/d": (64, 64)}
"""``large`` and ``large/inner`` can be cut; the others have one window or two."""

TWO_ENDED = "jobs.task_queue:ended:2"
"""Two tasks, or cases of a job, have ended; of what is cut, these are parts of the first case."""

SERIAL, PROCESSES, DASK = "--executor serial", "--executor processes --workers 2", "--executor dask --workers 2"
ONE_PROCESS = "--executor processes --workers 1"
"""For tests in which a worker's work goes wrong, not what several make of it: each takes a second to start."""


def make_scenes(root: Path) -> None:
    """All cases below ``in``."""
    rng = np.random.default_rng(0)
    for name, (height, width) in CASES.items():
        path = root / "in" / f"{name}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(1, 256, (3, height, width), dtype=np.uint8)
        pixels[:, : height // 5, : width // 3] = 0
        kind = {"driver": "GTiff", "dtype": "uint8", "nodata": 0, "crs": "EPSG:32633"}
        with rasterio.open(path, "w", width=width, height=height, count=3, **kind) as dataset:
            dataset.write(pixels)


def make_model(path: Path, *, seed: int = 0, width: int = 48, **changes: Any) -> None:
    """A network that takes some milliseconds a tile, or, with a width of 8, next to nothing."""
    net = Network(3, seed).conv(3, width, 3).add("Relu").conv(width, width, 3).add("Relu").conv(width, width, 3).add("Relu")
    net.conv(width, 4, 3).save(path, contract(3, 4, **changes), classes=4)


def arguments(model: str, out: Path, more: str) -> list[str]:
    """A run over the scenes; ``zscore`` is the model whose runs have a confidence, too."""
    layers = ["--confidence"] if model == "zscore" else []
    fixed = ["run", "-v", "-i", "in", "-m", f"{model}.onnx", "-o", str(out), "--device", "cpu"]
    return [*SEGPIPE, *fixed, *layers, *more.split()]


def make_whole(root: Path, model: str) -> Path:
    """What one job a case in one process makes."""
    out = root / f"whole-{model}"
    assert invoke(arguments(model, out, SERIAL)[len(SEGPIPE) :], root).returncode == 0
    return out


class Session:
    """A process in a session of its own, that says everything to a file."""

    pid: int
    log: Path

    def said(self, but: str) -> str:
        """What a test tells that gives up."""
        return f"{but}; it said:\n{self.log.read_text()}"

    def end_all(self) -> None:
        """Kill what is left of it and its children."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()


class Process(Session, subprocess.Popen[str]):
    """Any command."""

    def __init__(self, root: Path, command: list[str], log: Path, **options: Any) -> None:
        self.log = log
        with log.open("w") as stream:
            super().__init__(
                command, cwd=root, start_new_session=True, text=True, stdout=stream, stderr=subprocess.STDOUT, **options
            )


class Fork(Session):
    """``segpipe`` as a fork of a process that has imported everything: ``struck.py warm``."""

    def __init__(
        self, root: Path, arguments: list[str], log: Path, strikes: Sequence[tuple[str, int]] = (), **options: int
    ) -> None:
        """``options`` are ``within`` and ``forked`` of ``struck.py``."""
        self.log, self.returncode = log, None
        told = {"arguments": arguments, "folder": str(root), "log": str(log), "strikes": strikes}
        told |= {"within": 0, "forked": 0, **options}
        self.pid = _ask(told | {"environment": dict(os.environ)})
        self._end = os.pidfd_open(self.pid)

    def poll(self, seconds: float = 0) -> int | None:
        """Its exit code, or None if it has none within some seconds."""
        if self.returncode is None and select.select([self._end], [], [], seconds)[0]:
            self.returncode = _ask({"end": self.pid})
            os.close(self._end)
        return self.returncode

    def wait(self) -> int:
        code = self.poll(PATIENCE)
        assert code is not None, self.said(f"no end within {PATIENCE:.0f} s")
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@cache
def _server() -> "subprocess.Popen[str]":
    """The process that forks; libraries that would start threads in it are told not to."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = subprocess.Popen([*STRUCK, "warm"], text=True, env=environment, start_new_session=True, **pipes)
    atexit.register(server.communicate)
    return server


def _ask(order: dict[str, Any]) -> int:
    server = _server()
    server.stdin.write(json.dumps(order) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())


def begin(root: Path, command: list[str], log: Path, **options: Any) -> Session:
    """Start a command; ``segpipe`` in a fork, unless there are options of ``Popen``."""
    if command[: len(SEGPIPE)] == SEGPIPE and not options:
        return Fork(root, command[len(SEGPIPE) :], log)
    return Process(root, command, log, **options)


def begin_and_stop(root: Path, command: list[str], log: Path, moment: str, *, times: int = 1, within: int = 0) -> Fork:
    """As ``begin``, to a moment of ``struck.py``: there the first process stands still until it hears SIGCONT.

    Its workers finish what they have in hand, and get nothing more. So no test has to be quicker than a run. With ``times``
    it stands still as often: see ``go_on_until``; ``within`` is the number of a process whose mounts it sees. Its workers
    are forks; those of ``begin`` are started as segpipe starts them.
    """
    strikes = [(f"segpipe.{moment}", signal.SIGSTOP)] * times
    process = Fork(root, command[len(SEGPIPE) :], log, strikes, within=within, forked=1)
    wait_until(lambda: is_stopped(process.pid), process)
    return process


def mount(holder: int, script: str) -> None:
    """Run a script that changes the mounts of a process: see the fixture ``mounts``."""
    enter = ["nsenter", "--target", str(holder), "--user", "--mount", "--preserve-credentials"]
    subprocess.run([*enter, "sh", "-c", script], timeout=PATIENCE, check=True)


def go_on_until(true: Callable[[], Any], process: Fork) -> None:
    """Let a process go from one stop to the next until something is true; it stands still then."""
    while not true():
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: is_stopped(process.pid), process)


def is_stopped(number: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return "State:\tT" in Path(f"/proc/{number}/status").read_text()
    return False


def wait(process: Session, watch: Callable[[], Any] = lambda: None, *, every: float = 0.01) -> int:
    """Exit code of a process; until it ends, it is watched."""
    limit = time.monotonic() + PATIENCE
    try:
        while (code := process.poll()) is None:
            assert time.monotonic() < limit, process.said(f"no end within {PATIENCE:.0f} s")
            watch()
            time.sleep(every)
        return code
    finally:
        if process.returncode is None:
            process.end_all()


def wait_until(true: Callable[[], Any], process: Session, seconds: float = PATIENCE, *, or_end: bool = False) -> None:
    """Until something is true, or, if a test asks for that, the process has ended; what takes longer is an error."""
    limit = time.monotonic() + seconds
    try:
        while not _holds(true):
            if process.poll() is not None:
                assert or_end or _holds(true), process.said(f"it ended before, with {process.returncode}")
                return
            assert time.monotonic() < limit, process.said(f"not true within {seconds:.0f} s")
            time.sleep(0.005)
    except BaseException:
        process.end_all()
        raise


def _holds(true: Callable[[], Any]) -> bool:
    """A folder that is removed while it is listed has not yet, or no more, what is waited for."""
    try:
        return bool(true())
    except FileNotFoundError:
        return False


def nothing() -> None: ...


def workers(client: int) -> list[int]:
    """Process numbers of a client's workers, which are its children or, if they are forks, those of the child that forks."""
    numbers = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [number for number in numbers if _is_worker(number, client)]


def _is_worker(number: int, client: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        parent = _parent(number)
        if b"spawn_main" in Path(f"/proc/{number}/cmdline").read_bytes():
            return parent == client
        return b"struck.py" in Path(f"/proc/{number}/cmdline").read_bytes() and _parent(parent) == client
    return False


def _parent(number: int) -> int:
    return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])


def kill(number: int, sign: int = signal.SIGKILL) -> bool:
    """Whether the process was still there."""
    with suppress(ProcessLookupError):
        os.kill(number, sign)
        return True
    return False


def files(out: Path) -> dict[str, Path]:
    return {path.relative_to(out).as_posix(): path for path in out.rglob("*")}


def content_of(path: Path) -> Any:
    """What a file says, but for when and how long it took, and for the hash of a record, which says that, too."""
    if path.is_dir():
        return None
    if path.suffix != ".json":
        return path.read_bytes()
    record = json.loads(path.read_text())
    if path.name == "run.json":
        return sorted(record["done"] + record["skipped"]), record["failed"], record["interrupted"]
    return {key: value for key, value in record.items() if key not in ("seconds", "key", "time")}


def assert_same(out: Path, whole: Path) -> None:
    """The same files with the same content, and no other, hidden ones included."""
    assert sorted(files(out)) == sorted(files(whole))
    for name, path in files(whole).items():
        assert content_of(out / name) == content_of(path), name


class Silent:
    """Nobody watches."""

    def progress(self, pixels: int) -> None: ...

    def outcome(self, outcome: Any) -> None: ...

    def note(self, line: str) -> None: ...
