"""Benchmarks that no test runs break without a word, as the one for GPUs did before it was first needed."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = sorted(path.stem for path in BENCHMARKS.glob("*.py"))

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Several of torch would wait for each other beside other tests, and spin."""


def run(*words: object, **environment: str) -> str:
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=BENCHMARKS, env=os.environ | environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_one_for_gpus_runs_on_cpu_tensors_with_the_tests_for_gpus(tmp_path):
    out = tmp_path / "gpu.json"
    few = ("--models", "example", "--precisions", "fp32")
    alone = {"PYTHONWARNINGS": "ignore", **ONE_THREAD}
    printed = run("gpu.py", "--device", "cpu-tensors", "--small", *few, "--out", out, **alone)
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["finished"]
    assert found["tests"]["passed"], found["tests"]["said"]
    assert all(row["good"] for row in found["parity"].values())
    first, channels_last, other_batch = found["throughput"]
    assert 0 < first["share_of_bare"] < 2
    assert first["in_a_row_mpx_per_second"] > 0
    assert first["profile"]["stages"]["infer"]["busy_seconds"] > 0
    assert "nhwc" in channels_last["setting"]
    assert "in_a_row_mpx_per_second" not in other_batch
    assert first["setting"] in printed


@pytest.fixture
def imported(monkeypatch):
    """All of them, in this process, which may have torch and MONAI already: they take 20 s. Modules of the tests have some
    of their names, and come back."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = {name: sys.modules.pop(name, None) for name in MODULES}
    yield {name: importlib.import_module(name) for name in MODULES}
    for name, module in before.items():
        del sys.modules[name]
        if module is not None:
            sys.modules[name] = module


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
def test_all_can_be_imported_and_the_graph_for_gpus_can_be_made_anew(imported, tmp_path, monkeypatch):
    assert len(MODULES) > 15
    assert {Path(module.__file__).parent for module in imported.values()} == {BENCHMARKS}
    monkeypatch.setattr("sys.argv", ["gpu.py", "--prepare", str(tmp_path / "anew.onnx"), "--tile", "64"])
    imported["gpu"].main()
    anew, kept = (onnx.load(path) for path in (tmp_path / "anew.onnx", BENCHMARKS / "unet_resnet34.skeleton.onnx"))
    assert [node.op_type for node in anew.graph.node] == [node.op_type for node in kept.graph.node]
    assert [tensor.name for tensor in anew.graph.initializer] == [tensor.name for tensor in kept.graph.initializer]
