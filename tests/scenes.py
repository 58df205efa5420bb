"""Scenes that take a second or two, what an undisturbed run makes of them, and how to compare what another made."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from command import invoke
from networks import Network, contract

SEGPIPE = [sys.executable, "-m", "segpipe.cli"]
CASES = {"large": (300, 420), "large/inner": (130, 150), "a": (60, 60), "b": (64, 50), "sub/c": (40, 90), "sub/d": (64, 64)}
"""``large`` and ``large/inner`` can be cut; the others have one window or two."""

SERIAL, PROCESSES, DASK = "--executor serial", "--executor processes --workers 2", "--executor dask --workers 2"


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


def make_model(path: Path, *, seed: int = 0, **changes: Any) -> None:
    """A network that takes some milliseconds a tile."""
    net = Network(3, seed).conv(3, 48, 3).add("Relu").conv(48, 48, 3).add("Relu").conv(48, 48, 3).add("Relu").conv(48, 4, 3)
    net.save(path, contract(3, 4, **changes), classes=4)


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


def begin(root: Path, command: list[str], log: Path) -> "subprocess.Popen[str]":
    """A process in a session of its own, that says everything to a file."""
    with log.open("w") as stream:
        return subprocess.Popen(
            command, cwd=root, start_new_session=True, text=True, stdout=stream, stderr=subprocess.STDOUT
        )


def wait(process: "subprocess.Popen[str]", watch: Callable[[], Any], seconds: float = 90) -> int:
    """Exit code of a process; until it ends, it is watched."""
    limit = time.monotonic() + seconds
    try:
        while process.poll() is None and time.monotonic() < limit:
            watch()
            time.sleep(0.01)
        return process.wait(0)
    finally:
        process.kill()
        process.wait()


def wait_until(true: Callable[[], Any], process: "subprocess.Popen[str]", seconds: float = 90) -> None:
    """Until something is true, or the process has ended."""
    limit = time.monotonic() + seconds
    while not true() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.002)


def nothing() -> None: ...


def workers(client: int) -> list[int]:
    """Process numbers of a client's workers."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(client)], capture_output=True, text=True, check=False
    )
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "spawn_main" in line]


def kill(number: int, sign: int = signal.SIGKILL) -> bool:
    """Whether the process was still there."""
    with suppress(ProcessLookupError):
        os.kill(number, sign)
        return True
    return False


def files(out: Path) -> dict[str, Path]:
    return {path.relative_to(out).as_posix(): path for path in out.rglob("*")}


def content_of(path: Path) -> Any:
    """What a file says, but for how long it took, and for the hash of a record, which says that, too."""
    if path.is_dir():
        return None
    if path.suffix != ".json":
        return path.read_bytes()
    record = json.loads(path.read_text())
    if path.name == "run.json":
        return sorted(record["done"] + record["skipped"]), record["failed"], record["interrupted"]
    return {key: value for key, value in record.items() if key not in ("seconds", "key")}


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
