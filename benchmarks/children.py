"""Processes that a benchmark starts: how long they took, what they said, and the most memory that they held."""

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

OFTEN = 0.05
"""Seconds between two looks at memory."""


@dataclass(frozen=True, slots=True)
class Child:
    """A process that has ended well."""

    seconds: float
    busy: float
    """Processor seconds of the process and all below it that have ended."""
    printed: str
    peak_mb: float
    """PSS summed over the process and all below it; 0 where nobody looked."""


def watched(
    command: Sequence[object], *, every: float | None = OFTEN, environment: Mapping[str, str] | None = None
) -> Child:
    """Run a command to its end.

    Args:
        command: its words.
        every: seconds between two looks at memory; each costs some milliseconds of a processor, so None for timing.
        environment: beside that of this process.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started, busy, peak = time.perf_counter(), children_busy(), 0.0
        variables = {**os.environ, **(environment or {})}
        with subprocess.Popen([*map(str, command)], stdout=out, stderr=err, text=True, env=variables) as process:
            while every is not None and process.poll() is None:
                peak = max(peak, sum(pss(pid) for pid in family(process.pid)))
                time.sleep(every)
            process.wait()
            seconds = time.perf_counter() - started
        out.seek(0)
        err.seek(0)
        if process.returncode:
            words = " ".join(map(str, command))
            raise SystemExit(f"exit code {process.returncode}: {words}\n{out.read()[-2000:]}{err.read()[-4000:]}")
        return Child(seconds, children_busy() - busy, out.read(), peak)


def children_busy() -> float:
    """Processor seconds of all children that have ended, and of theirs: others' work on the machine changes it little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        children = [int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]
    except OSError:
        return []
    return [pid, *(below for child in children for below in family(child))]


def pss(pid: int) -> float:
    """Proportional set size in MB; 0 for a process that has just ended.

    It counts a page that n processes share as 1/n in each, so that the sum is what the machine really gives.
    """
    return _held(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def rss(pid: int) -> float:
    """Resident set size in MB, which is cheap to ask for; 0 for a process that has just ended."""
    return _held(Path(f"/proc/{pid}/status"), "VmRSS:")


def _held(path: Path, key: str) -> float:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(key)), 0.0)
