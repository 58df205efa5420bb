"""Commands over a run that has not done all of its cases: what they leave out, and that they say so."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import invoke
from maps import labels_of, make_map
from networks import pixelwise

import segpipe

ZONE = {
    "type": "Feature",
    "properties": {"id": 1},
    "geometry": {"type": "Polygon", "coordinates": [[[15, 48], [15.1, 48], [15.1, 49], [15, 49], [15, 48]]]},
}
BEGAN = 1_700_000_000
"""A time before any of the records was written."""

LACKING = "left out, because they have no mask: {} of 3 cases of the last run into {}, "

COMMANDS: dict[str, list[str]] = {
    "polygons": ["polygons", "out", "-o", "p.gpkg"],
    "mosaic": ["mosaic", "out", "-o", "map.tif"],
    "zones": ["zones", "out", "--zones", "z.geojson"],
    "sample": ["sample", "out", "--size", "30", "--minimum", "2", "-o", "points.gpkg"],
    "evaluate": ["evaluate", "--labels", "out", "--reference", "truth"],
    "compare": ["compare", "out", "whole"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over three scenes, its masks as references, and a polygon around them."""
    root = tmp_path_factory.mktemp("whole")
    out = make_map(root)
    shutil.copytree(out, root / "whole")
    for name in labels_of(out):
        (root / "truth" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(out / f"{name}.tif", root / "truth" / f"{name}.tif")
    (root / "z.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [ZONE]}))
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path


def rewrite(root: Path, **changes: Any) -> None:
    """Write other values into ``run.json``."""
    path = root / "out" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def died(root: Path, *left: str) -> None:
    """Leave what a run leaves that is killed before it comes to some cases."""
    rewrite(root, state="running", done=[], skipped=[], missing=["a", "b", "c/d"])
    os.utime(root / "out" / "run.json", (BEGAN, BEGAN))
    for name in left:
        (root / "out" / f"{name}.json").unlink()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_case_that_failed_is_named(command: str, root: Path):
    rewrite(root, done=["a", "c/d"], failed=[{"case": "b", "error": "it is damaged"}])
    (root / "out" / "b.json").unlink()
    done = invoke(COMMANDS[command], root)
    assert done.returncode == 0, done.stderr
    assert f"{LACKING.format(1, root / 'out')}b: segpipe status shows why" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_cases_of_an_interrupted_run_are_named(command: str, root: Path):
    rewrite(root, state="interrupted", interrupted=True, done=["a"], missing=["b", "c/d"])
    done = invoke(COMMANDS[command], root)
    assert done.returncode == 0, done.stderr
    assert f"{LACKING.format(2, root / 'out')}b, c/d: segpipe status shows why" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_of_a_run_that_died_the_cases_that_it_has_done_are_taken(command: str, root: Path):
    died(root, "b")
    done = invoke(COMMANDS[command], root)
    assert done.returncode == 0, done.stderr
    assert f"{LACKING.format(1, root / 'out')}b: segpipe status shows why" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_whole_run_lacks_nothing(command: str, root: Path):
    assert "left out" not in invoke(COMMANDS[command], root).stderr


@pytest.mark.parametrize("change", ["model", "settings"])
def test_masks_of_an_earlier_run_are_none_of_a_run_that_died(change: str, root: Path):
    more = ["--nodata", "7"] if change == "settings" else []
    if change == "model":
        pixelwise(root / "m.onnx", 3, 3, seed=7)
    again = ["run", "-i", "in", "-m", "m.onnx", "-o", "out", "--executor", "serial", "--device", "cpu"]
    old = {name: (root / "out" / f"{name}.json").read_bytes() for name in ("a", "b", "c/d")}
    assert invoke([*again, *more], root).returncode == 0
    new = labels_of(root / "out")
    died(root)
    for name in ("b", "c/d"):
        (root / "out" / f"{name}.json").write_bytes(old[name])
    assert segpipe.open_run(root / "out").done == ["a"]
    done = invoke([*COMMANDS["evaluate"][:3], "--reference", "out/a.tif", "--json"], root)
    assert [case["case"] for case in json.loads(done.stdout)["cases"]] == ["a"], done.stderr
    assert invoke(COMMANDS["mosaic"], root).returncode == 0
    assert (labels_of(root)["map"] == new["a"]).all()
    zones = invoke(COMMANDS["zones"], root)
    assert "of 1 polygon on 1 case:" in zones.stdout
    assert "2 of 3 cases of the last run" in zones.stderr


def test_masks_of_an_input_that_has_changed_since_are_none_of_a_run_that_died(root: Path):
    died(root)
    os.utime(root / "out" / "b.json", (BEGAN - 10, BEGAN - 10))
    assert segpipe.open_run(root / "out").done == ["a", "c/d"]


def test_a_run_names_the_cases_that_it_has_not_come_to(root: Path):
    assert json.loads((root / "out" / "run.json").read_text())["missing"] == []
