"""One run at a time per output folder."""

import json
import os
import socket
import subprocess
import sys
import time
from threading import Barrier, Semaphore, Thread

import pytest

from segpipe.errors import OutputError
from segpipe.storage.folder import Folder
from segpipe.storage.lock import NAME, STALE, locked

HOLD = """
import sys
from segpipe.storage.lock import locked
from segpipe.storage.stores import store_at
with locked(store_at(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path):
    """A process that holds the lock until it is killed."""
    return held(subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=-1, stdout=-1, text=True))


def held(process):
    assert process.stdout.readline() == "held\n"
    return process


def end(process):
    process.kill()
    process.communicate()


def test_a_second_run_is_refused_and_told_by_whom(tmp_path):
    process = holder(tmp_path)
    try:
        with pytest.raises(OutputError, match=f"process {process.pid} on {socket.gethostname()}"), locked(Folder(tmp_path)):
            pass
    finally:
        end(process)


def test_the_lock_of_a_killed_run_is_cleared(tmp_path):
    process = holder(tmp_path)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table of processes
    with locked(Folder(tmp_path)):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    end(process)
    assert list(tmp_path.iterdir()) == []


def test_a_later_process_of_the_same_number_does_not_hold_it(tmp_path):
    with locked(Folder(tmp_path)):
        mine = json.loads((tmp_path / NAME).read_text())
    (tmp_path / NAME).write_text(json.dumps(mine | {"began": "1"}))
    with locked(Folder(tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("silent", "free"), [(STALE / 2, False), (STALE * 2, True)])
def test_another_machine_holds_it_while_it_gives_signs_of_life(silent, free, tmp_path):
    path = tmp_path / NAME
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "began": "1"}))
    os.utime(path, (time.time() - silent,) * 2)
    if free:
        with locked(Folder(tmp_path)):
            pass
    else:
        with pytest.raises(OutputError, match="process 1 on elsewhere"), locked(Folder(tmp_path)):
            pass


@pytest.mark.parametrize("wrong", [-86_400.0, 86_400.0])
@pytest.mark.parametrize(("silent", "free"), [(STALE / 2, False), (STALE * 2, True)])
def test_a_wrong_clock_of_this_machine_takes_no_lock_and_leaves_none(silent, free, wrong, tmp_path, monkeypatch):
    """The file server stamps heartbeats; its clock says how old they are."""
    right = time.time
    path = tmp_path / NAME
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "began": "1"}))
    os.utime(path, (right() - silent,) * 2)
    monkeypatch.setattr(time, "time", lambda: right() + wrong)
    if free:
        with locked(Folder(tmp_path)):
            pass
        assert list(tmp_path.iterdir()) == []
    else:
        with pytest.raises(OutputError, match="process 1 on elsewhere"), locked(Folder(tmp_path)):
            pass
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.getuid() != 0, reason="a PID namespace needs root")
def test_another_container_of_this_host_holds_it(tmp_path):
    """Two containers on one volume may share the host's name and number their processes alike."""
    apart = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    command = [*apart, sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)
    try:
        held(process)
        values = json.loads((tmp_path / NAME).read_text())
        assert values["host"] == socket.gethostname()
        assert values["pid"] == 1
        with pytest.raises(OutputError, match="process 1 on"), locked(Folder(tmp_path)):
            pass
        other = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert "OutputError: one run at a time" in other.stderr
        assert (tmp_path / NAME).exists()
    finally:
        end(process)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"host": 1}', '{"host": 1, "pid": "x", "began": []}', "[" * 100_000, "null", "\x00"]
)
def test_a_lock_that_names_nobody_is_cleared(text, tmp_path):
    (tmp_path / NAME).write_text(text)
    with locked(Folder(tmp_path)):
        pass


def test_of_many_at_once_one_gets_it(tmp_path):
    barrier, got, refused = Barrier(8), [], Semaphore(0)

    def grab():
        barrier.wait()
        try:
            with locked(Folder(tmp_path)):
                got.append("held")
                for _ in range(7):  # held until all others have tried
                    refused.acquire(timeout=60)
        except OutputError:
            got.append("refused")
            refused.release()

    threads = [Thread(target=grab) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == ["held"] + ["refused"] * 7
    assert list(tmp_path.iterdir()) == []
