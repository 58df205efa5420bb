"""Totals of scenes that share ground: against a mosaic made by brute force, by any rule and in any order, and bad input."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from command import invoke
from fields import square, write_fields
from networks import pixelwise
from overlapping import CORNER, PLACES, RULES, UTM, joined, make_scenes, read, rows, run, scene, totals
from pyproj import Transformer

import segpipe
from segpipe.formats.raster.mask import RasterMask
from segpipe.geometry.windows import Window
from segpipe.results.overlap import doubled, order
from segpipe.results.overlap.doubled import FOLDER
from segpipe.storage.stores import store_at

NAMES = ("class0", "class1", "class2")
PIXEL = 0.01 / 0.9996**2
"""Hectares on the ground of 10 m pixels at the central meridian of a UTM zone."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes, and a run by each rule."""
    root = make_scenes(tmp_path_factory.mktemp("overlap"))
    for rule in RULES:
        done = run(root, "--overlap-rule", rule, "--confidence", out=rule)
        assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_scenes(tmp_path)


def sums(root: Path, out: str = "out") -> dict[str, tuple[int, float]]:
    """Pixels and hectares of each class in ``areas.csv``, added up in the order of the table."""
    found: dict[str, tuple[int, float]] = {}
    for row in rows(root / out / "areas.csv"):
        pixels, area = found.get(row["class_name"], (0, 0.0))
        found[row["class_name"]] = pixels + int(row["pixels"]), area + float(row["area"])
    return found


def counted(root: Path, out: str = "out") -> dict[str, tuple[int, float]]:
    return {name: (one["pixels"], one["area"]) for name, one in totals(root, out)["classes"].items()}


@pytest.mark.parametrize("rule", RULES)
def test_totals_are_those_of_the_mosaic(made: Path, rule: str) -> None:
    canvas, twice = joined(made, rule, out=rule)
    found = totals(made, rule)
    assert found["overlap_rule"] == rule
    labels = dict(zip((*NAMES, "nodata"), (0, 1, 2, 255), strict=True))
    for name, label in labels.items():
        pixels = int((canvas == label).sum())
        assert found["classes"][name]["pixels"] == pixels
        assert found["classes"][name]["area"] == pytest.approx(pixels * PIXEL, rel=1e-6)
    assert found["valid"]["pixels"] == int((canvas < 254).sum())
    assert found["doubled"]["pixels"] == twice > 2 * CORNER[0] * CORNER[1] * 0.5
    assert found["doubled"]["area"] == pytest.approx(twice * PIXEL, rel=1e-6)
    alone = sum(pixels for name, (pixels, _) in sums(made, rule).items() if name != "nodata")
    assert alone - twice == found["valid"]["pixels"]


def test_rules_differ_and_areas_of_scenes_do_not(made: Path) -> None:
    each = [totals(made, rule)["classes"] for rule in RULES]
    assert each[0] != each[1] != each[2] != each[0]
    assert len({(made / rule / "areas.csv").read_bytes() for rule in RULES}) == 1
    assert list(totals(made, "newest")["acquired"]) == sorted(PLACES)
    assert totals(made, "newest")["acquired"]["b_20230815"] == {"time": "2023-08-15T00:00:00+00:00", "source": "its name"}
    assert "acquired" not in totals(made, "first")


@pytest.mark.parametrize("rule", RULES)
def test_summary_and_result_say_the_same(made: Path, rule: str) -> None:
    again = run(made, "--overlap-rule", rule, "--confidence", out=rule)
    found, result = totals(made, rule), segpipe.open_run(made / rule)
    hectares = found["doubled"]["area"]
    assert (
        f"{hectares:,.1f} ha that several cases share are left out of these totals (--overlap-rule {rule})" in again.stdout
    )
    assert f"class1 {found['classes']['class1']['area']:,.1f} ha" in again.stdout
    assert {name: (one.pixels, one.area) for name, one in result.totals.items()} == counted(made, rule)
    assert (result.doubled.pixels, result.doubled.area, result.doubled.unit) == (*found["doubled"].values(), "ha")


def test_workers_parts_and_order_change_no_digit(made: Path, folder: Path) -> None:
    truth = totals(made, "newest")
    aside = folder / "a_20230601.tif"
    (folder / "in" / aside.name).rename(aside)  # ends after the others
    first = ["--overlap-rule", "newest", "--parts", 2]
    assert run(folder, *first).returncode == 0
    assert totals(folder) != truth
    aside.rename(folder / "in" / aside.name)
    assert run(folder, *first).returncode == 0
    assert totals(folder) == truth
    assert run(folder, *first, "--workers", 2, executor="processes", out="two").returncode == 0
    assert totals(folder, "two") == truth


def test_scenes_that_share_nothing_have_the_sums_of_the_table_and_nothing_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_scenes(tmp_path, {"a": (0, 0), "b": (0, 400), "c": (4000, 0)})

    def never(*arguments: Any) -> Any:
        raise AssertionError(arguments)

    monkeypatch.setattr("segpipe.results.overlap.totals.doubled_of", never)
    monkeypatch.setattr("segpipe.results.overlap.finished.opened", never)
    done = run(tmp_path, "--overlap-rule", "newest")  # without a date
    assert done.returncode == 0, done.stderr
    assert counted(tmp_path) == sums(tmp_path)
    assert totals(tmp_path)["doubled"] == {"pixels": 0, "area": 0.0}
    assert "share" not in done.stdout
    assert not (tmp_path / "out" / FOLDER).exists()


def test_scenes_that_touch_have_the_sums_of_the_table(tmp_path: Path) -> None:
    make_scenes(tmp_path, {"a": (0, 0), "b": (0, 100), "c": (80, 0)})
    assert run(tmp_path).returncode == 0
    assert counted(tmp_path) == sums(tmp_path)


def test_doubled_hectares_by_hand(tmp_path: Path) -> None:
    """Two scenes of full data that share 80 rows and 30 columns."""
    make_scenes(tmp_path, {"a": (0, 0), "b": (0, 70)})
    done = run(tmp_path, "--nodata", "none")
    assert totals(tmp_path)["doubled"]["pixels"] == 80 * 30
    assert totals(tmp_path)["doubled"]["area"] == pytest.approx(24 / 0.9996**2, rel=1e-7)
    assert totals(tmp_path)["valid"]["area"] == pytest.approx(136 / 0.9996**2, rel=1e-7)
    assert "24.0 ha that several cases share are left out of these totals (--overlap-rule first)" in done.stdout


def test_islands_without_data_are_filled_from_the_second(tmp_path: Path) -> None:
    """The same place twice: what one of them saw is seen, and what both saw is double."""
    make_scenes(tmp_path, {"a": (0, 0), "b": (0, 0)})
    assert run(tmp_path).returncode == 0
    a, b = (read(tmp_path / "out" / f"{name}.tif") != 255 for name in "ab")
    assert (a ^ b).any()
    assert totals(tmp_path)["valid"]["pixels"] == (a | b).sum()
    assert totals(tmp_path)["doubled"]["pixels"] == (a & b).sum()
    assert totals(tmp_path)["classes"]["nodata"]["pixels"] == (~a & ~b).sum()


def test_independent_classes_count_once_each(tmp_path: Path) -> None:
    make_scenes(tmp_path, {"a": (0, 0), "b": (40, 30)})
    pixelwise(tmp_path / "model.onnx", task="multilabel", activation="sigmoid", threshold=0.5)
    done = run(tmp_path, "--confidence")
    assert done.returncode == 0, done.stderr
    masks = [rasterio.open(tmp_path / "out" / f"{name}.tif").read() for name in "ab"]
    twice = masks[1][:, :40, :70][:, (masks[0][0, 40:, 30:] != 255) & (masks[1][0, :40, :70] != 255)]
    for k, name in enumerate(NAMES):
        both = int((twice[k] == 1).sum())
        assert counted(tmp_path)[name][0] == sums(tmp_path)[name][0] - both
    assert totals(tmp_path)["doubled"]["pixels"] == twice.shape[1]
    done = run(tmp_path, "--confidence", "--overlap-rule", "confidence")
    assert done.returncode == 1
    assert "--overlap-rule confidence needs classes that exclude each other" in done.stderr


def test_zones_follow_the_rule(made: Path) -> None:
    """A polygon over everything has the totals, whatever the rule."""
    write_fields(made / "all.gpkg", [square(UTM, -5, -25, 180, 140)])
    for rule in RULES:
        done = segpipe_zones(made, rule)
        assert done.returncode == 0, done.stderr
        (row,) = rows(made / rule / "zones.csv")
        for name in NAMES:
            assert float(row[f"{name}_ha"]) == pytest.approx(counted(made, rule)[name][1], rel=1e-6)


def segpipe_zones(root: Path, rule: str) -> Any:
    return invoke(["zones", rule, "--zones", "all.gpkg", "--overlap-rule", rule], root)


def test_what_was_measured_is_kept_until_a_neighbour_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(folder).returncode == 0
    assert len(list((folder / "out" / FOLDER).iterdir())) == 3
    seen: list[str] = []
    added = doubled.Counts.added

    def noted(self: Any, together: Any, path: str) -> Any:
        seen.append(Path(path).stem)
        return added(self, together, path)

    monkeypatch.setattr(doubled.Counts, "added", noted)
    before = totals(folder)
    assert run(folder).returncode == 0
    assert (seen, totals(folder)) == ([], before)
    scene(folder / "in" / "c_20230715.tif", UTM * Affine.translation(*PLACES["c_20230715"][::-1]), 7)
    assert run(folder).returncode == 0
    assert seen == sorted(PLACES)  # the changed one, and both that it touches
    assert totals(folder) != before
    for path in (folder / "out" / FOLDER).iterdir():
        path.write_bytes(path.read_bytes()[:50])
    again = totals(folder)
    assert run(folder).returncode == 0
    assert totals(folder) == again
    assert run(folder, "--overlap-rule", "newest").returncode == 0
    assert totals(folder) != again


def test_scenes_of_two_utm_zones(tmp_path: Path) -> None:
    """The same ground in zones 33 and 34: its area counts once, but for pixels at the edges."""
    make_scenes(tmp_path, {"a": (0, 0)})
    x, y = Transformer.from_crs("EPSG:32633", "EPSG:32634", always_xy=True).transform(500_500, 5_399_600)
    scene(tmp_path / "in" / "b.tif", Affine(10, 0, round(x) - 500, 0, -10, round(y) + 400), 5, "EPSG:32634")
    assert run(tmp_path, "--nodata", "none").returncode == 0
    found = totals(tmp_path)
    alone = sum(area for _, area in sums(tmp_path).values())
    assert alone == pytest.approx(160, rel=0.01)
    assert found["valid"]["area"] + found["doubled"]["area"] == pytest.approx(alone, rel=1e-9)
    back = Transformer.from_crs("EPSG:32634", "EPSG:32633", always_xy=True).transform
    there = shapely.segmentize(shapely.box(round(x) - 500, round(y) - 400, round(x) + 500, round(y) + 400), 50)
    there = shapely.transform(there, back, interleaved=False)
    common = there.intersection(shapely.box(500_000, 5_399_200, 501_000, 5_400_000)).area / 1e4 / 0.9996**2
    assert found["doubled"]["area"] == pytest.approx(common, rel=5e-3)


def test_scenes_on_both_sides_of_the_antimeridian(tmp_path: Path) -> None:
    make_scenes(tmp_path, {"z": (0, 9999)})
    step = 0.0001
    scene(tmp_path / "in" / "a.tif", Affine(step, 0, 179.994, 0, -step, 10), 1, "EPSG:4326")
    scene(tmp_path / "in" / "b.tif", Affine(step, 0, -180.002, 0, -step, 10), 2, "EPSG:4326")
    assert run(tmp_path, "--nodata", "none").returncode == 0
    assert totals(tmp_path)["doubled"]["pixels"] == 80 * 60


def test_pictures_and_volumes_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_scenes(tmp_path, {"a": (0, 0)})
    pixels = np.random.default_rng(0).integers(1, 256, (3, 40, 50), dtype=np.uint8)
    for name in ("p.png", "q.png"):
        with rasterio.open(tmp_path / "in" / name, "w", driver="PNG", width=50, height=40, count=3, dtype="uint8") as file:
            file.write(pixels)
    monkeypatch.setattr("segpipe.results.overlap.totals.doubled_of", None)
    assert run(tmp_path).returncode == 0
    assert totals(tmp_path)["measured"] is False
    assert totals(tmp_path)["classes"]["class0"]["pixels"] == sums_of_pixels(tmp_path)["class0"]


def sums_of_pixels(root: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows(root / "out" / "areas.csv"):
        found[row["class_name"]] = found.get(row["class_name"], 0) + int(row["pixels"])
    return found


def test_records_of_earlier_versions_have_no_transform_and_masks_are_opened(folder: Path) -> None:
    assert run(folder).returncode == 0
    before = totals(folder)
    for name in PLACES:
        path = folder / "out" / f"{name}.json"
        record = json.loads(path.read_text())
        assert len(record["input"]["grid"].pop("transform")) == 6
        path.write_text(json.dumps(record))
    assert run(folder).returncode == 0
    assert totals(folder) == before


def test_a_case_without_a_date_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    make_scenes(tmp_path, {"a_20230601": (0, 0), "b": (0, 50)})
    done = run(tmp_path, "--overlap-rule", "newest")
    assert done.returncode == 1
    assert "neither the metadata nor the name of b says it: give --overlap-rule first, or a name such as" in done.stderr
    assert len(rows(tmp_path / "out" / "areas.csv")) == 8
    assert "totals" not in json.loads((tmp_path / "out" / "run.json").read_text())
    result = segpipe.open_run(tmp_path / "out")
    with pytest.raises(segpipe.OverlapError, match="neither the metadata nor the name of b"):
        _ = result.totals
    assert run(tmp_path, "--overlap-rule", "first").returncode == 0
    scene(tmp_path / "in" / "b.tif", UTM * Affine.translation(50, 0), 1, ACQUISITION_DATE="2023-05-01")
    assert run(tmp_path, "--overlap-rule", "newest").returncode == 0
    assert totals(tmp_path)["acquired"]["b"] == {
        "time": "2023-05-01T00:00:00+00:00",
        "source": "ACQUISITION_DATE of its metadata",
    }


def test_the_rule_confidence_needs_confidence(folder: Path) -> None:
    done = run(folder, "--overlap-rule", "confidence")
    assert done.returncode == 2
    assert "overlap_rule confidence needs confidence: give --confidence, too" in done.stderr


def test_a_damaged_neighbour_is_an_error_and_nothing_is_lost(folder: Path) -> None:
    assert run(folder).returncode == 0
    before = totals(folder)
    mask = folder / "out" / "b_20230815.tif"
    data = bytearray(mask.read_bytes())
    with rasterio.open(mask) as dataset:
        block = int(dataset.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", 1))
    data[block + 20 : block + 220] = bytes(200)  # of the same length: only reading it shows the damage
    mask.write_bytes(data)
    for path in (folder / "out" / FOLDER).iterdir():
        path.unlink()
    done = run(folder)
    assert done.returncode == 1
    assert f"{mask.relative_to(folder)}" in done.stderr
    assert "remove the file and run again with the same output" in done.stderr
    assert len(rows(folder / "out" / "areas.csv")) == 12
    mask.unlink()
    assert run(folder).returncode == 0
    assert totals(folder) == before


KILLED = """
import os, signal
from segpipe.results.overlap import totals
found = totals.doubled_of
def kept(*arguments):
    found(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
totals.doubled_of = kept
from segpipe.cli import main
main("run -i in -m model.onnx -o out --device cpu --executor serial".split())
"""
"""Ends as by kill -9 when the first case is measured."""


def test_a_killed_run_goes_on(folder: Path, made: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=folder, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list((folder / "out" / FOLDER).iterdir())) == 1
    assert "totals" not in json.loads((folder / "out" / "run.json").read_text())
    unfinished = segpipe.open_run(folder / "out")
    assert {name: one.pixels for name, one in unfinished.totals.items()} == {
        name: pixels for name, (pixels, _) in counted(made, "first").items()
    }
    assert run(folder).returncode == 0
    assert totals(folder) == totals(made, "first")


def test_masks_in_a_bucket(folder: Path, made: Path, endpoint: Any) -> None:
    done = run(folder, out="s3://scenes/overlap")
    assert done.returncode == 0, done.stderr
    found = json.loads(store_at("s3://scenes/overlap").read("run.json"))["totals"]
    assert found == totals(made, "first")


def test_a_folder_that_cannot_be_written_has_totals_in_python(folder: Path, made: Path) -> None:
    assert run(folder).returncode == 0
    path = folder / "out" / "run.json"
    last = json.loads(path.read_text())
    del last["totals"]
    path.write_text(json.dumps(last))
    for kept in (folder / "out" / FOLDER).iterdir():
        kept.unlink()
    (folder / "out" / FOLDER).rmdir()
    (folder / "out" / FOLDER).touch()  # no folder can be made of it
    result = segpipe.open_run(folder / "out")
    assert {name: one.pixels for name, one in result.totals.items()} == {
        name: pixels for name, (pixels, _) in counted(made, "first").items()
    }


def test_only_shared_windows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of scenes that share 10 columns, no more than those and a pixel of margin are read."""
    make_scenes(tmp_path, {"a": (0, 0), "b": (0, 90)})
    wide: list[int] = []
    whole = RasterMask.read

    def noted(self: Any, window: Window, band: int = 0) -> Any:
        wide.append(window.shape[1])
        return whole(self, window, band)

    monkeypatch.setattr(RasterMask, "read", noted)
    assert run(tmp_path).returncode == 0
    assert 10 <= min(wide) <= max(wide) <= 12


def test_dates_of_one_grid_are_decided_once_and_give_the_same_tables_and_polygons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five dates, three are on one grid."""
    places = dict.fromkeys(("a", "c", "e"), (0, 0)) | {"b": (30, 40), "d": (-25, 10)}
    make_scenes(tmp_path, dict(sorted(places.items())))
    fields = write_fields(tmp_path / "fields.gpkg", [square(UTM, 3, 2, 60, 50), square(UTM, 30, 10, 130, 90)])
    rule, made = ("--overlap-rule", "confidence"), dict[int, list[bytes]]()
    for least in (2, 99):
        monkeypatch.setattr(order, "LEAST", least)
        out = tmp_path / str(least)
        assert run(tmp_path, *rule, "--confidence", "--zones", fields, out=str(least)).returncode == 0
        assert invoke(["polygons", str(least), "-o", f"{least}.geojson", *rule], tmp_path).returncode == 0
        kept = [json.loads(path.read_text()) | {"key": None} for path in sorted((out / FOLDER).iterdir())]
        assert len(kept) == 5  # the key is also of when each was processed
        files = [(out / "zones.csv").read_bytes(), (tmp_path / f"{least}.geojson").read_bytes()]
        made[least] = [*files, json.dumps([kept, totals(tmp_path, str(least))]).encode()]
    assert made[2] == made[99]
    _, twice = joined(tmp_path, "confidence", out="2", places=places)
    assert totals(tmp_path, "2")["doubled"]["pixels"] == twice
