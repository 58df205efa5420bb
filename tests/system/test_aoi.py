"""Runs with an area of interest: what lies outside is not decoded, not inferred and nodata, whoever does the work."""

import csv
import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from command import invoke
from networks import local, pooling, unpadded
from rasterio.features import rasterize
from scenes import assert_same

from segpipe.formats.raster.source import RasterSource
from segpipe.jobs import planning
from segpipe.pipeline.infer import HostModel

UTM = Affine(10, 0, 500_000, 0, -10, 5_400_000)
SHAPE = (250, 330)
PLACES = {"a": UTM, "sub/b": UTM * Affine.translation(300, 0), "far": UTM * Affine.translation(5000, 0)}


def on_ground(*corners: tuple[float, float]) -> Any:
    """A polygon from its corners in (column, row) of scene ``a``."""
    return shapely.Polygon([UTM * corner for corner in corners])


SHAPES = [
    on_ground((40.2, 30.1), (150.3, 50.7), (90.4, 120.9)),
    on_ground((100, 80), (160, 80), (160, 130), (100, 130)),
    on_ground((310.5, 200.5), (340.2, 210.1), (322.7, 240.3)),
]
"""Two that overlap in scene ``a``, and one in ``a`` and in ``b``; none in ``far``."""


def write_scene(path: Path, transform: Affine, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(1, 256, (3, *SHAPE), dtype=np.uint8)
    pixels[:, 100:110, 60:120] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"crs": "EPSG:32633", "transform": transform, "nodata": 0, "tiled": True, "blockxsize": 64, "blockysize": 64}
    with rasterio.open(path, "w", driver="GTiff", count=3, height=SHAPE[0], width=SHAPE[1], dtype="uint8", **place) as scene:
        scene.write(pixels)


def write_area(path: Path, shapes: list[Any], crs: str = "EPSG:32633") -> None:
    geopandas.GeoDataFrame(geometry=shapes, crs="EPSG:32633").to_crs(crs).to_file(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    local(tmp_path / "m.onnx", tile=[64, 64], overlap=16)
    for seed, (name, transform) in enumerate(PLACES.items()):
        write_scene(tmp_path / "in" / f"{name}.tif", transform, seed)
    write_area(tmp_path / "aoi.gpkg", SHAPES)
    return tmp_path


def run(root: Path, *more: Any, out: str = "out", inputs: str = "in", executor: str = "serial") -> Any:
    fixed = ["--device", "cpu", "--executor", executor]
    done = invoke(["run", "-i", inputs, "-m", "m.onnx", "-o", out, *fixed, *more], root)
    assert done.returncode == 0, done.stderr
    return done


def labels(path: Path) -> Any:
    with rasterio.open(path) as mask:
        return mask.read(1)


def inside(transform: Affine) -> Any:
    return rasterize(SHAPES, SHAPE, transform=transform).astype(bool)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


MODELS: dict[str, Any] = {
    "overlap": lambda path: local(path, tile=[64, 64], overlap=16),
    "no overlap": lambda path: pooling(path, tile=[64, 64], overlap=0),
    "margin": lambda path: unpadded(path, 84),
    "statistics of a case": lambda path: local(path, tile=[64, 64], overlap=16, normalize="zscore"),
    "coarser pixels": lambda path: local(path, tile=[64, 64], overlap=16, spacing=[16.0, 16.0]),
    "finer pixels": lambda path: local(path, tile=[64, 64], overlap=16, spacing=[7.0, 7.0]),
}


@pytest.mark.parametrize("kind", MODELS)
def test_labels_inside_are_those_of_a_run_without_an_area(folder: Path, kind: str) -> None:
    """The network sees what lies outside; only what gets a label is cut."""
    MODELS[kind](folder / "m.onnx")
    (folder / "in" / "far.tif").unlink()
    resample = ["--resample"] if "pixels" in kind else []
    run(folder, "--confidence", *resample, out="whole")
    run(folder, "--confidence", "--aoi", "aoi.gpkg", *resample)
    run(folder, "--confidence", "--aoi", "aoi.gpkg", "--parts", 3, *resample, out="parts")
    for name in ("a", "a.confidence", "sub/b"):
        found, within = labels(folder / "out" / f"{name}.tif"), inside(PLACES[name.partition(".")[0]])
        assert np.array_equal(found, np.where(within, labels(folder / "whole" / f"{name}.tif"), 255))
        assert "confidence" not in name or len(np.unique(found)) > 9
        assert (folder / "parts" / f"{name}.tif").read_bytes() == (folder / "out" / f"{name}.tif").read_bytes()


def test_areas_count_what_lies_inside(folder: Path) -> None:
    run(folder, "--aoi", "aoi.gpkg")
    table = rows(folder / "out" / "areas.csv")
    assert {row["case"] for row in table} == {"a", "sub/b"}
    own = {row["class_name"]: row for row in table if row["case"] == "a"}
    within = inside(UTM)
    nodata = np.zeros(SHAPE, bool)
    nodata[100:110, 60:120] = True
    found = labels(folder / "out" / "a.tif")
    for k in range(3):
        assert int(own[f"class{k}"]["pixels"]) == (found == k).sum()
    assert int(own["nodata"]["pixels"]) == (~within | nodata).sum()
    assert sum(int(row["pixels"]) for row in own.values()) == found.size
    assert sum(float(row["area"]) for row in own.values()) == pytest.approx(found.size * 0.01, rel=5e-3)
    record = json.loads((folder / "out" / "a.json").read_text())
    assert record["aoi"]["pixels"] == within.sum()
    assert record["aoi"]["unit"] == "ha"
    assert record["aoi"]["area"] == pytest.approx(within.sum() * 0.01, rel=5e-3)
    assert record["valid"]["pixels"] == (within & ~nodata).sum()


def test_what_lies_outside_is_neither_decoded_nor_inferred(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, scored = [], []
    begin, score = RasterSource.begin, HostModel.score
    monkeypatch.setattr(RasterSource, "begin", lambda self, window, n=None: decoded.append(window) or begin(self, window, n))
    monkeypatch.setattr(HostModel, "score", lambda self, patches: scored.extend(patches) or score(self, patches))
    (folder / "in" / "sub" / "b.tif").unlink()
    run(folder, "--aoi", "aoi.gpkg", "--unusual-values", "allow", "--batch", "1")
    within = inside(UTM)
    tiles = [window for window in decoded if window.shape == (64, 64)]
    assert all(within[tuple(map(slice, window.start, window.stop))].any() for window in tiles)
    record = json.loads((folder / "out" / "a.json").read_text())
    assert record["inferred"] == len(scored) < record["windows"]
    run(folder, "--unusual-values", "allow", "--batch", "1", out="all")
    assert json.loads((folder / "all" / "a.json").read_text())["inferred"] == record["windows"]


def test_parts_and_workers_change_no_byte(folder: Path) -> None:
    run(folder, "--aoi", "aoi.gpkg", "--confidence")
    for out, more in {"two": ("--parts", 2), "seven": ("--parts", 7)}.items():
        run(folder, "--aoi", "aoi.gpkg", "--confidence", *more, out=out)
        for name in ("a.tif", "a.confidence.tif", "sub/b.tif", "areas.csv"):
            assert (folder / out / name).read_bytes() == (folder / "out" / name).read_bytes(), name


def test_workers_need_not_have_the_file(folder: Path) -> None:
    run(folder, "--aoi", "aoi.gpkg")
    run(folder, "--aoi", "aoi.gpkg", "--workers", 2, out="dask", executor="dask")
    assert_same(folder / "dask", folder / "out")


def test_a_case_is_done_again_after_the_area_changed(folder: Path) -> None:
    assert "2 done, 0 done before, 0 failed, 1 outside the area of interest" in run(folder, "--aoi", "aoi.gpkg").stdout
    assert "0 done, 2 done before, 0 failed, 1 outside" in run(folder, "--aoi", "aoi.gpkg").stdout
    (folder / "aoi.gpkg").rename(folder / "moved.gpkg")
    assert "0 done, 2 done before, 0 failed, 1 outside" in run(folder, "--aoi", "moved.gpkg").stdout
    write_area(folder / "less.gpkg", SHAPES[:1])
    done = run(folder, "--aoi", "less.gpkg")
    assert "1 done, 0 done before, 0 failed, 2 outside" in done.stdout
    assert "masks of an earlier run remain for cases outside, such as sub/b" in done.stderr
    assert "3 done, 0 done before, 0 failed in" in run(folder).stdout


def test_a_case_outside_is_told_and_has_no_mask(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for out, looked in {"out": 500, "late": 0}.items():
        monkeypatch.setattr(planning, "MOST_OPENED", looked)
        done = run(folder, "--aoi", "aoi.gpkg", "--log-file", f"{out}.log", out=out)
        assert "outside  far  no pixel in the area of interest" in done.stdout
        assert not list((folder / out).glob("far*"))
        assert json.loads((folder / out / "run.json").read_text())["outside"] == ["far"]
        status = invoke(["status", out], folder)
        assert "2 done, 0 failed, 0 missing, 1 outside the area of interest" in status.stdout
    assert "outside  far" in run(folder, "--aoi", "aoi.gpkg", "--dry-run", out="dry").stdout
    assert '"event": "outside", "case": "far"' in (folder / "late.log").read_text()


def test_a_run_without_a_case_inside_ends_well_and_warns(folder: Path) -> None:
    write_area(folder / "elsewhere.gpkg", [shapely.transform(SHAPES[1], lambda xy: xy + 300_000)])
    done = run(folder, "--aoi", "elsewhere.gpkg")
    assert "0 done, 0 done before, 0 failed, 3 outside the area of interest" in done.stdout
    assert "elsewhere.gpkg: no case lies inside: its coordinates are 801000 to 801600, " in done.stderr


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857"])
def test_an_area_in_another_crs(folder: Path, crs: str) -> None:
    write_area(folder / "other.gpkg", SHAPES, crs)
    run(folder, "--aoi", "other.gpkg")
    found = labels(folder / "out" / "a.tif") != 255
    nodata = np.zeros(SHAPE, bool)
    nodata[100:110, 60:120] = True
    assert (found != (inside(UTM) & ~nodata)).sum() <= 2  # on edges


def test_settings_of_the_area_are_checked(folder: Path) -> None:
    done = invoke(["run", "-i", "in", "-m", "m.onnx", "--aoi-layer", "x"], folder)
    assert "error: aoi_layer needs aoi: give --aoi, too, or leave --aoi-layer out" in done.stderr
    done = invoke(["run", "-i", "in", "-m", "m.onnx", "--aoi", "none.gpkg"], folder)
    assert "error: --aoi must be a file of polygons, and none.gpkg does not exist: correct the path" in done.stderr
    assert done.returncode == 2


def test_a_small_area_of_a_large_scene_is_still_sampled(tmp_path: Path) -> None:
    """Values far from what the model expects are found although random boxes of the scene would miss the area."""
    terms = {"scale": 1e-4, "normalize": "fixed", "mean": [0.06, 0.08, 0.08], "std": [0.02, 0.02, 0.03]}
    local(tmp_path / "m.onnx", tile=[64, 64], overlap=16, **terms)
    (tmp_path / "in").mkdir()
    place = {"crs": "EPSG:32633", "transform": UTM, "tiled": True, "blockxsize": 64, "blockysize": 64, "dtype": "float32"}
    with rasterio.open(tmp_path / "in" / "a.tif", "w", driver="GTiff", count=3, height=2000, width=2000, **place) as scene:
        scene.write(np.random.default_rng(0).normal(0.07, 0.02, (3, 2000, 2000)).astype(np.float32))
    write_area(tmp_path / "aoi.gpkg", [on_ground((1210, 700), (1290, 700), (1290, 780))])
    done = invoke(
        ["run", "-i", "in", "-m", "m.onnx", "--device", "cpu", "--executor", "serial", "--aoi", "aoi.gpkg"], tmp_path
    )
    assert done.returncode == 1
    assert "To label it all the same, give --unusual-values allow" in done.stdout


def test_without_the_extra_one_line_says_how_to_install_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pyogrio", "pyogrio.errors", "geopandas", "shapely"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        done = invoke(["run", "-i", "in", "-m", "m.onnx", "-o", "out", "--aoi", "aoi.gpkg"], folder)
        assert done.returncode == 2
        assert "error: polygons need " in done.stderr
        assert "which is not installed: run pip install" in done.stderr
        monkeypatch.undo()
