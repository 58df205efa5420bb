"""What ``segpipe inspect`` says of rasters, against hand, rasterio and a run's own words."""

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from inspecting import EXAMPLE, SCENE, command, raster_facts, settings, sidecar, told
from networks import Network, contract, pixelwise
from rasterio.transform import from_origin
from several import several

from segpipe.cli import main
from segpipe.geometry.windows import Cover
from segpipe.inspect.facts import Valid
from segpipe.network.read import read_spec


def noise(bands: int = 3, rows: int = 60, cols: int = 70) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 255, (bands, rows, cols), dtype=np.uint8)


def test_a_raster_as_json(raster):
    path = raster("a.tif", noise(2), ["red", "nir"], nodata=0, compress="deflate", tiled=True, blockxsize=32, blockysize=16)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.5, 1.0), (0.0, -3.0)
    facts = told(path)
    assert list(facts) == [
        *("kind", "file", "driver", "files", "shape", "compression", "overviews", "crs", "crs_name", "transform"),
        *("control_points", "rpcs", "pixel_size", "bands", "subdatasets", "needs", "valid", "fit", "notes", "error"),
    ]
    assert (facts["kind"], facts["driver"], facts["compression"], facts["shape"]) == ("raster", "GTiff", "DEFLATE", [60, 70])
    assert (facts["crs"], facts["crs_name"]) == ("EPSG:32633", "WGS 84 / UTM zone 33N")
    assert facts["transform"] == [10, 0, 500_000, 0, -10, 5_400_000]
    assert facts["pixel_size"] == pytest.approx([10, 10], rel=1e-3)
    assert facts["bands"][1] == {
        **{"index": 2, "dtype": "uint8", "description": "nir", "color": "undefined", "nodata": 0},
        **{"mask": ["nodata"], "scale": 1, "offset": -3, "block": [16, 32]},
    }
    assert facts["needs"] == {"channels": 2, "names": ["red", "nir"], "spacing": [10, 10]}
    assert facts["valid"] == {"share": 1, "pixels": 60 * 70, "inside": None}


def test_pixel_size_is_on_the_ground(raster):
    """Web Mercator at 48.7 degrees of latitude: 10 m of its own are 6.6 on the ground."""
    place = rasterio.transform.from_origin(1_669_792, 6_240_000, 10, 10)
    facts = told(raster("a.tif", noise(), crs="EPSG:3857", transform=place))
    assert facts["pixel_size"] == pytest.approx([6.6, 6.6], rel=0.01)
    assert facts["needs"]["spacing"] == [6.58, 6.6]


def half(pixels: np.ndarray) -> np.ndarray:
    """The upper half 0."""
    pixels = pixels.copy()
    pixels[:, : pixels.shape[1] // 2] = 0
    return pixels


VALIDITY: dict[str, tuple[dict[str, Any], np.ndarray]] = {
    "nodata": ({"nodata": 0}, half(noise())),
    "mask": ({"mask": half(np.full((1, 60, 70), 255, np.uint8))[0]}, noise()),
    "alpha": ({"photometric": "rgb", "alpha": "yes"}, np.concatenate([noise(), half(noise(1))])),
    "NaN": ({}, np.where(half(noise()) == 0, np.nan, 1).astype(np.float32)),
}


@pytest.mark.parametrize("form", VALIDITY)
def test_valid_share_by_the_rules_of_a_run(form, raster):
    options, pixels = VALIDITY[form]
    facts = raster_facts(raster("a.tif", pixels, **options))
    assert facts.valid == Valid(0.5, 60 * 70)
    assert facts.needs.channels == 3
    assert facts.error is None


def test_a_large_raster_is_sampled(raster, monkeypatch):
    monkeypatch.setattr("segpipe.inspect.pixels.SAMPLES", 20)
    path = raster("a.tif", half(noise(1, 200, 300)), nodata=0)
    facts = raster_facts(path)
    assert facts.valid.pixels == 20 * 20
    assert facts.valid.share == pytest.approx(0.5, abs=0.05)
    assert re.search(r"valid pixels +about 50%, sampled: 400 of 60,000 pixels read", command(path).stdout)


def test_many_bands_share_lines(raster):
    pixels = np.ones((200, 4, 4), np.uint16)
    shown = command(raster("a.tif", pixels, [f"band {i}" for i in range(200)], nodata=0), COLUMNS="80").stdout
    assert re.search(r"2 to 200 +band 1, band 2, ..., band 199 +uint16", shown)
    assert len(shown.splitlines()) < 20


def test_a_raster_in_a_terminal(segpipe):
    ended = segpipe("inspect", SCENE, "--model", EXAMPLE, env={"COLUMNS": "80", "PATH": ""})
    assert (ended.returncode, ended.stderr) == (0, "")
    assert max(map(len, ended.stdout.splitlines())) <= 80
    for words in (
        "GTiff, DEFLATE, blocks of 256 x 256, no overviews",
        "CRS +EPSG:4326, WGS 84",
        "pixel size +10 x 10 m on the ground",
        "4 +B08 +uint16 +0 +nodata",
        r'channels = \["B02", "B03", "B04", "B08"\]',
        r"spacing = \[10.0, 10.0\]",
        "93.2%, all pixels read",
        r"B08 +band 4 \(B08\)",
        "10 x 10 m wanted, 10 x 10 m on the ground",
        r"windows +9 \(3 x 3\) of 256 x 256 px; 0 without a valid pixel",
    ):
        assert re.search(words, ended.stdout), words


def test_a_raster_under_a_model(raster, tmp_path):
    """Names beat order; the upper rows of windows have no valid pixel: 64 px tiles that start at 0, 48, ... of 200."""
    pixels = noise(3, 200, 70)
    pixels[:, :120] = 0
    path = raster("a.tif", pixels, ["nir", "green", "red"], nodata=0)
    model = pixelwise(tmp_path / "m.onnx", channels=2, classes=3)
    sidecar(tmp_path / "m.toml", contract(["Green", "NIR"], 3, spacing=[10.0, 10.0]))
    fit = told(path, "--model", model)["fit"]
    assert fit["bands"] == [{"channel": "Green", "band": 2}, {"channel": "NIR", "band": 1}]
    cover = Cover((200, 70), read_spec(settings(model)).tiling)
    empty = sum(cover.window(index).stop[0] <= 120 for index in cover)
    assert (fit["windows"], fit["empty_windows"]) == (len(cover), empty)
    assert fit["grid"] == list(cover.counts)
    assert fit["spacing"] == [10, 10]
    assert 200 < fit["memory_mb"] < 2000


@pytest.mark.parametrize(
    ("changes", "flags", "words", "fits"),
    [
        ({"spacing": [5.0, 5.0]}, (), "pixels must be 5 x 5 m within 10%", True),
        ({}, ("--bands", "1"), "--bands must name 3 of the file's bands", False),
        ({"channels": ["a", "b", "c"]}, (), r"got 3 bands \(x, y, z\) for a, b, c", False),
    ],
)
def test_a_raster_that_does_not_fit_has_the_error_of_a_run(changes, flags, words, fits, raster, tmp_path):
    path = raster("in/a.tif", noise(), ["x", "y", "z"])
    model = Network(3).conv(3, 3, 1).save(tmp_path / "m.onnx", contract(**changes), classes=3)
    facts = told(path, "--model", model, *flags, code=1)
    assert re.search(words, facts["error"])
    assert (facts["fit"] is not None) is fits
    dry = ["run", "-i", str(path), "-m", str(model), "-o", str(tmp_path / "out"), "--dry-run", *flags]
    assert f"problem  a: {facts['error']}" in CliRunner().invoke(main, dry).stdout


def test_a_raster_under_a_model_without_contract(raster, tmp_path):
    model = Network(3).conv(3, 3, 1).save(tmp_path / "m.onnx", None, classes=3)
    facts = told(raster("a.tif", noise()), "--model", model, code=1)
    assert (facts["fit"], facts["needs"]["channels"]) == (None, 3)
    assert "has no contract" in facts["error"]


def test_bands_say_which_pixels_are_looked_at(raster):
    pixels = np.concatenate([noise(1), half(noise(1))])
    path = raster("a.tif", pixels, nodata=0)
    assert told(path, "--bands", "1")["valid"]["share"] == 1
    assert told(path, "--bands", "1,2")["valid"]["share"] == 0.5


REFUSED = {
    "evil/flower-palette-16.tif": "holds palette indices",
    "evil/multipage.tiff": "a file must hold one image, got 3",
    "evil/tiff_overflow_rows_per_strip.tif": "is damaged",
}


@pytest.mark.shared_data
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_run_refuses_is_described_and_refused(name, shared, tmp_path):
    path = shared / name
    facts = told(path, code=1)
    assert REFUSED[name] in facts["error"]
    with rasterio.open(path) as dataset:
        assert facts["shape"] == list(dataset.shape)
    model = pixelwise(tmp_path / "m.onnx", channels=facts["needs"]["channels"])
    assert told(path, "--model", model, code=1)["error"] == facts["error"]


@pytest.mark.shared_data
def test_pixels_that_cannot_be_read(shared, tmp_path):
    whole: Callable[[], bytes] = (shared / "geotiff/rgb1.tif").read_bytes
    (tmp_path / "a.tif").write_bytes(whole()[:200_000])
    facts = told(tmp_path / "a.tif", code=1)
    assert facts["valid"] is None
    assert re.match(rf"{re.escape(str(tmp_path))}/a.tif cannot be read", facts["error"])


@pytest.mark.shared_data
def test_real_rasters_are_as_rasterio_and_a_full_read_say(shared):
    """Valid share by the whole mask of GDAL, where no rule of segpipe differs from it."""
    for name in ("RGB.byte.tif", "cog_rgb_mask.tif", "all-nodata.tif", "goes.tif"):
        facts = raster_facts(shared / "geotiff" / name)
        with rasterio.open(shared / "geotiff" / name) as dataset:
            masks = dataset.read_masks()[: facts.needs.channels]
            assert facts.shape == list(dataset.shape)
            assert [band.dtype for band in facts.bands] == list(dataset.dtypes)
        assert facts.valid.share == pytest.approx((masks != 0).all(axis=0).mean(), abs=1e-9)
        assert facts.error is None


def test_files_that_a_pattern_groups_are_one_raster(tmp_path):
    """A file per band of two cases, of which a glob chooses one."""
    rng = np.random.default_rng(0)
    pixels = {name: rng.integers(1, 255, (70, 80), dtype=np.uint8) for name in ("B02", "B04")}
    pixels["B04"][:20] = 0
    kind = {"driver": "GTiff", "width": 80, "height": 70, "count": 1, "dtype": "uint8", "nodata": 0, "crs": "EPSG:32633"}
    place = from_origin(500_000, 5_400_000, 10, 10)
    (tmp_path / "in").mkdir()
    for case, (band, values) in product(("north", "south"), pixels.items()):
        with rasterio.open(tmp_path / "in" / f"{case}_{band}.tif", "w", transform=place, **kind) as dataset:
            dataset.write(values, 1)
    values = contract(["B04", "B02"], 3, tile=[64, 64], overlap=[16, 16])
    model = Network(2).conv(2, 3, 3).save(tmp_path / "m.onnx", values, classes=3)
    flags = ("--model", model, "--bands-from", "{case}_{band}.tif")
    found = told(tmp_path / "in" / "south*", *flags)
    assert found["fit"]["bands"] == [{"channel": "B04", "band": 1}, {"channel": "B02", "band": 2}]
    assert (found["shape"], found["fit"]["windows"], found["valid"]["share"]) == ([70, 80], 4, 50 / 70)
    assert [Path(file).name for file in found["files"]] == ["south_B04.tif", "south_B02.tif"]
    shown = command(tmp_path / "in" / "south*", *flags)
    assert shown.exit_code == 0, shown.stderr
    several = command(tmp_path / "in", *flags)
    assert several.exit_code == 2
    assert "--bands-from makes 2 of" in several.stderr
    assert "north, south: name the files of one by a glob" in several.stderr
    alone = command(tmp_path / "in", "--bands-from", "{case}_{band}.tif")
    assert "error: --bands-from groups files by the channels of a model: give --model, too" in alone.stderr


def test_a_file_per_date_is_shown_as_the_channels_of_all_dates(tmp_path):
    model = several(tmp_path / "m.onnx", "dates before channels")
    place = from_origin(500_000, 5_400_000, 10, 10)
    kind = {"driver": "GTiff", "width": 80, "height": 70, "count": 2, "dtype": "uint8", "crs": "EPSG:32633"}
    (tmp_path / "in").mkdir()
    for month in (1, 2, 3):
        with rasterio.open(tmp_path / "in" / f"a_2024{month:02}01.tif", "w", transform=place, **kind) as dataset:
            dataset.write(noise(2, 70, 80))
    found = told(tmp_path / "in", "--model", model, "--bands-from", "{case}_{date}.tif")
    assert [pair["band"] for pair in found["fit"]["bands"]] == [1, 2, 3, 4, 5, 6]
    assert [band["description"] for band in found["bands"]][::2] == [f"2024{m:02}01 band 1" for m in (1, 2, 3)]


def test_a_raster_that_is_cut_off_says_how_much_is_missing_without_a_model(raster):
    path = raster("a.tif", noise())
    path.write_bytes(path.read_bytes()[:9000])
    found = CliRunner().invoke(main, ["inspect", str(path)])
    assert found.exit_code == 1
    assert re.search(r"it has 9,000 bytes, and what it names reaches to byte [\d,]+: copy it again\n", found.output)
