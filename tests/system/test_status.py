"""What runs leave to be looked at: status, and the log."""

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
from networks import local


@pytest.fixture
def begun(raster, segpipe, tmp_path):
    """A run of three cases, of which one cannot be read."""
    rng = np.random.default_rng(0)
    for name in ("a", "sub/b", "c"):
        raster(f"in/{name}.tif", rng.integers(1, 255, (3, 70, 90), dtype=np.uint8))
    (tmp_path / "in" / "c.tif").write_text("no raster")
    local(tmp_path / "m.onnx")
    command = ["run", "-i", "in", "-m", "m.onnx", "-o", "out put", "--executor", "serial", "--log-file", "log/run.jsonl"]
    assert segpipe(*command).returncode == 1
    return tmp_path


def test_status_tells_done_failed_and_missing_and_how_to_go_on(begun, segpipe, raster):
    raster("in/new.tif", np.ones((3, 70, 90), np.uint8))
    found = segpipe("status", "out put", "--json")
    assert found.returncode == 1
    status = json.loads(found.stdout)
    assert (status["done"], [f["case"] for f in status["failed"]], status["missing"]) == (2, ["c"], ["new"])
    assert status["running"] is None
    raster("in/c.tif", np.ones((3, 70, 90), np.uint8))
    command = shlex.split(status["command"].partition("&&")[2])
    assert segpipe(*command[1:]).returncode == 0
    again = segpipe("status", begun / "out put", cwd=begun / "in")
    assert (again.returncode, again.stdout.splitlines()[1].split(",")[0]) == (0, "4 done")


def test_the_command_that_goes_on_does_not_begin_anew(begun, segpipe):
    again = segpipe("run", "-i", "in", "-m", "m.onnx", "-o", "out put", "--executor", "serial", "--overwrite")
    assert again.returncode == 1
    written = (begun / "out put" / "a.tif").stat().st_mtime_ns
    command = shlex.split(json.loads(segpipe("status", "out put", "--json").stdout)["command"].partition("&&")[2])
    assert segpipe(*command[1:]).returncode == 1
    assert (begun / "out put" / "a.tif").stat().st_mtime_ns == written


def test_status_of_no_run_is_an_error(tmp_path, segpipe):
    found = segpipe("status", tmp_path)
    assert (found.returncode, found.stdout) == (2, "")
    assert "must be the output of a run" in found.stderr


def test_the_log_has_one_line_of_json_per_event(begun, segpipe):
    first = [json.loads(line) for line in (begun / "log" / "run.jsonl").read_text().splitlines()]
    assert [line["event"] for line in first] == ["begun", "failed", "done", "done", "ended"]
    assert {line["case"] for line in first if line["event"] == "done"} == {"a", "sub/b"}
    assert "c.tif cannot be opened" in first[1]["error"]
    assert (first[-1]["done"], first[-1]["failed"]) == (2, 1)
    command = ["run", "-i", "in", "-m", "m.onnx", "-o", "out put", "--executor", "serial", "--log-file", "log/run.jsonl"]
    segpipe(*command)
    more = [json.loads(line) for line in (begun / "log" / "run.jsonl").read_text().splitlines()]
    assert more[: len(first)] == first
    assert more[len(first)]["done_before"] == 2


def test_a_second_run_into_one_folder_is_refused(begun, segpipe):
    script = "import sys; from segpipe.storage.lock import locked; from segpipe.storage.stores import store_at\n"
    script += "with locked(store_at('out put')): print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", script], cwd=begun, stdin=-1, stdout=-1, text=True)
    assert holder.stdout.readline() == "held\n"
    refused = segpipe("run", "-i", "in", "-m", "m.onnx", "-o", "out put", "--executor", "serial")
    shown = segpipe("status", "out put")
    holder.communicate()
    assert refused.returncode == 2
    assert f"process {holder.pid} on" in refused.stderr
    assert f"written by process {holder.pid}" in shown.stdout
