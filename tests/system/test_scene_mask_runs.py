"""Runs with masks that come with scenes: clouds are nodata, whoever does the work, and a new mask makes a new map."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import products
import pytest
import rasterio
from affine import Affine
from command import invoke
from networks import Network, contract, local
from scenes import assert_same

from segpipe.formats.raster.source import RasterSource

UTM = Affine(10, 0, 500_000, 0, -10, 5_400_000)
SHAPE = (200, 260)
PRESETS = {"scl": ("_SCL.tif", 9, 4), "qa-pixel": ("_QA_PIXEL.tif", 22280, 21824), "fmask": ("_Fmask.tif", 2, 64)}
"""File, a value of clouds and a value of what is seen, of each preset of one band."""


def write(path: Path, bands: Any, transform: Affine = UTM, **profile: Any) -> None:
    bands = np.atleast_3d(np.asarray(bands).T).T
    count, height, width = bands.shape
    place = {"crs": "EPSG:32633", "transform": transform, "tiled": True, "blockxsize": 64, "blockysize": 64, **profile}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype, **place
    ) as file:
        file.write(bands)


def cloudy(seed: int) -> Any:
    """Where clouds are on a grid of 20 m: a whole corner, and some specks."""
    cloud = np.random.default_rng(seed).random((100, 130)) < 0.02
    cloud[:60, :70] = True
    return cloud


def on_scene(cloud: Any) -> Any:
    return cloud.repeat(2, 0).repeat(2, 1)


def pixels(seed: int) -> Any:
    found = np.random.default_rng(seed).integers(1, 256, (3, *SHAPE), dtype=np.uint8)
    found[:, 150:160, 90:120] = 0
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    local(tmp_path / "m.onnx", tile=[64, 64], overlap=16)
    for seed, name in enumerate(("a", "sub/b")):
        write(tmp_path / "in" / f"{name}.tif", pixels(seed), nodata=0)
        write(tmp_path / "in" / f"{name}_SCL.tif", np.where(cloudy(seed), 9, 4).astype(np.uint8), UTM * Affine.scale(2))
    return tmp_path


def run(root: Path, *more: Any, out: str = "out", inputs: str = "in", executor: str = "serial", code: int = 0) -> Any:
    done = invoke(["run", "-i", inputs, "-m", "m.onnx", "-o", out, "--device", "cpu", "--executor", executor, *more], root)
    assert done.returncode == code, done.stderr
    return done


def labels(path: Path) -> Any:
    with rasterio.open(path) as mask:
        return mask.read(1)


def test_masks_are_those_of_scenes_whose_clouds_are_nodata(folder: Path) -> None:
    for seed, name in enumerate(("a", "sub/b")):
        cut = pixels(seed)
        cut[:, on_scene(cloudy(seed))] = 0
        write(folder / "cut" / f"{name}.tif", cut, nodata=0)
    assert "left out: 2 validity masks" in run(folder, "--validity", "scl").stderr
    run(folder, inputs="cut", out="wanted")
    for name in ("a.tif", "sub/b.tif", "areas.csv"):
        assert (folder / "out" / name).read_bytes() == (folder / "wanted" / name).read_bytes()
    with (folder / "out" / "areas.csv").open() as stream:
        nodata = [int(row["pixels"]) for row in csv.DictReader(stream) if row["class_name"] == "nodata"]
    assert nodata == [int(((pixels(k)[0] == 0) | on_scene(cloudy(k))).sum()) for k in range(2)]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_find_and_read_their_masks(folder: Path, preset: str) -> None:
    suffix, cloud, seen = PRESETS[preset]
    for seed, name in enumerate(("a", "sub/b")):
        (folder / "in" / f"{name}_SCL.tif").unlink()
        values = np.where(cloudy(seed), cloud, seen).astype(np.uint16)
        write(folder / "in" / f"{name}{suffix}", values, UTM * Affine.scale(2))
    run(folder, "--validity", preset)
    assert np.array_equal(labels(folder / "out" / "a.tif") == 255, (pixels(0)[0] == 0) | on_scene(cloudy(0)))


def test_udm2_has_two_conditions(folder: Path) -> None:
    for name in ("a", "sub/b"):
        bands = np.zeros((8, *SHAPE), np.uint8)
        bands[0, :, 100:] = 1
        bands[7, :50] = 4
        write(folder / "in" / f"{name}_udm2.tif", bands)
        (folder / "in" / f"{name}_SCL.tif").unlink()
    run(folder, "--validity", "udm2")
    wanted = pixels(0)[0] == 0
    wanted[:50] = True
    wanted[:, :100] = True
    assert np.array_equal(labels(folder / "out" / "a.tif") == 255, wanted)


def test_tiles_of_clouds_are_neither_decoded_nor_inferred(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    stored = RasterSource._stored

    def noted(self: Any, window: Any) -> Any:
        if len(self.bands) == 3:
            decoded.append(window)
        return stored(self, window)

    monkeypatch.setattr(RasterSource, "_stored", noted)
    run(folder, "--validity", "scl")
    cloud = on_scene(cloudy(0)) & on_scene(cloudy(1))
    assert len(decoded) > 2
    assert not any(cloud[tuple(map(slice, w.start, w.stop))].all() for w in decoded)
    record = json.loads((folder / "out" / "a.json").read_text())
    assert record["inferred"] < record["windows"]


def test_parts_and_workers_change_no_byte(folder: Path) -> None:
    run(folder, "--validity", "scl")
    for out, more in {"two": ("--parts", 2), "seven": ("--parts", 7)}.items():
        run(folder, "--validity", "scl", *more, out=out)
        for name in ("a.tif", "sub/b.tif", "areas.csv"):
            assert (folder / out / name).read_bytes() == (folder / "out" / name).read_bytes(), name
    run(folder, "--validity", "scl", "--workers", 2, out="workers", executor="processes")
    assert_same(folder / "workers", folder / "out")


def test_a_case_is_done_again_after_its_mask_or_the_values_changed(folder: Path) -> None:
    assert "2 done, 0 done before" in run(folder, "--validity", "scl").stdout
    assert "0 done, 2 done before" in run(folder, "--validity", "scl").stdout
    assert "0 done, 2 done before" in run(folder, "--validity", "scl:2,4-7,11").stdout
    write(folder / "in" / "a_SCL.tif", np.full((100, 130), 4, np.uint8), UTM * Affine.scale(2), compress="deflate")
    assert "1 done, 1 done before" in run(folder, "--validity", "scl").stdout
    assert np.array_equal(labels(folder / "out" / "a.tif") == 255, pixels(0)[0] == 0)
    assert "2 done, 0 done before" in run(folder, "--validity", "scl:4-7").stdout
    assert "2 done, 0 failed, 0 missing" in invoke(["status", "out"], folder).stdout


@pytest.mark.parametrize("name", ["a_SCL.tif.aux.xml", "a_SCL.tif.msk", "a_SCL.tfw"])
@pytest.mark.parametrize("more", [[], ["--case-name", "number"]], ids=["path", "number"])
def test_a_case_is_done_again_after_its_mask_got_a_sidecar_file(folder: Path, name: str, more: list[str]) -> None:
    assert "2 done, 0 done before" in run(folder, "--validity", "scl", *more).stdout
    if name.endswith(".xml"):
        moved = "<GeoTransform>500100,20,0,5400000,0,-20</GeoTransform>"
        (folder / "in" / name).write_text(f"<PAMDataset><SRS>EPSG:32633</SRS>{moved}</PAMDataset>")
    elif name.endswith(".msk"):
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(folder / "in" / "a_SCL.tif", "r+") as mask:
            mask.write_mask(np.full(mask.shape, 255, np.uint8))
    else:
        (folder / "in" / name).write_text("20\n0\n0\n-20\n500010\n5399990\n")
    assert (folder / "in" / name).is_file()
    assert "1 done, 1 done before" in run(folder, "--validity", "scl", *more).stdout
    assert "0 done, 2 done before" in run(folder, "--validity", "scl", *more).stdout


TAB = """!table
!version 300
!charset Neutral

Definition Table
  File "a_SCL.tif"
  Type "RASTER"
  (500100,5400000) (0,0) Label "Pt 1",
  (500300,5400000) (10,0) Label "Pt 2",
  (500100,5399800) (0,10) Label "Pt 3"
  CoordSys Earth Projection 8, 104, "m", 15, 0, 0.9996, 500000, 0
  Units "m"
"""
RPC = "".join(
    f"{key}: {value}\n"
    for key, value in {
        **{f"{one}_OFF": 10 for one in ("LINE", "SAMP", "LAT", "LONG", "HEIGHT")},
        **{f"{one}_SCALE": 10 for one in ("LINE", "SAMP", "LAT", "LONG", "HEIGHT")},
        **{f"{one}_COEFF_{n}": int(n < 3) for one in ("LINE_NUM", "LINE_DEN", "SAMP_NUM", "SAMP_DEN") for n in range(1, 21)},
    }.items()
)


@pytest.mark.parametrize(("name", "text"), [("a_SCL.tab", TAB), ("a_SCL_RPC.TXT", RPC)])
@pytest.mark.parametrize("more", [[], ["--case-name", "number"]], ids=["path", "number"])
def test_a_case_is_done_again_after_its_mask_got_another_place(folder: Path, name: str, text: str, more: list[str]) -> None:
    with rasterio.open(folder / "in" / "a_SCL.tif") as dataset:
        pixels, profile = dataset.read(), dataset.profile
    with rasterio.open(folder / "in" / "a.tif") as scene:
        profile |= {"width": scene.width, "height": scene.height, "count": 1, "crs": None, "transform": None}
        pixels = np.resize(pixels, (1, scene.height, scene.width))
    with rasterio.open(folder / "in" / "a_SCL.tif", "w", **profile) as dataset:
        dataset.write(pixels)
    assert "2 done, 0 done before" in run(folder, "--validity", "scl", *more).stdout
    (folder / "in" / name).write_text(text)
    assert "1 done, 1 done before" in run(folder, "--validity", "scl", *more).stdout
    assert "0 done, 2 done before" in run(folder, "--validity", "scl", *more).stdout


def test_a_scene_without_its_mask_fails_alone(folder: Path) -> None:
    (folder / "in" / "a_SCL.tif").unlink()
    done = run(folder, "--validity", "scl", code=1)
    assert "1 done, 0 done before, 1 failed" in done.stdout
    assert "in/a.tif: --validity scl needs a mask for each case, and there is none beside it, named after it with _SCL" in (
        done.stdout
    )


def test_a_damaged_mask_costs_only_its_case(folder: Path) -> None:
    path = folder / "in" / "a_SCL.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = run(folder, "--validity", "scl", code=1)
    assert "1 done, 0 done before, 1 failed" in done.stdout
    assert "a_SCL.tif" in done.stdout


def test_area_and_mask_together(folder: Path) -> None:
    import geopandas
    import shapely

    box = shapely.Polygon([UTM * corner for corner in ((100, 20), (240, 20), (240, 180), (100, 180))])
    geopandas.GeoDataFrame(geometry=[box], crs="EPSG:32633").to_file(folder / "aoi.gpkg")
    run(folder, "--validity", "scl", "--aoi", "aoi.gpkg")
    wanted = (pixels(0)[0] == 0) | on_scene(cloudy(0))
    wanted[:20] = wanted[180:] = True
    wanted[:, :100] = wanted[:, 240:] = True
    assert np.array_equal(labels(folder / "out" / "a.tif") == 255, wanted)


def test_a_landsat_product_has_its_mask_in_it(tmp_path: Path) -> None:
    net = Network(3).conv(3, 8, 3).add("Relu").conv(8, 3, 3)
    net.save(tmp_path / "m.onnx", contract(["red", "green", "blue"], 3), classes=3)
    title = "LC08_L2SP_190026_20240615_20240620_02_T1"
    for k, band in enumerate(("SR_B2", "SR_B3", "SR_B4")):
        write(tmp_path / "in" / title / f"{title}_{band}.TIF", pixels(0)[k].astype(np.uint16), nodata=0)
    values = np.where(on_scene(cloudy(0)), 22280, 21824).astype(np.uint16)
    write(tmp_path / "in" / title / f"{title}_QA_PIXEL.TIF", values, nodata=1)
    run(tmp_path, "--validity", "qa-pixel")
    (mask,) = (tmp_path / "out").rglob("*.tif")
    assert np.array_equal(labels(mask) == 255, (pixels(0)[0] == 0) | on_scene(cloudy(0)))
    assert "0 done, 1 done before" in run(tmp_path, "--validity", "qa-pixel").stdout


@pytest.mark.parametrize("archive", [False, True])
def test_the_classes_of_a_safe_folder_and_a_zip(tmp_path: Path, archive: bool) -> None:
    found = products.bands(("B02", "B03", "B04", "B08"))
    rows, cols = found["B02"].shape
    classes = np.full((rows // 2, cols // 2), 4, np.uint8)
    classes[: rows // 4] = 9
    product = products.safe(tmp_path / "in", found)
    (images,) = product.rglob("R20m")
    products.write(images / "T33UXP_20240615T095549_SCL_20m.jp2", classes, 20)
    if archive:
        (tmp_path / "zip").mkdir()
        products.zipped(product, tmp_path / "zip" / product.with_suffix(".zip").name)
    net = Network(4).conv(4, 8, 3).add("Relu").conv(8, 3, 3)
    net.save(tmp_path / "m.onnx", contract(["B02", "B03", "B04", "B08"], 3, scale=1e-4), classes=3)
    inputs, allowed = "zip" if archive else "in", ("--unusual-values", "allow")
    run(tmp_path, *allowed, inputs=inputs, out="all")
    run(tmp_path, "--validity", "scl", *allowed, inputs=inputs)
    assert "0 done, 1 done before" in run(tmp_path, "--validity", "scl", *allowed, inputs=inputs).stdout
    (everything,), (seen,) = (list((tmp_path / out).rglob("*.tif")) for out in ("all", "out"))
    wanted = labels(everything) == 255
    wanted[: rows // 4 * 2] = True
    assert np.array_equal(labels(seen) == 255, wanted)
    assert not wanted.all()


def test_names_are_hidden_and_records_found_again(folder: Path) -> None:
    (folder / "in" / "a_SCL.tif").unlink()
    done = run(folder, "--validity", "scl", "--case-name", "number", code=1)
    assert "1 done, 0 done before, 1 failed" in done.stdout
    done = run(folder, "--validity", "scl", "--case-name", "number", code=1)
    assert "0 done, 1 done before, 1 failed" in done.stdout
    assert "b_SCL" not in (folder / "out" / "0002.json").read_text()
    path = folder / "in" / "sub" / "b_SCL.tif"
    path.write_bytes(path.read_bytes()[:3000])
    done = run(folder, "--validity", "scl", "--case-name", "number", code=1)
    assert "b_SCL" not in done.stdout + done.stderr
    assert "0 done, 0 done before, 2 failed" in done.stdout


def test_values_are_checked_before_a_run(folder: Path) -> None:
    done = invoke(["run", "-i", "in", "-m", "m.onnx", "--validity", "clouds"], folder)
    assert done.returncode == 2
    assert "error: validity: must be scl, udm2, qa-pixel, fmask or a pattern such as {case}_SCL.tif:4-7,11" in done.stderr
