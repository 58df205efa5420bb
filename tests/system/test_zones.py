"""Zones as a user has them: of a run, afterwards, over several scenes, from all kinds of files, and from bad ones."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas
import pyarrow.parquet
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from command import invoke
from fields import UTM, ArrayMask, square, write_fields
from networks import pixelwise

from segpipe.results.zones import stage
from segpipe.results.zones.case import measured
from segpipe.results.zones.finished import FOLDER
from segpipe.results.zones.polygons import read_zones
from segpipe.results.zones.writing import RESERVED
from segpipe.storage.lock import locked
from segpipe.storage.stores import store_at
from segpipe.vectors.file import DRIVERS, Selection
from segpipe.vectors.placing import place

NAMES = ("class0", "class1", "class2")
EAST = UTM * Affine.translation(100, 0)
"""The scene to the right of ``UTM``."""
SHAPES = [
    square(UTM, 10.5, 5, 40, 30),
    square(UTM, 80, 20, 120.25, 60),
    square(UTM, 150, 10, 210, 20),
    square(UTM, 500, 0, 510, 9),
]
"""In the first scene, in both, beyond the second, and in none."""


def scene(path: Path, transform: Affine, seed: int, crs: str = "EPSG:32633") -> None:
    pixels = np.random.default_rng(seed).integers(1, 256, (3, 80, 100), dtype=np.uint8)
    pixels[:, :10, 60:] = 0
    profile = {"driver": "GTiff", "width": 100, "height": 80, "count": 3, "dtype": "uint8", "nodata": 0}
    with rasterio.open(path, "w", **profile, crs=crs, transform=transform) as dataset:
        dataset.write(pixels)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes, polygons, a model, and the output of a run: copies of it cannot be resumed, for records name its path."""
    root = tmp_path_factory.mktemp("first")
    pixelwise(root / "model.onnx")
    (root / "in").mkdir()
    scene(root / "in" / "a.tif", UTM, 0)
    scene(root / "in" / "b.tif", EAST, 1)
    write_fields(root / "fields.gpkg", SHAPES, plot=["p1", "p2", "p3", "p4"])
    assert run(root).returncode == 0
    return root


@pytest.fixture
def folder(first: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first, tmp_path, ignore=shutil.ignore_patterns("out"), dirs_exist_ok=True))


def run(root: Path, *more: Any, out: str = "out", executor: str = "serial") -> Any:
    done = invoke(["run", "-i", "in", "-m", "model.onnx", "-o", out, "--device", "cpu", "--executor", executor, *more], root)
    done.stderr += done.stdout
    return done


def zones(root: Path, *more: Any, out: str = "out") -> Any:
    return invoke(["zones", out, "--zones", "fields.gpkg", *more], root)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


def table(root: Path, out: str = "out") -> list[dict[str, str]]:
    return rows(root / out / "zones.csv")


@pytest.fixture
def finished(folder: Path, first: Path) -> Path:
    shutil.copytree(first / "out", folder / "out")
    return folder


def test_zones_afterwards(finished: Path) -> None:
    done = zones(finished, "--zone-id", "plot")
    assert done.returncode == 0, done.stderr
    assert "3 of 4 polygons on 2 cases: " in done.stdout
    found = table(finished)
    assert [row["zone"] for row in found] == ["p1", "p2", "p3", "p4"]
    assert [row["cases"] for row in found] == ["1", "2", "1", "0"]
    assert [row["problems"] for row in found] == ["", "", "partly outside", "outside"]
    for row in found[:3]:
        hectares = [float(row[f"{name}_ha"]) for name in NAMES]
        assert sum(hectares) == pytest.approx(float(row["seen_ha"]), rel=1e-9)
        assert row["majority"] == NAMES[int(np.argmax(hectares))]
        assert float(row["majority_share"]) == max(float(row[f"{name}_share"]) for name in NAMES)
        assert sum(float(row[f"{name}_share"]) for name in NAMES) == pytest.approx(1, abs=2e-6)
    assert float(found[0]["pixels"]) == pytest.approx(29.5 * 25)
    assert float(found[1]["pixels"]) == pytest.approx(40.25 * 40)  # over two scenes, added up once
    assert float(found[2]["pixels"]) == pytest.approx(50 * 10)
    assert found[3]["majority"] == found[3]["majority_share"] == found[3]["class0_share"] == ""


def test_a_polygon_over_all_cases_has_their_areas(folder: Path) -> None:
    write_fields(folder / "fields.gpkg", [square(UTM, -1, -1, 201, 81)])
    assert run(folder, "--zones", "fields.gpkg").returncode == 0
    (row,) = table(folder)
    total: dict[str, float] = dict.fromkeys((*NAMES, "nodata"), 0.0)
    for area in rows(folder / "out" / "areas.csv"):
        total[area["class_name"]] += float(area["area"])
    assert [float(row[f"{name}_ha"]) for name in NAMES] == pytest.approx([total[name] for name in NAMES], rel=1e-9)
    assert float(row["unseen_ha"]) == pytest.approx(total["nodata"], rel=1e-9)
    assert row["problems"] == "partly outside"


def test_a_run_and_a_command_afterwards_write_the_same(finished: Path) -> None:
    done = run(finished, "--zones", "fields.gpkg", out="with")
    assert done.returncode == 0
    assert "areas in with/areas.csv, zones in with/zones.csv" in done.stderr
    assert zones(finished).returncode == 0
    data = (finished / "out" / "zones.csv").read_bytes()
    assert data == (finished / "with" / "zones.csv").read_bytes()
    for name in ("a.tif", "b.tif", "areas.csv"):
        assert (finished / "out" / name).read_bytes() == (finished / "with" / name).read_bytes()
    assert run(finished, "--zones", "fields.gpkg", "--workers", 2, executor="processes", out="two").returncode == 0
    assert (finished / "two" / "zones.csv").read_bytes() == data


def test_the_order_in_which_cases_end_changes_no_byte(finished: Path) -> None:
    """Cases of a run that was resumed in another order; values of earlier runs are taken from their files."""
    assert zones(finished).returncode == 0
    data = (finished / "out" / "zones.csv").read_bytes()
    (finished / "in" / "a.tif").rename(finished / "a.tif")
    assert run(finished, "--zones", "fields.gpkg", out="later").returncode == 0
    (finished / "a.tif").rename(finished / "in" / "a.tif")
    assert (finished / "later" / "zones.csv").read_bytes() != data
    assert run(finished, "--zones", "fields.gpkg", out="later").returncode == 0
    assert (finished / "later" / "zones.csv").read_bytes() == data


def test_what_was_measured_is_not_measured_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert zones(finished).returncode == 0
    data = (finished / "out" / "zones.csv").read_bytes()
    kept = sorted((finished / "out" / FOLDER).iterdir())
    assert len(kept) == 2
    seen: list[str] = []

    def counted(*arguments: Any) -> Any:
        seen.append(arguments[-1])
        return measured(*arguments)

    monkeypatch.setattr("segpipe.results.zones.finished.measured", counted)
    assert zones(finished).returncode == 0
    assert seen == []
    assert (finished / "out" / "zones.csv").read_bytes() == data
    kept[0].write_bytes(kept[0].read_bytes()[:100])  # a damaged file is made again
    assert zones(finished).returncode == 0
    assert len(seen) == 1
    assert (finished / "out" / "zones.csv").read_bytes() == data
    write_fields(finished / "fields.gpkg", SHAPES[:2])  # other polygons are other values
    assert zones(finished).returncode == 0
    assert len(seen) == 3
    assert len(table(finished)) == 2


def test_a_killed_write_leaves_no_table(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("segpipe.results.zones.table.ZoneTotals.rows", stopped)
    assert zones(finished).returncode == 75
    assert not (finished / "out" / "zones.csv").exists()
    monkeypatch.undo()
    assert zones(finished).returncode == 0


KILLED = """
import os, signal
from segpipe.results.zones import finished
keep = finished._keep
def kept(*arguments):
    keep(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
finished._keep = kept
from segpipe.cli import main
main(["zones", "out", "--zones", "fields.gpkg"])
"""
"""Ends as by kill -9 when the first case is measured."""


def test_a_killed_process_leaves_no_half_table_and_the_next_goes_on(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=finished, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (finished / "out" / "zones.csv").exists()
    assert len(list((finished / "out" / FOLDER).iterdir())) == 1
    seen: list[Any] = []
    monkeypatch.setattr("segpipe.results.zones.finished.measured", lambda *all_: seen.append(all_) or measured(*all_))
    again = zones(finished)
    assert again.returncode == 0, again.stderr
    assert len(seen) == 1
    assert run(finished, "--zones", "fields.gpkg", out="whole").returncode == 0
    assert (finished / "out" / "zones.csv").read_bytes() == (finished / "whole" / "zones.csv").read_bytes()
    assert {path.name for path in (finished / "out").iterdir()} == {path.name for path in (finished / "whole").iterdir()}


def test_cases_that_end_until_the_output_is_held_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run finishes a case after the command has read the polygons."""
    (folder / "in" / "b.tif").rename(folder / "b.tif")
    assert run(folder).returncode == 0

    def late(*arguments: Any) -> Any:
        (folder / "b.tif").rename(folder / "in" / "b.tif")
        assert run(folder).returncode == 0
        return locked(*arguments)

    monkeypatch.setattr("segpipe.api.zones.locked", late)
    done = zones(folder)
    assert done.returncode == 0, done.stderr
    assert "3 of 4 polygons on 2 cases: " in done.stdout
    assert [row["cases"] for row in table(folder)] == ["1", "2", "1", "0"]


def test_a_run_without_zones_removes_the_table_of_an_earlier_one(folder: Path) -> None:
    assert run(folder, "--zones", "fields.gpkg").returncode == 0
    assert (folder / "out" / "zones.csv").exists()
    assert run(folder).returncode == 0
    assert not (folder / "out" / "zones.csv").exists()


@pytest.mark.parametrize("name", ["f.gpkg", "f.geojson", "f.shp", "f.fgb", "f.parquet"])
@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326", "EPSG:3035"])
def test_all_kinds_of_files_in_any_crs(finished: Path, name: str, crs: str) -> None:
    frame = geopandas.GeoDataFrame({"plot": ["p1", "p2", "p3", "p4"]}, geometry=SHAPES, crs="EPSG:32633")
    write_fields(finished / name, frame.to_crs(crs).geometry, crs, plot=["p1", "p2", "p3", "p4"])
    assert zones(finished).returncode == 0
    expected = table(finished)
    done = zones(finished, "--zones", name, "--zone-id", "plot")
    assert done.returncode == 0, done.stderr
    found = table(finished)
    assert sorted(row["zone"] for row in found) == ["p1", "p2", "p3", "p4"]
    found.sort(key=lambda row: row["zone"])
    for row, truth in zip(found, expected, strict=True):
        assert row["problems"] == truth["problems"]
        for column in ("seen_ha", "unseen_ha", "pixels", "class1_ha"):
            assert float(row[column]) == pytest.approx(float(truth[column]), rel=1e-5, abs=1e-5), column


@pytest.mark.parametrize("name", ["new.gpkg", "new.geojson", "new.parquet", "new.fgb"])
def test_polygons_with_the_columns(finished: Path, name: str) -> None:
    write_fields(finished / "fields.gpkg", SHAPES, plot=["p1", "p2", "p3", "p4"], pixels=[7, 8, 9, 10])
    for _ in range(2):  # which replaces its own file
        done = zones(finished, "--zone-id", "plot", "--zones-out", name)
        assert done.returncode == 0, done.stderr
    frame = geopandas.read_parquet(finished / name) if name.endswith("parquet") else geopandas.read_file(finished / name)
    frame = frame.sort_values("plot").reset_index()
    assert frame["pixels_file"].tolist() == [7, 8, 9, 10]
    for row, (_, ours) in zip(table(finished), frame.iterrows(), strict=True):
        assert ours["zone"] == row["zone"] == ours["plot"]
        assert ours["class0_ha"] == pytest.approx(float(row["class0_ha"]))
        assert ours["pixels"] == pytest.approx(float(row["pixels"]))
    shapes = frame.to_crs("EPSG:32633").geometry
    assert all(a.symmetric_difference(b).area < 0.1 for a, b in zip(shapes, SHAPES, strict=True))
    assert not list(finished.glob(".new*"))


@pytest.mark.parametrize("suffix", ["gpkg", "geojson", "parquet"])
def test_numbers_beside_missing_ones_are_kept_to_the_last_digit(finished: Path, suffix: str) -> None:
    """Ids of 18 digits have no float of their own, and pandas makes floats of a column in which one is missing."""
    ids = [2**53 + 1, None, 123_456_789_012_345_678, 7]
    columns = {"id": pandas.array(ids, "Int64"), "wet": pandas.array([True, None, False, True], "boolean")}
    write_fields(finished / f"f.{suffix}", SHAPES, **columns)
    if suffix == "parquet":  # as other programs write it
        content = pyarrow.parquet.read_table(finished / "f.parquet")
        plain = content.replace_schema_metadata({b"geo": content.schema.metadata[b"geo"]})
        pyarrow.parquet.write_table(plain, finished / "f.parquet")
    done = zones(finished, "--zones", f"f.{suffix}", "--zone-id", "id", "--zones-out", "new.gpkg")
    assert done.returncode == 0, done.stderr
    assert [row["zone"] for row in table(finished)] == ["9007199254740993", "", "123456789012345678", "7"]
    written = pyogrio.read_arrow(finished / "new.gpkg", columns=["id", "wet"], read_geometry=False)[1]
    assert written.to_pydict() == {"id": ids, "wet": [True, None, False, True]}
    assert zones(finished, "--zones", f"f.{suffix}", "--zone-id", "wet").returncode == 0
    assert [row["zone"] for row in table(finished)] == ["True", "", "False", "True"]


def test_polygons_of_a_run(folder: Path) -> None:
    assert run(folder, "--zones", "fields.gpkg", "--zones-out", "new.gpkg", "--zone-id", "plot").returncode == 0
    assert len(geopandas.read_file(folder / "new.gpkg")) == 4


def test_ground_of_overlapping_cases_counts_once(folder: Path) -> None:
    """A scene over both others adds what they did not see; the order in which cases end changes no byte."""
    assert run(folder, "--zones", "fields.gpkg", out="two").returncode == 0
    scene(folder / "in" / "c.tif", UTM * Affine.translation(50, 0), 2)
    done = run(folder, "--zones", "fields.gpkg")
    assert done.returncode == 0
    assert table(folder)[1]["cases"] == "2"  # c touches p2 as well, but a and b have data on all of it
    for row, before in zip(table(folder), table(folder, "two"), strict=True):
        assert float(row["pixels"]) == pytest.approx(float(before["pixels"]))
        assert float(row["seen_ha"]) >= float(before["seen_ha"]) - 1e-6
        assert row["problems"] == before["problems"]
    data = (folder / "out" / "zones.csv").read_bytes()
    assert run(folder, "--zones", "fields.gpkg", out="two").returncode == 0  # where c.tif comes to cases that are done
    assert (folder / "two" / "zones.csv").read_bytes() == data


def test_of_many_cases_those_that_overlap_are_looked_at_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the sums, so that a mask is opened once; the table is the same."""
    for number in range(2):
        scene(folder / "in" / f"over{number}.tif", UTM * Affine.translation(50 * number, 0), 2)
    assert run(folder, "--zones", "fields.gpkg").returncode == 0
    monkeypatch.setattr(stage, "MOST_CACHED", 0)
    assert run(folder, "--zones", "fields.gpkg", out="many").returncode == 0
    assert (folder / "many" / "zones.csv").read_bytes() == (folder / "out" / "zones.csv").read_bytes()


def test_a_polygon_over_scenes_of_two_crs(folder: Path) -> None:
    """Its parts lie in a scene in UTM and in one in Web Mercator: the sum is the area of both."""
    scene(folder / "in" / "b.tif", Affine(15, 0, 1_680_000, 0, -15, 6_230_000), 1, "EPSG:3857")
    parts = [
        square(UTM, 10, 20, 60, 70),
        geopandas.GeoSeries([shapely.box(1_680_100, 6_229_000, 1_681_000, 6_229_900)], crs="EPSG:3857").to_crs(32633)[0],
    ]
    degrees = [geopandas.GeoSeries([part], crs="EPSG:32633").to_crs(4326)[0] for part in parts]
    geod = pyproj.Geod(ellps="WGS84")
    truth = sum(abs(geod.geometry_area_perimeter(part)[0]) for part in degrees) / 1e4
    write_fields(folder / "fields.gpkg", [shapely.MultiPolygon(parts)])
    assert run(folder, "--zones", "fields.gpkg").returncode == 0
    (row,) = table(folder)
    assert (row["cases"], row["problems"]) == ("2", "")
    assert float(row["seen_ha"]) + float(row["unseen_ha"]) == pytest.approx(truth, rel=1e-5)


def test_only_the_first_cases_are_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many cases, that none of the first ones lies on a polygon is a warning; that none of all does is an error."""
    write_fields(folder / "fields.gpkg", [square(EAST, 50, 10, 60, 20)])
    monkeypatch.setattr(stage, "MOST_OPENED", 1)
    done = run(folder, "--zones", "fields.gpkg")
    assert done.returncode == 0
    assert "no polygon lies on the first 1 case, 1 of them with a place on the Earth" in done.stderr
    assert table(folder)[0]["cases"] == "1"


def test_columns_that_drivers_make_are_renamed(finished: Path) -> None:
    write_fields(finished / "odd.parquet", SHAPES, fid=[1, 1, 2, 2], Zone=["a", "b", "c", "d"])
    assert zones(finished, "--zones", "odd.parquet", "--zones-out", "new.gpkg").returncode == 0
    frame = geopandas.read_file(finished / "new.gpkg")
    assert frame["fid_file"].tolist() == [1, 1, 2, 2]
    assert frame["Zone_file"].tolist() == ["a", "b", "c", "d"]
    assert frame["zone"].tolist() == ["1", "2", "3", "4"]
    assert {".gpkg", ".geojson", ".fgb"} == {*DRIVERS}
    assert "fid" in RESERVED


SUFFIXES = ("gpkg", "geojson", "fgb", "parquet")


def read(path: Path) -> Any:
    return geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path)


def test_polygons_with_the_columns_are_zones_again(finished: Path) -> None:
    """Columns of each earlier table are kept under names of their own."""
    for suffix in SUFFIXES:
        source = "fields.gpkg"
        for k in range(4):
            done = zones(finished, "--zones", source, "--zones-out", f"{k}.{suffix}")
            assert done.returncode == 0, (suffix, k, done.stderr)
            source = f"{k}.{suffix}"
        columns = list(read(finished / source).columns)
        assert {"plot", "zone", "zone_file", "zone_file_file", "zone_file_file_file"} <= {*columns}
        assert len({name.casefold() for name in columns}) == len(columns)


def test_polygons_with_the_columns_keep_rows_without_geometry(finished: Path) -> None:
    write_fields(finished / "gaps.parquet", [*SHAPES, None, shapely.Polygon()], plot=list("abcdef"))
    for suffix in SUFFIXES:
        done = zones(finished, "--zones", "gaps.parquet", "--zones-out", f"new.{suffix}")
        assert done.returncode == 0, (suffix, done.stderr)
        frame = read(finished / f"new.{suffix}").sort_values("plot")
        assert frame["plot"].tolist() == list("abcdef")
        assert [bool(shape) for shape in frame.geometry] == [True] * 4 + [False] * 2


def test_columns_that_differ_in_case_alone_are_renamed(finished: Path) -> None:
    write_fields(finished / "case.parquet", SHAPES, name=[1, 2, 3, 4], Name=[5, 6, 7, 8])
    for suffix in SUFFIXES:
        done = zones(finished, "--zones", "case.parquet", "--zones-out", f"new.{suffix}")
        assert done.returncode == 0, (suffix, done.stderr)
        frame = read(finished / f"new.{suffix}").sort_values("name")
        assert (frame["name"].tolist(), frame["Name_file"].tolist()) == ([1, 2, 3, 4], [5, 6, 7, 8])


def test_classes_that_differ_from_columns_in_case_alone_are_renamed(finished: Path) -> None:
    for path in (finished / "out").glob("[ab].json"):
        record = json.loads(path.read_text())
        record["statistics"]["areas"][0]["class_name"] = "Seen"
        path.write_text(json.dumps(record))
    done = zones(finished, "--zones-out", "new.gpkg")
    assert done.returncode == 0, done.stderr
    frame = read(finished / "new.gpkg")
    assert frame["Seen_ha_class"].tolist() == pytest.approx([float(row["Seen_ha"]) for row in table(finished)])
    assert frame["seen_ha"].tolist() == pytest.approx([float(row["seen_ha"]) for row in table(finished)])


def test_a_geometry_column_may_have_the_name_of_ours(finished: Path) -> None:
    frame = geopandas.GeoDataFrame({"plot": [1, 2, 3, 4]}, geometry=SHAPES, crs="EPSG:32633").rename_geometry("zone")
    frame.to_parquet(finished / "zone.parquet")
    for suffix in SUFFIXES:
        done = zones(finished, "--zones", "zone.parquet", "--zones-out", f"new.{suffix}")
        assert done.returncode == 0, (suffix, done.stderr)
        assert sorted(read(finished / f"new.{suffix}")["zone"]) == ["1", "2", "3", "4"]


def test_long_names_of_files_are_written(finished: Path) -> None:
    """The longest that a file system takes; one byte more is refused in one line before anything is measured."""
    for suffix in SUFFIXES:
        name = "n" * (254 - len(suffix)) + f".{suffix}"
        done = zones(finished, "--zones-out", name)
        assert done.returncode == 0, (suffix, done.stderr)
        assert len(read(finished / name)) == 4
        (finished / "out" / "zones.csv").unlink()
        done = zones(finished, "--zones-out", f"n{name}")
        assert done.returncode == 2
        assert done.stderr == f"error: --zones-out n{name} cannot be written: File name too long: name another file\n"
        assert not (finished / "out" / "zones.csv").exists()
    assert not list(finished.glob(".*partial*"))


def test_a_run_of_volumes_or_of_failures_alone(folder: Path) -> None:
    """Without a finished case there is no table; the run ends as it does without zones."""
    for name in ("a", "b"):
        path = folder / "in" / f"{name}.tif"
        path.write_bytes(path.read_bytes()[:900])
    done = run(folder, "--zones", "fields.gpkg")
    assert done.returncode == 1
    assert not (folder / "out" / "zones.csv").exists()


def test_an_unforeseen_error_is_one_line_and_the_masks_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise shapely.errors.GEOSException("TopologyException")

    monkeypatch.setattr("segpipe.results.zones.finished.measured", broken)
    done = run(folder, "--zones", "fields.gpkg")
    assert done.returncode == 1
    assert "error: out/a failed in a way that segpipe does not know: GEOSException: TopologyException" in done.stderr
    assert not (folder / "out" / "zones.csv").exists()
    monkeypatch.undo()
    assert run(folder, "--zones", "fields.gpkg").returncode == 0


def test_zones_of_a_run_in_python(folder: Path) -> None:
    import segpipe

    places = [folder / name for name in ("in", "model.onnx", "out")]
    result = segpipe.run(*places, executor="serial", device="cpu", zones=folder / "fields.gpkg", zone_id="plot")
    assert result.problems == []
    assert [row["zone"] for row in table(folder)] == ["p1", "p2", "p3", "p4"]


def test_zones_over_masks_in_a_bucket(finished: Path, endpoint: Any) -> None:
    endpoint.put_folder(finished / "out", "zones")
    done = zones(finished, out="s3://scenes/zones")
    assert done.returncode == 0, done.stderr
    assert "3 of 4 polygons on 2 cases: s3://scenes/zones/zones.csv" in done.stdout
    assert zones(finished).returncode == 0
    assert store_at("s3://scenes/zones").read("zones.csv") == (finished / "out" / "zones.csv").read_bytes()


BAD: dict[str, tuple[Any, str]] = {
    "no file": (["--zones", "none.gpkg"], "none.gpkg does not exist: correct the path"),
    "no vector file": (["--zones", "in/a.tif"], "in/a.tif cannot be read as a file of polygons"),
    "no column": (["--zone-id", "name"], "fields.gpkg has no column 'name', it has plot: name one with --zone-id"),
    "no layer": (["--zones-layer", "x"], "fields.gpkg has no layer 'x', it has fields: name one with --zones-layer"),
    "suffix": (["--zones-out", "x.shp"], "--zones-out must end with .gpkg, .geojson, .fgb, .parquet, got x.shp"),
    "folder": (["--zones-out", "no/x.gpkg"], "--zones-out must lie in a folder that exists"),
    "itself": (["--zones-out", "fields.gpkg"], "--zones-out must not replace the polygons of --zones, got fields.gpkg"),
    "foreign": (["--zones-out", "foreign.gpkg"], "foreign.gpkg was not written by segpipe"),
    "two geometries": (["--zones", "both.parquet", "--zones-out", "x.gpkg"], "Multiple geometry columns are not supported"),
    "far away": (["--zones", "far.gpkg"], "no polygon of far.gpkg does"),
    "points": (["--zones", "points.gpkg"], "points.gpkg holds none: Point instead of a polygon"),
    "no crs": (["--zones", "bare.gpkg"], "--zones must have a CRS, and bare.gpkg has none"),
    "nothing": (["--zones", "nothing.gpkg"], "nothing.gpkg holds nothing"),
    "two layers": (["--zones", "two.gpkg"], "two.gpkg has 2 layers, fields, more: name one with --zones-layer"),
    "the moon": (["--zones", "moon.gpkg"], "--zones must lie on the Earth"),
    "no geometry": (["--zones", "table.parquet"], "table.parquet cannot be read as a file of polygons"),
    "pointer": (["--zones", "pointer.vrt"], "pointer.vrt leads to other sources: convert it with ogr2ogr"),
    "truncated shapefile": (
        ["--zones", "cut.shp"],
        "truncated: its header says 644 bytes, and it has 500: copy it again",
    ),
    "truncated package": (["--zones", "cut.gpkg"], ": copy it again, or convert it with ogr2ogr"),
    "empty file": (["--zones", "empty.gpkg"], "empty.gpkg is empty (0 bytes): copy it again"),
    "layer of parquet": (["--zones", "f.parquet", "--zones-layer", "x"], "a Parquet file has no layers"),
}


@pytest.fixture
def bad(finished: Path) -> Path:
    import pandas

    write_fields(finished / "foreign.gpkg", SHAPES)
    write_fields(finished / "far.gpkg", [shapely.box(0, 0, 10, 10)], "EPSG:4326")
    write_fields(finished / "points.gpkg", [shapely.Point(500_100, 5_399_900)])
    write_fields(finished / "bare.gpkg", SHAPES, None)
    write_fields(finished / "f.parquet", SHAPES)
    write_fields(finished / "cut.shp", SHAPES)
    os.truncate(finished / "cut.shp", 500)
    write_fields(finished / "cut.gpkg", SHAPES)
    os.truncate(finished / "cut.gpkg", 60_000)
    (finished / "empty.gpkg").touch()
    both = geopandas.GeoDataFrame({"centre": geopandas.GeoSeries(SHAPES).centroid}, geometry=SHAPES, crs="EPSG:32633")
    both.to_parquet(finished / "both.parquet")
    source = "<OGRVRTLayer name='a'><SrcDataSource>http://127.0.0.1:9/a.geojson</SrcDataSource></OGRVRTLayer>"
    (finished / "pointer.vrt").write_text(f"<OGRVRTDataSource>{source}</OGRVRTDataSource>")
    geopandas.GeoDataFrame({"a": []}, geometry=[], crs="EPSG:32633").to_file(finished / "nothing.gpkg")
    for layer in ("fields", "more"):
        geopandas.GeoDataFrame(geometry=SHAPES, crs="EPSG:32633").to_file(finished / "two.gpkg", layer=layer)
    moon = "+proj=longlat +R=1737400 +no_defs"
    write_fields(finished / "moon.gpkg", SHAPES, moon)
    pandas.DataFrame({"a": [1]}).to_parquet(finished / "table.parquet")
    return finished


def test_bad_files_are_refused_before_anything_is_done(bad: Path) -> None:
    """Each both afterwards and before a run infers anything; one line that names the mend."""
    for name, (more, text) in BAD.items():
        done = zones(bad, *more)
        assert done.returncode == 2, name
        assert text in done.stderr, (name, done.stderr)
        assert len(done.stderr.splitlines()) == 1, done.stderr
        begun = run(bad, *(["--zones", "fields.gpkg"] if "--zones" not in more else []), *more, out="new")
        assert begun.returncode == 2, name
        assert text in begun.stderr, (name, begun.stderr)
        assert not (bad / "new").exists()
    assert not (bad / "out" / "zones.csv").exists()


def test_a_table_of_somebody_else_stays(folder: Path) -> None:
    assert run(folder).returncode == 0
    (folder / "out" / "zones.csv").write_text("my,own\n")
    for done in (zones(folder), run(folder, "--zones", "fields.gpkg")):
        assert done.returncode == 2
        assert "zones.csv was not written by segpipe" in done.stderr
    assert run(folder).returncode == 0
    assert (folder / "out" / "zones.csv").read_text() == "my,own\n"


def test_what_is_wrong_with_a_polygon_is_named_and_nothing_is_lost(finished: Path) -> None:
    bowtie = shapely.Polygon([UTM * (20, 20), UTM * (40, 40), UTM * (40, 20), UTM * (20, 40)])
    mixed = shapely.GeometryCollection([square(UTM, 1, 40, 3, 42), shapely.Point(UTM * (9, 9))])
    shapes = [
        bowtie,
        None,
        shapely.Polygon(),
        shapely.Point(UTM * (5, 5)),
        shapely.LineString([UTM * (1, 1), UTM * (5, 9)]),
        mixed,
        square(UTM, 30.2, 30.2, 30.7, 30.7),
        shapely.force_3d(square(UTM, 0, 0, 2, 2), 7.0),
    ]
    write_fields(finished / "odd.parquet", shapes, plot=["a", "b", "c", "d", "d", None, "g", "h"])
    done = zones(finished, "--zones", "odd.parquet", "--zone-id", "plot")
    assert done.returncode == 0, done.stderr
    assert "warning: odd.parquet: 2 of 8 polygons: duplicated id" in done.stderr
    assert "warning: odd.parquet: 1 of 8 polygons: repaired" in done.stderr
    found = table(finished)
    problems = [row["problems"].split("[")[0].split(";")[0] for row in found]
    assert problems == [
        "repaired: Self-intersection",
        "no geometry",
        "empty geometry",
        "duplicated id",
        "duplicated id",
        "no id",
        "smaller than a pixel",
        "",
    ]
    assert found[3]["problems"] == "duplicated id; Point instead of a polygon"
    assert found[4]["problems"] == "duplicated id; LineString instead of a polygon"
    assert found[5]["problems"] == "no id; GeometryCollection: only its polygons count"
    assert [float(row["pixels"]) for row in found] == pytest.approx([200, 0, 0, 0, 0, 4, 0.25, 4], abs=1e-4)


def test_masks_of_other_classes_are_refused(finished: Path) -> None:
    path = finished / "out" / "b.json"
    record = json.loads(path.read_text())
    record["statistics"]["areas"][0]["class_name"] = "meadow"
    path.write_text(json.dumps(record))
    done = zones(finished)
    assert done.returncode == 2
    assert "zones need cases with the same classes, and those of a and b differ" in done.stderr


def test_a_picture_has_no_zones_and_the_other_cases_have(folder: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (3, 40, 40), dtype=np.uint8)
    with rasterio.open(folder / "in" / "photo.png", "w", driver="PNG", width=40, height=40, count=3, dtype="uint8") as out:
        out.write(pixels)
    done = run(folder, "--zones", "fields.gpkg")
    assert done.returncode == 0, done.stderr
    assert "warning: photo: no zones: the file has no georeferencing" in done.stderr
    assert [row["cases"] for row in table(folder)] == ["1", "2", "1", "0"]


def test_a_damaged_mask_is_an_error_and_the_run_goes_on(folder: Path) -> None:
    assert run(folder).returncode == 0
    mask = folder / "out" / "a.tif"
    mask.write_bytes(mask.read_bytes()[:600])
    done = zones(folder)
    assert done.returncode == 2
    assert "out/a.tif is damaged" in done.stderr
    assert "run again with the same output" in done.stderr
    assert run(folder, "--zones", "fields.gpkg").returncode == 0
    assert [row["cases"] for row in table(folder)] == ["1", "2", "1", "0"]


def test_settings_of_zones_need_zones(folder: Path) -> None:
    done = run(folder, "--zone-id", "plot")
    assert done.returncode == 2
    assert "zone_id needs zones: give --zones, too, or leave --zone-id out" in done.stderr


def test_without_the_extra_one_line_says_how_to_install_it(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pyogrio", "pyogrio.errors", "geopandas"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        for done in (zones(finished), run(finished, "--zones", "fields.gpkg", out="new")):
            assert done.returncode == 2
            assert "which is not installed: run pip install" in done.stderr
            assert "zones]" in done.stderr
        monkeypatch.undo()


@pytest.mark.shared_data
def test_published_numbers_of_rasterstats(shared: Path) -> None:
    """Pixels whose centre lies in each polygon, and their mean slope; ours count parts of pixels."""
    expected = json.loads((shared / "golden" / "golden.json").read_text())["rasterstats_zonal"]["expected"]
    polygons = read_zones(Selection(shared / "zones" / "polygons.shp"))
    with rasterio.open(shared / "zones" / "slope.tif") as dataset:
        slope = dataset.read(1)
        mask = ArrayMask(np.ones(slope.shape), dataset.transform, dataset.crs)
    placed = place(polygons.shapes, polygons.crs, mask.grid.measure, slope.shape)
    row, col = np.meshgrid(*(np.arange(n) + 0.5 for n in slope.shape), indexing="ij")
    inside = [shapely.contains_xy(shape, col, slope.shape[0] - row) for shape in placed.shapes]
    assert [int(one.sum()) for one in inside] == expected["count"]
    assert round(float(slope[inside[0]].mean()), 2) == expected["mean0"]
    found = measured(mask, ((0, "none"), (1, "all")), 255, polygons)
    assert found.pixels == pytest.approx(
        [50243.15038853645 / 25.52514657450613**2, 33987.79948801631 / 25.52514657450613**2]
    )


@pytest.mark.shared_data
def test_classes_of_real_polygons_are_those_of_rasterstats(shared: Path) -> None:
    import rasterstats

    paths = [shared / "zones" / name for name in ("polygons.shp", "slope_classes.tif")]
    with rasterio.open(paths[1]) as dataset:
        data, transform, crs = dataset.read(1), dataset.transform, dataset.crs
    labels = np.where(data < 0, 255, data).astype(np.uint8)
    truth = rasterstats.zonal_stats(
        str(paths[0]),
        np.kron(labels, np.ones((20, 20), np.uint8)),
        affine=transform * Affine.scale(1 / 20),
        categorical=True,
        nodata=254,
    )
    found = measured(ArrayMask(labels, transform, crs), ((1, "1"), (2, "2"), (5, "5")), 255, read_zones(Selection(paths[0])))
    pixel = abs(transform.determinant)
    for ours, theirs in zip(found.classes, truth, strict=True):
        assert ours / pixel == pytest.approx([theirs.get(k, 0) / 400 for k in (1, 2, 5)], rel=2e-3, abs=0.05)
