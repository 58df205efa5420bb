"""What this process may use of the machine, the limits of a container included."""

import os
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
