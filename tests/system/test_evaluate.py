"""``segpipe evaluate``: masks of a run beside references on any grid; what cannot be compared is named."""

import csv
import json
from pathlib import Path

import geopandas
import nibabel
import numpy as np
import pytest
import rasterio
import shapely
from later import Later
from maps import labels_of
from networks import Network, contract, pixelwise
from rasterio.control import GroundControlPoint
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.warp import reproject
from volumes import voxels, write

from segpipe.accuracy import class_map, evaluate, labels, polygons, show_evaluation
from segpipe.errors import InputError, SettingsError

metrics = Later("sklearn.metrics")

ROOT = Path(__file__).parents[2]


def truths(out: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Masks with a fifth of the labels changed; 9 where the reference has no data."""
    draw, found = np.random.default_rng(seed), {}
    for case, mask in labels_of(out).items():
        truth = np.where(draw.random(mask.shape) < 0.2, draw.integers(0, 3, mask.shape), mask % 3).astype(np.uint8)
        truth[:3] = 9
        found[case] = truth
    return found


def save(out: Path, folder: Path, arrays: dict[str, np.ndarray], nodata: int | None = 9) -> Path:
    for case, array in arrays.items():
        with rasterio.open(out / f"{case}.tif") as mask:
            profile = {"driver": "GTiff", "crs": mask.crs, "transform": mask.transform, "nodata": nodata, "count": 1}
        (folder / case).parent.mkdir(parents=True, exist_ok=True)
        height, width = array.shape
        with rasterio.open(folder / f"{case}.tif", "w", **profile, height=height, width=width, dtype=array.dtype) as file:
            file.write(array, 1)
    return folder


def figures(done, code=0):
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_matrices_of_cases_are_written_where_they_are_few(segpipe, out, tmp_path, monkeypatch):
    save(out, tmp_path / "ref", truths(out))
    listed, fewer = [], []
    for cases, most in ((listed, 3 * 3 * 3), (fewer, 3 * 3 * 3 - 1)):
        monkeypatch.setattr("segpipe.accuracy.evaluate.MOST_LISTED", most)
        found = figures(segpipe("evaluate", "--labels", "out", "--reference", "ref", "--json"))
        cases.extend(found["cases"])
    assert np.sum([case.pop("confusion") for case in listed], axis=0).tolist() == found["confusion"]
    assert fewer == listed


def test_scores_of_a_run_are_those_of_scikit_learn(segpipe, out, tmp_path):
    truth = truths(out)
    save(out, tmp_path / "ref", truth)
    done = segpipe("evaluate", "--labels", "out", "--reference", "ref", "--json", "--output", "figures")
    found, masks = figures(done), labels_of(out)
    y, z = (np.concatenate([each[case].ravel() for case in sorted(masks)]) for each in (truth, masks))
    valid = (y != 9) & (z != 255)
    y, z = y[valid], z[valid]
    assert found["confusion"] == metrics.confusion_matrix(y, z).tolist()
    wanted = metrics.jaccard_score(y, z, average=None)
    assert [one["iou"] for one in found["classes"]] == pytest.approx(wanted)
    assert found["pooled"]["kappa"] == pytest.approx(metrics.cohen_kappa_score(y, z))
    assert found["pooled"]["unseen_pixels"] == sum(((truth[c] != 9) & (masks[c] == 255)).sum() for c in masks)
    assert found["pooled"]["ignored_pixels"] == sum((truth[c] == 9).sum() for c in masks)
    assert found == json.loads((tmp_path / "figures" / "evaluation.json").read_text())
    assert (tmp_path / "figures" / "evaluation.svg").read_text().count("%</text>") == 9
    with (tmp_path / "figures" / "evaluation.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == show_evaluation.COLUMNS
    assert [(row["case"], row["class"]) for row in rows] == [(c, f"class{k}") for c in sorted(masks) for k in range(3)]
    assert sum(int(row["reference_pixels"]) for row in rows) == len(y)


def test_intervals_are_seeded(segpipe, out, tmp_path):
    save(out, tmp_path / "ref", truths(out))
    words = ["evaluate", "--labels", "out", "--reference", "ref", "--json"]
    first, same = (figures(segpipe(*words, *more)) for more in ((), ("--seed", 0)))
    assert first == same
    low, high = first["pooled"]["intervals"]["mean_iou"]
    assert low <= first["pooled"]["mean_iou"] <= high


def test_the_bundled_example_has_the_figure_of_the_readme(segpipe, tmp_path):
    segpipe("run", "-i", ROOT / "examples/scenes", "-m", ROOT / "examples/crops.onnx", "-o", "out", "--executor", "serial")
    done = segpipe("evaluate", "--labels", "out", "--reference", ROOT / "examples/truth")
    assert done.returncode == 0, done.stderr
    assert "mean IoU 0.937" in done.stdout
    assert "Mean IoU over the three scenes: 0.937" in (ROOT / "README.md").read_text()
    assert "intervals need at least 5 cases, got 3, which say little about others" in done.stderr


def test_a_reference_on_another_grid_is_taken_by_nearest_neighbour(segpipe, out, tmp_path):
    """Against GDAL's warper called by hand, from a coarser grid in another CRS that does not cover the scene."""
    (out / "b.tif").unlink()
    reference = np.random.default_rng(3).integers(0, 3, (40, 40), dtype=np.uint8)
    with rasterio.open(out / "a.tif") as mask:
        shape, place, left, top = mask.shape, mask.transform, *mask.bounds[:1], mask.bounds[3]
    coarse = from_origin(left + 100, top - 50, 25, 25)
    (tmp_path / "ref").mkdir()
    profile = {"driver": "GTiff", "crs": "EPSG:32633", "transform": coarse, "count": 1, "dtype": "uint8"}
    with rasterio.open(tmp_path / "ref" / "a.tif", "w", **profile, height=40, width=40) as file:
        file.write(reference, 1)
    moved = np.full(shape, 255, np.uint8)
    reproject(reference, moved, src_transform=coarse, src_crs="EPSG:32633", dst_transform=place, dst_crs="EPSG:32633",
              dst_nodata=255, init_dest_nodata=True, resampling=Resampling.nearest)  # fmt: skip
    found = figures(segpipe("evaluate", "--labels", "out", "--reference", "ref", "--json"))
    masks = labels_of(out)
    valid = (moved != 255) & (masks["a"] != 255)
    assert 0 < valid.sum() < moved.size
    assert found["confusion"] == metrics.confusion_matrix(moved[valid], masks["a"][valid], labels=range(3)).tolist()
    assert "resampled onto the grids of masks (nearest neighbour): 1 reference" in found["warnings"]


def test_another_crs_agrees_but_for_the_edges_of_pixels(segpipe, out, tmp_path):
    """Large blocks in longitude and latitude, of which the borders alone may differ."""
    with rasterio.open(out / "a.tif") as mask:
        west, south, east, north = rasterio.warp.transform_bounds(mask.crs, "EPSG:4326", *mask.bounds)
    rows, cols = np.mgrid[:300, :300]
    blocks = ((rows // 100 + cols // 100) % 3).astype(np.uint8)
    place = from_origin(west, north, (east - west) / 300, (north - south) / 300)
    (tmp_path / "ref").mkdir()
    profile = {"driver": "GTiff", "crs": "EPSG:4326", "transform": place, "count": 1, "dtype": "uint8"}
    with rasterio.open(tmp_path / "ref" / "a.tif", "w", **profile, height=300, width=300) as file:
        file.write(blocks, 1)
    with rasterio.open(out / "a.tif") as mask:
        shape, affine = mask.shape, mask.transform
        centre = np.array([affine * (c + 0.5, r + 0.5) for r in range(shape[0]) for c in range(shape[1])])
        lon, lat = rasterio.warp.transform(mask.crs, "EPSG:4326", *centre.T)
    col, row = (np.asarray(v) for v in ~place * (np.array(lon), np.array(lat)))
    inside = (row >= 0) & (row < 300) & (col >= 0) & (col < 300)
    truth = np.full(len(row), 255, np.uint8)
    truth[inside] = blocks[row[inside].astype(int), col[inside].astype(int)]
    labels_, valid = labels_of(out)["a"].ravel(), inside
    valid = inside & (labels_ != 255)
    wanted = metrics.confusion_matrix(truth[valid], labels_[valid], labels=range(3))
    found = figures(segpipe("evaluate", "--labels", "out", "--reference", "ref", "--json"))
    assert np.abs(np.array(found["confusion"]) - wanted).sum() <= 0.02 * wanted.sum()


def fields(out: Path, path: Path, kinds: list, crs: str = "EPSG:32633") -> dict[str, np.ndarray]:
    """Slanted polygons on the case ``a``, and the class at the centre of each pixel by shapely; -1 in none."""
    with rasterio.open(out / "a.tif") as mask:
        left, bottom, right, top = mask.bounds
        centres = np.array([[mask.xy(row, col) for col in range(mask.width)] for row in range(mask.height)])
    shapes = [
        shapely.Polygon([(left + 33, top - 21), (left + 260, top - 63), (left + 301, top - 300), (left + 50, top - 250)]),
        shapely.Polygon([(left + 320, top - 100), (right - 20, top + 131), (left + 500, bottom - 77)]),
        shapely.Polygon([(left + 60, top - 330), (left + 290, top - 320), (left + 120, bottom + 40)]),
    ]
    geopandas.GeoDataFrame({"kind": kinds}, geometry=shapes, crs="EPSG:32633").to_crs(crs).to_file(path)
    truth = np.full(centres.shape[:2], -1)
    for k, shape in enumerate(shapes):
        truth[shapely.contains_xy(shape, centres[..., 0], centres[..., 1])] = k
    return truth


@pytest.mark.parametrize("step", [512, 7])
@pytest.mark.parametrize(
    "kinds", [["class0", "CLASS1", "class2"], [0, 1, 2], ["0", "1", "2"]], ids=["names", "ids", "texts"]
)
def test_polygons_are_compared_at_the_centres_of_pixels(segpipe, out, tmp_path, monkeypatch, kinds, step):
    monkeypatch.setattr(labels, "ROWS", step)
    truth, mask = fields(out, tmp_path / "f.gpkg", kinds), labels_of(out)["a"]
    done = segpipe("evaluate", "--labels", "out", "--reference", "f.gpkg", "--column", "kind", "--json")
    valid = (truth >= 0) & (mask != 255)
    assert figures(done)["confusion"] == metrics.confusion_matrix(truth[valid], mask[valid], labels=range(3)).tolist()
    assert "2 of 3 cases without a reference in f.gpkg: b, c/d" in figures(done)["warnings"]
    assert figures(done)["pooled"]["unseen_pixels"] == ((truth >= 0) & (mask == 255)).sum()


def test_polygons_of_another_crs_and_with_codes(segpipe, out, tmp_path):
    truth, mask = fields(out, tmp_path / "f.gpkg", [100, 200, 300], crs="EPSG:4326"), labels_of(out)["a"]
    (tmp_path / "m.toml").write_text("ignore = [300]\n[classes]\n100 = 2\n200 = 1\n")
    words = ["--reference", "f.gpkg", "--column", "kind", "--map-classes", "m.toml", "--json"]
    found = np.array(figures(segpipe("evaluate", "--labels", "out", *words))["confusion"])
    valid = (truth >= 0) & (truth < 2) & (mask != 255)
    wanted = metrics.confusion_matrix(np.where(truth == 0, 2, 1)[valid], mask[valid], labels=range(3))
    assert np.abs(found - wanted).sum() <= 0.01 * wanted.sum()


@pytest.mark.parametrize(
    ("kinds", "words", "said"),
    [
        (["class0", "forest", "class2"], [], "must be classes, class0, class1, class2, or whole numbers, got 'forest'"),
        (["class0", None, "class2"], [], "got ''"),
        ([0, 1, 2], ["--column", "sort"], "must have the column 'sort'"),
        ([0, 1, 2], ["--reference", "none.gpkg"], "none.gpkg must be a vector file, and does not exist: correct the path"),
    ],
)  # fmt: skip
def test_polygons_that_say_nothing_are_named(segpipe, out, tmp_path, kinds, words, said):
    fields(out, tmp_path / "f.gpkg", kinds)
    done = segpipe("evaluate", "--labels", "out", "--reference", "f.gpkg", "--column", "kind", *words)
    assert done.returncode == 2, done.stdout
    assert said in done.stderr


def test_points_are_no_polygons(segpipe, out, tmp_path):
    geopandas.GeoDataFrame({"kind": [1]}, geometry=[shapely.Point(0, 0)], crs=32633).to_file(tmp_path / "f.gpkg")
    done = segpipe("evaluate", "--labels", "out", "--reference", "f.gpkg", "--column", "kind")
    assert "f.gpkg must hold polygons, and holds Point" in done.stderr
    assert polygons.OUTSIDE < 0


def test_values_of_the_reference_are_mapped(segpipe, out, tmp_path):
    codes = {0: 10, 1: 20, 2: 1030, 9: 77}
    plain = truths(out)
    save(out, tmp_path / "plain", plain)
    coded = {case: np.vectorize(codes.get)(array).astype(np.uint16) for case, array in plain.items()}
    save(out, tmp_path / "coded", coded, nodata=None)
    (tmp_path / "m.toml").write_text('ignore = [77]\n[classes]\n10 = "class0"\n20 = 1\n1030 = "class2"\n')
    one = figures(segpipe("evaluate", "--labels", "out", "--reference", "plain", "--json"))
    two = figures(segpipe("evaluate", "--labels", "out", "--reference", "coded", "--map-classes", "m.toml", "--json"))
    assert one == two


def test_an_ignored_value_is_as_good_as_nodata(segpipe, out, tmp_path):
    save(out, tmp_path / "plain", truths(out))
    save(out, tmp_path / "coded", truths(out), nodata=None)
    one = figures(segpipe("evaluate", "--labels", "out", "--reference", "plain", "--json"))
    assert figures(segpipe("evaluate", "--labels", "out", "--reference", "coded", "--ignore", 9, "--json")) == one


def test_a_case_that_cannot_be_compared_costs_only_itself(segpipe, out, tmp_path):
    save(out, tmp_path / "ref", truths(out), nodata=None)
    save(out, tmp_path / "ref", {"a": labels_of(out)["a"] % 3})
    (tmp_path / "ref" / "b.tif").write_bytes(b"no raster")
    done = segpipe("evaluate", "--labels", "out", "--reference", "ref", "--json")
    found = figures(done, 1)
    assert [one["case"] for one in found["cases"]] == ["a"]
    assert "b.tif cannot be read" in found["failed"]["b"]
    assert "values of a reference must be classes, 0, 1, 2, and it has 9 (360 pixels)" in found["failed"]["c/d"]
    printed = segpipe("evaluate", "--labels", "out", "--reference", "ref")
    assert printed.returncode == 1
    assert "failed c/d: values of a reference must be classes" in printed.stderr


def test_a_reference_of_complex_numbers_is_refused(segpipe, out, tmp_path):
    """NumPy would drop their imaginary parts."""
    with rasterio.open(out / "a.tif") as mask:
        profile = {"crs": mask.crs, "transform": mask.transform, "width": mask.width, "height": mask.height}
        labels = mask.read(1) + np.complex64(1j)
    (tmp_path / "ref").mkdir()
    with rasterio.open(tmp_path / "ref" / "a.tif", "w", driver="GTiff", count=1, dtype="complex64", **profile) as file:
        file.write(labels, 1)
    done = segpipe("evaluate", "--labels", "out", "--reference", "ref")
    assert done.returncode == 1
    assert "failed a: ref/a.tif must hold integers or floats, and holds complex64" in done.stderr


@pytest.mark.parametrize(("moved", "code"), [(0, 0), (1000, 1)])
def test_control_points_of_a_reference_are_those_of_its_case(moved, code, segpipe, tmp_path):
    """Pixels cannot be compared by their numbers alone where both say where they lie."""
    pixels = np.random.default_rng(0).integers(1, 256, (3, 20, 30), dtype=np.uint8)
    for name, count, east in (("in", 3, 0), ("ref", 1, moved)):
        (tmp_path / name).mkdir()
        corners = [(0, 0), (0, 30), (20, 0)]
        gcps = [GroundControlPoint(row, col, 500_000 + 10 * col + east, 5_400_000 - 10 * row) for row, col in corners]
        profile = {"driver": "GTiff", "height": 20, "width": 30, "dtype": "uint8", "gcps": gcps, "crs": "EPSG:32633"}
        with rasterio.open(tmp_path / name / "a.tif", "w", count=count, **profile) as file:
            file.write(pixels if count == 3 else pixels[:1] % 3)
    pixelwise(tmp_path / "m.onnx", 3, 3, seed=6)
    assert segpipe("run", "-i", "in", "-m", "m.onnx", "-o", "out", "--executor", "serial", "--device", "cpu").returncode == 0
    done = segpipe("evaluate", "--labels", "out", "--reference", "ref")
    assert done.returncode == code
    assert ("both must have a CRS and a geotransform; it has 30 x 20 and ground control points" in done.stderr) == bool(code)


def test_a_reference_that_lies_elsewhere_is_named(segpipe, out, tmp_path):
    profile = {"driver": "GTiff", "crs": "EPSG:32633", "count": 1, "dtype": "uint8"}
    (tmp_path / "ref").mkdir()
    place = from_origin(100_000, 5_400_000, 10, 10)
    with rasterio.open(tmp_path / "ref" / "a.tif", "w", **profile, transform=place, height=60, width=70) as file:
        file.write(np.ones((60, 70), np.uint8), 1)
    found = figures(segpipe("evaluate", "--labels", "out", "--reference", "ref", "--json"), 1)
    assert found["failed"]["a"] == "the reference of a must lie on its mask, and has no label there: name another"


def test_missed_and_false_cases_are_told(segpipe, out, tmp_path):
    truth = {case: np.where(mask == 255, 0, mask) for case, mask in labels_of(out).items()}
    truth["a"] = np.where(truth["a"] == 1, 0, truth["a"]).astype(np.uint8)
    truth["b"][:] = 2
    save(out, tmp_path / "ref", truth)
    for case in ("b",):
        with rasterio.open(out / f"{case}.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as mask:
            mask.write(np.zeros(mask.shape, np.uint8), 1)
    found = figures(segpipe("evaluate", "--labels", "out", "--reference", "ref", "--json"))
    by_name = {one["case"]: (one["missed"], one["false"]) for one in found["cases"]}
    assert by_name["a"] == ([], ["class1"])
    assert by_name["b"] == (["class2"], ["class0"])
    assert [one["cases_missed"] for one in found["classes"]] == [0, 0, 1]
    assert [one["cases_false"] for one in found["classes"]] == [1, 1, 0]


def test_a_large_class_is_said_beside_the_accuracy(segpipe, out, tmp_path):
    save(out, tmp_path / "ref", {case: np.ones(mask.shape, np.uint8) for case, mask in labels_of(out).items()})
    done = segpipe("evaluate", "--labels", "out", "--reference", "ref")
    assert "class1 is 100.0% of the reference: a map of nothing else would have that overall accuracy" in done.stderr


def test_cases_without_reference_are_counted(segpipe, out, tmp_path):
    save(out, tmp_path / "ref", {"a": truths(out)["a"]})
    done = segpipe("evaluate", "--labels", "out", "--reference", "ref")
    assert done.returncode == 0
    assert "warning: 2 of 3 cases without a reference in ref: b, c/d" in done.stderr


def test_pictures_need_no_place(segpipe, raster, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (3, 50, 64), dtype=np.uint8)
    raster("in/p.png", pixels)
    pixelwise(tmp_path / "m.onnx", 3, 3, seed=6)
    segpipe("run", "-i", "in", "-m", "m.onnx", "-o", "out", "--executor", "serial", "--device", "cpu")
    with rasterio.open(tmp_path / "out" / "p.png") as mask:
        own = mask.read(1)
    truth = np.where(pixels[0] < 60, 2, own).astype(np.uint8)
    raster("ref/p.png", truth[None])
    found = figures(segpipe("evaluate", "--labels", "out", "--reference", "ref", "--json"))
    assert found["confusion"] == metrics.confusion_matrix(truth.ravel(), own.ravel(), labels=range(3)).tolist()
    raster("ref/p.png", truth[None, :40])
    done = segpipe("evaluate", "--labels", "out", "--reference", "ref/p.png")
    assert done.returncode == 1
    assert "must have the size of the mask, 64 x 50, or both must have a CRS" in done.stderr


@pytest.mark.parametrize("turn", ["same", "flipped", "permuted", "moved"])
def test_volumes_are_compared_voxel_by_voxel(segpipe, tmp_path, turn):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "v.nii.gz", voxels((20, 22, 18)))
    values = contract(1, 3, layout="NCDHW", normalize="zscore", tile=[16] * 3, overlap=[4] * 3)
    Network(1, ndim=3).conv(1, 3, 3).save(tmp_path / "m.onnx", values, classes=3, shape=("n", "d", "h", "w"))
    ran = segpipe("run", "-i", "in", "-m", "m.onnx", "-o", "out", "--executor", "serial", "--device", "cpu")
    assert ran.returncode == 0, ran.stderr
    image = nibabel.load(tmp_path / "out" / "v.nii.gz")
    own, affine = np.asarray(image.dataobj).astype(np.uint8), image.affine
    truth = np.where(np.random.default_rng(0).random(own.shape) < 0.2, 1, own).astype(np.uint8)
    stored, place = truth, affine.copy()
    if turn == "flipped":
        stored, place = (
            truth[::-1],
            affine @ np.array([[-1, 0, 0, own.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        )
    if turn == "permuted":
        stored, place = truth.transpose(2, 0, 1), affine[:, [2, 0, 1, 3]]
    if turn == "moved":
        place[0, 3] += 5
    (tmp_path / "ref").mkdir()
    nibabel.save(nibabel.Nifti1Image(stored, place), tmp_path / "ref" / "v.nii.gz")
    done = segpipe("evaluate", "--labels", "out", "--reference", "ref", "--json")
    if turn == "moved":
        assert "must lie on the grid of the mask" in figures(done, 1)["failed"]["v"]
        return
    wanted = metrics.confusion_matrix(truth.ravel(), own.ravel(), labels=range(3)).tolist()
    assert figures(done)["confusion"] == wanted


def test_boundaries_are_scored_on_the_ground(segpipe, out, tmp_path):
    """A square of 20 pixels of 10 m that the map has one pixel further east."""
    with rasterio.open(out / "a.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as mask:
        labels = np.zeros(mask.shape, np.uint8)
        labels[20:40, 21:41] = 1
        mask.write(labels, 1)
    truth = np.roll(labels, -1, axis=1)
    save(out, tmp_path / "ref", {"a": truth})
    words = ["evaluate", "--labels", "out", "--reference", "ref", "--json"]
    found = figures(segpipe(*words, "--boundary", 5))["boundary"]
    assert (found["tolerance"], found["unit"]) == (5.0, "m")
    row = found["classes"][1]
    assert row["hd95"] == pytest.approx(10, rel=1e-3)
    assert row["f1"] == pytest.approx(40 / 80)  # of 80 corners, the 20 of the upper and of the lower edge that both have
    assert figures(segpipe(*words, "--boundary", 11))["boundary"]["classes"][1]["f1"] == 1.0
    assert found["classes"][2] == {"class": "class2", "f1": None, "surface_dice": None, "iou": None, "hd95": None,
                                   "cases": 0, "cases_lacking": 0}  # fmt: skip
    printed = segpipe(*words[:-1], "--boundary", 11).stdout
    assert "boundary within 11 m" in printed
    assert (segpipe(*words, "--boundary", -1).returncode, segpipe(*words, "--boundary", 0).returncode) == (2, 2)


def test_pixels_that_do_not_count_have_no_boundary(segpipe, out, tmp_path):
    with rasterio.open(out / "a.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as mask:
        labels = np.zeros(mask.shape, np.uint8)
        labels[:, 30:] = 1
        mask.write(labels, 1)
    truth = labels.copy()
    truth[:, 28:32] = 9
    save(out, tmp_path / "ref", {"a": truth})
    found = figures(segpipe("evaluate", "--labels", "out", "--reference", "ref", "--json", "--boundary", 30))
    assert [row["f1"] for row in found["boundary"]["classes"]] == [None, None, None]


def test_strips_and_planes_cover_a_grid():
    for shape in ((1025, 30), (3, 20, 10)):
        seen = np.zeros(shape, int)
        for window in labels.windows(shape):
            seen[tuple(map(slice, window.start, window.stop))] += 1
        assert (seen == 1).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[classes]\n1 = "forest"', "'forest' must be a class of the map: 0 water, 3 wood"),
        ("[classes]\nx = 3", "keys of classes must be values of the reference, got 'x'"),
        ("[classes]", "classes"),
        ("ignore = 3", "classes"),
        ("[", "is not TOML"),
    ],
)
def test_files_of_classes_are_checked(tmp_path, text, said):
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(SettingsError, match=said):
        class_map.class_map({0: "water", 3: "wood"}, tmp_path / "m.toml", ())
    with pytest.raises(SettingsError, match=r"none\.toml must exist, and does not"):
        class_map.class_map({0: "water"}, tmp_path / "none.toml", ())


def test_references_are_found_by_name(tmp_path):
    for name in ("a.tif", "b/c.nii.gz", "b/c.txt", "other.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert evaluate.references(tmp_path, ["a", "b/c", "d"]) == {"a": tmp_path / "a.tif", "b/c": tmp_path / "b/c.nii.gz"}
    assert evaluate.references(tmp_path / "other.tif", ["a"]) == {"a": tmp_path / "other.tif"}
    (tmp_path / "a.png").write_text("")
    with pytest.raises(InputError, match=r"each case must have one reference, and a has a\.png and a\.tif"):
        evaluate.references(tmp_path, ["a"])
    with pytest.raises(InputError, match="references must have the names of cases, x, and"):
        evaluate.references(tmp_path, ["x"])
    with pytest.raises(InputError, match="--reference must be a folder"):
        evaluate.references(tmp_path / "none", ["x", "y"])


@pytest.mark.parametrize("kind", ["coco", "labelme", "cvat"])
def test_annotations_give_the_scores_of_the_raster_that_they_draw(segpipe, out, tmp_path, kind):
    """Rectangles, later over earlier; pixels in none do not count, as no class is called background."""
    draw, masks = np.random.default_rng(3), labels_of(out)
    raster, boxes = {}, {}
    for case, mask in masks.items():
        truth, own = np.full(mask.shape, 9, np.uint8), []
        for number in draw.integers(0, 3, 12).tolist():
            top, left = (int(draw.integers(0, size - 5)) for size in mask.shape)
            bottom, right = top + int(draw.integers(3, 20)), left + int(draw.integers(3, 20))
            truth[top:bottom, left:right] = number
            own.append((number, left, top, min(right, mask.shape[1]), min(bottom, mask.shape[0])))
        raster[case], boxes[case] = truth, own
    save(out, tmp_path / "raster", raster)
    (tmp_path / "ref").mkdir()
    shapes = {case: mask.shape for case, mask in masks.items()}
    {"coco": _as_coco, "labelme": _as_labelme, "cvat": _as_cvat}[kind](tmp_path / "ref", shapes, boxes)
    wanted = figures(segpipe("evaluate", "--labels", "out", "--reference", "raster", "--json"))
    found = figures(segpipe("evaluate", "--labels", "out", "--reference", "ref", "--json"))
    said = "pixels in no object of the annotations do not count, as no class is called background"
    assert said in found["warnings"]
    assert found | {"warnings": 0} == wanted | {"warnings": 0}
    (tmp_path / "m.toml").write_text('ignore = ["class2"]\n[classes]\nclass0 = "class0"\nclass1 = 1\n')
    less = figures(segpipe("evaluate", "--labels", "out", "--reference", "ref", "--map-classes", "m.toml", "--json"))
    assert np.sum(less["confusion"]) == sum(
        (truth < 2).sum() - ((truth < 2) & (masks[c] == 255)).sum() for c, truth in raster.items()
    )


def _corners(left, top, right, bottom):
    return [left, top, right, top, right, bottom, left, bottom]


def _as_coco(folder, shapes, boxes):
    images = [
        {"id": k, "file_name": f"{case}.tif", "height": shape[0], "width": shape[1]}
        for k, (case, shape) in enumerate(shapes.items())
    ]
    annotations = [
        {"image_id": k, "category_id": number, "segmentation": [_corners(*box)]}
        for k, case in enumerate(shapes)
        for number, *box in boxes[case]
    ]
    categories = [{"id": number, "name": f"class{number}"} for number in range(3)]
    value = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances_default.json").write_text(json.dumps(value))


def _as_labelme(folder, shapes, boxes):
    for case, (height, width) in shapes.items():
        own = [
            {"label": f"class{number}", "shape_type": "rectangle", "points": [box[:2], box[2:]]}
            for number, *box in boxes[case]
        ]
        (folder / case).parent.mkdir(exist_ok=True)
        value = {"imagePath": f"{Path(case).name}.tif", "imageHeight": height, "imageWidth": width, "shapes": own}
        (folder / f"{case}.json").write_text(json.dumps(value))


def _as_cvat(folder, shapes, boxes):
    lines = ["<annotations>"]
    for case, (height, width) in shapes.items():
        lines.append(f'<image name="{case}.tif" height="{height}" width="{width}">')
        for number, left, top, right, bottom in boxes[case]:
            lines.append(f'<box label="class{number}" xtl="{left}" ytl="{top}" xbr="{right}" ybr="{bottom}"/>')
        lines.append("</image>")
    (folder / "annotations.xml").write_text("\n".join([*lines, "</annotations>"]))


def test_annotations_that_do_not_fit_fail_their_case_or_end_it(segpipe, out, tmp_path):
    (tmp_path / "ref").mkdir()
    shapes = {case: mask.shape for case, mask in labels_of(out).items()}
    _as_labelme(tmp_path / "ref", shapes | {"b": (9, 9)}, {case: [(1, 0, 0, 5, 5)] for case in shapes})
    found = figures(segpipe("evaluate", "--labels", "out", "--reference", "ref", "--json"), code=1)
    assert "export them with the size of the case" in found["failed"]["b"]
    (tmp_path / "a.xml").write_text("<!DOCTYPE a><annotations/>")
    done = segpipe("evaluate", "--labels", "out", "--reference", "a.xml")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "a.xml must have no document type" in done.stderr
