"""``segpipe inspect`` and ``segpipe tune`` with an area of interest and the masks of scenes, as a run has them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from command import invoke
from inspecting import command, told
from networks import local
from rasterio.features import rasterize

from segpipe.errors import InputError
from segpipe.formats.cases import find_cases
from segpipe.geometry.windows import Cover, Tiling
from segpipe.tune.candidates import open_networks
from segpipe.tune.measure import tune
from segpipe.tune.places import find_places
from segpipe.tune.settings import TuneSettings
from segpipe.vectors.area import read_area
from segpipe.vectors.file import Selection

UTM = Affine(10, 0, 500_000, 0, -10, 5_400_000)
SHAPE = (200, 260)
AREA = shapely.Polygon([UTM * corner for corner in [(130.2, 90.4), (190.3, 100.1), (160.7, 170.9)]])
CLOUDS = np.random.default_rng(1).random(SHAPE) < 0.2
INSIDE = rasterize([AREA], SHAPE, transform=UTM).astype(bool)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    local(tmp_path / "m.onnx", tile=[64, 64], overlap=16)
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(1, 256, (3, *SHAPE), dtype=np.uint8)
    pixels[:, 150:160, 90:180] = 0
    kind = {"driver": "GTiff", "height": SHAPE[0], "width": SHAPE[1], "dtype": "uint8", "crs": "EPSG:32633"}
    for name, transform in {"a": UTM, "far": UTM * Affine.translation(5000, 0)}.items():
        with rasterio.open(tmp_path / "in" / f"{name}.tif", "w", count=3, nodata=0, transform=transform, **kind) as scene:
            scene.write(pixels)
        with rasterio.open(tmp_path / "in" / f"{name}_SCL.tif", "w", count=1, transform=transform, **kind) as mask:
            mask.write(np.where(CLOUDS, 9, 4).astype(np.uint8), 1)
    geopandas.GeoDataFrame(geometry=[AREA], crs="EPSG:32633").to_file(tmp_path / "aoi.gpkg")
    return tmp_path


def seen() -> Any:
    valid = ~CLOUDS
    valid[150:160, 90:180] = False
    return valid


def test_inspect_counts_what_is_valid_inside(folder: Path) -> None:
    scene, aoi = folder / "in" / "a.tif", folder / "aoi.gpkg"
    assert told(scene, "--validity", "scl")["valid"] == {"share": seen().mean(), "pixels": seen().size, "inside": None}
    found = told(scene, "--validity", "scl", "--aoi", aoi)["valid"]
    assert found == {"share": pytest.approx(seen()[INSIDE].mean()), "pixels": seen().size, "inside": INSIDE.mean()}
    shown = command(scene, "--aoi", aoi).stdout
    assert f"{INSIDE.mean():.1%} of the pixels" in shown
    assert "of those inside, all pixels read" in shown


def test_inspect_counts_windows_that_a_run_infers(folder: Path) -> None:
    scene, aoi = folder / "in" / "a.tif", folder / "aoi.gpkg"
    fit = told(scene, "--model", folder / "m.onnx", "--aoi", aoi, "--validity", "scl")["fit"]
    done = invoke(["run", "-i", "in/a.tif", "-m", "m.onnx", "--aoi", "aoi.gpkg", "--device", "cpu"], folder)
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "segpipe-out" / "a.json").read_text())
    assert fit["windows"] - fit["empty_windows"] == record["inferred"] < record["windows"]
    cover = Cover(SHAPE, Tiling((64, 64), (16, 16), (1, 1), "gaussian"))
    windows = [tuple(map(slice, cover.window(index).start, cover.window(index).stop)) for index in cover]
    assert sum(INSIDE[window].any() for window in windows) == record["inferred"]


def test_inspect_says_what_a_run_would(folder: Path) -> None:
    ended = command(folder / "in" / "far.tif", "--aoi", folder / "aoi.gpkg")
    assert ended.exit_code == 1
    assert "far.tif has no pixel inside" in ended.stderr
    (folder / "in" / "a_SCL.tif").unlink()
    ended = command(folder / "in" / "a.tif", "--validity", "scl")
    assert ended.exit_code == 1
    assert "--validity scl needs a mask for each case" in ended.stderr
    ended = command(folder / "m.onnx", "--aoi", folder / "aoi.gpkg")
    assert ended.exit_code == 2
    assert "--aoi counts where a raster or a volume is inspected, and this is a model: leave it out" in ended.stderr


@pytest.mark.parametrize("spacing", [None, [16.0, 16.0]])
def test_tune_compares_labels_inside(folder: Path, spacing: Any) -> None:
    model = local(folder / "m.onnx", tile=[64, 64], overlap=16, spacing=spacing)
    settings = TuneSettings(
        model=model, device="cpu", input=(str(folder / "in"),), validity="scl", aoi=folder / "aoi.gpkg", resample=True
    )
    area, _ = read_area(Selection(folder / "aoi.gpkg", None, flag="--aoi"))
    overrides = replace(settings.of_run(model).overrides, aoi=area)
    (network,) = open_networks(settings)
    cases = [case for case in find_cases(settings.input) if "SCL" not in case.name]
    places = find_places(cases, (64, 64), 1, network.spec, overrides)
    assert [place.case.name for place in places] == ["a"]
    held, _ = places[0].hold(network.spec, overrides)
    start, stop = places[0].window.start, places[0].window.stop
    if spacing is None:
        assert np.array_equal(held.valid, (seen() & INSIDE)[start[0] : stop[0], start[1] : stop[1]])
        within = [np.flatnonzero(INSIDE.any(axis)) for axis in (1, 0)]
        assert start[0] in range(within[0][0], within[0][-1] - 62)
        assert start[1] == int((within[1][0] + within[1][-1] + 1 - 64) / 2)  # it is narrower than the box
    assert 0.2 < held.valid.mean() < 0.7
    with pytest.raises(InputError, match=r"a case must hold valid pixels inside .*aoi\.gpkg to compare labels on"):
        find_places(cases[1:], (64, 64), 1, network.spec, overrides)


def test_tune_ends_with_the_flags_of_the_run(folder: Path) -> None:
    settings = TuneSettings(
        model=folder / "m.onnx",
        device="cpu",
        input=(str(folder / "in"),),
        validity="scl",
        aoi=folder / "aoi.gpkg",
        tiles=(64,),
        overlaps=(16,),
        batches=(1,),
        seconds=2.0,
    )
    found = tune(settings, lambda _: None)
    assert found.compared_on.endswith("of a")
    assert ["--validity", "scl", "--aoi", str(folder / "aoi.gpkg")] == found.flags[2:]
    assert found.rows[0].equal > 0.9
