"""What a process may use: limits of a container count, and what the kernel does not say does no harm."""

import os
import subprocess
import sys
import time

import pytest
from dask.system import cpu_count

from segpipe.process import machine


def test_processors_are_those_that_the_process_may_run_on(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert machine.processors() == 1


@pytest.mark.parametrize(
    ("version", "quota", "expected"),
    [
        (2, "150000 100000", 2),
        (2, "max 100000", 8),
        (2, "1000 100000", 1),
        (2, "9000000 100000", 8),
        (1, "250000", 3),
        (1, "-1", 8),
    ],
)
def test_processors_are_within_the_quota_of_a_container(version, quota, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    (tmp_path / "cgroup").write_text("0::/box\n")
    (tmp_path / "box").mkdir()
    (tmp_path / "cpu").mkdir()
    if version == 2:
        (tmp_path / "box" / "cpu.max").write_text(f"{quota}\n")
    else:
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    for name, value in {"GROUP": tmp_path / "cgroup", "CGROUP": tmp_path, "GROUPS": (tmp_path / "cpu",)}.items():
        monkeypatch.setattr(machine, name, value)
    assert machine.processors() == expected


def test_processors_are_those_that_dask_counts():
    assert machine.processors() == min(cpu_count(), len(os.sched_getaffinity(0)))


def test_memory_is_the_least_of_the_limits(tmp_path, monkeypatch):
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "limit").write_text("1000000\n")
    for names, expected in (((), physical), (("max", "absent"), physical), (("max", "limit"), 1_000_000)):
        monkeypatch.setattr(machine, "LIMITS", tuple(str(tmp_path / name) for name in names))
        assert machine.memory() == expected


def test_age_grows_with_the_process():
    first = machine.age()
    time.sleep(0.05)
    assert 0 < first < machine.age()


def test_files_of_a_tmpfs_take_memory(tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    inner = tmp_path / "with space"
    inner.mkdir()
    lines = ["/dev/sda / ext4 rw 0 0", f"tmpfs {tmp_path} tmpfs rw 0 0", f"/dev/sdb {tmp_path}/with\\040space xfs rw 0 0"]
    mounts.write_text("\n".join(lines))
    monkeypatch.setattr(machine, "MOUNTS", str(mounts))
    assert machine.is_in_memory(tmp_path)
    assert not machine.is_in_memory(inner)
    assert not machine.is_in_memory("/")
    monkeypatch.setattr(machine, "MOUNTS", str(tmp_path / "absent"))
    assert not machine.is_in_memory(tmp_path)


def test_freed_memory_is_used_again():
    """In a process of its own: arrays of 8 MB, of which all but the first take pages that are there."""
    program = (
        "import resource, numpy as np; from segpipe.process.machine import reuse_freed_memory; reuse_freed_memory()\n"
        "def faults():\n    np.ones(2**20)\n    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "faults(); first = faults(); [faults() for _ in range(20)]; print(faults() - first)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 20 * 2048 / 4


FREED = """
import ctypes
from segpipe.process.machine import TRIM_THRESHOLD, MMAP_THRESHOLD, _held, return_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.mallopt(MMAP_THRESHOLD, 2**25), libc.mallopt(TRIM_THRESHOLD, 2**30)  # the library keeps what is freed
arrays = [libc.malloc(2**18) for _ in range(200)]
for one in arrays:
    ctypes.memset(one, 1, 2**18)
for one in arrays:
    libc.free(one)
before = _held("VmRSS")
return_freed_memory()
print(before - _held("VmRSS"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone gives memory back")
def test_freed_memory_is_given_back():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 200 * 2**18 * 0.9
