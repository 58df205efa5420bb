"""``--per-class``: a mask of zeros and ones for each class beside the mask of a case, and only where it was asked for."""

import json
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
from model_lists import PARTS, labels, numbered

from segpipe.formats.case import Case
from segpipe.formats.style import Segment
from segpipe.geometry.windows import row_boxes
from segpipe.results.class_files import class_files, has_class_files, is_class_file

TINY = {name: PARTS[name] for name in ("organs", "cardiac")}


def run(root: Path, model: str, out: str, *more: Any, code: int = 0) -> Any:
    words = ["run", "-i", "in", "-m", model, "-o", out, "--device", "cpu", "--executor", "serial", *map(str, more)]
    done = invoke(words, root)
    assert done.returncode == code, done.stderr + done.stdout
    return done


def test_each_joined_class_has_a_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    volumes.write(tmp_path / "in" / "a.nii.gz", volumes.voxels((12, 14, 11)), volumes.OBLIQUE)
    model_lists.write(tmp_path, TINY)
    run(tmp_path, "total.toml", "out")
    assert not (tmp_path / "out" / "a.classes").exists()
    then = {p: p.stat().st_mtime_ns for p in tmp_path.glob("out/.models/*/a.nii.gz")}
    run(tmp_path, "total.toml", "out", "--per-class")
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("out/.models/*/a.nii.gz")} == then  # joined again, not inferred
    mask = nib.load(tmp_path / "out" / "a.nii.gz")
    found = {p.name: p for p in (tmp_path / "out" / "a.classes").iterdir()}
    assert set(found) == {f"{name}.nii.gz" for name in numbered(TINY)}
    for name, number in numbered(TINY).items():
        own = nib.load(found[f"{name}.nii.gz"])
        assert own.get_data_dtype() == np.uint8
        assert (np.asarray(own.dataobj) == (np.asarray(mask.dataobj) == number)).all()
        assert (own.affine == mask.affine).all()
    said = json.loads((tmp_path / "out" / "a.json").read_text())
    assert {f"a.classes/{name}.nii.gz" for name in numbered(TINY)} <= set(said["outputs"])
    for more in (["--per-class"], []):
        run(tmp_path, "total.toml", "out", *more)
        assert json.loads((tmp_path / "out" / "run.json").read_text())["skipped"] == ["a"]
    found["heart.nii.gz"].unlink()
    run(tmp_path, "total.toml", "out", "--per-class")
    assert found["heart.nii.gz"].exists()
    run(tmp_path, "total.toml", "out", "--overwrite")
    assert not any(path.exists() for path in found.values())


@pytest.mark.parametrize("axes", [{"orientation": "RAS"}, {"orientation": "SPL"}, {"axis_order": [2, 0, 1]}, {}], ids=str)
def test_axes_are_those_of_the_mask_whatever_the_network_sees(axes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    volumes.write(tmp_path / "in" / "a.nii", volumes.voxels((12, 14, 11)), volumes.OBLIQUE)
    model_lists.network(tmp_path / "organs.onnx", PARTS["organs"][0], seed=0, **axes)
    run(tmp_path, "organs.onnx", "out", "--per-class", "--parts", 3)
    mask = labels(tmp_path / "out" / "a.nii")
    assert len(np.unique(mask)) > 1
    for number, name in enumerate(PARTS["organs"][0][1:], 1):
        assert (labels(tmp_path / "out" / "a.classes" / f"{name}.nii") == (mask == number)).all()


def test_scenes_and_series(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(1).integers(1, 256, (3, 70, 90), dtype=np.uint8)
    pixels[:, :20, :30] = 0
    kind = {"driver": "GTiff", "dtype": "uint8", "nodata": 0, "crs": "EPSG:32633", "width": 90, "height": 70, "count": 3}
    with rasterio.open(tmp_path / "in" / "scene.tif", "w", **kind) as dataset:
        dataset.write(pixels)
    model_lists.flat(tmp_path / "land.onnx", ["grass", "maize"], seed=2)
    run(tmp_path, "land.onnx", "out", "--per-class")
    mask = model_lists.first_band(tmp_path / "out" / "scene.tif")
    for number, name in enumerate(("grass", "maize")):
        with rasterio.open(tmp_path / "out" / "scene.classes" / f"{name}.tif") as own:
            assert (own.read(1) == np.where(mask == 255, 255, mask == number)).all()
            assert own.nodata == 255
            assert own.crs.to_epsg() == 32633
    assert (mask == 255).any()
    (tmp_path / "in" / "scene.tif").unlink()
    dicoms.write(tmp_path / "in" / "ct", dicoms.values((10, 12, 14)), dicoms.positions(10))
    model_lists.network(tmp_path / "organs.onnx", PARTS["organs"][0], seed=0)
    run(tmp_path, "organs.onnx", "series", "--per-class")
    (path,) = (tmp_path / "series").glob("*.nii.gz")
    folder = path.with_name(path.name.removesuffix(".nii.gz") + ".classes")
    assert sorted(p.name for p in folder.iterdir()) == ["liver.nii.gz", "spleen.nii.gz", "stomach.nii.gz"]
    assert (labels(folder / "liver.nii.gz") == (labels(path) == 1)).all()


def test_a_file_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    volumes.write(tmp_path / "in" / "a.nii", volumes.voxels())
    model_lists.network(tmp_path / "organs.onnx", PARTS["organs"][0], seed=0)
    (tmp_path / "out" / "a.classes").mkdir(parents=True)
    volumes.write(tmp_path / "out" / "a.classes" / "liver.nii", volumes.voxels())
    done = run(tmp_path, "organs.onnx", "out", "--per-class", code=1)
    assert "liver.nii was not written by segpipe: move it away, or name another --output" in done.stdout


def test_names_of_files_are_those_of_classes() -> None:
    case = Case("s/a", "a.nii")
    odd = [Segment("../x", 1), Segment("A b", 2), Segment("a B", 3), Segment("…", 4), Segment("\u00e9", 5)]
    stems = [file.stem for file in class_files(case, odd)]
    assert stems == [f"s/a.classes/{name}" for name in ("_x", "A b-0-2", "a B-0-3", "_", "\u00e9")]
    assert is_class_file(case, "s/a.classes/x.nii.gz")
    assert not is_class_file(case, "s/a.classes/../b.nii.gz")
    assert not is_class_file(case, "s/a.nii.gz")
    assert has_class_files("a", ("a.nii", "a.classes/x.nii"))
    assert not has_class_files("a", ("a.nii",))


def test_boxes_of_rows_cover_each_pixel_once() -> None:
    count = np.zeros((7, 900, 700), int)
    for box in row_boxes(count.shape):
        count[tuple(slice(a, b) for a, b in zip(box.start, box.stop, strict=True))] += 1
    assert (count == 1).all()
