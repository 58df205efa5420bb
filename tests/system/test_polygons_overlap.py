"""``segpipe polygons --overlap-rule``: ground that several scenes share has the polygons of one of them."""

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from command import invoke
from overlapping import RULES, make_scenes, read, run, totals
from rasterio.features import rasterize

from segpipe.polygons import task


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_scenes(tmp_path_factory.mktemp("overlap"))
    for rule in RULES:
        done = run(root, "--confidence", "--overlap-rule", rule, out=rule)
        assert done.returncode == 0, done.stderr
    return root


def polygons(root: Path, run_output: str, path: str, *more: Any) -> Any:
    done = invoke(["polygons", run_output, "-o", path, *more], root)
    assert done.returncode == 0, done.stderr
    return geopandas.read_parquet(root / path)


@pytest.mark.parametrize("rule", RULES)
def test_areas_add_up_to_the_totals_of_the_run(root: Path, rule: str) -> None:
    found = polygons(root, rule, f"{rule}.parquet", "--overlap-rule", rule)
    sums = found.groupby("class_name")[["pixels", "area_ha"]].sum()
    for name, total in totals(root, rule)["classes"].items():
        if name != "nodata":
            assert sums.pixels[name] == total["pixels"]
            assert sums.area_ha[name] == pytest.approx(total["area"], rel=1e-6)  # of the totals, six digits are kept
    assert len(found) > 100


@pytest.mark.parametrize("rule", RULES)
def test_polygons_cover_no_ground_twice_and_are_those_of_the_mosaic(root: Path, rule: str) -> None:
    found = polygons(root, rule, f"{rule}-once.parquet", "--overlap-rule", rule)
    assert shapely.union_all(found.geometry).area == pytest.approx(found.area.sum(), rel=1e-9)
    done = invoke(["mosaic", rule, "-o", f"{rule}.tif", "--overlap-rule", rule], root)
    assert done.returncode == 0, done.stderr
    with rasterio.open(root / f"{rule}.tif") as mosaic:
        shape, place, nodata = mosaic.shape, mosaic.transform, mosaic.nodata
    drawn = rasterize(zip(found.geometry, found.class_id + 1, strict=True), shape, transform=place, dtype="uint8")
    joined = read(root / f"{rule}.tif")
    joined = joined[0] if joined.ndim == 3 else joined
    assert np.array_equal(drawn, np.where(joined == nodata, 0, joined + 1))


def test_without_the_rule_each_scene_has_its_own(root: Path) -> None:
    found = polygons(root, "first", "all.parquet")
    assert found.pixels.sum() == sum(
        int((read(path) != 255).sum()) for path in sorted((root / "first").glob("?_????????.tif"))
    )
    assert polygons(root, "first", "once.parquet", "--overlap-rule", "first").pixels.sum() < found.pixels.sum()


def test_pictures_share_no_ground(root: Path, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "in").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(1, 256, (70, 80, 3), dtype=np.uint8)).save(tmp_path / "in" / "a.png")
    (tmp_path / "model.onnx").write_bytes((root / "model.onnx").read_bytes())
    assert run(tmp_path).returncode == 0
    done = invoke(["polygons", "out", "-o", "a.gpkg", "--overlap-rule", "first"], tmp_path)
    assert done.returncode == 2
    assert "error: --overlap-rule needs cases with a place on the Earth, and these have none: leave it out" in done.stderr


def test_masks_are_closed_before_their_environment_if_writing_is_interrupted(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Any] = []

    def interrupted(target: Any, given: Any) -> None:
        rows.append(given)
        next(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(task, "write", interrupted)
    done = invoke(["polygons", "first", "-o", "x.geojson"], root)
    assert (done.returncode, done.stderr) == (75, "interrupted: run the same command again\n")
    assert rows[0].gi_frame is None  # closed: otherwise its masks are closed with a traceback, whenever it is collected
