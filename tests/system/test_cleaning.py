"""Runs with --majority and --sieve: masks, areas, confidence, lesions, parts and workers, what is done again, refusals."""

import csv
import json
from pathlib import Path
from typing import Any

import networks
import nibabel
import numpy as np
import pytest
import rasterio
import volumes
from command import invoke
from numpy.typing import NDArray
from PIL import Image
from pyproj import Geod
from rasterio.features import sieve as gdal_sieve
from scipy import ndimage
from test_sieve import brute

from segpipe.geometry.grid import BareGrid
from segpipe.geometry.quantity import Quantity
from segpipe.geometry.windows import Window
from segpipe.results.cleaning import stage
from segpipe.results.cleaning.majority import majority
from segpipe.results.cleaning.plane_file import PlaneFile
from segpipe.results.cleaning.rule import Cleaning, ElementSizes
from segpipe.storage.folder import Folder

SHAPE = (150, 170)
CLEAN = ["--majority", "3", "--sieve", "12"]


@pytest.fixture(autouse=True)
def low_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many slabs for a small case."""
    monkeypatch.setattr(stage, "SLAB", 4000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    networks.local(tmp_path / "model.onnx", 3, 3, scale=1 / 255, offset=-0.5)
    (tmp_path / "in").mkdir()
    scene(tmp_path / "in" / "a.tif", "EPSG:32633", 10)
    return tmp_path


def scene(path: Path, crs: str, pixel: float) -> None:
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(1, 256, (3, 75, 85)), np.ones((2, 2), int))[:, : SHAPE[0], : SHAPE[1]].astype(np.uint8)
    pixels[:, 20:40, 30:90] = 0
    place = rasterio.transform.from_origin(14, 50, pixel, pixel)
    if crs == "EPSG:32633":
        place = rasterio.transform.from_origin(500_000, 5_500_000, pixel, pixel)
    kind = {"driver": "GTiff", "dtype": "uint8", "nodata": 0, "crs": crs, "transform": place}
    with rasterio.open(path, "w", width=SHAPE[1], height=SHAPE[0], count=3, **kind) as dataset:
        dataset.write(pixels)


def run(root: Path, *more: str, executor: str = "serial") -> Any:
    done = invoke(["run", "-i", "in", "-m", "model.onnx", "--device", "cpu", "--executor", executor, *more], root)
    done.stderr += done.stdout
    return done


def band(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def rows(out: Path, name: str = "areas.csv") -> list[dict[str, str]]:
    with (out / name).open() as stream:
        return list(csv.DictReader(stream))


def cleaned(labels: NDArray[Any], least: int) -> NDArray[Any]:
    filtered = majority(labels, 3, 255)
    return gdal_sieve(filtered, least, mask=filtered != 255, connectivity=4)


def test_mask_and_areas_are_those_of_the_whole_array(folder: Path) -> None:
    assert run(folder, "-o", "plain").returncode == 0
    done = run(folder, "-o", "out", *CLEAN)
    assert done.returncode == 0, done.stderr
    before, after = band(folder / "plain" / "a.tif"), band(folder / "out" / "a.tif")
    assert np.array_equal(after, cleaned(before, 12))
    assert np.array_equal(after == 255, before == 255)
    assert (before != after).mean() > 0.1
    for row in rows(folder / "out")[:3]:
        assert int(row["pixels"]) == (after == int(row["class_id"])).sum()
    record = json.loads((folder / "out" / "a.json").read_text())
    assert (record["settings"]["majority"], record["settings"]["sieve"]) == (3, "12px")
    assert not {"majority", "sieve"} & {*json.loads((folder / "plain" / "a.json").read_text())["settings"]}
    assert not list((folder / "out").glob(".*"))


@pytest.mark.parametrize("flags", [["--majority", "5"], ["--sieve", "9"], CLEAN])
@pytest.mark.parametrize("parts", ["2", "7"])
def test_parts_leave_the_same_bytes(folder: Path, flags: list[str], parts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    more = [*flags, "--confidence", "--lesions", "--instances"]
    assert run(folder, "-o", "whole", *more).returncode == 0
    monkeypatch.setattr(stage, "SLAB", 9000)
    done = run(folder, "-o", "cut", *more, "--parts", parts)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (folder / "whole").iterdir()}
    assert names == {path.name for path in (folder / "cut").iterdir()}
    assert {"a.tif", "a.confidence.tif", "a.instances.tif", "lesions.csv"} < names
    for name in names - {"a.json", "run.json"}:
        assert (folder / "whole" / name).read_bytes() == (folder / "cut" / name).read_bytes(), name
    one, other = (json.loads((folder / out / "a.json").read_text()) for out in ("whole", "cut"))
    assert one["statistics"] == other["statistics"]


@pytest.mark.slow
def test_workers_leave_the_same_bytes(folder: Path) -> None:
    assert run(folder, "-o", "whole", *CLEAN).returncode == 0
    assert run(folder, "-o", "cut", *CLEAN, "--parts", "4", "--workers", "2", executor="dask").returncode == 0
    for name in ("a.tif", "areas.csv"):
        assert (folder / "whole" / name).read_bytes() == (folder / "cut" / name).read_bytes()


def test_lesions_and_confidence_are_those_of_cleaned_labels(folder: Path) -> None:
    more = ["--confidence", "--lesions", "1", "--instances"]
    assert run(folder, "-o", "plain", "--confidence").returncode == 0
    assert run(folder, "-o", "out", *CLEAN, *more).returncode == 0
    before, after = band(folder / "plain" / "a.tif"), band(folder / "out" / "a.tif")
    sure, now = (band(folder / out / "a.confidence.tif") for out in ("plain", "out"))
    assert np.array_equal(now, np.where(before == after, sure, 0))
    numbers = band(folder / "out" / "a.instances.tif")
    assert np.array_equal(numbers > 0, after == 1)
    listed = rows(folder / "out", "lesions.csv")
    assert sum(int(row["voxels"]) for row in listed) == (after == 1).sum()
    assert listed


def test_areas_are_true_areas(folder: Path) -> None:
    """Pixels of a geographic grid are smaller in the north: a square metre is a square metre."""
    scene(folder / "in" / "a.tif", "EPSG:4326", 0.02)
    assert run(folder, "-o", "plain").returncode == 0
    done = run(folder, "-o", "out", "--sieve", "1500ha")
    assert done.returncode == 0, done.stderr
    before, after = band(folder / "plain" / "a.tif"), band(folder / "out" / "a.tif")
    record = json.loads((folder / "out" / "a.json").read_text())
    assert record["settings"]["sieve"] == "15000000m2"
    assert np.array_equal(after, brute(before, 15_000_000, row_areas()))


def row_areas() -> NDArray[np.float64]:
    """Area of a pixel of each row by pyproj's geodesic polygons, m2."""
    geod, side = Geod(ellps="WGS84"), 0.02
    areas = []
    for row in range(SHAPE[0]):
        north, xs = 50 - side * row, np.linspace(0, side, 50)
        x, y = [*xs, *xs[::-1]], [north] * 50 + [north - side] * 50
        areas.append(abs(geod.polygon_area_perimeter(x, y)[0]))
    return np.array(areas)[:, None]


@pytest.mark.parametrize("task", ["multilabel", "binary"])
def test_each_band_of_independent_classes_is_cleaned(folder: Path, task: str) -> None:
    classes = [{"id": i, "name": f"class{i}"} for i in range(3)] if task == "multilabel" else [{"id": 1, "name": "one"}]
    outputs = len(classes)
    values = networks.contract(3, task=task, activation="sigmoid") | {"classes": classes}
    networks.Network(3).conv(3, outputs, 3).save(folder / "model.onnx", values, classes=outputs)
    assert run(folder, "-o", "plain", "--confidence").returncode == 0
    done = run(folder, "-o", "out", *CLEAN, "--confidence", "--parts", "3")
    assert done.returncode == 0, done.stderr
    each = [rasterio.open(folder / out / f"a{kind}.tif") for out in ("plain", "out") for kind in ("", ".confidence")]
    before, sure, after, now = (dataset.read() for dataset in each)
    for dataset in each:
        dataset.close()
    assert len(after) == outputs
    for one, other in zip(before, after, strict=True):
        assert np.array_equal(other, cleaned(one, 12))
    assert (before != after).any()
    assert np.array_equal(now, np.where(before == after, sure, 254 - sure))


def test_volumes_are_cleaned_by_cubes_and_in_mm3(tmp_path: Path) -> None:
    networks.volumetric(tmp_path / "model.onnx", (8, 12, 10), scale=1 / 255, orientation="RAS")
    (tmp_path / "in").mkdir()
    volumes.write(tmp_path / "in" / "a.nii.gz", volumes.voxels((31, 33, 29), "u1"), volumes.OBLIQUE)
    assert run(tmp_path, "-o", "plain").returncode == 0
    done = run(tmp_path, "-o", "out", "--majority", "3", "--sieve", "40mm3", "--parts", "3")
    assert done.returncode == 0, done.stderr
    mask = nibabel.load(tmp_path / "plain" / "a.nii.gz")
    before, after = np.asarray(mask.dataobj), np.asarray(nibabel.load(tmp_path / "out" / "a.nii.gz").dataobj)
    assert (before != after).any()
    cell = abs(np.linalg.det(mask.affine[:3, :3]))
    for value in np.unique(after):
        found, _ = ndimage.label(after == value)
        assert np.bincount(found.ravel())[1:].min() * cell >= 40


def test_another_rule_is_done_again_and_the_same_is_not(folder: Path) -> None:
    def said(*more: str) -> str:
        done = run(folder, *more)
        assert done.returncode == 0, done.stderr
        return str(done.stderr)

    assert "1 done, 0 done before" in said()
    assert "1 done, 0 done before" in said(*CLEAN)
    assert "0 done, 1 done before" in said("--majority", "3", "--sieve", "12px")
    assert "1 done, 0 done before" in said("--majority", "3", "--sieve", "13")
    assert "1 done, 0 done before" in said("--sieve", "0.12ha")
    assert "0 done, 1 done before" in said("--sieve", "1200 m2")
    assert "1 done, 0 done before" in said()


def test_a_picture_has_no_hectares_and_costs_only_itself(folder: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (80, 90, 3), dtype=np.uint8)).save(folder / "in" / "b.png")
    done = run(folder, "--sieve", "0.1ha")
    assert done.returncode == 1
    assert "b.png: sieve must fit the case, got 1000m2 and pixels of unknown size: give --sieve in pixels" in done.stderr
    assert (folder / "segpipe-out" / "a.tif").exists()
    assert not (folder / "segpipe-out" / "b.png").exists()
    done = run(folder, "--sieve", "10mm3")
    assert "a.tif: sieve must fit the case, got 10mm3 and a case measured in ha" in done.stderr
    assert run(folder, "--sieve", "10").returncode == 0
    assert band(folder / "segpipe-out" / "b.png").shape == (80, 90)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--majority", "4"], "majority: must be odd"),
        (["--majority", "1"], "majority"),
        (["--sieve", "0"], "sieve: must be a whole number of pixels above 0"),
        (["--sieve", "1.5"], "sieve: must be a whole number of pixels above 0"),
        (["--sieve", "3 acres"], "sieve: must be a number of pixels, or a number with one of px, m2, ha, km2, mm3, ml"),
    ],
)
def test_settings_that_cannot_be_are_refused(folder: Path, flags: list[str], message: str) -> None:
    done = run(folder, *flags)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_quantity_is_one_text_whatever_its_unit() -> None:
    assert str(Quantity.parse("1.5 ml")) == "1500mm3"
    assert Cleaning.of(None, None) is None
    assert Cleaning.of(5, "2km2").as_json() == {"majority": 5, "sieve": "2000000m2"}  # type: ignore[union-attr]
    assert ElementSizes.of_grid(Quantity(12, "px"), BareGrid((3, 4)), "a").least == 12


def test_planes_are_read_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 9, (2, 5, 6, 7)).astype(np.uint16)
    file = PlaneFile(Folder(tmp_path), "a.draft", values.shape, values.dtype)
    for start in (0, 3):
        for column in (0, 4):
            window = Window((0, start, column), (5, start + 3, column + (4 if column == 0 else 3)))
            file.write(window, values[:, :, start : start + 3, column : window.stop[2]])
    assert np.array_equal(file.read(1, 2, 5), values[1, 2:5])
    file.discard()
    file.discard()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
