"""What segpipe did not write it does not replace; what a killed run or a power cut left of its own, it does."""

import json

import numpy as np
import pytest
from networks import pixelwise
from scenes import Silent

from segpipe.errors import OutputError
from segpipe.jobs import join, plan, planning, task_queue
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.settings import load_settings
from segpipe.storage.ownership import OWN
from segpipe.terminal.journal import Journal

FOREIGN = {
    "a.json": '{"my": "settings"}',
    "a.tif.aux.xml": "<PAMDataset><PAMRasterBand band='1'/></PAMDataset>",
    "a.tif": "not a raster",
    "a.confidence.tif": "mine",
}
TABLES = {"areas.csv": "field;hectares\n1;2\n", "run.json": '{"run": 5}'}


@pytest.fixture
def run(raster, tmp_path):
    """A run over two scenes; its summary comes back."""
    raster("in/a.tif", np.full((3, 40, 40), 9, np.uint8))
    raster("in/b.tif", np.full((3, 40, 40), 9, np.uint8))
    pixelwise(tmp_path / "m.onnx")
    (tmp_path / "out").mkdir()
    fixed = {"input": (str(tmp_path / "in"),), "model": tmp_path / "m.onnx", "output": tmp_path / "out"}
    fixed |= {"executor": "serial", "device": "cpu", "confidence": True}
    return lambda **more: carry_out(prepare(load_settings(None, fixed | more)), Silent())


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_of_a_case_stays_and_fails_that_case(name, run, tmp_path):
    foreign = tmp_path / "out" / name
    foreign.write_text(FOREIGN[name])
    for overwrite in (False, True, False):
        summary = run(overwrite=overwrite)
        (failure,) = summary.failed
        assert f"{name} is an input or was not written by segpipe" in failure.error
        assert foreign.read_text() == FOREIGN[name]
    assert (tmp_path / "out" / "b.tif").exists()


@pytest.mark.parametrize("name", TABLES)
def test_a_foreign_table_stays_and_nothing_is_begun(name, run, tmp_path):
    (tmp_path / "out" / name).write_text(TABLES[name])
    with pytest.raises(OutputError, match=f"out/{name} was not written by segpipe, and would be replaced: move it away"):
        run()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


@pytest.mark.parametrize("name", ["areas.csv", "run.json", "a.json", "b.json"])
@pytest.mark.parametrize("left", [b"", b"\0" * 300])
def test_what_a_power_cut_leaves_is_replaced(name, left, run, tmp_path):
    run()
    (tmp_path / "out" / name).write_bytes(left)
    assert run().failed == []
    assert (tmp_path / "out" / name).read_bytes().strip(b"\0")


LEFT = {
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "cut": lambda data: data[: len(data) // 2],
}


@pytest.mark.parametrize("which", ["all", "masks", "class0"])
@pytest.mark.parametrize("how", LEFT)
def test_all_files_of_a_case_that_a_power_cut_has_damaged_at_once_are_made_again(how, which, run, tmp_path):
    """Record and masks of a small case are not flushed, and may be lost together; the first run is the oracle."""
    run(per_class=True)
    out = tmp_path / "out"
    whole = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file() and path.suffix != ".json"}
    own = [path for path in [*whole, out / "a.json"] if path.relative_to(out).parts[0].startswith("a.")]
    masks = [path for path in own if path.suffix == ".tif"]
    assert len(masks) == 5  # its mask, its confidence and three classes
    for path in {"all": own, "masks": masks, "class0": [out / "a.classes" / "class0.tif"]}[which]:
        path.write_bytes(LEFT[how](path.read_bytes()))
    summary = run(per_class=True)
    assert (summary.done, summary.skipped, summary.failed) == (["a"], ["b"], [])
    assert {path: path.read_bytes() for path in whole} == whole


def test_a_mask_and_a_sidecar_without_a_record_are_known(run, tmp_path):
    """A run was killed between the mask and the record."""
    run()
    for name in ("a.json", "b.json", "b.tif"):
        (tmp_path / "out" / name).unlink()
    assert run().done == ["a", "b"]


@pytest.mark.parametrize("seen", ["before", "when it is finished"])
def test_a_case_does_not_replace_one_that_the_file_system_takes_for_it(seen, run, raster, tmp_path, monkeypatch):
    """Links show what exFAT and shares of Windows do: files of ``a`` are found under the names of ``A``, too."""
    run()
    for name in ("a.tif", "a.json", "a.confidence.tif", "a.tif.aux.xml"):
        (tmp_path / "out" / f"A{name[1:]}").hardlink_to(tmp_path / "out" / name)
    if seen != "before":
        monkeypatch.setattr(planning, "refuse_taken", lambda *_: None)  # as if a worker had written them meanwhile
    before = (tmp_path / "out" / "a.tif").read_bytes()
    raster("in/A.tif", np.full((3, 40, 40), 200, np.uint8))
    summary = run()
    (failure,) = summary.failed
    assert failure.case.name == "A"
    assert "has files of a under the name A: rename one of them, or give them outputs of their own" in failure.error
    assert (tmp_path / "out" / "a.tif").read_bytes() == before
    assert sorted(summary.skipped) == ["a", "b"]


def test_an_input_named_as_trace_stays(run, tmp_path):
    before = (tmp_path / "in" / "a.tif").read_bytes()
    with pytest.raises(OutputError, match=r"--profile replaces its file, and .*a\.tif is no trace"):
        run(profile=tmp_path / "in" / "a.tif")
    assert (tmp_path / "in" / "a.tif").read_bytes() == before
    run(profile=tmp_path / "trace.json")
    run(profile=tmp_path / "trace.json", overwrite=True)
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_an_input_named_as_log_stays(raster, tmp_path):
    scene, log = raster("a.tif", np.full((3, 40, 40), 9, np.uint8)), tmp_path / "log.jsonl"
    before = scene.read_bytes()
    with pytest.raises(OutputError, match=r"--log-file appends to its file, and .*a\.tif is no log"):
        Journal(scene, Silent())
    assert scene.read_bytes() == before
    for _ in range(2):
        with Journal(log, Silent()) as journal:
            journal.log("note", message="x")
    assert log.read_text().count("\n") == 2


@pytest.mark.parametrize("seen", ["before the parts", "when they are joined"])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_of_a_large_case_that_nobody_has_looked_at_stays(seen, name, run, raster, tmp_path, monkeypatch):
    """Such a case is handed back by its job, cut, and done in parts."""
    monkeypatch.setattr(planning, "MOST_OPENED", 0)
    monkeypatch.setattr(plan, "JOB_WINDOWS", 1)
    monkeypatch.setattr(plan, "JOB_BATCHES", 1)
    if seen != "before the parts":
        monkeypatch.setattr(task_queue, "_refused", lambda *_: None)  # as if somebody had put it there meanwhile
    joined = []
    monkeypatch.setattr(join, "forget_parts", lambda output, case: joined.append(case.name))
    for case in ("a", "b"):
        raster(f"in/{case}.tif", np.full((3, 150, 150), 9, np.uint8))
    foreign = tmp_path / "out" / name
    foreign.write_text(FOREIGN[name])
    summary = run(parts=2, tile=32, batch=1)
    (failure,) = summary.failed
    assert f"{name} is an input or was not written by segpipe" in failure.error
    assert foreign.read_text() == FOREIGN[name]
    assert joined == summary.done == ["b"]


def test_all_that_a_run_leaves_beside_its_cases_is_known_as_its_own(run, tmp_path):
    run(profile=True)
    left = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert {name for name in left if not name.startswith(("a.", "b.", "."))} == OWN - {
        "audit.csv",
        "audit.jsonl",
        "lesions.csv",
        "zones.csv",
    }  # of --audit, of series, of --lesions and of --zones
