"""Standard streams that fail cost lines, not work."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import invoke
from networks import pixelwise
from scenes import PATIENCE

SEGPIPE = f"{sys.executable} -m segpipe.cli"
RUN = f"{SEGPIPE} run -i in -m m.onnx -o out --device cpu --executor"


@pytest.fixture
def shell(raster, tmp_path):
    """Run a line of bash in a folder with two scenes, one of them bad."""
    raster("in/a.tif", np.full((3, 40, 40), 9, np.uint8))
    raster("in/b.tif", np.full((3, 40, 40), 9, np.uint8))
    pixelwise(tmp_path / "m.onnx")
    return lambda line: subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@pytest.mark.parametrize("executor", ["serial", "dask --workers 1"])
def test_a_run_whose_stdout_is_full_is_done(executor, shell, tmp_path):
    done = shell(f"{RUN} {executor} > /dev/full")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == ("error: lines on stdout are lost: it cannot be written: No space left on device")
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "a.tif").exists()
    assert (tmp_path / "out" / "areas.csv").exists()


@pytest.mark.parametrize("line", ["2> /dev/full", "> /dev/full 2>&1", ">&- 2>&- <&-", "2> >(true)", "> >(true) 2> >(true)"])
def test_a_run_whose_streams_are_gone_is_done(line, shell, tmp_path):
    (tmp_path / "in" / "c.tif").write_bytes(b"no raster")
    done = shell(f"{RUN} serial --profile {line}; echo code $? > code")
    assert done.stderr == ""
    assert (tmp_path / "code").read_text() == "code 1\n"
    assert {path.name for path in Path(tmp_path / "out").glob("*.tif")} == {"a.tif", "b.tif"}


@pytest.mark.parametrize(
    "command", ["--help", "--version", "run --help", "inspect m.onnx", "status out", "run -i in -m m.onnx --dry-run"]
)
def test_a_full_stdout_is_said_and_is_no_success(command, shell, tmp_path):
    assert invoke(f"{RUN} serial".removeprefix(SEGPIPE).split(), tmp_path).returncode == 0
    done = shell(f"{SEGPIPE} {command} > /dev/full")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "cannot be written: No space left on device" in done.stderr


def test_a_reader_that_has_enough_is_no_error(shell):
    done = shell(f"set -o pipefail; {SEGPIPE} inspect m.onnx | true")
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr
