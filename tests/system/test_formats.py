"""A format that segpipe does not know goes through all of a run: cases, windows, sinks, parts, the join, records."""

import json

import numpy as np
import pytest
from arrays import MARK, Arrays, ArraySource
from networks import local, volumetric
from scenes import Silent

from segpipe.errors import SourceError
from segpipe.formats.case_scaling import STATISTICS_BLOCK
from segpipe.formats.cases import find_input
from segpipe.formats.registry import FORMATS
from segpipe.jobs import work
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.results.targets import targets
from segpipe.settings import load_settings

TILE = (8, 10, 6)
SHAPE = (21, 33, 15)


@pytest.fixture
def arrays(monkeypatch):
    family = Arrays()
    monkeypatch.setitem(FORMATS, "arrays", family.format)
    return family


@pytest.fixture
def cube(arrays, tmp_path):
    """Voxels of 8 bits; whole windows of it are zeros."""
    values = np.random.default_rng(5).integers(1, 256, SHAPE, dtype=np.uint8)
    values[:, :20, :] = 0
    (tmp_path / "in" / "deep").mkdir(parents=True)
    np.save(tmp_path / "in" / "deep" / "a.cube.npy", values)
    return tmp_path / "in"


def run(source, model, output, **flags):
    fixed = {"input": (str(source),), "model": model, "output": output, "executor": "serial", "device": "cpu"}
    return carry_out(prepare(load_settings(None, fixed | {"confidence": True, "unusual_values": "allow"} | flags)), Silent())


def left(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("a.*") if p.is_file() and p.suffix != ".json"}


NAMES = {f"deep/a{kind}" for kind in (".npy", ".words.txt", ".confidence.npy", ".confidence.words.txt")}


def test_volumes_in_parts_have_the_bytes_of_those_in_one(cube, tmp_path):
    model = volumetric(tmp_path / "m.onnx", TILE)
    whole, parts = run(cube, model, tmp_path / "whole"), run(cube, model, tmp_path / "parts", parts=5)
    assert (whole.failed, whole.done) == (parts.failed, parts.done) == ([], ["deep/a"])
    assert left(tmp_path / "whole") == left(tmp_path / "parts")
    assert set(left(tmp_path / "whole")) == NAMES
    assert (tmp_path / "whole/areas.csv").read_bytes() == (tmp_path / "parts/areas.csv").read_bytes()
    mask = np.load(tmp_path / "whole/deep/a.npy")
    assert mask.shape == (1, *SHAPE)
    values = np.load(cube / "deep/a.cube.npy")
    np.testing.assert_array_equal(mask[0] == 255, values == 0)
    record = json.loads((tmp_path / "parts/deep/a.json").read_text())
    assert record["outputs"] == sorted(record["outputs"], key=list(record["outputs"]).index)
    assert set(record["outputs"]) == NAMES
    assert record["input"]["shape"] == list(SHAPE)
    assert "read by the tests" in record["notes"]
    words = (tmp_path / "parts/deep/a.words.txt").read_text()
    assert words == f"{MARK} from {cube / 'deep/a.cube.npy'}: class"


def test_a_part_is_damaged_and_made_again_whatever_the_format(cube, tmp_path, monkeypatch):
    model = volumetric(tmp_path / "m.onnx", TILE)
    run(cube, model, tmp_path / "whole")

    def stopped(*_):
        raise SourceError("stopped before the join")

    with monkeypatch.context() as patch:
        patch.setattr(work, "join", stopped)
        run(cube, model, tmp_path / "out", parts=4)
    boxes = sorted((tmp_path / "out/.parts").glob("*/*.mask.boxes"))
    assert len(boxes) == 4
    with boxes[1].open("r+b") as stream:
        stream.seek(60)
        stream.write(b"\1\2\3")
    made = []
    part = work.run_part
    monkeypatch.setattr(work, "run_part", lambda job, context: made.append(job.number) or part(job, context))
    assert run(cube, model, tmp_path / "out", parts=4).done == ["deep/a"]
    assert made == [1]
    assert left(tmp_path / "out") == left(tmp_path / "whole")


def test_what_is_done_is_done_and_another_state_is_not(cube, tmp_path):
    model = volumetric(tmp_path / "m.onnx", TILE)
    run(cube, model, tmp_path / "out")
    assert run(cube, model, tmp_path / "out").skipped == ["deep/a"]
    (cube / "deep/a.xml").write_text("what GDAL might read with a raster")
    assert run(cube, model, tmp_path / "out").skipped == ["deep/a"]
    np.save(cube / "deep/a.cube.npy", np.ones(SHAPE, np.uint8))
    assert run(cube, model, tmp_path / "out").done == ["deep/a"]


def test_windows_that_are_known_to_be_empty_are_not_read(cube, arrays, tmp_path):
    run(cube, volumetric(tmp_path / "m.onnx", TILE), tmp_path / "out")
    values = np.load(cube / "deep/a.cube.npy")
    windows = [w for w in arrays.read if w.shape == TILE]
    assert windows
    assert all(values[tuple(map(slice, w.start, w.stop))].any() for w in windows)
    record = json.loads((tmp_path / "out/deep/a.json").read_text())
    assert record["inferred"] == len(windows) < record["windows"]


def test_files_that_segpipe_did_not_write_are_not_replaced(cube, tmp_path):
    (tmp_path / "out/deep").mkdir(parents=True)
    np.save(tmp_path / "out/deep/a.npy", np.zeros(3))
    before = (tmp_path / "out/deep/a.npy").read_bytes()
    summary = run(cube, volumetric(tmp_path / "m.onnx", TILE), tmp_path / "out")
    assert "deep/a.npy is an input or was not written by segpipe" in summary.failed[0].error
    assert (tmp_path / "out/deep/a.npy").read_bytes() == before


def test_what_is_no_longer_written_goes(cube, tmp_path):
    model = volumetric(tmp_path / "m.onnx", TILE)
    run(cube, model, tmp_path / "out")
    run(cube, model, tmp_path / "out", confidence=False, overwrite=True)
    assert set(left(tmp_path / "out")) == {name for name in NAMES if "confidence" not in name}


def test_a_case_that_is_another_format_now_leaves_nothing_of_the_one_before(cube, raster, tmp_path):
    source = raster("rasters/deep/a.tif", np.random.default_rng(0).integers(1, 256, (3, 40, 40), dtype=np.uint8))
    assert run(source.parent.parent, local(tmp_path / "2d.onnx"), tmp_path / "out").done == ["deep/a"]
    assert run(cube, volumetric(tmp_path / "m.onnx", TILE), tmp_path / "out").done == ["deep/a"]
    assert set(left(tmp_path / "out")) == NAMES


def test_a_run_of_two_formats(arrays, raster, tmp_path):
    raster("in/b.tif", np.random.default_rng(0).integers(1, 256, (1, 70, 90), dtype=np.uint8))
    np.save(tmp_path / "in/a.npy", np.random.default_rng(1).integers(1, 256, (80, 70), dtype=np.uint8))
    summary = run(tmp_path / "in", local(tmp_path / "m.onnx", 1), tmp_path / "out")
    assert (summary.failed, summary.done) == ([], ["a", "b"])
    assert np.load(tmp_path / "out/a.npy").shape == (1, 80, 70)
    assert (tmp_path / "out/b.tif").is_file()
    assert not (tmp_path / "out/a.tif").exists()


def test_a_style_lies_beside_masks_that_qgis_opens(arrays, raster, tmp_path):
    raster("in/b.tif", np.random.default_rng(0).integers(1, 256, (1, 70, 90), dtype=np.uint8))
    np.save(tmp_path / "in/a.npy", np.random.default_rng(1).integers(1, 256, (80, 70), dtype=np.uint8))
    model = local(tmp_path / "m.onnx", 1)
    assert run(tmp_path / "in", model, tmp_path / "out", style="qgis").failed == []
    assert [path.name for path in (tmp_path / "out").glob("*.qml")] == ["b.qml"]
    assert run(tmp_path / "in", model, tmp_path / "out", style="qgis").skipped == ["a", "b"]


@pytest.mark.parametrize("normalize", ["zscore", "minmax"])
def test_statistics_of_a_case_leave_out_what_is_known_to_be_empty(normalize, cube, arrays, tmp_path, monkeypatch):
    model = volumetric(tmp_path / "m.onnx", TILE, normalize=normalize)
    monkeypatch.setitem(STATISTICS_BLOCK, 3, 10)
    run(cube, model, tmp_path / "out")
    blocks = [w for w in arrays.read if w.start[1] < 20 and w.stop[1] <= 20 and w.shape != SHAPE]
    assert blocks == []
    monkeypatch.setattr(ArraySource, "empty", lambda *_: False)
    run(cube, model, tmp_path / "all")
    assert left(tmp_path / "out") == left(tmp_path / "all")


def test_a_case_that_is_empty_is_nodata(arrays, tmp_path):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in/a.npy", np.zeros(SHAPE, np.uint8))
    assert run(tmp_path / "in", volumetric(tmp_path / "m.onnx", TILE, normalize="zscore"), tmp_path / "out").done == ["a"]
    assert (np.load(tmp_path / "out/a.npy") == 255).all()


def test_names_of_outputs_are_those_of_the_format(arrays, tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    (case,) = find_input([str(tmp_path)]).cases
    assert {"a.npy", "a.words.txt", "a.confidence.npy"} < set(targets(case))
    assert "a.tif" not in targets(case)
