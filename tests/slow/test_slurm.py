"""A real batch system: workers as its jobs, cancelled and requeued as they work, and recipes of docs/howto/clusters.md."""

import os
import re
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from networks import local
from scenes import PATIENCE
from test_same_bytes import contents

from segpipe.jobs.batch_system import submitted
from segpipe.settings import load_settings

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


def slurm(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def jobs(name: str, state: str = "RUNNING") -> list[str]:
    return slurm("squeue", "--noheader", "--name", name, "--states", state, "--format", "%i").split()


def left_of(job: str) -> list[int]:
    """The processes that attend the job on its node: they outlive its script by a little."""
    found = subprocess.run(["pgrep", "-f", rf"slurmstepd: \[{job}\."], capture_output=True, text=True, check=False)
    return [int(process) for process in found.stdout.split()]


def wait_until(ready, seconds=250):
    for _ in range(seconds * 10):
        if found := ready():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come to that")


@pytest.fixture
def scenes(raster, tmp_path, segpipe):
    """One large case and a small one, and what a serial run makes of them."""
    rng = np.random.default_rng(8)
    for name, side in {"large": 2600, "sub/small": 90}.items():
        raster(f"in/{name}.tif", rng.integers(1, 255, (3, side, side), dtype=np.uint8))
    local(tmp_path / "m.onnx")
    reference = segpipe("run", "-i", "in", "-m", "m.onnx", "--device", "cpu", "-o", "reference", "--executor", "serial")
    assert reference.returncode == 0, reference.stderr
    return tmp_path


@pytest.fixture
def cluster(tmp_path):
    """The file that is shipped, with a job name of its own."""
    text = (ROOT / "configs" / "slurm.toml").read_text().replace('memory = "2GB"', 'memory = "1GB"')
    name = f"segpipe{os.getpid()}"
    (tmp_path / "slurm.toml").write_text(text.replace("[job]", f'[job]\njob_name = "{name}"'))
    yield name
    subprocess.run(["scancel", "--name", name], check=False)


def start(folder):
    command = [sys.executable, "-m", "segpipe.cli", "run", "-i", "in", "-m", "m.onnx", "-o", "out", "--device", "cpu"]
    command += ["--parts", "12", "--cluster", "slurm.toml"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def some_part(folder):
    return list(folder.glob("out/.parts/*/*.npz"))


@pytest.mark.parametrize("disturbance", [None, "scancel", "requeue"])
def test_workers_as_jobs_give_the_same_bytes(disturbance, scenes, cluster):
    run = start(scenes)
    if disturbance:
        wait_until(lambda: some_part(scenes) or run.poll() is not None)
        (first, *_) = wait_until(lambda: jobs(cluster))
        slurm("scancel", first) if disturbance == "scancel" else slurm("scontrol", "requeue", first)
    _, output = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, output
    assert contents(scenes / "out") == contents(scenes / "reference")
    assert not (scenes / "out" / ".parts").exists()
    wait_until(lambda: not jobs(cluster))


def greet_without_a_key(host, port):
    stranger = ssl.create_default_context()
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((host, port), 10) as plain, stranger.wrap_socket(plain) as line:
        line.sendall(b"hello")
        assert not line.recv(1)
        raise ConnectionError


def test_whoever_has_no_key_is_not_heard(tmp_path, monkeypatch):
    """Whoever reaches an open scheduler can run code."""
    monkeypatch.chdir(tmp_path)
    settings = load_settings(None, {"input": ("in",), "model": "m.onnx"})
    with submitted(ROOT / "configs" / "slurm.toml", settings) as cluster:
        scheme, host, port = re.match(r"(\w+)://([\d.]+):(\d+)", cluster.scheduler_address).groups()
        assert scheme == "tls"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            greet_without_a_key(host, int(port))
        with pytest.raises(ConnectionError):  # the dashboard is for this machine alone
            socket.create_connection((host, cluster.scheduler.services["dashboard"].port), 10)


def blocks(kind: str) -> list[str]:
    """Of docs/howto/clusters.md."""
    return re.findall(rf"```{kind}\n(.*?)```", (ROOT / "docs" / "howto" / "clusters.md").read_text(), re.DOTALL)


def submit(folder, recipe, *more):
    """A recipe as it stands, with this segpipe in its path, in parts and one process: so it can be stopped in between."""
    (folder / "night.sbatch").write_text(recipe)
    (folder / "crops.onnx").symlink_to("m.onnx")
    binary = folder / "bin" / "segpipe"
    binary.parent.mkdir()
    binary.write_text(
        f'#!/bin/bash\nPYTHONPATH={ROOT} exec {sys.executable} -m segpipe.cli "$@" --parts 30 --executor serial\n'
    )
    binary.chmod(0o755)
    path = f"PATH={binary.parent}:{os.environ['PATH']}"
    return slurm("sbatch", "--parsable", "--chdir", folder, f"--export=ALL,{path}", *more, folder / "night.sbatch").strip()


def test_the_recipe_for_an_array_has_a_folder_for_each_task(scenes, tmp_path):
    (recipe,), (lines,) = blocks("bash"), blocks("sh")
    (tmp_path / "lists").mkdir()
    for number, name in enumerate(("large", "sub/small")):
        (tmp_path / "lists" / f"{number:03}.txt").write_text(f"../in/{name}.tif\n")
    submit(tmp_path, re.sub(r"^segpipe run .*\n", lines, recipe, flags=re.MULTILINE), "--array=0-1")
    wait_until(lambda: not jobs("segpipe", "PENDING,RUNNING,COMPLETING"))
    for out, name in (("000", "large"), ("001", "sub/small")):
        mask = tmp_path / "out" / out / f"{Path(name).name}.tif"
        assert mask.read_bytes() == (scenes / "reference" / f"{name}.tif").read_bytes(), (tmp_path / "night.log").read_text()


def test_the_recipe_of_the_docs_goes_on_after_a_requeue(scenes, tmp_path):
    (recipe,) = blocks("bash")
    (tmp_path / "scenes").symlink_to("in")
    job = submit(tmp_path, recipe)
    wait_until(lambda: some_part(tmp_path))
    slurm("scancel", "--signal=TERM", "--batch", job)
    wait_until(lambda: jobs("segpipe", "PENDING"))
    # SLURM holds it back for two minutes, for what is left of the first start to go; started before, it fails at once,
    # and so it may in the second in which the first one's credential was revoked
    wait_until(lambda: not left_of(job))
    slurm("scontrol", "update", f"JobId={job}", "StartTime=now+4")
    wait_until(lambda: not jobs("segpipe", "PENDING,RUNNING,COMPLETING"))
    log = (tmp_path / "out" / "run.jsonl").read_text()
    assert log.count('"interrupted"') == 1
    assert log.count('"ended"') == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")
