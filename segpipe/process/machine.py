"""What this process may use of the machine, the limits of a container included."""

import os
import time
from contextlib import suppress
from pathlib import Path

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def processors() -> int:
    """CPUs."""
    from dask.system import cpu_count

    return int(min(cpu_count(), len(os.sched_getaffinity(0))))


def memory() -> int:
    """Bytes of memory."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in LIMITS:
        with suppress(OSError, ValueError):  # no such control group, or "max"
            found.append(int(Path(path).read_text(encoding="ascii")))
    return min(found)


def age() -> float:
    """Seconds since this process began; 0 where the kernel does not say."""
    try:
        stat = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
        ticks = int(stat.rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0
