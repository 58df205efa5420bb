"""The bundled example end to end: what ``make demo`` runs."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_demo_finds_the_true_areas_and_runs_once(segpipe, tmp_path):
    arguments = ("run", "--config", ROOT / "configs" / "crops.toml", "--input", ROOT / "examples" / "scenes")
    command = (*arguments, "--model", ROOT / "examples" / "crops.onnx", "--output", tmp_path / "out")
    first = segpipe(*command)
    assert first.returncode == 0, first.stderr
    assert [line.split()[3] for line in first.stdout.splitlines()[:3]] == ["done"] * 3
    compared = subprocess.run(
        [sys.executable, ROOT / "examples" / "compare.py", tmp_path / "out"], capture_output=True, text=True, check=False
    )
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert float(compared.stdout.rsplit("mIoU over all scenes:")[1].split()[0]) > 0.92
    masks = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tif")}
    assert [line.split()[3] for line in segpipe(*command).stdout.splitlines()[:3]] == ["skipped"] * 3
    assert {path: path.stat().st_mtime_ns for path in masks} == masks
