"""What a process may use: limits of a container count, and what the kernel does not say does no harm."""

import os
import subprocess
import sys
import time

from segpipe.process import machine


def test_processors_are_those_that_the_process_may_run_on(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert machine.processors() == 1


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
