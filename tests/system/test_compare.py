"""``segpipe compare``: matrices, maps and agreement of two runs; pairing.py, change.py and show_changes.py, too."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import rasterio
import volumes
from command import invoke
from later import Later
from maps import labels_of, make_map
from rasterio.enums import Resampling
from rasterio.warp import reproject

from segpipe.accuracy import show_changes
from segpipe.accuracy.change import codes
from segpipe.accuracy.compare import CompareTask, compare
from segpipe.accuracy.pairing import pairing
from segpipe.errors import InputError, SettingsError

metrics = Later("sklearn.metrics")

NAMES = {0: "class0", 1: "class1", 2: "class2"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs over the same scenes, of two models."""
    root = tmp_path_factory.mktemp("map")
    make_map(root)
    run(root, "b", networks.pixelwise(root / "b.onnx", 3, 3, seed=3))
    return root


@pytest.fixture
def both(made: Path, tmp_path: Path) -> Path:
    for name in ("out", "b"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


def run(root: Path, out: str, model: Path, *more: str) -> None:
    done = invoke(["run", "-i", "in", "-m", model, "-o", out, "--executor", "serial", "--device", "cpu", *more], root)
    assert done.returncode == 0, done.stdout


def areas(out: Path, case: str) -> dict[str, dict[str, Any]]:
    rows = json.loads((out / f"{case}.json").read_text())["statistics"]["areas"]
    return {row["class_name"]: row for row in rows}


def compared(root: Path, *more: str, code: int = 0) -> Any:
    done = invoke(["compare", "out", "b", "--json", *more], root)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_matrices_are_those_of_the_masks_and_add_up_to_the_areas(both: Path) -> None:
    found, one, two = compared(both), labels_of(both / "out"), labels_of(both / "b")
    assert [row["case"] for row in found["cases"]] == ["a", "b", "c/d"]
    for row in found["cases"]:
        x, y = (np.where(each[row["case"]] == 255, 3, each[row["case"]]).ravel() for each in (one, two))
        assert row["pixels"] == metrics.confusion_matrix(x, y, labels=range(4)).tolist()
        seen = (x < 3) & (y < 3)
        assert row["agreement"] == pytest.approx(metrics.accuracy_score(x[seen], y[seen]))
        assert row["kappa"] == pytest.approx(metrics.cohen_kappa_score(x[seen], y[seen]))
        matrix = np.array(row["amounts"])
        for out, axis in (("out", 1), ("b", 0)):
            recorded = areas(both / out, row["case"])
            wanted = [recorded[name]["area"] for name in (*NAMES.values(), "nodata")]
            assert matrix.sum(axis=axis) == pytest.approx(wanted, rel=1e-9)
    assert np.array(found["pooled"][0]["pixels"]).sum() == sum(mask.size for mask in one.values())
    assert found["pooled"][0]["unit"] == "ha"
    assert not found["failed"]


def test_matrices_of_many_cases_with_many_classes_are_left_out_case_by_case(made: Path, monkeypatch: Any) -> None:
    listed = compared(made)
    monkeypatch.setattr("segpipe.accuracy.compare.MOST_LISTED", 3 * 4 * 4 - 1)
    found = compared(made)
    assert found["pooled"] == listed["pooled"]
    assert [{"pixels", "amounts"} & {*row} for row in found["cases"]] == [set()] * 3
    assert [row.items() <= full.items() for row, full in zip(found["cases"], listed["cases"], strict=True)] == [True] * 3


def test_by_hand(both: Path) -> None:
    """Nine pixels of one hectare's hundredth each."""
    for out, rows in (("out", [[0, 0, 1], [0, 1, 1], [2, 2, 255]]), ("b", [[0, 1, 1], [0, 255, 1], [2, 0, 1]])):
        last = json.loads((both / out / "run.json").read_text())
        (both / out / "run.json").write_text(json.dumps(last | {"done": ["a"], "skipped": []}))
        with rasterio.open(both / out / "a.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as mask:
            values = np.full(mask.shape, 255, np.uint8)
            values[:3, :3] = rows
            mask.write(values, 1)
    found = compared(both)["cases"][0]
    assert (np.array(found["pixels"])[:3].tolist(), found["pixels"][3][:3]) == (
        [[2, 1, 0, 0], [0, 2, 0, 1], [1, 0, 1, 0]],
        [0, 1, 0],
    )
    assert found["agreement"] == pytest.approx(5 / 7)
    assert found["changed"] == pytest.approx(2 * 0.01, rel=2e-3)  # 10 m pixels, in UTM


def test_a_map_of_change_has_codes_names_and_colours(both: Path) -> None:
    done = invoke(["compare", "out", "b", "-o", "diff"], both)
    assert done.returncode == 0, done.stderr
    assert not list((both / "diff").glob(".*"))
    one, two = labels_of(both / "out"), labels_of(both / "b")
    code = codes(pairing(NAMES, NAMES, None))
    assert code == {(0, 1): 1, (0, 2): 2, (1, 0): 3, (1, 2): 4, (2, 0): 5, (2, 1): 6}
    for case in one:
        with (
            rasterio.open(both / "diff" / f"{case}.change.tif") as change,
            rasterio.open(both / "out" / f"{case}.tif") as mask,
        ):
            values, table, own = change.read(1), change.colormap(1), mask.colormap(1)
            assert (change.nodata, change.transform, change.crs) == (255, mask.transform, mask.crs)
            assert change.tags()["CHANGE_4"] == "class1 to class2"
        for (a, b), value in code.items():
            assert np.array_equal(values == value, (one[case] == a) & (two[case] == b))
            assert table[value] == own[b]
        assert np.array_equal(values == 0, (one[case] == two[case]) & (one[case] != 255))
        assert np.array_equal(values == 255, (one[case] == 255) | (two[case] == 255))
    text = (both / "diff" / "a.change.tif.aux.xml").read_text()
    assert "class2 to class0" in text
    with (both / "diff" / "change.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == show_changes.COLUMNS
    changed = [row for row in rows if row["case"] == "a" and row["from"] != row["to"]]
    assert len(changed) > 1
    for row in changed:
        count = int(row["pixels"])
        assert count == ((one["a"] == int(row["from_id"])) & (two["a"] == int(row["to_id"]))).sum()
        assert float(row["amount"]) == pytest.approx(count * 0.01, rel=2e-3)
    before = {path: path.read_bytes() for path in (both / "diff").rglob("*") if path.is_file()}
    assert invoke(["compare", "out", "b", "-o", "diff"], both).returncode == 0
    assert before == {path: path.read_bytes() for path in (both / "diff").rglob("*") if path.is_file()}


def test_the_second_run_may_have_another_grid(both: Path, made: Path) -> None:
    """Against GDAL's warper called by hand."""
    with rasterio.open(both / "b" / "a.tif") as mask:
        labels, place, crs = mask.read(1), mask.transform, mask.crs
    coarse = rasterio.transform.from_origin(place.c + 100, place.f - 50, 25, 25)
    moved = np.full((20, 20), 255, np.uint8)
    reproject(labels, moved, src_transform=place, src_crs=crs, dst_transform=coarse, dst_crs=crs, src_nodata=255,
              dst_nodata=255, resampling=Resampling.nearest)  # fmt: skip
    kind = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": 255, "crs": crs, "transform": coarse}
    with rasterio.open(both / "b" / "a.tif", "w", width=20, height=20, **kind) as file:
        file.write(moved, 1)
    back = np.full(labels.shape, 255, np.uint8)
    reproject(moved, back, src_transform=coarse, src_crs=crs, dst_transform=place, dst_crs=crs, src_nodata=255,
              dst_nodata=255, init_dest_nodata=True, resampling=Resampling.nearest)  # fmt: skip
    found = compared(both)
    row, first = found["cases"][0], labels_of(both / "out")["a"]
    x, y = (np.where(each == 255, 3, each).ravel() for each in (first, back))
    assert row["pixels"] == metrics.confusion_matrix(x, y, labels=range(4)).tolist()
    assert row["resampled"]
    assert "resampled onto the grids of out (nearest neighbour): 1 mask of b" in found["warnings"]


def test_classes_are_matched_by_name_whatever_their_ids(made: Path, both: Path) -> None:
    classes = [{"id": 7 - i, "name": f"class{i}", "index": i} for i in range(3)]
    values = networks.contract(3) | {"classes": classes}
    networks.Network(3, 3).conv(3, 3, 1).save(made / "ids.onnx", values, classes=3)
    run(made, "ids", made / "ids.onnx")
    plain = compared(both)
    shutil.copytree(made / "ids", both / "ids")
    done = invoke(["compare", "out", "ids", "--json"], both)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == plain


def test_classes_that_do_not_match_are_named_or_mapped(tmp_path: Path) -> None:
    two = {0: "class0", 4: "rye", 5: "oats"}
    with pytest.raises(InputError, match="only the second has 4 rye, 5 oats and only the first has 1 class1, 2 class2"):
        pairing(NAMES, two, None)
    path = tmp_path / "m.toml"
    path.write_text('[classes]\nrye = "class2"\n')
    with pytest.raises(InputError, match="only the second has 5 oats: name with --map-classes"):
        pairing(NAMES, two, path)
    path.write_text('ignore = [5]\n[classes]\nrye = "class2"\n')
    assert pairing(NAMES, two, path).others == {0: 0, 4: 2, 5: -1}
    found = pairing(NAMES, two, path).of_second(np.array([0, 4, 5, 255, 4], np.uint8), np.array([1, 1, 1, 1, 0], bool))
    assert found.tolist() == [0, 2, 3, 3, 3]
    path.write_text('[classes]\n4 = 1\noats = "class1"\n')
    assert pairing(NAMES, two, path).others == {0: 0, 4: 1, 5: 1}
    path.write_text('[classes]\nwheat = "class1"\n')
    with pytest.raises(SettingsError, match="'wheat' must be a class of the second run: 0 class0, 4 rye"):
        pairing(NAMES, two, path)


def test_volumes_change_in_millilitres(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    volumes.write(tmp_path / "in" / "v.nii.gz", volumes.voxels((21, 23, 19), "u1"), volumes.OBLIQUE)
    for seed, name in enumerate(("out", "b")):
        networks.volumetric(tmp_path / f"{name}.onnx", (8, 12, 10), scale=1 / 255, orientation="RAS", seed=seed)
        run(tmp_path, name, tmp_path / f"{name}.onnx")
    done = invoke(["compare", "out", "b", "-o", "diff"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no map of change is written of volumes: 1 case" in done.stderr
    row = json.loads((tmp_path / "diff" / "compare.json").read_text())["cases"][0]
    assert (row["unit"], row["map"]) == ("ml", None)
    for out, axis in (("out", 1), ("b", 0)):
        wanted = [one["ml"] for one in areas(tmp_path / out, "v").values()]
        assert np.array(row["amounts"]).sum(axis=axis) == pytest.approx(wanted, rel=1e-9)


def test_what_cannot_be_compared_is_named(both: Path) -> None:
    (both / "b" / "a.tif").unlink()
    found = compared(both, code=1)
    assert "the mask of a must be in" in found["failed"]["a"]
    assert [row["case"] for row in found["cases"]] == ["b", "c/d"]
    done = invoke(["compare", "out", "b", "-o", "b"], both)
    assert done.returncode == 2
    assert "--output must be a folder of its own, and b holds one of the runs" in done.stderr
    done = invoke(["compare", "out", "in"], both)
    assert done.returncode == 2
    assert "must be the output of a run" in done.stderr
    (both / "diff").mkdir()
    (both / "diff" / "b.change.tif").write_bytes(b"mine")
    found = compared(both, "-o", "diff", code=1)
    assert "b.change.tif was not written by segpipe, and would be replaced" in found["failed"]["b"]
    assert (both / "diff" / "b.change.tif").read_bytes() == b"mine"


def test_runs_without_a_common_case_are_refused(both: Path, tmp_path: Path) -> None:
    record = json.loads((both / "b" / "run.json").read_text())
    record["done"] = ["a"]
    (both / "b" / "run.json").write_text(json.dumps(record))
    done = invoke(["compare", "out", "b"], both)
    assert done.returncode == 0, done.stderr
    assert "only in out: 2 of 3 cases: b, c/d" in done.stderr
    record = json.loads((both / "out" / "run.json").read_text())
    record["done"] = ["b"]
    (both / "out" / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="both runs must have cases of the same names, and one has b, the other a"):
        compare(CompareTask(str(both / "out"), str(both / "b")))


def test_a_table_for_people(both: Path) -> None:
    done = invoke(["compare", "out", "out"], both)
    assert done.returncode == 0, done.stderr
    assert "ha: from, to" in done.stdout
    assert "0 ha changed, 0.0% of what both runs saw; overall agreement 1.0000, Cohen's kappa 1.0000" in done.stdout
