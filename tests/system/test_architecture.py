"""ARCHITECTURE.md: a pixel passes the files of its list, in their order."""

import re
import sys
import threading
from pathlib import Path

import numpy as np
from networks import pixelwise
from scenes import Silent

from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.settings import load_settings

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "segpipe"

MOST_FILES = 12

HANDS = {
    "formats/cases.py": "find_input",
    "jobs/planning.py": "make_plan",
    "jobs/work.py": "run_job",
    "pipeline/run.py": "segmented",
    "pipeline/read.py": "windows_of",
    "formats/raster/source.py": "begin",
    "pipeline/tiles.py": "read_tile",
    "pipeline/infer.py": "weighted",
    "pipeline/blend.py": "add",
    "pipeline/decide.py": "_begun",
    "results/output.py": "write",
    "formats/raster/sink.py": "write",
}
"""The function of each file that has a pixel, or its case, in hand."""


def listed() -> list[str]:
    """The file of each step."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    section = text.split("## One pixel, from file to mask")[1].split("\n## ")[0]
    return [re.findall(r"`([\w/]+\.py)`", line)[0] for line in re.findall(r"^\d+\. .*$", section, re.MULTILINE)]


def test_a_pixel_passes_the_listed_files_in_their_order(raster, tmp_path):
    path, model = raster("a.tif", np.ones((3, 40, 50), np.uint8)), pixelwise(tmp_path / "m.onnx", tile=[64, 64])
    flags = {"input": (str(path),), "model": model, "output": tmp_path / "out", "executor": "serial", "device": "cpu"}
    calls: list[tuple[str, str]] = []

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE)):
            calls.append((Path(code.co_filename).relative_to(PACKAGE).as_posix(), code.co_name))

    sys.setprofile(note)
    threading.setprofile(note)
    try:
        summary = carry_out(prepare(load_settings(None, flags)), Silent())
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert not summary.failed
    assert len(listed()) <= MOST_FILES
    later = iter(calls)
    for file in listed():
        assert (file, HANDS[file]) in later, f"{file} has no pixel in hand after the files before it"
