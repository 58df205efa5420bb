"""More cases than anybody looks at beforehand: what each is shows in the job that does it, and the bytes are the same."""

import errno
import gc
import json
import subprocess
import sys
from contextlib import chdir

import numpy as np
import pytest
import rasterio
from command import invoke
from networks import local
from scenes import SEGPIPE, Silent, assert_same, begin, begin_and_stop, go_on_until, wait

from segpipe.formats.cases import find_cases
from segpipe.jobs import plan, planning
from segpipe.jobs.case_states import CaseState
from segpipe.jobs.launch import carry_out
from segpipe.jobs.plan import JOB_WINDOWS
from segpipe.jobs.planning import MOST_OPENED
from segpipe.jobs.prepare import prepare
from segpipe.network.read import read_spec
from segpipe.results.done import done_cases
from segpipe.results.run import Run
from segpipe.settings import load_settings
from segpipe.storage.folder import Folder

SMALL, FEW = MOST_OPENED + 50, 100
OTHERS = {"large.png": (500, 700), "middle.png": (200, 200), "other.png": (200, 200)}
"""One that is too large for a job with others, and two that fill jobs."""

BYTES_A_CASE = 300
"""Name and path, of 30 to 40 characters each, included."""

JOBS_HELD = 60
"""Of 275: those under way, and those in the last few messages."""


def picture(path, shape, rng):
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"driver": "PNG", "count": 3, "dtype": "uint8", "height": shape[0], "width": shape[1]}
    with rasterio.open(path, "w", **kind) as dataset:
        dataset.write(rng.integers(0, 255, (3, *shape), dtype=np.uint8))


def make(root, count):
    """Pictures, one of them damaged, and a model."""
    rng = np.random.default_rng(0)
    for number in range(count):
        picture(root / "in" / f"{'sub/' * (number % 2)}{number:05d}.png", (20, 24), rng)
    for name, shape in OTHERS.items():
        picture(root / "in" / name, shape, rng)
    (root / "in" / "broken.png").write_bytes(b"\x89PNG no more")
    local(root / "m.onnx")
    return root


def make_seen(root, count):
    """What a run makes of them that has looked at all beforehand."""
    with chdir(root):
        flags = {"input": ("in",), "model": "m.onnx", "output": "seen", "executor": "serial", "device": "cpu"}
        prepared = prepare(load_settings(None, flags), open_all=True)
        assert not prepared.plan.unopened
        assert carry_out(prepared, Silent()).states.count(CaseState.DONE) == count + len(OTHERS)
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make(tmp_path_factory.mktemp("many"), SMALL)


@pytest.fixture(scope="module")
def root(pictures):
    return make_seen(pictures, SMALL)


@pytest.fixture(scope="module")
def made_few(tmp_path_factory):
    return make_seen(make(tmp_path_factory.mktemp("few"), FEW), FEW)


@pytest.fixture
def few(made_few, monkeypatch):
    """Fewer, of which a run in this process looks at 50 beforehand."""
    monkeypatch.setattr(planning, "MOST_OPENED", FEW - 50)
    return made_few


def command(out, *more):
    return [*SEGPIPE, "run", "-i", "in", "-m", "m.onnx", "-o", str(out), "--device", "cpu", *more]


def run(root, out, *more):
    return invoke(command(out, *more)[len(SEGPIPE) :], root)


def summary_of(out):
    return json.loads((out / "run.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("executor", [("--executor", "serial"), ("--workers", "2")], ids=["serial", "workers"])
def test_cases_that_nobody_has_looked_at_give_the_same_bytes(executor, few, tmp_path):
    ended = run(few, tmp_path / "out", *executor)
    assert ended.returncode == 1, ended.stderr
    assert [failure["case"] for failure in summary_of(tmp_path / "out")["failed"]] == ["broken"]
    assert ended.stdout.count("done  ") == FEW + len(OTHERS)
    assert_same(tmp_path / "out", few / "seen")


@pytest.mark.slow
def test_a_killed_run_of_many_goes_on_with_what_is_missing(root, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    process = begin_and_stop(root, command(out, "--workers", "2"), log, "jobs.task_queue:ended:20", times=SMALL)
    go_on_until(lambda: len(list(out.rglob("*.json"))) > SMALL // 2, process)
    process.end_all()
    done = {path: path.stat().st_mtime_ns for path in out.rglob("*.json") if path.name != "run.json"}
    assert SMALL // 2 <= len(done) < SMALL  # run.json was among those waited for
    again = begin(root, command(out, "--executor", "serial"), log)
    assert wait(again, lambda: None) == 1, log.read_text()
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert len(summary_of(out)["skipped"]) == len(done)
    assert_same(out, root / "seen")


def test_a_folder_that_cannot_be_listed_this_time_makes_no_case_undone(tmp_path, run_serial, monkeypatch):
    def fails(self, folder):
        raise OSError(errno.ESTALE, "stale", folder)

    for name in ("a", "sub/b", "sub/c"):
        picture(tmp_path / "in" / f"{name}.png", (20, 24), np.random.default_rng(0))
    out = run_serial(tmp_path / "in", local(tmp_path / "m.onnx"))
    flags = {"input": (str(tmp_path / "in"),), "model": tmp_path / "m.onnx", "output": out, "device": "cpu"}
    settings = load_settings(None, flags)
    seen, cases = Run(read_spec(settings), settings), find_cases(settings.input)
    assert len(done_cases(cases, seen)) == 3
    monkeypatch.setattr(Folder, "below", fails)
    assert len(done_cases(cases, seen)) == 3


@pytest.mark.slow
def test_a_file_in_the_place_of_a_mask_is_not_replaced_unlooked_at(few, tmp_path):
    mine = tmp_path / "out" / "00000.png"
    picture(mine, (5, 5), np.random.default_rng(1))
    before = mine.read_bytes()
    run(few, tmp_path / "out", "--executor", "serial")
    assert {f["case"]: f["error"] for f in summary_of(tmp_path / "out")["failed"]}["00000"].endswith("name another --output")
    assert mine.read_bytes() == before


def test_a_dry_run_looks_at_all(pictures, tmp_path):
    found = run(pictures, tmp_path / "out", "--dry-run", "--workers", "2")
    assert found.returncode == 1
    assert found.stdout.count("\ncase  ") == SMALL + len(OTHERS) - 1  # the first has no line before it
    assert "problem  broken" in found.stdout
    assert not (tmp_path / "out").exists()


HELD = """
import sys, tracemalloc
from segpipe.formats import cases
from segpipe.jobs import case_states
tracemalloc.start()
found = cases.find_cases(sys.argv[1:])
noted = case_states.CaseStates(found)
for case in found:
    noted.set(case.name, case_states.CaseState.DONE)
print(tracemalloc.get_traced_memory()[0])
assert noted.names(case_states.CaseState.DONE) == [case.name for case in found]
"""


def test_a_case_costs_some_hundred_bytes_however_many_there_are(tmp_path):
    def held(count):
        folder = tmp_path / f"{count}"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number:08d}.png").touch()
        alone = [sys.executable, "-c", HELD, str(folder)]  # a process of its own: this one has other threads
        return int(subprocess.run(alone, capture_output=True, text=True, check=True).stdout)

    assert (held(20_000) - held(5_000)) / 15_000 < BYTES_A_CASE


@pytest.mark.slow
def test_the_first_process_keeps_no_job_that_has_ended(root, tmp_path, monkeypatch):
    """Dask remembers a thousand messages of each connection, unless it is told not to."""
    monkeypatch.chdir(root)
    monkeypatch.setattr(plan, "JOB_WINDOWS", 2)  # in the first process alone
    monkeypatch.setattr(plan, "JOB_BATCHES", 0)
    found: list[int] = []

    class Counting(Silent):
        def outcome(self, outcome):
            if len(found) < SMALL:
                found.append(sum(type(held) is plan.Job for held in gc.get_objects()) if len(found) % 50 == 49 else 0)

    flags = {"input": ("in",), "model": "m.onnx", "output": str(tmp_path / "out"), "workers": 1, "device": "cpu"}
    carry_out(prepare(load_settings(None, flags)), Counting())
    assert len(found) == SMALL
    assert max(found) < JOBS_HELD


def test_the_large_one_is_too_large_for_a_job_with_others():
    from segpipe.geometry.windows import Cover, Tiling

    tiling = Tiling((64, 64), (16, 16), (1, 1), "gaussian")
    assert len(Cover(OTHERS["large.png"], tiling)) > JOB_WINDOWS > len(Cover(OTHERS["middle.png"], tiling))
