"""Runs with --lesions and --instances: same bytes for parts and workers, resuming, what is refused; lesions/rule.py, too."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import cc3d
import networks
import nibabel
import numpy as np
import pytest
import rasterio
import volumes
from command import invoke

from segpipe.results import tables
from segpipe.results.lesions import components
from segpipe.results.lesions.statistic import CONFIDENCE, FIRST, IMAGE, INTENSITY, VOLUME
from segpipe.storage.folder import Folder

TILE = (8, 12, 10)
LESIONS = ["--lesions", "--min-size", "6"]
ALL = [*LESIONS, "--instances", "--confidence"]


def make(root: Path) -> Path:
    networks.volumetric(root / "model.onnx", TILE, scale=1 / 255, orientation="RAS")
    (root / "in").mkdir()
    volumes.write(root / "in" / "a.nii.gz", volumes.voxels((25, 23, 21), "u1"), volumes.OBLIQUE)
    volumes.write(root / "in" / "b.nii", volumes.voxels((9, 13, 10), "u1", 1))
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``whole``, which one process makes in one piece."""
    root = make(tmp_path_factory.mktemp("lesions"))
    assert run(root, "-o", "whole", *ALL).returncode == 0
    return root


def run(root: Path, *more: str, model: str = "model.onnx", executor: str = "serial") -> Any:
    done = invoke(["run", "-i", "in", "-m", model, "--device", "cpu", "--executor", executor, *more], root)
    done.stderr += done.stdout
    return done


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "lesions.csv").open() as stream:
        return list(csv.DictReader(stream))


def record(out: Path, case: str = "a") -> dict[str, Any]:
    return json.loads((out / f"{case}.json").read_text())


def same(out: Path, other: Path) -> None:
    """All files but those that hold times."""
    names = {path.name for path in out.iterdir() if path.suffix != ".json"}
    assert names == {path.name for path in other.iterdir() if path.suffix != ".json"}
    assert all((out / name).read_bytes() == (other / name).read_bytes() for name in names)
    for case in "ab":
        assert {key: record(out, case)[key] for key in ("statistics", "lesions", "outputs", "sizes")} == {
            key: record(other, case)[key] for key in ("statistics", "lesions", "outputs", "sizes")
        }


def test_the_table_and_the_instances_are_those_of_the_mask(folder: Path) -> None:
    done = run(folder, "-o", "out", *LESIONS, "--instances")
    assert done.returncode == 0, done.stderr
    assert "lesions in out/lesions.csv" in done.stderr
    out = folder / "out"
    mask, instances = (nibabel.load(out / f"a{kind}.nii.gz") for kind in ("", ".instances"))
    labels, numbers = np.asarray(mask.dataobj), np.asarray(instances.dataobj)
    assert numbers.dtype == np.uint16
    assert np.array_equal(instances.affine, mask.affine)
    own = [row for row in rows(out) if row["case"] == "a"]
    cell = abs(np.linalg.det(mask.affine[:3, :3]))
    expected = 0
    for value in (1, 2):
        found, count = cc3d.connected_components((labels == value).astype(np.uint8), connectivity=26, return_N=True)
        sizes = np.bincount(found.ravel(), minlength=count + 1)
        expected += sum(size * cell >= 6 for size in sizes[1:])
        for row in (row for row in own if row["class_id"] == str(value)):
            index = np.argwhere(numbers == int(row["component"]))
            assert len(index) == int(row["voxels"]) == sizes[found[tuple(index[0])]]
            assert (found[tuple(index.T)] == found[tuple(index[0])]).all()
            assert [float(row[f"centroid_{a}"]) for a in "ijk"] == pytest.approx(index.mean(axis=0), abs=1e-4)
    assert len(own) == expected == numbers.max() > 2
    assert sum(row["below_min_size"] for row in record(out)["lesions"]["counts"]) > 0
    areas = {row["class_id"]: row for row in record(out)["statistics"]["areas"]}  # totals in mm3 and ml
    for row in record(out)["lesions"]["counts"]:
        total = sum(int(one["voxels"]) for one in own if one["class_id"] == str(row["class_id"]))
        assert total + row["voxels_below_min_size"] == areas[row["class_id"]]["pixels"]
        assert areas[row["class_id"]]["ml"] == pytest.approx(areas[row["class_id"]]["area"] / 1000)


@pytest.mark.parametrize("parts", ["1", "2", "7"])
def test_parts_leave_the_same_bytes(root: Path, tmp_path: Path, parts: str) -> None:
    done = run(root, "-o", f"{tmp_path}/cut", *ALL, "--parts", parts)
    assert done.returncode == 0, done.stderr
    same(tmp_path / "cut", root / "whole")
    assert not list((tmp_path / "cut").glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "3"])
def test_workers_leave_the_same_bytes(root: Path, tmp_path: Path, workers: str) -> None:
    done = run(root, "-o", f"{tmp_path}/cut", *ALL, "--workers", workers, "--parts", "4", executor="dask")
    assert done.returncode == 0, done.stderr
    same(tmp_path / "cut", root / "whole")


def test_many_merges_on_the_way_change_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "PENDING_ROWS", 4)
    monkeypatch.setattr(components, "PENDING_POINTS", 4)
    assert run(root, "-o", f"{tmp_path}/cut", *ALL, "--parts", "3").returncode == 0
    same(tmp_path / "cut", root / "whole")


def test_a_damaged_part_is_made_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its names of components have changed on the disk before the join."""
    from segpipe.jobs import work

    join, struck = work.join, []

    def strike(job, context):
        for path in sorted((tmp_path / "cut").glob(".parts/a.*/000001.instances.boxes")) if not struck else []:
            data = bytearray(path.read_bytes())
            data[40] ^= 1
            path.write_bytes(data)
            struck.append(path)
        return join(job, context)

    monkeypatch.setattr(work, "join", strike)
    done = run(root, "-o", f"{tmp_path}/cut", *ALL, "--parts", "3")
    assert done.returncode == 0, done.stderr
    assert struck
    assert "the part is processed again" in done.stderr
    same(tmp_path / "cut", root / "whole")


def test_without_the_setting_records_and_masks_are_as_before(folder: Path) -> None:
    assert run(folder, "-o", "plain").returncode == 0
    assert run(folder, "-o", "with", *LESIONS).returncode == 0
    plain, measured = record(folder / "plain"), record(folder / "with")
    assert "lesions" not in {*plain, *plain["statistics"]}
    assert not (folder / "plain" / "lesions.csv").exists()
    assert plain["settings"] == measured["settings"]
    for name in ("a.nii.gz", "b.nii", "areas.csv"):
        assert (folder / "plain" / name).read_bytes() == (folder / "with" / name).read_bytes()


def test_a_later_run_does_again_what_was_measured_by_another_rule(folder: Path) -> None:
    assert "2 done, 0 done before" in run(folder).stderr
    assert "2 done, 0 done before" in run(folder, "--lesions").stderr
    assert "0 done, 2 done before" in run(folder, "--lesions").stderr
    assert "0 done, 2 done before" in run(folder).stderr  # the masks are there
    assert "2 done, 0 done before" in run(folder, *LESIONS).stderr
    assert "2 done, 0 done before" in run(folder, *LESIONS, "--instances").stderr
    assert (folder / "segpipe-out" / "a.instances.nii.gz").exists()
    assert "2 done, 0 done before" in run(folder, "--lesions", "class2").stderr
    assert not (folder / "segpipe-out" / "a.instances.nii.gz").exists()
    assert {row["class_name"] for row in rows(folder / "segpipe-out")} == {"class2"}
    (folder / "segpipe-out" / "lesions.csv").unlink()
    assert "0 done, 2 done before" in run(folder, "--lesions", "2").stderr
    assert {row["case"] for row in rows(folder / "segpipe-out")} == {"a", "b"}


def test_no_table_of_an_earlier_run_stays_beside_those_of_a_later_one(folder: Path) -> None:
    run(folder, "--lesions")
    assert rows(folder / "segpipe-out")
    assert run(folder).returncode == 0
    assert not (folder / "segpipe-out" / "lesions.csv").exists()


def test_a_first_class_that_is_left_out_is_named(folder: Path) -> None:
    assert "leaves out class 0, class0, as the background: name the classes" in run(folder, "--lesions").stderr
    assert "as the background" not in run(folder, "--lesions", "0,1,2").stderr


@pytest.mark.parametrize("name", ["lesions.csv", "a.instances.nii.gz"])
def test_files_of_somebody_else_stay(folder: Path, name: str) -> None:
    out = folder / "segpipe-out"
    out.mkdir()
    if name.endswith(".csv"):
        (out / name).write_text("lesion;size\n1;2\n")
    else:
        volumes.write(out / name, volumes.voxels())
    before = (out / name).read_bytes()
    done = run(folder, "--lesions", "--instances")
    assert done.returncode != 0
    assert f"{name} " in done.stderr
    assert "was not written by segpipe" in done.stderr
    assert (out / name).read_bytes() == before
    (out / "a.json").unlink(missing_ok=True)
    assert run(folder).returncode == 0  # which would not replace it
    assert (out / name).read_bytes() == before


@pytest.mark.parametrize(("flags", "said"), [(["--min-size", "5"], "min_size"), (["--instances"], "instances")])
def test_flags_that_need_lesions_say_so(folder: Path, flags: list[str], said: str) -> None:
    done = run(folder, *flags)
    assert done.returncode == 2
    assert f"{said} needs lesions: give --lesions, too, or leave {flags[0]} out" in done.stderr


def test_a_case_whose_mask_would_be_the_instances_of_another_fails(folder: Path) -> None:
    volumes.write(folder / "in" / "b.instances.nii", volumes.voxels((12, 13, 14), "u1", 1))
    assert run(folder, "-o", "plain").returncode == 0
    done = run(folder, "-o", "out", "--lesions", "--instances")
    assert done.returncode == 1
    assert "with --instances the names *.instances are reserved, got" in done.stderr
    assert (folder / "out" / "b.instances.nii").exists()


def test_the_memory_of_components_is_part_of_what_a_dry_run_expects(folder: Path) -> None:
    expected = [
        int(re.search(r"about ([\d,]+) MB of memory", run(folder, "--dry-run", *more).stderr)[1].replace(",", ""))
        for more in ([], ["--lesions"])
    ]
    assert 60 <= expected[1] - expected[0] < 100


def test_an_unknown_class_ends_the_run_before_it_begins(folder: Path) -> None:
    done = run(folder, "--lesions", "tumour")
    assert done.returncode == 2
    assert "--lesions must name classes of the contract, got tumour" in done.stderr


def test_too_many_components_are_counted_and_a_note_names_min_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "MOST_LISTED", 5)
    monkeypatch.setattr("segpipe.results.case_record.MOST_LISTED", 5)
    assert run(folder, "-o", "out", "--lesions", "--instances").returncode == 0
    out = folder / "out"
    assert sum(row["case"] == "a" for row in rows(out)) == 5
    assert "raise --min-size" in record(out)["notes"][-1]
    assert sum(row["not_listed"] for row in record(out)["lesions"]["counts"]) > 0
    numbers = np.asarray(nibabel.load(out / "a.instances.nii.gz").dataobj)
    assert set(np.unique(numbers)) == set(range(6))


@pytest.mark.parametrize("parts", [[], ["--parts", "4"]])
def test_rasters_are_measured_on_the_ground(tmp_path: Path, raster: Any, parts: list[str]) -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (3, 150, 210), dtype=np.uint8)
    pixels[:, :40, :60] = 0
    raster("in/a.tif", pixels, nodata=0)
    networks.local(tmp_path / "m.onnx", 3, 4, tile=[64, 64], overlap=[16, 16], align=8)
    done = run(tmp_path, "-o", "out", "--lesions", "--instances", *parts, model="m.onnx")
    assert done.returncode == 0, done.stderr
    with rasterio.open(tmp_path / "out" / "a.tif") as mask, rasterio.open(tmp_path / "out" / "a.instances.tif") as numbers:
        labels, found = mask.read(1), numbers.read(1)
    expected = sum(
        int(cc3d.connected_components((labels == k).astype(np.uint8), connectivity=8, return_N=True)[1]) for k in (1, 2, 3)
    )
    own = rows(tmp_path / "out")
    assert len(own) == expected == len(np.unique(found)) - 1
    assert {row["unit"] for row in own} == {"ha"}
    assert "intensity_mean_1" in own[0] or any(key.startswith("intensity_mean_") for key in own[0])


def test_a_picture_has_its_instances_beside_it(tmp_path: Path, raster: Any) -> None:
    from PIL import Image

    (tmp_path / "in").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(1, 256, (50, 60, 3), dtype=np.uint8)).save(tmp_path / "in" / "p.png")
    networks.local(tmp_path / "m.onnx", 3, 4, tile=[64, 64], overlap=[16, 16], align=8)
    done = run(tmp_path, "-o", "out", "--lesions", "--instances", model="m.onnx")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "p.instances.tif").exists()
    assert {row["unit"] for row in rows(tmp_path / "out")} == {"px"}
    assert "0 done, 1 done before" in run(tmp_path, "-o", "out", "--lesions", "--instances", model="m.onnx").stderr


def test_columns_are_those_of_the_formats_of_a_run(folder: Path) -> None:
    assert run(folder, "-o", "out", "--lesions").returncode == 0
    with (folder / "out" / "lesions.csv").open() as stream:
        head = next(csv.reader(stream))
    assert head == [*FIRST, *VOLUME, "intensity_mean", "intensity_min", "intensity_max"]
    assert {*record(folder / "out")["statistics"]["lesions"][0], "case"} == {*head}
    assert tables.LESIONS == "lesions.csv"
    assert Folder(folder / "out").has(tables.LESIONS)
    assert not {*IMAGE} <= {*head}


def test_the_page_names_each_column_once() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "lesions-csv.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert sorted(named) == sorted({*FIRST, *VOLUME, *IMAGE, *CONFIDENCE, *INTENSITY})
