"""``segpipe polygons``: the masks of a run as a vector file of any kind."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow.parquet
import pyproj
import pytest
import rasterio
import shapely
from command import invoke
from maps import labels_of, make_map
from networks import pixelwise
from unreadable import fail_to_open

from segpipe.errors import OutputError
from segpipe.polygons import file, task
from segpipe.polygons.case import Unwritten
from segpipe.storage.stores import store_at

SUFFIXES = (".parquet", ".gpkg", ".fgb", ".geojson")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("map")
    make_map(root)
    flags = ["--confidence", "--executor", "serial", "--device", "cpu"]
    assert invoke(["run", "-i", "in", "-m", "m.onnx", "-o", "sure", *flags], root).returncode == 0
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    for name in ("in", "out", "sure", "m.onnx"):
        (shutil.copy if name == "m.onnx" else shutil.copytree)(made / name, tmp_path / name)
    return tmp_path


def polygons(root: Path, *more: Any, out: str = "out") -> Any:
    return invoke(["polygons", out, *more], root)


def read(path: Path) -> Any:
    return geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path, engine="pyogrio")


def areas(out: Path) -> dict[tuple[str, str], tuple[int, float]]:
    with (out / "areas.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["class_name"] != "nodata"]
    return {(row["case"], row["class_name"]): (int(row["pixels"]), float(row["area"] or 0)) for row in rows}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("connectivity", ["4", "8"])
def test_polygons_of_a_class_add_up_to_its_area(root: Path, suffix: str, connectivity: str) -> None:
    done = polygons(root, "-o", f"f{suffix}", "--connectivity", connectivity, out="sure")
    assert done.returncode == 0, done.stderr
    found = read(root / f"f{suffix}")
    assert done.stdout == f"{len(found):,} polygons of 3 cases: f{suffix}\n"
    assert list(found.columns) == [*file.COLUMNS, "geometry"]
    assert found.crs.equals(pyproj.CRS("EPSG:4326" if suffix == ".geojson" else "EPSG:32633"))
    assert shapely.is_valid(np.asarray(found.geometry)).all()
    assert {*found.geom_type} == {"Polygon" if connectivity == "4" else "MultiPolygon"}
    sums = found.groupby(["case", "class_name"])[["pixels", "area_ha", "area_m2"]].sum()
    wanted = areas(root / "sure")
    assert {*sums.index} <= {*wanted}
    for key, (pixels, area) in wanted.items():
        if pixels:
            row = sums.loc[key]
            assert (row["pixels"], row["area_ha"]) == (pixels, pytest.approx(area, rel=1e-9))
            assert row["area_m2"] == pytest.approx(1e4 * area, rel=1e-9)
    for _, own in found.groupby("case"):
        assert sorted(own["number"]) == [*range(1, len(own) + 1)]  # FlatGeobuf sorts by place


def test_mean_confidence_is_that_of_the_pixels(root: Path) -> None:
    assert polygons(root, "-o", "f.parquet", out="sure").returncode == 0
    found = read(root / "f.parquet")
    with rasterio.open(root / "sure" / "a.confidence.tif") as sure, rasterio.open(root / "sure" / "a.tif") as mask:
        values, labels = sure.read(1) / 254, mask.read(1)
    own = found[found["case"] == "a"]
    for number, group in own.groupby("class_id"):
        mean = np.average(group["mean_confidence"], weights=group["pixels"])
        assert mean == pytest.approx(values[labels == number].mean(), abs=1e-5)
    assert polygons(root, "-o", "f.parquet").returncode == 0
    assert read(root / "f.parquet")["mean_confidence"].isna().all()


def test_geoparquet_has_the_metadata_of_its_specification(root: Path) -> None:
    assert polygons(root, "-o", "f.parquet").returncode == 0
    geo = json.loads(pyarrow.parquet.read_metadata(root / "f.parquet").metadata[b"geo"])
    column = geo["columns"][geo["primary_column"]]
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Polygon"])
    assert pyproj.CRS.from_json_dict(column["crs"]).equals(pyproj.CRS("EPSG:32633"))
    assert column["bbox"] == pytest.approx(read(root / "f.parquet").total_bounds)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_polygons_give_the_same_bytes(root: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert polygons(root, "-o", f"f{suffix}").returncode == 0
    data = (root / f"f{suffix}").read_bytes()
    monkeypatch.setattr("segpipe.polygons.case.STRIP", 500)
    monkeypatch.setattr("segpipe.polygons.case.BATCH", 300)
    assert polygons(root, "-o", f"f{suffix}").returncode == 0  # replaces its own file
    assert (root / f"f{suffix}").read_bytes() == data
    assert [path.name for path in root.iterdir() if "partial" in path.name] == []


def test_minimum_classes_and_simplification(root: Path) -> None:
    done = polygons(root, "-o", "f.gpkg", "--min-area", "0.03ha", "--classes", "class1,2", "--simplify", "15")
    assert done.returncode == 0, done.stderr
    found = read(root / "f.gpkg")
    assert found["area_ha"].min() >= 0.03
    assert {*found["class_id"]} == {1, 2}
    said = done.stdout.splitlines()[1]
    pixels = sum((labels == k).sum() for labels in labels_of(root / "out").values() for k in (1, 2))
    assert said.endswith(f"smaller than 0.03 ha left out, {pixels - found['pixels'].sum():,} pixels")
    assert shapely.is_valid(np.asarray(found.geometry)).all()


def test_masks_of_several_crs_need_a_choice(tmp_path: Path) -> None:
    make_map(tmp_path)
    with rasterio.open(tmp_path / "in" / "b.tif", "r+") as scene:
        scene.crs = "EPSG:32634"
    flags = ["--executor", "serial", "--device", "cpu"]
    assert invoke(["run", "-i", "in", "-m", "m.onnx", "-o", "out", *flags], tmp_path).returncode == 0
    done = polygons(tmp_path, "-o", "f.gpkg")
    assert done.returncode == 2
    assert "a file has one CRS, and the masks have 2 (EPSG:32633: a, c/d; EPSG:32634: b): choose one" in done.stderr
    assert not (tmp_path / "f.gpkg").exists()
    assert polygons(tmp_path, "-o", "f.gpkg", "--crs", "EPSG:3035").returncode == 0
    assert read(tmp_path / "f.gpkg").crs.equals(pyproj.CRS("EPSG:3035"))
    assert polygons(tmp_path, "-o", "f.geojson").returncode == 0
    assert {*read(tmp_path / "f.geojson")["case"]} == {"a", "b", "c/d"}


def photo(root: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 30, 40), dtype=np.uint8)
    with rasterio.open(root / "in" / "photo.png", "w", driver="PNG", count=3, height=30, width=40, dtype="uint8") as dataset:
        dataset.write(pixels)


def test_pictures_alone_are_drawn_in_pixels(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    photo(tmp_path)
    pixelwise(tmp_path / "m.onnx", 3, 3, seed=6)
    flags = ["--executor", "serial", "--device", "cpu"]
    assert invoke(["run", "-i", "in", "-m", "m.onnx", "-o", "out", *flags], tmp_path).returncode == 0
    for suffix in SUFFIXES:
        done = polygons(tmp_path, "-o", f"f{suffix}")
        assert (done.returncode, done.stderr) == (0, "")
        found = read(tmp_path / f"f{suffix}")
        assert shapely.area(np.asarray(found.geometry)).sum() == 1200
        assert found["area_ha"].isna().all()
        assert found.total_bounds.tolist() == [0, 0, 40, 30]
    for more, why in (
        (["--crs", "EPSG:4326"], "--crs needs cases with a place on the Earth"),
        (["--min-area", "1ha"], "cases without a place on the Earth have no area, got --min-area 1 ha: give pixels, 9px"),
    ):
        done = polygons(tmp_path, "-o", "f.gpkg", *more)
        assert (done.returncode, why in done.stderr) == (2, True), done.stderr


def test_a_raster_without_a_crs_says_that_its_polygons_are_in_pixels(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    photo(tmp_path)
    (tmp_path / "in" / "photo.wld").write_text("2\n0\n0\n-2\n300\n500\n")
    pixelwise(tmp_path / "m.onnx", 3, 3, seed=6)
    flags = ["--executor", "serial", "--device", "cpu"]
    assert invoke(["run", "-i", "in", "-m", "m.onnx", "-o", "out", *flags], tmp_path).returncode == 0
    done = polygons(tmp_path, "-o", "f.gpkg")
    said = "warning: photo: polygons have pixels as coordinates: the file has a geotransform and no CRS: give --crs\n"
    assert (done.returncode, done.stderr) == (0, said)
    assert read(tmp_path / "f.gpkg").total_bounds.tolist() == [0, 0, 40, 30]


def test_a_picture_among_scenes_is_named_and_left_out(root: Path) -> None:
    photo(root)
    flags = ["--executor", "serial", "--device", "cpu"]
    assert invoke(["run", "-i", "in", "-m", "m.onnx", "-o", "out", *flags], root).returncode == 0
    done = polygons(root, "-o", "f.gpkg")
    assert done.returncode == 0
    assert "warning: photo: no polygons among those of cases with a place on the Earth: the file has no" in done.stderr
    assert {*read(root / "f.gpkg")["case"]} == {"a", "b", "c/d"}


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet"])
def test_a_file_that_cannot_be_read_is_not_called_foreign(suffix: str, root: Path, monkeypatch: pytest.MonkeyPatch):
    path = root / f"f{suffix}"
    assert polygons(root, "-o", path.name).returncode == 0
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(OutputError, match="was not written by segpipe, or is damaged: name another file"):
        file.check_path(path)
    fail_to_open(monkeypatch, path)
    with pytest.raises(OutputError, match=rf"{path} cannot be read: Input/output error: check the disk, or name another"):
        file.check_path(path)


BAD: dict[str, tuple[list[str], str]] = {
    "suffix": (["-o", "f.shp"], "--output must end with .gpkg, .geojson, .fgb, .parquet, got f.shp: name another file"),
    "folder": (["-o", "no/f.gpkg"], "--output must lie in a folder that exists, got no/f.gpkg: make "),
    "foreign": (["-o", "foreign.gpkg"], "foreign.gpkg was not written by segpipe, or is damaged: name another"),
    "foreign table": (["-o", "foreign.parquet"], "foreign.parquet was not written by segpipe, or is damaged: name another"),
    "crs": (["-o", "f.gpkg", "--crs", "EPSG:1"], "--crs must be a code such as EPSG:32633, or WKT, got EPSG:1"),
    "the moon": (["-o", "f.gpkg", "--crs", "IAU_2015:30100"], "--crs must be of the Earth: its CRS"),
    "crs of geojson": (
        ["-o", "f.geojson", "--crs", "EPSG:3857"],
        "GeoJSON has the CRS EPSG:4326 (RFC 7946), got --crs EPSG:3857",
    ),
    "class": (
        ["-o", "f.gpkg", "--classes", "wheat"],
        "--classes must name classes of the masks, class0, class1, class2, or",
    ),
    "minimum": (
        ["-o", "f.gpkg", "--min-area", "3"],
        "--min-area must be an area with its unit, such as 0.5ha, 400m2 or 9px",
    ),
    "tolerance": (["-o", "f.gpkg", "--simplify", "0"], "--simplify must be a distance above 0, got 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_said_in_one_line(root: Path, name: str) -> None:
    more, why = BAD[name]
    for path in ("foreign.gpkg", "foreign.parquet"):
        (root / path).write_bytes(b"my own")
    done = polygons(root, *more)
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    assert why in done.stderr
    assert not (root / "f.gpkg").exists()
    assert (root / "foreign.gpkg").read_bytes() == b"my own"


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    done = polygons(tmp_path, "-o", "f.gpkg", out=".")
    assert done.returncode == 2
    assert "must be the output of a run" in done.stderr


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", ["mask", "confidence"])
def test_a_damaged_mask_ends_it_and_leaves_an_older_file_alone(root: Path, kind: str, suffix: str) -> None:
    """The second case: polygons of the first are in the draft already."""
    assert polygons(root, "-o", f"f{suffix}", out="sure").returncode == 0
    data = (root / f"f{suffix}").read_bytes()
    path = root / "sure" / ("b.tif" if kind == "mask" else "b.confidence.tif")
    path.write_bytes(path.read_bytes()[:-100])
    done = polygons(root, "-o", f"f{suffix}", out="sure")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert path.name in done.stderr
    assert (root / f"f{suffix}").read_bytes() == data
    assert [one.name for one in root.iterdir() if "partial" in one.name] == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_stops_it_on_the_way_is_told_and_leaves_nothing(
    root: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segpipe.errors import OutputError
    from segpipe.polygons.task import features_of

    for error, code in ((OutputError("b.tif cannot be read"), 2), (KeyboardInterrupt(), 75)):

        def stopped(case: Any, *more: Any, error: BaseException = error) -> Any:
            if case.path.endswith("b.tif"):
                raise error
            yield from features_of(case, *more)

        monkeypatch.setattr(task, "features_of", stopped)
        done = polygons(root, "-o", f"f{suffix}")
        assert done.returncode == code
        assert done.stderr.startswith("error: b.tif cannot be read" if code == 2 else "interrupted")
        assert [path.name for path in root.iterdir() if path.name.endswith(suffix)] == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_name_that_is_no_text_is_that_of_the_table(tmp_path: Path, suffix: str) -> None:
    """Names of files are bytes; a vector file has text alone, and ``areas.csv`` says how such a name is written."""
    source = make_map(tmp_path).parent / "in" / "a.tif"
    strange = [os.fsdecode(b"nb\xff\xfe"), "line\nbreak"]
    for name in strange:
        (tmp_path / "odd").mkdir(exist_ok=True)
        shutil.copy(source, tmp_path / "odd" / f"{name}.tif")
    flags = ["--executor", "serial", "--device", "cpu"]
    assert invoke(["run", "-i", "odd", "-m", "m.onnx", "-o", "odd-out", *flags], tmp_path).returncode == 0
    done = polygons(tmp_path, "-o", f"f{suffix}", out="odd-out")
    assert done.returncode == 0, done.stderr
    assert {*read(tmp_path / f"f{suffix}")["case"]} == {case for case, _ in areas(tmp_path / "odd-out")}
    assert {case for case, _ in areas(tmp_path / "odd-out")} == {r"nb\udcff\udcfe", r"line\nbreak"}


def test_without_the_extra_one_line_says_how_to_install_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cc3d", "pyogrio", "pyogrio.errors", "pyarrow", "shapely"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        done = polygons(root, "-o", "f.parquet")
        assert done.returncode == 2
        assert "error: polygons need " in done.stderr
        assert "which is not installed: run pip install" in done.stderr
        monkeypatch.undo()


def test_masks_in_a_bucket(root: Path, endpoint: Any) -> None:
    endpoint.put_folder(root / "out", "map")
    assert polygons(root, "-o", "there.parquet", out="s3://scenes/map").returncode == 0
    assert polygons(root, "-o", "here.parquet").returncode == 0
    assert (root / "there.parquet").read_bytes() == (root / "here.parquet").read_bytes()
    assert store_at("s3://scenes/map").has("a.tif")


def test_what_is_printed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = task.WrittenPolygons(1234, 1, Unwritten(5, 67))
    monkeypatch.setattr("segpipe.polygons.commands.write_polygons", lambda _: written)
    assert polygons(root, "-o", "f.fgb").stdout == "1,234 polygons of 1 case: f.fgb\n"
    said = polygons(root, "-o", "f.fgb", "--min-area", "9px").stdout
    assert said.endswith("\n5 smaller than 9 px left out, 67 pixels\n")
