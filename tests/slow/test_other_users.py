"""Another user of the machine: neither runs code through a run's workers, nor has files written elsewhere."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from networks import pixelwise
from scenes import PATIENCE, arguments, begin, begin_and_stop, go_on_until, make_model, wait_until

pytestmark = [pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user"), pytest.mark.slow]

NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]

INTRUDER = """
import asyncio, os, sys, urllib.request
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from distributed import Security
from distributed.comm import connect

TELLING = ("segpipe", "plain", "large", "tls://", "pytest")
PAGES = ("/", "/health", "/metrics", "/sitemap.json", "/info/main/workers.html", "/json/counts.json")

def read(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=3) as page:
            text = page.read().decode()
            if any(word in text for word in TELLING):
                print("got in:", port, path, text, flush=True)
    except Exception as error:
        pass

async def identity(port, scheme, keys):
    terms = keys.get_connection_args("client") if keys else {}
    comm = await connect(f"{scheme}://127.0.0.1:{port}", timeout=3, **terms)
    await comm.write({"op": "identity", "reply": True})
    return await comm.read()

async def talk(port, scheme, keys):
    try:  # a server of pages waits for the end of a request that is none
        print("got in:", port, scheme, await asyncio.wait_for(identity(port, scheme, keys), 9), flush=True)
    except Exception as error:
        print("refused:", port, scheme, type(error).__name__, flush=True)

async def main():
    ways = [("tcp", None), ("tls", Security.temporary())]
    await asyncio.gather(*(talk(port, *way) for port in sys.argv[1:] for way in ways))
    with ThreadPoolExecutor(99) as pool:  # many of them wait for an answer that does not come
        list(pool.map(read, *zip(*product(sys.argv[1:], PAGES))))
    os._exit(0)

asyncio.run(main())
"""
"""What answers to this takes functions to run, too. Two pages of Dask answer everybody, and must tell nothing of a run: the
list of its pages, and the one that it has where bokeh shows none."""


@pytest.fixture
def root(tmp_path, raster):
    pixels = np.random.default_rng(0).integers(1, 256, (3, 400, 500), dtype=np.uint8)
    raster("in/large.tif", pixels)
    make_model(tmp_path / "plain.onnx")
    return tmp_path


HELD = """
import time
from pathlib import Path
import segpipe.jobs.attempts as attempts

def held(*task, whole=attempts.attempt):
    Path("begun").touch()
    while not Path("go").exists():
        time.sleep(0.01)
    return whole(*task)

attempts.attempt = held
"""
"""So that a run does not end before anybody could try."""


def ports(process):
    """On which a process and its children listen."""
    listening = set()
    for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            listening |= {c.laddr for c in one.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    return listening


def test_nobody_else_talks_to_the_scheduler_or_a_worker(root):
    (root / "held").mkdir()
    (root / "held" / "sitecustomize.py").write_text(HELD)
    held = os.environ | {"PYTHONPATH": f"{root / 'held'}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")}
    command = arguments("plain", root / "out", "--executor dask --workers 2 --parts 4")
    process = begin(root, command, root / "log", env=held)
    try:
        wait_until((root / "begun").exists, process)
        wait_until(lambda: len(ports(process)) >= 5, process)  # the scheduler, two nannies and two workers
        addresses = ports(process)
        assert {address.ip for address in addresses} == {"127.0.0.1"}
        numbers = [str(address.port) for address in addresses]
        command = [*NOBODY, sys.executable, "-c", INTRUDER, *numbers]
        tried = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True, cwd="/")
        (root / "go").touch()
        assert "got in" not in tried.stdout
        assert tried.stdout.count("refused") == 2 * len(numbers)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


TRIES = """
import os, sys
from pathlib import Path
out, victim = Path(sys.argv[1]), Path(sys.argv[2])
drafts, lock = out / ".drafts", out / ".segpipe.lock"
for name, attempt in {
    "list drafts": lambda: list(drafts.iterdir()),
    "plant a draft": lambda: (drafts / ".a.tif.partial").touch(),
    "plant a link": lambda: (drafts / ".areas.csv.partial").symlink_to(victim),
    "move drafts": lambda: drafts.rename(out / "moved"),
    "remove the lock": lock.unlink,
    "write the lock": lambda: lock.write_text("{}"),
    "touch the lock": lambda: os.utime(lock),
    "take the lock over": lambda: Path("/tmp", f"lock-{os.getpid()}").rename(lock),
    "write a mask": lambda: (out / "b.tif").touch(),
}.items():
    try:
        attempt()
        print("done:", name)
    except (PermissionError, FileNotFoundError) as error:
        print("refused:", name)
"""


@pytest.fixture
def open_folder():
    """A folder that every user reaches, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_nobody_else_reaches_drafts_and_lock_of_a_run(root, open_folder):
    out = open_folder / "out"
    command = arguments("plain", out, "--executor serial --parts 40")
    process = begin_and_stop(root, command, root / "log", "results.output:write", times=99)
    try:
        go_on_until(lambda: list(out.glob(".parts/*/*.npz")) and list((out / ".drafts").rglob("*.partial")), process)
        assert json.loads((out / ".segpipe.lock").read_text())["pid"] == process.pid
        command = [*NOBODY, sys.executable, "-c", TRIES, out, root / "victim"]
        tried = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True, cwd="/")
        assert tried.stdout.count("refused") == 9
        assert "done" not in tried.stdout
    finally:
        process.kill()
        process.wait()


def foreign_folder(path):
    path.mkdir()


def foreign_lock(path):
    path.write_text('{"mine": true}')


def device(path):
    path.symlink_to("/dev/zero")


PLANTED = {
    ".segpipe.lock": [foreign_lock, foreign_folder, os.mkfifo, device],
    ".drafts": [foreign_folder, lambda path: path.symlink_to(path.parent.parent / "victim")],
    "run.json": [foreign_lock, foreign_folder, os.mkfifo, device],
    "areas.csv": [foreign_lock, os.mkfifo],
}


RUNS = """
import sys
from scenes import Silent
from segpipe.settings import load_settings
from segpipe.errors import SegpipeError
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
for out in sys.argv[1:]:
    fixed = {"input": ("a.tif",), "model": "m.onnx", "output": out, "executor": "serial", "device": "cpu"}
    try:
        carry_out(prepare(load_settings(None, fixed)), Silent())
        print("done")
    except SegpipeError as error:
        print(error)
"""


def state(path):
    found = os.lstat(path)
    return found.st_ino, found.st_mode, found.st_uid, found.st_size, found.st_mtime_ns


def test_what_another_user_has_planted_in_a_shared_folder_gets_one_line(open_folder, raster):
    """As in ``/tmp``, where everybody writes, and removes what is his own."""
    victim = open_folder / "victim"
    victim.mkdir()
    (victim / ".run.json.partial").write_text("precious")
    raster("a.tif", np.ones((3, 40, 40), np.uint8)).rename(open_folder / "a.tif")
    pixelwise(open_folder / "m.onnx")
    plants = [(name, plant) for name, plants in PLANTED.items() for plant in plants]
    paths = [open_folder / f"out{number}" / name for number, (name, _) in enumerate(plants)]
    for path, (_, plant) in zip(paths, plants, strict=True):
        path.parent.mkdir()
        path.parent.chmod(0o1777)
        plant(path)
        os.lchown(path, 65534, 65534)
    for path in (open_folder, victim, victim / ".run.json.partial"):
        os.chown(path, 65533, 65533)
    before = [state(path) for path in paths]
    command = ["setpriv", "--reuid", "65533", "--regid", "65533", "--clear-groups", sys.executable, "-c", RUNS]
    environment = os.environ | {"HOME": str(open_folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, *(path.parent for path in paths)],
        **{"cwd": open_folder, "env": environment, "capture_output": True, "text": True, "timeout": PATIENCE},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths)
    for line, path in zip(lines, paths, strict=True):
        assert str(path) in line
        assert list(path.parent.iterdir()) == [path]
    assert [state(path) for path in paths] == before
    assert (victim / ".run.json.partial").read_text() == "precious"
