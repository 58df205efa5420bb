"""The bundled example end to end: what ``make demo`` runs."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLASSES = ("water", "forest", "built-up", "grassland", "cereals", "maize", "rapeseed")


def test_the_demo_finds_the_true_areas_and_runs_once(segpipe, tmp_path):
    arguments = ("run", "--config", ROOT / "configs" / "crops.toml", "--input", ROOT / "examples" / "scenes")
    command = (*arguments, "--model", ROOT / "examples" / "crops.onnx", "--output", tmp_path / "out")
    first = segpipe(*command)
    assert first.returncode == 0, first.stderr
    lines = [line[len("2026-11-29 12:00:00 ") :] for line in first.stdout.splitlines()]
    assert [line.split()[1] for line in lines[:3]] == ["done"] * 3
    assert re.match("3 done, 0 done before, 0 failed in ", lines[3])
    assert [part.split()[0] for part in lines[4].removeprefix("areas: ").split(", ")] == [*CLASSES, "nodata"]
    assert lines[5:] == [f"areas in {tmp_path / 'out' / 'areas.csv'}"]
    compared = subprocess.run(
        [sys.executable, ROOT / "examples" / "compare.py", tmp_path / "out"], capture_output=True, text=True, check=False
    )
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert float(compared.stdout.rsplit("mIoU over all scenes:")[1].split()[0]) > 0.92
    masks = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tif")}
    assert [line.split()[3] for line in segpipe(*command).stdout.splitlines()[:3]] == ["skipped"] * 3
    assert {path: path.stat().st_mtime_ns for path in masks} == masks
