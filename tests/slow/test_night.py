"""A night without anybody watching: what fails beside the work is told, nothing is lost, and a second run completes."""

import json
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from scenes import (
    DASK,
    ONE_PROCESS,
    PROCESSES,
    SEGPIPE,
    SERIAL,
    TWO_ENDED,
    Fork,
    arguments,
    assert_same,
    begin,
    begin_and_stop,
    files,
    is_stopped,
    kill,
    make_model,
    make_scenes,
    make_whole,
    mount,
    nothing,
    wait,
    wait_until,
    workers,
)
from test_cli import left_of

pytestmark = pytest.mark.slow

PARTS = "--parts 6"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("night")
    make_scenes(root)
    make_model(root / "plain.onnx", width=8)
    make_whole(root, "plain")
    return root


@pytest.fixture
def own(root: Path, tmp_path: Path) -> Path:
    """Scenes and model that a test may damage; they look as old as the first ones."""
    shutil.copytree(root / "in", tmp_path / "in")
    shutil.copy2(root / "plain.onnx", tmp_path)
    return tmp_path


def run(root: Path, out: Path) -> tuple[int, str]:
    """A second run, in one process whatever the first was."""
    log = root / "run.log"
    return wait(begin(root, arguments("plain", out, SERIAL), log)), log.read_text()


def some_parts(out: Path) -> bool:
    return len(list(out.glob(".parts/*/*.npz"))) > 1


def failures(out: Path) -> dict[str, str]:
    return {failure["case"]: failure["error"] for failure in json.loads((out / "run.json").read_text())["failed"]}


def assert_masks(out: Path, whole: Path) -> None:
    """The same masks and tables; records differ where inputs or models are copies."""
    assert sorted(files(out)) == sorted(files(whole))
    for name, path in files(whole).items():
        if path.suffix in {".tif", ".csv", ".xml"}:
            assert (out / name).read_bytes() == path.read_bytes(), name


@pytest.mark.parametrize(
    ("executor", "kilobytes"), [*((SERIAL, k) for k in (20, 40, 60, 80, 100)), (ONE_PROCESS, 60), (PROCESSES, 100)]
)
def test_a_full_disk_is_told_and_with_room_the_rest_is_done(executor, kilobytes, root, tmp_path, mounts):
    disk, log = tmp_path / "disk", tmp_path / "log"
    disk.mkdir()
    seen, command = Path(f"/proc/{mounts}/root{disk}"), arguments("plain", disk, f"{executor} {PARTS}")[len(SEGPIPE) :]
    mount(mounts, f"mount -t tmpfs -o size={kilobytes}k tmpfs {disk}")
    code, said = wait(Fork(root, command, log, within=mounts, forked=1)), log.read_text()
    assert "Traceback" not in said
    assert code == 1, said
    assert not list(seen.rglob("*.partial"))
    assert "No space left" in said or "cannot be written" in said
    mount(mounts, f"mount -o remount,size=64m {disk}")
    assert wait(Fork(root, command, log, within=mounts, forked=1)) == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert_same(seen, root / "whole-plain")
    assert not list(disk.iterdir())


@pytest.mark.parametrize("executor", [SERIAL, PROCESSES, DASK], ids=["serial", "processes", "dask"])
def test_an_output_that_turns_read_only_is_told(executor, root, tmp_path, mounts):
    """A read-only mount laid over the folder: what is opened by its path from then on cannot be written."""
    out, log = tmp_path / "out", tmp_path / "log"
    process = begin_and_stop(root, arguments("plain", out, f"{executor} {PARTS}"), log, TWO_ENDED, within=mounts)
    mount(mounts, f"mount --bind {out} {out}; until mount -o remount,bind,ro {out}; do sleep 0.01; done")
    process.send_signal(signal.SIGCONT)
    code, said = wait(process), log.read_text()
    assert "Traceback" not in said, said
    assert code == 1, said
    assert "cannot be written" in said
    assert "Read-only file system" in said
    assert run(root, out)[0] == 0
    assert_same(out, root / "whole-plain")


def move_away(path: Path) -> Callable[[], object]:
    path.rename(path.with_suffix(".gone"))
    return lambda: path.with_suffix(".gone").rename(path)


def truncate(path: Path) -> Callable[[], object]:
    shutil.copy2(path, path.with_suffix(".kept"))
    os.truncate(path, path.stat().st_size // 3)
    return lambda: path.with_suffix(".kept").replace(path)


def replace(path: Path) -> Callable[[], object]:
    """By another scene, larger and whole."""
    shutil.copy2(path, path.with_suffix(".kept"))
    shutil.copyfile(path.parent / "larger.kept", path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)  # at once: half a file is no scene
    return lambda: path.with_suffix(".kept").replace(path)


@pytest.mark.parametrize("executor", [SERIAL, ONE_PROCESS], ids=["serial", "processes"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (move_away, "cannot be opened|has changed while"),
        (truncate, "cannot be read|has changed while"),
        (replace, "has changed while"),
    ],
    ids=["deleted", "truncated", "replaced"],
)
def test_an_input_that_goes_while_it_is_read_costs_its_case_only(damage, words, executor, own, root):
    with rasterio.open(
        own / "in" / "larger.kept", "w", driver="GTiff", width=500, height=400, count=3, dtype="uint8", nodata=0
    ) as f:
        f.write(np.full((3, 400, 500), 7, np.uint8))
    out, log = own / "out", own / "first.log"
    process = begin_and_stop(own, arguments("plain", out, f"{executor} {PARTS}"), log, TWO_ENDED)
    assert some_parts(out)
    mend = damage(own / "in" / "large.tif")
    process.send_signal(signal.SIGCONT)
    assert wait(process, nothing) == 1, log.read_text()
    assert "Traceback" not in log.read_text()
    failed = failures(out)
    assert list(failed) == ["large"]
    assert re.search(f"in/large.tif.*({words})", failed["large"]), failed
    assert not (out / "large.tif").exists()
    mend()
    code, text = run(own, out)
    assert code == 0, text
    if damage is move_away:
        assert 0 < text.count("INFO:segpipe:large: ") < 6  # the finished parts still counted
    assert_masks(out, root / "whole-plain")


def test_a_model_that_is_replaced_while_it_is_used_is_not_mixed(own):
    """Workers that were there go on with theirs; one that comes late would load the other, and the run ends."""
    out, log = own / "out", own / "first.log"
    process = begin_and_stop(own, arguments("plain", out, f"{PROCESSES} {PARTS}"), log, TWO_ENDED)
    assert some_parts(out)
    make_model(own / "new.onnx", seed=1, width=8)
    (own / "new.onnx").replace(own / "plain.onnx")
    for worker in workers(process.pid):
        kill(worker)
    process.send_signal(signal.SIGCONT)
    assert wait(process, nothing) == 1, log.read_text()
    assert "plain.onnx has changed since this run began" in log.read_text()
    assert run(own, out)[0] == 0
    make_whole(own, "plain")
    assert_same(out, own / "whole-plain")


def test_a_model_that_is_replaced_when_nobody_loads_it_is_the_next_runs(own, root):
    out, log = own / "out", own / "first.log"
    process = begin_and_stop(own, arguments("plain", out, f"{SERIAL} {PARTS}"), log, TWO_ENDED)
    assert some_parts(out)
    make_model(own / "new.onnx", seed=1, width=8)
    (own / "new.onnx").replace(own / "plain.onnx")
    process.send_signal(signal.SIGCONT)
    assert wait(process, nothing) == 0, log.read_text()
    assert_masks(out, root / "whole-plain")
    assert run(own, out)[0] == 0
    make_whole(own, "plain")
    assert_same(out, own / "whole-plain")


HANGING = """
import os, signal
from pathlib import Path
from segpipe.storage.folder import Folder

def hanging(folder, name, whole=Folder.draft):
    hung = Path(__file__).with_name("hung")
    if name.endswith(".boxes") and not hung.exists():
        hung.touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    return whole(folder, name)

Folder.draft = hanging
"""
"""A worker stands still before it writes its part, the others and its successor do not."""


@pytest.mark.parametrize("executor", [ONE_PROCESS, DASK], ids=["process", "dask"])
def test_a_worker_that_hangs_is_replaced(executor, root, tmp_path, monkeypatch):
    out, log = tmp_path / "out", tmp_path / "first.log"
    (tmp_path / "sitecustomize.py").write_text(HANGING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    process = begin(root, arguments("plain", out, f"{executor} --parts 2 --job-timeout 10"), log)
    assert wait(process, nothing) == 0, log.read_text()
    assert (tmp_path / "hung").exists()
    assert "has hung for 10 s" in log.read_text()
    assert_same(out, root / "whole-plain")
    assert left_of(process.pid) == []


STANDING = """
import os, signal, threading
from segpipe.storage.folder import Folder

def standing(folder, name, whole=Folder.draft):
    is_worker = any(thread.name == "segpipe-parent" for thread in threading.enumerate())
    if is_worker and any(folder.root.glob(".parts/*/*.npz")):
        os.kill(os.getpid(), signal.SIGSTOP)
    return whole(folder, name)

Folder.draft = standing
"""
"""Workers stand still before they write more than the first part."""


def test_a_worker_that_wakes_after_its_run_was_done_again_harms_nothing(root, tmp_path, monkeypatch):
    out = tmp_path / "out"
    (tmp_path / "sitecustomize.py").write_text(STANDING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    process = begin(root, arguments("plain", out, f"{PROCESSES} --parts 12"), tmp_path / "first.log")
    wait_until(lambda: any(map(is_stopped, workers(process.pid))), process)
    asleep = [worker for worker in workers(process.pid) if kill(worker, signal.SIGSTOP)]
    process.kill()
    process.wait()
    assert run(root, out)[0] == 0
    for worker in asleep:
        kill(worker, signal.SIGCONT)
    assert left_of(process.pid) == []
    assert_same(out, root / "whole-plain")


POISON = """
import os, time
import segpipe.jobs.attempts as attempts

def poisoned(task, *rest, whole=attempts.attempt):
    names = [case.name for case in task.cases] if hasattr(task, "cases") else [task.case.case.name]
    if "killer" in names:
        os.kill(os.getpid(), 9)
    if "sleeper" in names:
        time.sleep(1000)
    return whole(task, *rest)

attempts.attempt = poisoned
"""


@pytest.fixture
def poison(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in which a case called ``killer`` ends its worker, and ``sleeper`` sleeps; and twelve good ones."""
    shutil.rmtree(own / "in")
    (own / "in").mkdir()
    for name in ("killer", "sleeper", *(f"good{i}" for i in range(12))):
        shutil.copy2(own / "a.tif", own / "in" / f"{name}.tif")
    (own / "poison").mkdir()
    (own / "poison" / "sitecustomize.py").write_text(POISON)
    monkeypatch.setenv("PYTHONPATH", str(own / "poison"), prepend=os.pathsep)


@pytest.fixture
def a_scene(root: Path, own: Path) -> None:
    shutil.copy2(root / "in" / "a.tif", own / "a.tif")


@pytest.mark.parametrize(
    ("bad", "words"), [("killer", "lost again and again"), ("sleeper", r"longer than 6 s \d times")], ids=["kills", "hangs"]
)
def test_a_case_that_takes_every_worker_with_it_fails_alone(bad, words, a_scene, poison, own, monkeypatch):
    (own / "in" / f"{'sleeper' if bad == 'killer' else 'killer'}.tif").unlink()
    process = begin(own, arguments("plain", own / "out", f"{PROCESSES} --job-timeout 6"), own / "log")
    assert wait(process) == 1, process.said("not 1")
    failed = failures(own / "out")
    assert list(failed) == [bad], failed
    assert re.search(words, failed[bad])
    assert len(list((own / "out").glob("good*.tif"))) == 12
    monkeypatch.undo()
    assert run(own, own / "out")[0] == 0
    assert len(json.loads((own / "out" / "run.json").read_text())["skipped"]) == 12


def test_of_two_runs_at_once_the_second_is_refused(root, tmp_path):
    out, log = tmp_path / "out", tmp_path / "first.log"
    process = begin_and_stop(root, arguments("plain", out, SERIAL), log, "jobs.executors:serial")
    code, said = run(root, out)
    process.send_signal(signal.SIGCONT)
    assert code == 2
    assert f"process {process.pid} on {socket.gethostname()} does: wait for it" in said
    assert wait(process, nothing) == 0, log.read_text()
    assert_same(out, root / "whole-plain")
