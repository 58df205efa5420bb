"""Resources of the machine that this process may use, within the limits of a container."""

import ctypes
import math
import os
import re
import resource
import sys
import time
from contextlib import suppress
from functools import cache
from operator import itemgetter
from pathlib import Path

GROUP, CGROUP = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
GROUPS = (CGROUP / "cpuacct,cpu", CGROUP / "cpu,cpuacct")

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of these options in glibc's ``malloc.h``."""

MOUNTS = "/proc/self/mounts"

IN_MEMORY = {"tmpfs", "ramfs"}
"""File systems that keep their files in memory."""


def processors() -> int:
    """Number of usable CPUs: those that this process may run on, within the quota of its control group.

    The rule of Dask's ``cpu_count``, which takes a fifth of a second to import.
    """
    allowed = len(os.sched_getaffinity(0))
    quota = _quota(GROUPS, GROUP, CGROUP)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


@cache
def _quota(folders: tuple[Path, ...], own: Path, root: Path) -> float | None:
    """Processors that the control group may use; None without a limit. Read once in a process, since each case asks."""
    for folder in folders:  # version 1
        with suppress(OSError, ValueError):
            quota, period = (
                int((folder / name).read_text(encoding="ascii")) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            )
            return quota / period if quota > 0 < period else None
    with suppress(OSError, ValueError):  # version 2; "max" is no number
        group = own.read_text(encoding="utf-8", errors="surrogateescape").strip().rpartition(":")[2].strip("/")
        quota, period = map(int, (root / group / "cpu.max").read_text(encoding="ascii").split())
        return quota / period if quota > 0 < period else None
    return None


def memory() -> int:
    """Usable memory in bytes."""
    return _least(LIMITS)


@cache
def _least(limits: tuple[str, ...]) -> int:
    """The memory of the machine, or the least limit of those that there are. Read once in a process, since each job asks."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in limits:
        with suppress(OSError, ValueError):  # no such control group, or "max"
            found.append(int(Path(path).read_text(encoding="ascii")))
    return min(found)


def is_in_memory(folder: str | Path) -> bool:
    """Whether a folder is kept in memory, as on a tmpfs; False if the kernel does not say."""
    place, mounted = Path(folder).resolve(), [(0, "")]
    with suppress(OSError):
        for line in Path(MOUNTS).read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            _, mount, kind, *_ = line.split(" ")
            path = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), mount))
            if place.is_relative_to(path):
                mounted.append((len(path.parts), kind))
    return max(mounted, key=itemgetter(0))[1] in IN_MEMORY


def resident() -> int:
    """Memory of this process in bytes, without freed memory; the peak so far if the kernel does not report it."""
    return_freed_memory()
    return _held("VmRSS")


def return_freed_memory() -> None:
    """Let the C library give freed memory back to the kernel.

    A small object that lives on may lie in the space of a large freed array, which then fits no second one: a process that
    keeps a little of each of thousands of files grows by an array for each.
    """
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def reuse_freed_memory() -> None:
    """Let the C library keep freed memory of arrays for the next ones, up to 64 MiB of it, in this process.

    Otherwise each array of more than a few hundred kilobytes may be new memory, whose pages the kernel clears first. Workers
    get the same by their environment.
    """
    with suppress(OSError, AttributeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        for option, size in ((TRIM_THRESHOLD, 2**26), (MMAP_THRESHOLD, 2**25)):
            mallopt(option, size)


def most_resident() -> int:
    """Peak memory of this process in bytes since ``forget_most_resident``."""
    return _held("VmHWM")


def forget_most_resident() -> None:
    """Reset the peak to the memory in use now, if the kernel supports that."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _held(key: str) -> int:
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used


def age() -> float:
    """Seconds since the start of this process; 0 where the kernel does not report it."""
    try:
        stat = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
        ticks = int(stat.rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0
