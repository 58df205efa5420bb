"""``segpipe sample`` and the estimates that come of it: from the masks of a run to points, labels and numbers."""

import errno
import json
import os
import shutil
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from maps import SCENES, labels_of, make_map

from segpipe.accuracy import commands, overlaps, points, population, survey
from segpipe.accuracy.draw import draw
from segpipe.accuracy.population import population_of

NAMES = ("class0", "class1", "class2")


def counted(out: Path) -> np.ndarray:
    return np.sum([np.bincount(labels.ravel(), minlength=256)[:3] for labels in labels_of(out).values()], axis=0)


def test_the_population_is_what_the_masks_hold(out):
    found = population_of(str(out))
    assert [record.case for record in found.cases] == sorted(SCENES)
    assert found.pixels.sum(axis=0).tolist() == counted(out).tolist()
    assert found.areas.sum() == pytest.approx(counted(out).sum() * 0.01, rel=2e-3)  # 10 m pixels of UTM
    assert population.BLOCK_ROWS == 512


def test_points_are_pixels_of_their_stratum(segpipe, out, tmp_path):
    done = segpipe("sample", "out", "--size", 90, "--minimum", 20, "--output", "p.gpkg", "--show-map")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    frame, design = geopandas.read_file(tmp_path / "p.gpkg"), json.loads((tmp_path / "p.design.json").read_text())
    assert len(frame) == len(design["points"]) == 90
    assert frame.crs.to_epsg() == 32633
    assert len(set(zip(frame.geometry.x, frame.geometry.y, strict=True))) == 90
    for row, point in zip(frame.itertuples(), design["points"], strict=True):
        with rasterio.open(out / f"{point['case']}.tif") as mask:
            (label,) = next(iter(mask.sample([(row.geometry.x, row.geometry.y)])))
            assert mask.xy(point["row"], point["col"]) == pytest.approx((row.geometry.x, row.geometry.y))
        assert (NAMES[label], NAMES[label]) == (row.map, row.stratum)
        assert row.weight == pytest.approx(counted(out)[label] / design["strata"][label]["sampled"])
        assert point["area"] == pytest.approx(0.01, rel=2e-3)


def test_labels_are_blind(segpipe, out, tmp_path):
    segpipe("sample", "out", "--size", 60, "--minimum", 20, "--output", "p.geojson")
    frame = geopandas.read_file(tmp_path / "p.geojson")
    assert [*frame.columns] == ["id", "reference", "geometry"]
    assert frame["reference"].isna().all()
    strata = [point["stratum"] for point in json.loads((tmp_path / "p.design.json").read_text())["points"]]
    assert strata != sorted(strata)
    assert frame.crs.to_epsg() == 4326


@pytest.mark.parametrize("rows", [1, 7, 33, 512])
def test_blocks_do_not_matter(out, rows):
    found = population_of(str(out))
    sizes = np.array([30, 20, 10])
    assert draw(found, sizes, 3, rows) == draw(found, sizes, 3)
    assert draw(found, sizes, 3) != draw(found, sizes, 4)


def test_each_pixel_has_the_same_chance(out):
    """40 draws of 200 pixels of class 0: counts per block of pixels are those of chance (chi-square)."""
    found = population_of(str(out))
    total, times, bins = int(found.pixels[:, 0].sum()), 40, 20
    hits, index = np.zeros(bins), {}
    labels = labels_of(out)
    for case in sorted(labels):
        for row, col in zip(*np.nonzero(labels[case] == 0), strict=True):
            index[case, int(row), int(col)] = len(index)
    assert len(index) == total
    for seed in range(times):
        for unit in draw(found, np.array([200, 0, 0]), seed):
            hits[index[unit.case, unit.row, unit.col] * bins // total] += 1
    expected = times * 200 / bins
    assert ((hits - expected) ** 2 / expected).sum() < 43.8  # 0.999 of 19 degrees of freedom


def test_all_pixels_can_be_drawn(out):
    found = population_of(str(out))
    units = draw(found, found.pixels.sum(axis=0), 0)
    assert len({(unit.case, unit.row, unit.col) for unit in units}) == found.pixels.sum()
    assert sum(unit.area for unit in units) == pytest.approx(found.areas.sum(), rel=1e-9)


def label(path: Path, out: Path, *, wrong: float, seed: int = 0) -> geopandas.GeoDataFrame:
    """An interpreter who sees another class in a share of the points."""
    frame, draws = geopandas.read_file(path), np.random.default_rng(seed)
    design, labels = json.loads(points.design_path(path).read_text()), labels_of(out)
    truth = np.array([labels[point["case"]][point["row"], point["col"]] for point in design["points"]])
    truth = np.where(draws.random(len(truth)) < wrong, (truth + 1) % 3, truth)
    frame["reference"] = [NAMES[k] for k in truth]
    return frame


@pytest.fixture
def labelled(segpipe, out, tmp_path) -> Path:
    path = tmp_path / "p.gpkg"
    assert segpipe("sample", "out", "--size", 300, "--output", path).returncode == 0
    label(path, out, wrong=0.2).to_file(path, driver="GPKG")
    return path


def estimates(done) -> dict[tuple[str, str], dict]:
    assert done.returncode == 0, done.stderr
    return {(row["class"], row["quantity"]): row for row in json.loads(done.stdout)["estimates"]}


def test_a_sample_gives_the_estimates_of_its_confusion_matrix(segpipe, labelled, out, tmp_path):
    """Against the counts of the points, weighted by the mapped areas by hand."""
    done = segpipe("estimate", "--samples", labelled, "--json")
    found = estimates(done)
    frame, design = geopandas.read_file(labelled), json.loads(points.design_path(labelled).read_text())
    strata = np.array([point["stratum"] for point in design["points"]])
    reference = frame["reference"].map(NAMES.index).to_numpy()
    weight = np.array([one["area"] for one in design["strata"]])
    shares = np.array([[np.mean(reference[strata == h] == k) for k in range(3)] for h in range(3)])
    for k, name in enumerate(NAMES):
        assert found[name, "area"]["value"] == pytest.approx(weight @ shares[:, k], rel=1e-4)
        assert found[name, "users_accuracy"]["value"] == pytest.approx(shares[k, k], rel=1e-4)
    assert found["overall", "overall_accuracy"]["value"] == pytest.approx(weight @ np.diag(shares) / weight.sum(), rel=1e-4)
    assert json.loads(done.stdout)["method"].startswith("stratified by the classes of the map")
    same = segpipe("estimate", "--samples", labelled, "--map", "out", "--json")
    assert estimates(same) == found


def test_a_table_of_labels_is_as_good_as_a_file_of_points(segpipe, labelled, tmp_path):
    frame = geopandas.read_file(labelled)
    shutil.copy(points.design_path(labelled), tmp_path / "t.design.json")
    frame[["id", "reference"]].sample(frac=1, random_state=1).to_csv(tmp_path / "t.csv", index=False)
    one, other = (estimates(segpipe("estimate", "--samples", path, "--json")) for path in (labelled, "t.csv"))
    assert {key: row["value"] for key, row in one.items()} == pytest.approx(
        {key: row["value"] for key, row in other.items()}
    )


def test_points_without_a_design_are_looked_up_in_the_map(segpipe, labelled, tmp_path):
    """As those of another program: the classes of the map, and their sizes, come from the run."""
    frame = geopandas.read_file(labelled).drop(columns="id").to_crs("EPSG:4326")
    frame.to_file(tmp_path / "own.geojson", driver="GeoJSON")
    one = estimates(segpipe("estimate", "--samples", labelled, "--json"))
    other = estimates(segpipe("estimate", "--samples", "own.geojson", "--map", "out", "--json"))
    for key, row in one.items():
        assert other[key]["value"] == pytest.approx(row["value"], rel=1e-9)
        assert other[key]["standard_error"] == pytest.approx(row["standard_error"], rel=1e-9)


def test_another_map_makes_strata_that_are_not_its_classes(segpipe, labelled, made, tmp_path):
    """A second model over the same scenes: the strata stay those of the first map (Stehman 2014)."""
    shutil.copytree(made / "in", tmp_path / "in")
    from networks import pixelwise

    pixelwise(tmp_path / "n.onnx", 3, 3, seed=13)
    ran = segpipe("run", "-i", "in", "-m", "n.onnx", "-o", "new", "--executor", "serial", "--device", "cpu")
    assert ran.returncode == 0, ran.stderr
    done = segpipe("estimate", "--samples", labelled, "--map", "new", "--json")
    assert json.loads(done.stdout)["method"] == survey.OTHER
    found, before = estimates(done), estimates(segpipe("estimate", "--samples", labelled, "--json"))
    for name in NAMES:  # areas do not depend on the map that is assessed
        assert found[name, "area"]["value"] == pytest.approx(before[name, "area"]["value"])
    design, masks = json.loads(points.design_path(labelled).read_text()), labels_of(tmp_path / "new")
    mapped = np.array([masks[point["case"]][point["row"], point["col"]] for point in design["points"]])
    reference = geopandas.read_file(labelled)["reference"].map(NAMES.index).to_numpy()
    weight = np.array(
        [design["strata"][p["stratum"]]["pixels"] / design["strata"][p["stratum"]]["sampled"] for p in design["points"]]
    )
    assert found["overall", "overall_accuracy"]["value"] == pytest.approx(
        weight @ (mapped == reference) / weight.sum(), rel=1e-4
    )
    assert json.loads(done.stdout)["mapped_area"] != json.loads(
        segpipe("estimate", "--samples", labelled, "--json").stdout)["mapped_area"]  # fmt: skip


def test_pixels_of_unequal_area_are_said(segpipe, tmp_path):
    make_map(tmp_path, crs="EPSG:4326", step=0.1, a=(10.0, 70.0), b=(18.0, 60.0), c_d=(30.0, 10.0))
    segpipe("sample", "out", "--size", 100, "--output", "p.gpkg", "--minimum", 20)
    label(tmp_path / "p.gpkg", tmp_path / "out", wrong=0.0).to_file(tmp_path / "p.gpkg", driver="GPKG")
    done = segpipe("estimate", "--samples", "p.gpkg", "--json")
    assert json.loads(done.stdout)["method"] == survey.UNEQUAL
    found = estimates(done)
    assert found["overall", "overall_accuracy"]["value"] == 1.0
    mapped = json.loads(done.stdout)["mapped_area"]
    for k, name in enumerate(NAMES):  # no error of the map: what is left is that of the areas of pixels
        row = found[name, "area"]
        assert abs(row["value"] - mapped[k]) < 3 * row["standard_error"]
        assert row["standard_error"] > 0


def test_a_simple_random_sample_of_ones_own(segpipe, out, tmp_path):
    draws, rows = np.random.default_rng(2), []
    with rasterio.open(out / "a.tif") as mask:
        for _ in range(200):
            row, col = draws.integers(7, 60), draws.integers(9, 70)
            rows.append((mask.xy(row, col), NAMES[mask.read(1)[row, col]]))
    xy = geopandas.points_from_xy([x for (x, _), _ in rows], [y for (_, y), _ in rows], crs=32633)
    geopandas.GeoDataFrame({"kind": [name for _, name in rows]}, geometry=xy).to_file(tmp_path / "s.gpkg", driver="GPKG")
    done = segpipe("estimate", "--samples", "s.gpkg", "--reference", "kind", "--map", "out", "--design", "simple", "--json")
    found = estimates(done)
    n = np.array([sum(name == one for _, one in rows) for name in NAMES])
    for name, hits in zip(NAMES, n, strict=True):
        assert found[name, "share"]["value"] == pytest.approx(hits / 200, rel=2e-3)


# --- what does not belong together ------------------------------------------------------------------------------------


def said(done, code=2):
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def change(path: Path, **columns) -> None:
    frame = geopandas.read_file(path)
    for name, value in columns.items():
        frame[name] = value(frame)
    path.unlink()
    frame.to_file(path, driver="GPKG")


def test_a_wrong_column_is_named(segpipe, labelled):
    text = said(segpipe("estimate", "--samples", labelled, "--reference", "kind"))
    assert "must have the column 'kind', and has id, reference, geometry" in text


def test_points_off_the_map_are_named_and_left_out(segpipe, labelled, tmp_path):
    frame = geopandas.read_file(labelled).drop(columns="id")
    frame.loc[[0, 5], "geometry"] = geopandas.points_from_xy([0, 1], [0, 1])
    frame.to_file(tmp_path / "own.gpkg", driver="GPKG")
    done = segpipe("estimate", "--samples", "own.gpkg", "--map", "out")
    assert "off the map, or where it has no data, and left out: 2 of 300 points, rows 1, 6" in said(done, 0)


def test_points_of_elsewhere_are_an_error(segpipe, labelled, tmp_path):
    frame = geopandas.read_file(labelled).drop(columns="id")
    frame.set_crs(32733, allow_override=True).to_file(tmp_path / "own.gpkg", driver="GPKG")
    assert "the sample must have labelled points on the map, and has none" in said(
        segpipe("estimate", "--samples", "own.gpkg", "--map", "out")
    )


def test_labels_of_other_classes_are_named(segpipe, labelled):
    change(labelled, reference=lambda f: f["reference"].where(f.index > 2, "clas1"))
    done = segpipe("estimate", "--samples", labelled)
    assert "warning: label clas1 is no class of the map: class1 is; is it meant?" in said(done, 0)
    change(labelled, reference=lambda f: "forest")
    assert "labels must be classes of the map, class0, class1, class2, and none is: there are forest" in said(
        segpipe("estimate", "--samples", labelled)
    )


def test_labels_may_be_ids_and_of_any_case(segpipe, labelled):
    one = estimates(segpipe("estimate", "--samples", labelled, "--map", "out", "--json"))
    change(labelled, reference=lambda f: f["reference"].str.upper())
    assert estimates(segpipe("estimate", "--samples", labelled, "--map", "out", "--json")) == one
    change(labelled, reference=lambda f: f["reference"].str[-1].astype(float))
    assert estimates(segpipe("estimate", "--samples", labelled, "--map", "out", "--json")) == one


def test_ids_in_a_table_may_have_a_point(segpipe, labelled, tmp_path):
    """As pandas writes a column of numbers with gaps."""
    one = estimates(segpipe("estimate", "--samples", labelled, "--map", "out", "--json"))
    frame = geopandas.read_file(labelled)
    rows = [f"{number},{label[-1]}.0\n" for number, label in zip(frame["id"], frame["reference"], strict=True)]
    (tmp_path / "ids.csv").write_text("id,reference\n" + "".join(rows))
    shutil.copy(labelled.with_suffix(".design.json"), tmp_path / "ids.design.json")
    assert estimates(segpipe("estimate", "--samples", "ids.csv", "--map", "out", "--json")) == one


def test_points_without_a_label_are_counted(segpipe, labelled):
    change(labelled, reference=lambda f: f["reference"].where(f.index > 9))
    done = segpipe("estimate", "--samples", labelled)
    assert "warning: without a label, and left out: 10 of 300 points" in said(done, 0)
    change(labelled, reference=lambda f: None)
    assert "the sample must have labelled points on the map, and has none" in said(
        segpipe("estimate", "--samples", labelled)
    )


def test_one_point_in_a_stratum_is_said(segpipe, labelled):
    design = json.loads(points.design_path(labelled).read_text())
    first = next(p["id"] for p in design["points"] if p["stratum"] == 0)
    strata = {p["id"]: p["stratum"] for p in design["points"]}
    change(labelled, reference=lambda f: f["reference"].where(f["id"].map(lambda k: strata[k] > 0 or k == first)))
    assert "stratum class0 has one sample" in said(segpipe("estimate", "--samples", labelled), 0)
    change(labelled, reference=lambda f: f["reference"].where(f["id"].map(lambda k: strata[k] > 0)))
    assert "each stratum must have units in the sample, and class0" in said(segpipe("estimate", "--samples", labelled))


def test_points_of_another_sample_are_an_error(segpipe, labelled):
    change(labelled, id=lambda f: f["id"] + 7)
    assert "the design has no point 30" in said(segpipe("estimate", "--samples", labelled))


def test_a_damaged_design_is_named(segpipe, labelled):
    points.design_path(labelled).write_text("{}")
    assert "p.design.json must be the design of a sample, and is not" in said(segpipe("estimate", "--samples", labelled))
    points.design_path(labelled).unlink()
    assert "points without the file of their design need the map: give --map" in said(
        segpipe("estimate", "--samples", labelled)
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["sample", "out", "--output", "p.gpkg"], "give either --size, or --standard-error"),
        (["sample", "out", "--size", "90", "--output", "p.shp"], "--output must end with .gpkg or .geojson, got p.shp"),
        (["sample", "out", "--size", "90", "--output", "no/p.gpkg"], "--output must lie in a folder that exists"),
        (["sample", "out", "--size", "90", "--minimum", "40", "--output", "p.gpkg"], "3 strata need at least 120 units"),
        (["sample", "in", "--size", "90", "--output", "p.gpkg"], "must be the output of a run"),
        (
            ["sample", "out", "--standard-error", "0.01", "--expect", "x=2", "--output", "p.gpkg"],
            "--expect must be an accuracy",
        ),
        (["estimate"], "give either --matrix, or --samples"),
        (["estimate", "--samples", "none.gpkg"], "none.gpkg must be a vector file, and does not exist: correct the path"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(segpipe, out, words, text):
    error = said(segpipe(*words))
    assert text in error
    assert error.count("\n") == 1


def test_labels_are_not_overwritten(segpipe, labelled):
    before = labelled.read_bytes()
    assert "exists already, and may have labels" in said(segpipe("sample", "out", "--size", 300, "--output", labelled))
    assert labelled.read_bytes() == before
    other = labelled.with_suffix(".geojson")  # would take the design of the first
    assert f"{labelled.stem}.design.json exists already, and is the design of a sample" in said(
        segpipe("sample", "out", "--size", 300, "--output", other)
    )
    assert segpipe("sample", "out", "--size", 300, "--output", labelled, "--overwrite").returncode == 0


def test_a_sample_whose_points_cannot_be_put_in_place_leaves_no_design(segpipe, out, tmp_path, monkeypatch):
    """The same command would be refused because of it."""
    commit = points.commit

    def fail_for_points(draft, path, **more):
        if path.suffix == ".gpkg":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        commit(draft, path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(points, "commit", fail_for_points)
        lost = segpipe("sample", "out", "--size", 90, "--minimum", 20, "--output", "again.gpkg")
    assert (lost.returncode, "again.gpkg cannot be written: Input/output error: check" in lost.stderr) == (2, True)
    assert not list(tmp_path.glob("*again*"))
    assert segpipe("sample", "out", "--size", 90, "--minimum", 20, "--output", "again.gpkg").returncode == 0


def test_a_mask_that_has_changed_is_named(segpipe, out):
    with rasterio.open(out / "a.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as mask:
        mask.write(np.full((60, 70), 2, np.uint8), 1)
    assert "the mask of a must have the pixels of its record, and has fewer" in said(
        segpipe("sample", "out", "--size", 300, "--output", "p.gpkg")
    )


def test_cases_that_share_ground_are_named(segpipe, tmp_path):
    make_map(tmp_path, a=(500_000.0, 5_400_000.0), b=(500_300.0, 5_400_000.0))
    found = population_of(str(tmp_path / "out"))
    assert list(overlaps.overlapping(found)) == [("a", "b")]
    done = segpipe("sample", "out", "--size", 150, "--output", "p.gpkg")
    assert "warning: cases share ground" in said(done, 0)
    assert "a and b" in done.stderr


def test_neighbours_do_not_share_ground(out):
    assert not list(overlaps.overlapping(population_of(str(out))))


def test_the_size_for_a_standard_error(out):
    found = population_of(str(out))
    sizes = commands.Sizes(None, 0.02, "0.8", None, None)
    assert commands.sizes_of(found, sizes).sum() == 400  # 0.8 * 0.2 / 0.02²
