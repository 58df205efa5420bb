"""Lists of models: the joined map is that of the single runs joined by hand, whatever the workers, parts and kills."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import dicoms
import model_lists
import nibabel as nib
import numpy as np
import pytest
import rasterio
import volumes
from command import invoke
from conftest import SHARED
from model_lists import PARTS, joined_by_hand, labels, numbered

import segpipe
from segpipe.jobs.tasks import Halt

TINY = {name: PARTS[name] for name in ("organs", "cardiac")}


def run(root: Path, out: Any, *more: Any, code: int = 0) -> Any:
    where = [] if "--executor" in more else ["--executor", "serial"]
    done = invoke(["run", "-i", "in", "-m", "total.toml", "-o", out, "--device", "cpu", *where, *map(str, more)], root)
    assert done.returncode == code, done.stderr + done.stdout
    return done


def files(folder: Path) -> dict[str, bytes]:
    """Masks and tables of the joined run, without those of its models."""
    kinds = {".tif", ".csv", ".gz", ".nrrd", ".png"}
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix in kinds}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five models, two volumes, and their joined run."""
    root = tmp_path_factory.mktemp("lists")
    (root / "in").mkdir()
    for k, shape in enumerate([(15, 14, 16), (9, 11, 8)]):
        volumes.write(root / "in" / f"{'ab'[k]}.nii.gz", volumes.voxels(shape, seed=k), volumes.OBLIQUE)
    model_lists.write(root)
    run(root, "whole", "--confidence")
    return root


def test_the_joined_map_is_that_of_single_runs_joined_by_hand(root: Path, tmp_path: Path) -> None:
    masks: dict[str, dict[str, np.ndarray]] = {"a": {}, "b": {}}
    for name in PARTS:
        segpipe.run(root / "in", root / f"{name}.onnx", tmp_path / name, executor="serial", device="cpu")
        for case, own in masks.items():
            own[name] = labels(tmp_path / name / f"{case}.nii.gz")
    for case, own in masks.items():
        found, truth = labels(root / "whole" / f"{case}.nii.gz"), joined_by_hand(own)
        assert (found == truth).all()
        assert len(np.unique(truth)) > 6  # of 11: otherwise nothing was shown
        claims = sum((mask > 0).astype(int) for mask in own.values())
        assert (claims > 1).any()
        assert ((found == 0) == (claims == 0)).all()
    assert found.dtype == np.uint8


def test_the_table_has_every_class_with_its_joined_name_and_volume(root: Path) -> None:
    with (root / "whole" / "areas.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["case"] == "a"]
    assert {row["class_name"]: row["class_id"] for row in rows if row["class_id"] not in ("", "0")} == {
        name: str(k) for name, k in numbered().items()
    }
    found, cell = labels(root / "whole" / "a.nii.gz"), abs(np.linalg.det(volumes.OBLIQUE[:3, :3]))
    for row in rows[:-1]:
        count = int((found == int(row["class_id"])).sum())
        assert int(row["pixels"]) == count
        assert float(row["area"]) == pytest.approx(count * cell, rel=1e-5)


def test_the_confidence_is_that_of_the_winner_or_the_least_where_all_say_background(root: Path) -> None:
    likely, found = labels(root / "whole" / "a.confidence.nii.gz"), labels(root / "whole" / "a.nii.gz")
    stored = np.asarray(nib.load(root / "whole" / "a.confidence.nii.gz").dataobj.get_unscaled())
    truth = np.full(found.shape, 254)
    for name in PARTS:
        folder = root / "whole" / ".models" / name
        own = np.asarray(nib.load(folder / "a.confidence.nii.gz").dataobj.get_unscaled())
        mask = labels(folder / "a.nii.gz")
        truth = np.where(mask > 0, own, truth)
    every = [root / "whole" / ".models" / name / "a.confidence.nii.gz" for name in PARTS]
    least = np.min([np.asarray(nib.load(path).dataobj.get_unscaled()) for path in every], axis=0)
    assert (stored == np.where(found == 0, least, truth)).all()
    assert likely.max() <= 1


@pytest.mark.parametrize(
    "more",
    [
        ["--parts", 2],
        ["--parts", 7, "--batch", 3],
        pytest.param(["--workers", 1, "--parts", 2], marks=pytest.mark.slow),
        pytest.param(["--workers", 2], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_any_parts_workers_and_batch_give_the_same_bytes(more: list[Any], root: Path, tmp_path: Path) -> None:
    where = ["--executor", "processes"] if "--workers" in more else []
    run(root, tmp_path / "out", "--confidence", *more, *where)
    assert len(files(root / "whole")) == 5
    assert files(tmp_path / "out") == files(root / "whole")


@pytest.mark.parametrize("moment", [0, 1, 3, 9])
def test_a_run_that_is_stopped_goes_on_with_the_same_bytes(
    moment: int, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by Ctrl-C after so many cases of any model; 9: in the second case of the last model."""
    seen, is_set = [], Halt.is_set
    monkeypatch.setattr(Halt, "is_set", lambda self: is_set(self) or len(seen) > moment)
    from segpipe.terminal import progress

    outcome = progress.Lines.outcome
    monkeypatch.setattr(progress.Lines, "outcome", lambda self, one: (seen.append(one), outcome(self, one))[1])
    run(root, tmp_path / "out", "--confidence", code=75)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["interrupted"] is True
    assert not (tmp_path / "out" / "b.nii.gz").exists()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("out/.models/*/*.nii.gz")}
    assert len(before) >= 2 * (moment // 2)
    monkeypatch.undo()
    run(root, tmp_path / "out", "--confidence")
    assert files(tmp_path / "out") == files(root / "whole")
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


def test_a_case_is_done_with_its_models_tables_and_settings_alone(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    volumes.write(tmp_path / "in" / "a.nii", volumes.voxels())
    path = model_lists.write(tmp_path, TINY)
    plain = path.read_text()

    def again(*more: Any) -> tuple[bool, list[str]]:
        """Whether the case was done again, and by which models."""
        folder = tmp_path / "out" / ".models"
        then = {p: p.stat().st_mtime_ns for p in folder.glob("*/a.nii")}
        run(tmp_path, "out", *more)
        changed = sorted(p.parent.name for p in folder.glob("*/a.nii") if then.get(p) != p.stat().st_mtime_ns)
        return json.loads((tmp_path / "out" / "run.json").read_text())["done"] == ["a"], changed

    assert again() == (True, ["cardiac", "organs"])
    assert again() == (False, [])
    path.write_text(plain.replace('cardiac.onnx"', 'cardiac.onnx"\nclasses = { heart = "cor" }'))
    assert again() == (True, [])  # another name: only the labels are joined again
    model_lists.network(tmp_path / "cardiac.onnx", PARTS["cardiac"][0], seed=77)
    assert again() == (True, ["cardiac"])
    shutil.rmtree(tmp_path / "out" / ".models")
    assert again() == (False, [])  # what is finished needs them no more
    assert again("--overlap", "4") == (True, ["cardiac", "organs"])
    assert again("--overlap", "4", "--majority", "3") == (True, [])  # joined labels are cleaned, not each model's
    said = json.loads((tmp_path / "out" / "a.json").read_text())
    assert [one["path"] for one in said["model"]["models"]] == ["organs.onnx", "cardiac.onnx"]
    assert said["model"]["path"] == "total.toml"
    assert said["settings"]["models"]["cardiac"]["overlap"] == [4, 4, 4]


def test_a_bad_case_fails_once_and_costs_itself_alone(tmp_path: Path) -> None:
    """One that the header shows, and one whose scores overflow in the first model alone."""
    (tmp_path / "in").mkdir()
    for name in ("good", "cut"):
        volumes.write(tmp_path / "in" / f"{name}.nii", volumes.voxels(dtype="u1"))
    (tmp_path / "in" / "cut.nii").write_bytes((tmp_path / "in" / "cut.nii").read_bytes()[:600])
    volumes.write(tmp_path / "in" / "huge.nii", np.full((9, 9, 9), 30000, np.int16))
    overflowing = {"organs": (PARTS["organs"][0], {"scale": 3e33}), "cardiac": PARTS["cardiac"]}
    model_lists.write(tmp_path, overflowing)
    done = run(tmp_path, "out", code=1)
    said = json.loads((tmp_path / "out" / "run.json").read_text())
    assert said["done"] == ["good"]
    reasons = {one["case"]: one["error"] for one in said["failed"]}
    assert "is cut" in reasons["cut"]
    assert reasons["huge"].startswith("model organs: in/huge.nii")
    assert not (tmp_path / "out" / ".models" / "cardiac" / "huge.nii").exists()
    assert "1 done, 0 done before, 2 failed" in done.stdout


def test_what_a_dry_run_says(root: Path) -> None:
    done = run(root, "none", "--dry-run")
    assert not (root / "none").exists()
    assert "model ribs, " in done.stdout
    assert done.stdout.count("2 cases to do") == 6


def test_lesions_are_components_of_joined_classes(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "out", "--lesions", "heart", "--instances")
    with (tmp_path / "out" / "lesions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["class_name"] for row in rows} == {"heart"}
    assert not list(tmp_path.glob("out/.models/*/lesions.csv"))
    found = labels(tmp_path / "out" / "a.nii.gz") == numbered()["heart"]
    assert ((labels(tmp_path / "out" / "a.instances.nii.gz") > 0) == found).all()


def test_a_dicom_series(tmp_path: Path) -> None:
    dicoms.write(tmp_path / "in" / "ct", dicoms.values((10, 12, 14)), dicoms.positions(10))
    model_lists.write(tmp_path, TINY)
    run(tmp_path, "out")
    (name,) = (p.name for p in (tmp_path / "out").glob("*.nii.gz"))
    own = {part: labels(tmp_path / "out" / ".models" / part / name) for part in TINY}
    assert (labels(tmp_path / "out" / name) == joined_by_hand(own, TINY)).all()
    assert len(list((tmp_path / "out").glob("*.seg.dcm"))) == 1
    assert not list(tmp_path.glob("out/.models/*/*.dcm"))


def test_scenes_with_gaps_and_pictures(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(1)
    pixels = rng.integers(1, 256, (3, 70, 90), dtype=np.uint8)
    pixels[:, :20, :30] = 0
    kind = {"driver": "GTiff", "dtype": "uint8", "nodata": 0, "crs": "EPSG:32633", "width": 90, "height": 70, "count": 3}
    with rasterio.open(tmp_path / "in" / "scene.tif", "w", **kind) as dataset:
        dataset.write(pixels)
    with rasterio.open(tmp_path / "in" / "photo.png", "w", driver="PNG", dtype="uint8", width=90, height=70, count=3) as one:
        one.write(pixels)
    lists = {"water": ["background", "lake"], "roads": ["background", "road", "track"]}
    for seed, (name, classes) in enumerate(lists.items()):
        model_lists.flat(tmp_path / f"{name}.onnx", classes, seed=seed)
    (tmp_path / "total.toml").write_text(
        '[[models]]\nfile = "water.onnx"\n[[models]]\nfile = "roads.onnx"\nclasses = { track = "road" }\n'
        '[[classes]]\nid = 7\nname = "lake"\ncolor = "#112233"\n[[classes]]\nid = 3\nname = "road"\n'
    )
    run(tmp_path, "out", "--parts", 3)
    for name in ("scene.tif", "photo.png"):
        read = {k: model_lists.first_band(tmp_path / "out" / k / name) for k in (".models/water", ".models/roads", ".")}
        water, roads, found = read.values()
        truth = np.where(roads > 0, 3, np.where(water > 0, 7, 0))
        truth[water == 255] = 255
        assert (found == truth).all()
        assert {3, 7} <= set(np.unique(found))
    assert (model_lists.first_band(tmp_path / "out" / "scene.tif")[:20, :30] == 255).all()


def test_independent_classes_claim_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    volumes.write(tmp_path / "in" / "a.nii", volumes.voxels())
    names = ["whole", "core"]
    own = [{"id": k + 1, "name": name, "index": k} for k, name in enumerate(names)]
    model_lists.network(tmp_path / "tumour.onnx", names, seed=3, classes=own, task="multilabel", activation="sigmoid")
    model_lists.network(tmp_path / "organs.onnx", PARTS["organs"][0], seed=0)
    (tmp_path / "total.toml").write_text('[[models]]\nfile = "organs.onnx"\n[[models]]\nfile = "tumour.onnx"\n')
    run(tmp_path, "out")
    bands = labels(tmp_path / "out" / ".models" / "tumour" / "a.nii")
    organs = labels(tmp_path / "out" / ".models" / "organs" / "a.nii")
    truth = np.where(bands[..., 1] > 0, 5, np.where(bands[..., 0] > 0, 4, organs))
    assert (labels(tmp_path / "out" / "a.nii") == truth).all()
    assert len(np.unique(truth)) > 3


def test_more_than_255_classes_take_two_bytes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    volumes.write(tmp_path / "in" / "a.nii", volumes.voxels((9, 8, 7)))
    parts = {name: (["background", *(f"{name}{k}" for k in range(150))], {}) for name in ("x", "y")}
    model_lists.write(tmp_path, parts)
    run(tmp_path, "out")
    own = {name: labels(tmp_path / "out" / ".models" / name / "a.nii") for name in parts}
    found = labels(tmp_path / "out" / "a.nii")
    assert found.dtype == np.uint16
    assert (found == joined_by_hand(own, parts)).all()
    assert found.max() > 255


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data")
def test_a_real_volume(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(SHARED / "medical" / "nifti" / "example_mr_sm.nii.gz", tmp_path / "in" / "mr.nii.gz")
    for seed, (name, (classes, changes)) in enumerate(PARTS.items()):
        more = {**changes, "tile": [24, 32, 32], "overlap": [6, 8, 8]}
        model_lists.network(tmp_path / f"{name}.onnx", classes, seed=seed, **more)
    (tmp_path / "total.toml").write_text("".join(f'[[models]]\nfile = "{name}.onnx"\n' for name in PARTS))
    run(tmp_path, "out")
    found = nib.load(tmp_path / "out" / "mr.nii.gz")
    own = {name: labels(tmp_path / "out" / ".models" / name / "mr.nii.gz") for name in PARTS}
    assert (np.asarray(found.dataobj) == joined_by_hand(own)).all()
    assert (found.affine == nib.load(tmp_path / "in" / "mr.nii.gz").affine).all()


def test_python_runs_a_list_and_does_not_load_it(root: Path, tmp_path: Path) -> None:
    result = segpipe.run(root / "in", root / "total.toml", tmp_path / "out", executor="serial", confidence=True)
    assert result.done == ["a", "b"]
    assert files(tmp_path / "out") == files(root / "whole")
    with pytest.raises(segpipe.SegpipeError, match=r"must be an ONNX file here, got .*total.toml: a list of models is for"):
        segpipe.load(root / "total.toml")


def test_status_and_where_know_a_list(root: Path) -> None:
    done = invoke(["status", "whole"], root)
    assert done.returncode == 0, done.stderr
    assert "2 done, 0 failed, 0 missing" in done.stdout


def test_a_list_is_written_from_files(root: Path, tmp_path: Path) -> None:
    words = ["export", "join", *(root / f"{name}.onnx" for name in PARTS), "--output", tmp_path / "list.toml"]
    done = invoke(words, root)
    assert done.returncode == 0, done.stderr
    assert f"list.toml: 5 models, {len(numbered())} classes besides the background" in done.stdout
    done = invoke(["run", "-i", "in", "-m", tmp_path / "list.toml", "-o", tmp_path / "out", "--executor", "serial"], root)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "a.nii.gz").read_bytes() == (root / "whole" / "a.nii.gz").read_bytes()
