"""Files of the input that are not taken are counted by suffix, and said to be."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from networks import pixelwise

from segpipe.errors import InputError
from segpipe.formats.case import Case
from segpipe.formats.cases import find_cases, find_input
from segpipe.formats.left_out import count_left_out

PIXELS = np.ones((3, 20, 24), np.uint8)
LEFT = {".gif": 1, ".jpe": 1, ".mha": 1, ".mnc.gz": 2, ".svs": 2, ".txt": 1, "without suffix": 1}
OTHERS = ["a.gif", "b.JPE", "c.mha", "d.mnc.gz", "sub/e.mnc.gz", "f.svs", "sub/G.SVS", "readme.txt", "LICENSE"]
BESIDE = ["s.tif.aux.xml", "s.tfw", "s.json", "s.qml", "s_RPC.TXT", "sub/t.wld", "run.json", "areas.csv", ".hidden.svs"]


@pytest.fixture
def folder(raster, tmp_path):
    for name in ("in/s.tif", "in/sub/t.png"):
        raster(name, PIXELS)
    for name in (*OTHERS, *BESIDE):
        (tmp_path / "in" / name).touch()
    for name in ("s.tif.aux.xml", "s_RPC.TXT", "s.tfw", "sub/t.wld"):
        (tmp_path / "in" / name).unlink()
    return tmp_path / "in"


def test_files_are_counted_by_suffix(folder):
    for name in ("s.tif.aux.xml", "s_RPC.TXT", "s.tfw", "sub/t.wld"):
        (folder / name).touch()
    found = find_input([str(folder)])
    assert [case.name for case in found.cases] == ["s", "sub/t"]
    assert found.left_out == LEFT


def test_a_sidecar_of_what_is_not_there_counts(tmp_path, raster):
    raster("in/s.tif", PIXELS)
    for name in ("other.tfw", "other.json", "s.svs"):
        (tmp_path / "in" / name).touch()
    assert find_input([str(tmp_path / "in")]).left_out == {".json": 1, ".svs": 1, ".tfw": 1}


def test_globs_leave_out_what_they_match(folder):
    assert find_input([f"{folder}/*"]).left_out == {**LEFT, ".mnc.gz": 1, ".svs": 1}
    assert find_input([f"{folder}/*.tif"]).left_out == {}
    assert find_input([str(folder / "s.tif")]).left_out == {}


def test_a_folder_without_a_raster_says_what_it_holds(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.svs").touch()
    with pytest.raises(InputError, match=r"no raster or volume found in .*, and this one holds 3 \.svs"):
        find_cases([str(tmp_path / "in")])


def test_a_zarr_store_says_what_it_is(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / ".zgroup").write_text("{}")
    rule = r"a\.zarr is a Zarr store: take an array out: gdalinfo .*a\.zarr lists them, then gdal_translate 'ZARR:.*a\.zarr"
    with pytest.raises(InputError, match=rule):
        find_cases([str(tmp_path / "a.zarr")])


@pytest.mark.parametrize("more", [("--executor", "serial"), ("--dry-run",)], ids=["run", "dry run"])
def test_a_run_says_so_once(more, folder, segpipe, tmp_path):
    pixelwise(tmp_path / "m.onnx")
    done = segpipe("run", "-i", "in", "-m", "m.onnx", "--device", "cpu", *more)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("left out") == 1
    assert "left out: 1 .gif, 1 .jpe, 1 .mha, 2 .mnc.gz, 2 .svs, 1 .txt, 1 without suffix (a folder is" in done.stderr
    assert "left out" not in done.stdout
    if "--dry-run" not in more:
        assert json.loads((tmp_path / "segpipe-out" / "run.json").read_text())["left_out"] == LEFT


def test_labels_of_many_pictures_are_counted_in_little_memory():
    """Half of them have their picture; no name is kept, of which each takes 100 bytes and more."""
    labels = [f"/data/sets/landcover/images/tile_{number:06d}.txt" for number in range(20_000)]
    cases = [Case(Path(label).stem, f"{label[:-4]}.PNG") for label in labels[::2]]
    tracemalloc.start()
    try:
        assert count_left_out(labels, cases) == {".txt": 10_000}
        assert tracemalloc.get_traced_memory()[1] < 150 * len(labels)
    finally:
        tracemalloc.stop()
