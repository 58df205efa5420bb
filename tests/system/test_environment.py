"""What the user's environment says of GDAL and PROJ changes neither pixels, validity, place nor bytes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from command import invoke
from networks import pixelwise
from rasterio.control import GroundControlPoint
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT
from scenes import PATIENCE, assert_same

from segpipe.errors import InstallationError
from segpipe.process import environment
from segpipe.process.environment import OPTIONS, clean_environment

UTM = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_400_000, 10, 10)}

HOSTILE = dict.fromkeys(OPTIONS, "YES") | {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_READDIR_LIMIT_ON_OPEN": "1",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_PAM_MODE": "AUX",
    "GDAL_PAM_PROXY_DIR": "/nowhere",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".tif",
    "CPL_VSIL_CURL_ALLOWED_FILENAME": "none.tif",
    "CPL_VSIL_ZIP_ALLOWED_EXTENSIONS": "kmz",
    "GDAL_GEOREF_SOURCES": "NONE",
    "GDAL_GCPS_TO_GEOTRANSFORM_APPROX_THRESHOLD": "1e9",
    "GTIFF_LINEAR_UNITS": "BROKEN",
    "GTIFF_IMPORT_FROM_EPSG": "NO",
    "GTIFF_SRS_SOURCE": "EPSG",
    "GTIFF_ESRI_CITATION": "NO",
    "USE_OSR_FIND_MATCHES": "NO",
    "GDAL_USE_GEOJP2": "NO",
    "GDAL_USE_GMLJP2": "NO",
    "GMLJP2OVERRIDE": "/nowhere",
    "OSR_DEFAULT_AXIS_MAPPING_STRATEGY": "TRADITIONAL_GIS_ORDER",
    "OSR_ADD_TOWGS84_ON_EXPORT_TO_PROJ4": "NO",
    "OSR_STRIP_TOWGS84": "NO",
    "OSR_USE_NON_DEPRECATED": "NO",
    "OSR_WKT_FORMAT": "WKT2",
    "CONVERT_YCBCR_TO_RGB": "NO",
    "GDAL_JPEG_TO_RGB": "NO",
    "JPEG_MASK_BIT_ORDER": "MSB",
    "JPEG_READ_MASK": "NO",
    "GDAL_ENABLE_TIFF_SPLIT": "NO",
    "GDAL_TIFF_INTERNAL_MASK_TO_8BIT": "NO",
    "USE_OPENJPEG_SINGLE_TILE_OPTIM": "NO",
    "VRT_SHARED_SOURCE": "0",
    "GDAL_RASTERIO_RESAMPLING": "CUBIC",
    "GDAL_OVERVIEW_OVERSAMPLING_THRESHOLD": "0.1",
    "GDALWARP_OVERSAMPLING_THRESHOLD": "0.1",
    "GDAL_WARP_USE_AFFINE_OPTIMIZATION": "NO",
    "GDAL_WARP_USE_TRANSLATION_OPTIM": "NO",
    "COMPRESS_OVERVIEW": "LZW",
    "GDAL_TIFF_OVR_BLOCKSIZE": "64",
    "GDAL_TIFF_DEFLATE_SUBCODEC": "ZLIB",
    "GDAL_TIFF_ENDIANNESS": "BIG",
    "GTIFF_ALPHA": "PREMULTIPLIED",
}
"""Every option the other way than GDAL's default."""


def write(path: Path, pixels: np.ndarray, **profile: Any) -> None:
    count, height, width = pixels.shape
    values = {"driver": "GTiff", "dtype": pixels.dtype, "count": count, "height": height, "width": width, **profile}
    with rasterio.open(path, "w", **values) as dataset:
        dataset.write(pixels)


def smooth(rows: int, cols: int) -> np.ndarray:
    """What JPEG keeps well, and never 0."""
    row, col = np.mgrid[:rows, :cols]
    return np.stack([1 + (row * a + col * b) % 250 for a, b in ((1, 2), (2, 1), (1, 1))]).astype(np.uint8)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose rasters have their place and validity from everywhere that GDAL looks."""
    root = tmp_path_factory.mktemp("environment")
    folder = root / "in"
    folder.mkdir()
    pixels = smooth(600, 700)
    write(folder / "point.tif", pixels, **UTM)
    with rasterio.open(folder / "point.tif", "r+") as dataset:
        dataset.update_tags(AREA_OR_POINT="Point")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        write(folder / "mask.tif", pixels, **UTM)
        with rasterio.open(folder / "mask.tif", "r+") as dataset:
            dataset.write_mask(np.arange(600 * 700).reshape(600, 700) % 3 > 0)
    write(folder / "sidecar.tif", pixels, **UTM)
    bands = "".join(f'<PAMRasterBand band="{b}"><NoDataValue>7</NoDataValue></PAMRasterBand>' for b in (1, 2, 3))
    (folder / "sidecar.tif.aux.xml").write_text(f"<PAMDataset>{bands}</PAMDataset>")
    write(folder / "world.tif", pixels, crs="EPSG:32633")
    (folder / "world.tfw").write_text("10\n0\n0\n-10\n500005\n5399995\n")
    write(folder / "ycbcr.tif", pixels, **UTM, compress="jpeg", photometric="ycbcr", tiled=True)
    write(folder / "picture.jpg", pixels, driver="JPEG")
    write(folder / "wavelets.jp2", pixels, **UTM, driver="JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES")
    points = [GroundControlPoint(r, c, 500_000 + 10 * c, 5_400_000 - 10 * r) for r in (0, 599) for c in (0, 699)]
    write(folder / "points.tif", pixels, crs="EPSG:32633", gcps=points)
    with rasterio.open(folder / "point.tif") as dataset, WarpedVRT(dataset, crs="EPSG:4326") as warped:
        rasterio.shutil.copy(warped, folder / "warped.vrt", driver="VRT")
    pixelwise(root / "m.onnx", normalize="none", scale=1 / 32, offset=-3.0, tile=[256, 256])
    return root


def run(root: Path, out: Path, *more: str, **env: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "segpipe.cli", "run", "-i", "in", "-m", "m.onnx", "-o", str(out), "--device", "cpu"]
    environ = {**os.environ, **env}
    return subprocess.run(
        [*command, *more], cwd=root, env=environ, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@pytest.fixture(scope="module")
def clean(scenes: Path) -> Path:
    """What a run makes in an environment that says nothing."""
    words = ["run", "-i", "in", "-m", "m.onnx", "-o", "clean", "--device", "cpu", "--executor", "serial"]
    done = invoke(words, scenes)
    assert done.returncode == 0, done.stdout + done.stderr
    return scenes / "clean"


def test_the_scenes_need_what_the_environment_could_take(scenes, clean):
    """GDAL itself sees something else under single options: the comparison below is no empty one."""
    records = {path.stem: json.loads(path.read_text()) for path in clean.glob("*.json") if path.name != "run.json"}
    assert {n for n, r in records.items() if r["valid"]["unit"] == "px"} == {"picture", "points"}
    assert records["mask"]["valid"]["pixels"] < 600 * 700
    assert records["sidecar"]["valid"]["pixels"] < 600 * 700
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), rasterio.open(scenes / "in/mask.tif") as dataset:
        assert dataset.read_masks(1).all()
    with rasterio.Env(GDAL_PAM_ENABLED="NO"), rasterio.open(scenes / "in/sidecar.tif") as dataset:
        assert dataset.nodata is None
    with rasterio.Env(GTIFF_POINT_GEO_IGNORE="YES"), rasterio.open(scenes / "in/point.tif") as dataset:
        assert dataset.transform != UTM["transform"]
    with rasterio.Env(GDAL_GEOREF_SOURCES="INTERNAL"), rasterio.open(scenes / "in/world.tif") as dataset:
        assert dataset.transform.is_identity


@pytest.fixture
def proj(tmp_path):
    """A folder with a proj.db that this PROJ cannot use, as another version's."""
    (tmp_path / "proj").mkdir()
    (tmp_path / "proj/proj.db").write_bytes(b"")
    return str(tmp_path / "proj")


def check_unused(root, clean, out, executor, variables, also):
    """A run has the bytes of one whose environment says nothing, and names each variable once."""
    done = run(root, out, *executor.split(), **variables, **also)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, value in variables.items():
        assert done.stderr.count(f"note: {name}={value} of the environment is not used") == 1, name
    assert_same(out, clean)


def test_options_of_the_environment_change_nothing(scenes, clean, tmp_path):
    check_unused(scenes, clean, tmp_path / "out", "--executor serial", HOSTILE, {})


@pytest.mark.slow
def test_data_of_another_proj_changes_nothing(scenes, clean, tmp_path, proj):
    check_unused(scenes, clean, tmp_path / "out", "--executor serial", {"PROJ_LIB": proj}, {"GDAL_DATA": proj})


@pytest.mark.slow
def test_workers_see_neither(scenes, clean, tmp_path, proj):
    variables = {**HOSTILE, "PROJ_DATA": proj}
    check_unused(scenes, clean, tmp_path / "out", "--executor dask --workers 2", variables, {"GDAL_DATA": proj})


def test_inspect_says_the_same(scenes):
    env = {**os.environ, **HOSTILE, "PROJ_LIB": "/nowhere", "PROJ_DATA": "/nowhere"}
    for name in ("point", "mask"):
        words = ["inspect", f"in/{name}.tif", "--json"]
        command = [sys.executable, "-m", "segpipe.cli", *words]
        done = subprocess.run(command, cwd=scenes, env=env, capture_output=True, text=True, timeout=PATIENCE, check=True)
        assert done.stdout == invoke(words, scenes).stdout


def test_scenes_of_other_commands_are_read_so(scenes, monkeypatch):
    """``tune`` and ``export --verify`` take tiles of scenes through the same options."""
    from segpipe.export.tiles import scene_samples
    from segpipe.network.read import read_spec
    from segpipe.overrides import AS_STORED
    from segpipe.settings import load_settings

    spec = read_spec(load_settings(None, {"input": ("x",), "model": scenes / "m.onnx", "device": "cpu"}))
    before = scene_samples([str(scenes / "in/sidecar.tif")], spec, AS_STORED, 2)
    monkeypatch.setenv("GDAL_PAM_ENABLED", "NO")
    clean_environment.cache_clear()
    after = scene_samples([str(scenes / "in/sidecar.tif")], spec, AS_STORED, 2)
    assert before[0][1].any()
    for (pixels, invalid), (again, invalid_again) in zip(before, after, strict=True):
        np.testing.assert_array_equal(pixels, again)
        np.testing.assert_array_equal(invalid, invalid_again)


def started(scenes: Path, patch: str, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """The command line in a process that has another module ``environment``."""
    code = (
        f"import segpipe.process.environment as e; from pathlib import Path; {patch}; from segpipe.cli import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=scenes,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_proj_without_its_data_is_an_error_with_a_mend(scenes, tmp_path):
    """Where rasterio is no wheel, PROJ looks where the environment says."""
    arguments = ("run", "-i", "in", "-m", "m.onnx", "-o", str(tmp_path / "out"), "--executor", "serial")
    no_wheel = "e.WHEEL = Path('/nowhere')"
    done = started(scenes, no_wheel, *arguments, PROJ_LIB="/nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("error: rasterio must place a known point")
    assert done.stderr.endswith(": unset PROJ_LIB=/nowhere\n")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    for command in (("inspect", "in/point.tif"), ("tune", "m.onnx", "--input", "in")):
        assert started(scenes, no_wheel, *command, PROJ_LIB="/nowhere").returncode == 2


@pytest.mark.parametrize("library", ["rasterio", "pyproj"])
def test_a_proj_that_is_off_is_an_error(library, monkeypatch):
    monkeypatch.setattr(environment, f"{library}_point", lambda: (577274.99, 69740.00))
    monkeypatch.delenv("PROJ_LIB", raising=False)
    monkeypatch.delenv("PROJ_DATA", raising=False)
    with pytest.raises(InstallationError, match=rf"{library} must .* 577274.99, 69740.00: install {library} again"):
        clean_environment.__wrapped__()


def test_a_configuration_file_of_gdal_is_refused(scenes, tmp_path):
    """Its values outlast those of the environment. The mend works."""
    (tmp_path / ".gdal").mkdir()
    (tmp_path / ".gdal/gdalrc").write_text("[configoptions]\nGDAL_PAM_ENABLED=NO\n")
    arguments = ("--executor", "serial", "--dry-run")
    done = run(scenes, tmp_path / "out", *arguments, HOME=str(tmp_path))
    assert done.returncode == 2
    assert "GDAL's configuration file must not change what is read or written, got GDAL_PAM_ENABLED=NO" in done.stderr
    assert run(scenes, tmp_path / "out", *arguments, HOME=str(tmp_path), GDAL_CONFIG_FILE="/dev/null").returncode == 0


def test_options_of_rasterio_around_a_call_are_refused(monkeypatch):
    """The mend works."""
    for name in ("PROJ_LIB", "PROJ_DATA"):
        monkeypatch.delenv(name, raising=False)
    words = "rasterio.Env around this call must not .*, got GDAL_PAM_ENABLED=NO: call segpipe outside of it"
    with rasterio.Env(GDAL_PAM_ENABLED="NO", CPL_DEBUG="OFF"), pytest.raises(InstallationError, match=words):
        clean_environment.__wrapped__()
    with rasterio.Env(CPL_DEBUG="OFF"):
        clean_environment.__wrapped__()


def test_credentials_networks_and_caches_stay_the_user_s() -> None:
    kept: Callable[[str], bool] = lambda name: name not in OPTIONS  # noqa: E731
    assert all(map(kept, ("AWS_ACCESS_KEY_ID", "GDAL_HTTP_MAX_RETRY", "GDAL_CACHEMAX", "CPL_DEBUG", "GDAL_SKIP")))
