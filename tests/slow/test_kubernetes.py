"""The Kubernetes recipe of docs/howto/clusters.md: hosts and processes of their own, an eviction, a kill, a Job's rules."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from scenes import PATIENCE, SEGPIPE, begin, make_model, make_scenes, make_whole, wait_until

from segpipe.storage.lock import NAME, STALE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

CONTAINER = ["unshare", "--map-root-user", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kubernetes")
    make_scenes(root)
    make_model(root / "plain.onnx")
    make_whole(root, "plain")
    return root


@pytest.fixture
def data(root: Path, tmp_path: Path) -> Path:
    """The volume."""
    shutil.copytree(root / "in", tmp_path / "scenes")
    shutil.copy2(root / "plain.onnx", tmp_path / "crops.onnx")
    return tmp_path


@pytest.fixture(scope="module")
def job() -> Any:
    (manifest,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "howto" / "clusters.md").read_text(), re.DOTALL)
    return yaml.safe_load(manifest)["spec"]


class Pods:
    """Pods of a job, one after the other."""

    def __init__(self, job: Any, data: Path) -> None:
        self._spec = job["template"]["spec"]
        self._rules = job["podFailurePolicy"]["rules"]
        self.data, self.count = data, 0

    def begin(self) -> "subprocess.Popen[str]":
        """A container on a host of its own, whose first process is the command's."""
        (container,) = self._spec["containers"]
        (mount,) = container["volumeMounts"]
        segpipe, *words = container["command"]
        assert segpipe == "segpipe"
        words = [re.sub(f"^{mount['mountPath']}", str(self.data), word) for word in words]
        self.count += 1
        script = f'hostname segpipe-{self.count} && exec "$@"'
        command = [*CONTAINER, "bash", "-c", script, "bash", *SEGPIPE, *words, "--parts", "6", "--device", "cpu"]
        return begin(ROOT, command, self.data / f"pod{self.count}.log")

    def first(self, pod: "subprocess.Popen[str]") -> int:
        """Number of the container's first process, as the node knows it."""
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pod.pid)], capture_output=True, text=True, check=True)
        return int(listed.stdout)

    def evict(self, pod: "subprocess.Popen[str]") -> int:
        os.kill(self.first(pod), signal.SIGTERM)
        return pod.wait(self._spec["terminationGracePeriodSeconds"])

    def action(self, code: int) -> str:
        """What becomes of the job."""
        if code == 0:
            return "Complete"
        found = (rule["action"] for rule in self._rules if code in rule["onExitCodes"]["values"])
        return next(found, "Count")

    def log(self) -> str:
        return (self.data / f"pod{self.count}.log").read_text()


def test_evicted_and_killed_pods_cost_nothing_that_was_done(job, data, root):
    pods, out = Pods(job, data), data / "out"
    parts = lambda: list(out.glob(".parts/*/*.npz"))  # noqa: E731
    evicted = pods.begin()
    wait_until(parts, evicted)
    assert pods.action(pods.evict(evicted)) == "Ignore", pods.log()
    lost = pods.begin()
    wait_until((out / NAME).exists, lost)
    # held open, so that no later pod gets the number of its namespace, as on another node
    space = os.open(f"/proc/{pods.first(lost)}/ns/pid", os.O_RDONLY)
    os.kill(pods.first(lost), signal.SIGKILL)
    lost.wait(PATIENCE)  # with a code of unshare's own
    assert pods.action(128 + signal.SIGKILL) == "Count"
    refused = pods.begin()
    assert pods.action(refused.wait(PATIENCE)) == "Count", pods.log()
    assert "segpipe-2" in pods.log()  # who holds the lock, as far as anybody knows
    os.close(space)
    later = time.time() - STALE - 1
    os.utime(out / NAME, (later, later))
    last = pods.begin()
    assert pods.action(last.wait(PATIENCE)) == "Complete", pods.log()
    assert sorted(p.name for p in out.glob("*.tif")) == sorted(p.name for p in (root / "whole-plain").glob("*.tif"))
    for mask in out.rglob("*.tif"):
        assert mask.read_bytes() == (root / "whole-plain" / mask.relative_to(out)).read_bytes()
    assert (out / "areas.csv").read_bytes() == (root / "whole-plain" / "areas.csv").read_bytes()


def test_a_case_that_cannot_be_done_ends_the_job(job, data):
    (data / "scenes" / "a.tif").write_bytes(b"no scene")
    pods = Pods(job, data)
    assert pods.action(pods.begin().wait(PATIENCE)) == "FailJob", pods.log()


def test_a_run_has_time_to_end_before_it_is_killed(job):
    (container,) = job["template"]["spec"]["containers"]
    grace = float(container["command"][container["command"].index("--grace") + 1])
    assert grace < job["template"]["spec"]["terminationGracePeriodSeconds"]
