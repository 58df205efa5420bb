"""A process that is killed while it writes the DICOM files of a series: the same command again leaves the same bytes."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dicom_series
import networks
import numpy as np
import pytest
from command import invoke
from scenes import SEGPIPE, assert_same, begin_and_stop, files, wait

pytestmark = pytest.mark.slow

SHAPE = (24, 240, 240)
COMMAND = ["run", "-i", "in", "-m", "model.onnx", "--device", "cpu", "--executor", "serial", "--report", "dicom"]
NAMES = {"a.nii.gz", "a.seg.dcm", "a.sr.dcm", "a.sc.dcm", "a.json"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series of blobs and noise, and what a run leaves that nobody kills."""
    root = tmp_path_factory.mktemp("series")
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, tuple(n // 12 for n in SHAPE))
    voxels = coarse.repeat(12, 0).repeat(12, 1).repeat(12, 2) + rng.integers(0, 3, SHAPE)
    dicom_series.save(root / "in" / "a", dicom_series.slices(SHAPE), voxels.astype(np.int16))
    values = networks.contract(1, 8, layout="NCDHW", tile=[16, 64, 64], overlap=[0, 0, 0], scale=1 / 255)
    networks.Network(1, 0, ndim=3).conv(1, 8, 1).save(root / "model.onnx", values, classes=8, shape=("n", 16, 64, 64))
    done = invoke([*COMMAND, "-o", "whole"], root)
    assert done.returncode == 0, done.stderr
    assert {*files(root / "whole")} >= NAMES
    return root


def open_files(process: "subprocess.Popen[str]", out: Path) -> list[str]:
    """Files without a name in the output, which a process has open."""
    try:
        links = [str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
    except OSError:
        return []
    return [link for link in links if link.startswith(str(out)) and link.endswith("(deleted)")]


def draft_of(suffix: str) -> Callable[[Any, Path], bool]:
    return lambda _, out: any(name.startswith(".") and suffix in name for name in files(out))


MOMENTS: dict[str, tuple[str, Callable[[Any, Path], Any]]] = {
    "the frames of the SEG go to a file": ("formats.dicom.seg:_image:5", open_files),
    "the SEG has a draft": ("formats.dicom.seg:check_segmentation", draft_of(".seg.dcm")),
    "the report has a draft": ("formats.dicom.sink:_write_capture", draft_of(".sr.dcm")),
    "the pictures have a draft": ("formats.dicom.capture:_pixels_digest", draft_of(".sc.dcm")),
    "the first file has its name": ("storage.files:commit:3", lambda _, out: NAMES & {*files(out)}),
}
"""Each a function that is entered then, and what there is; before the files of the case, run.json is committed."""


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_process_that_is_killed_while_it_writes_dicom_files(moment: str, root: Path, tmp_path: Path) -> None:
    out, (entered, is_there) = tmp_path / "out", MOMENTS[moment]
    command = [*SEGPIPE, *COMMAND, "-o", str(out)]
    process = begin_and_stop(root, command, tmp_path / "log", entered)
    found = is_there(process, out)
    process.send_signal(signal.SIGKILL)
    assert wait(process) == -signal.SIGKILL, process.said("not killed")
    assert found, [*files(out)]
    left = {*files(out)}
    assert "a.json" not in left
    if moment != "the first file has its name":
        assert not NAMES & left, "no file has its name before all are written"
    again = invoke([*COMMAND, "-o", str(out)], root)
    assert again.returncode == 0, again.stderr
    assert "1 done, 0 done before" in again.stderr + again.stdout
    for each in (out, root / "whole"):
        (each / "audit.jsonl").unlink(missing_ok=True)  # it has the time at which a record was written
    assert_same(out, root / "whole")
