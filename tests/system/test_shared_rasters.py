"""Every shared, odd and damaged raster through ``segpipe run``: a right mask on the right grid, or a clear error."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rasterio
from command import invoke
from networks import pixelwise
from onnx import numpy_helper
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from scenes import Fork

pytestmark = pytest.mark.shared_data

DATA = Path(__file__).parents[3] / "shared" / "data"
NODATA = 255

# file: colour bands (alpha left out), invalid pixels, unit of its areas
SHARED = {
    "389225main_sw_1965_1024.jpg": (3, 0, "px"),
    "RGB.byte.tif": (3, 185533, "ha"),
    "RGBA.uint16.tif": (3, 133258, "ha"),
    "all-nodata.tif": (4, 175725, "ha"),
    "alpha.tif": (3, 1472541, "ha"),
    "cog_gcps.tif": (1, 0, "px"),
    "cog_nonearth.tif": (1, 734778, "px"),
    "cog_rgb_mask.tif": (3, 2739, "ha"),
    "cog_scale.tif": (2, 6, "ha"),
    "cog_scale_epsg4326.tif": (2, 2315, "ha"),
    "dummy_fotomap_small.tif": (3, 0, "ha"),
    "float_nan.tif": (1, 1, "px"),
    "float_raster_with_nodata.tif": (1, 58, "ha"),
    "goes.tif": (3, 63712, "ha"),
    "image_51px.tif": (3, 0, "ha"),
    "image_external.tif": (3, 0, "ha"),
    "image_webp.tif": (3, 0, "ha"),
    "image_with_offsets.tif": (1, 6, "ha"),
    "inference-img.tif": (8, 0, "ha"),
    "mask.tif": (1, 11318, "ha"),
    "mosaic_value_1.tif": (3, 199762, "ha"),
    "mosaic_value_2.tif": (3, 185561, "ha"),
    "pix4d_alpha_nodata.tif": (3, 64663, "ha"),
    "rgb1.tif": (3, 51187, "ha"),
    "rgb2.tif": (3, 48049, "ha"),
    "rgb3.tif": (3, 39989, "ha"),
    "rgb4.tif": (3, 46582, "ha"),
    "rotated.tif": (1, 0, "px"),
    "scene_band1.tif": (1, 0, "ha"),
    "scene_band2.tif": (1, 0, "ha"),
    "segmentation_test_0_input.tif": (10, 0, "ha"),
    "segmentation_test_0_label.tif": (1, 0, "px"),
    "test_esri_wkt.tif": (1, 0, "ha"),
    "world.byte.tif": (1, 0, "ha"),
}

# file: words of its error; or type, offset, shape and axes (rows, columns, bands) of its uncompressed pixels in the file;
# or None where GDAL's decoder, block by block, is the truth
EVIL = {
    1: {
        "12in16bit.tif": ("<u2", 8, (100, 100, 1), (2, 0, 1)),
        "flower-palette-16.tif": "band 1 holds palette indices",
        "fuzz_id_000009_sig_06_src_000149_op_havoc_rep_8.tif": 'cannot be opened: .*Incompatible type for "Compression"',
        "multipage.tiff": "must hold one image, got 3",
        "oom-225817ca0f8c663be7ab4b9e717b02c661e66834.tif": "cannot be opened: .*Failed to read directory",
        "predictor-3-gray-f32.tif": None,
        "seek_too_large.tif": "cannot be opened: .*Failed to read directory",
        "uint16_1_4660.tif": ("<u2", 146, (10, 10, 1), (2, 0, 1)),
    },
    3: {
        "hopper_bigtiff.tif": ("u1", 16, (128, 128, 3), (2, 0, 1)),
        "planar-rgb-u8.tif": None,
        # 13 strips a band, and a tag that says there is one: GDAL takes the second strip of red for the start of green
        "tiff_overflow_rows_per_strip.tif": ("u1", 522, (3, 374, 278), (0, 1, 2)),
        "tiff_strip_cmyk_jpeg.tif": None,
        "tiff_strip_ycbcr_jpeg_2x2_sampling.tif": None,
        "tiff_wrong_bits_per_sample.tiff": 'cannot be opened: GDAL says: .*Bogus "StripByteCounts"',
    },
}

MAY_BE_REFUSED = {"tiff_overflow_rows_per_strip.tif"}


@dataclass(frozen=True)
class Night:
    """One ``segpipe run`` and what it left."""

    code: int
    said: str
    output: Path
    model: Path

    @property
    def done(self) -> set[str]:
        return set(json.loads((self.output / "run.json").read_text())["done"])

    @property
    def failed(self) -> dict[str, str]:
        return {f["case"]: f["error"] for f in json.loads((self.output / "run.json").read_text())["failed"]}

    def mask(self, case: str) -> Path:
        (path,) = (path for s in (".tif", ".png") if (path := self.output / (case + s)).exists())
        return path

    def areas(self, case: str) -> dict[str, dict[str, str]]:
        with (self.output / "areas.csv").open() as stream:
            return {row["class_name"]: row for row in csv.DictReader(stream) if row["case"] == case}


def carry_out(inputs: Path, model: Path, *options: str, own: bool = False) -> Night:
    """Run in this process, where a warning of Python is an error, or in one of its own, which a decoder may end."""
    output = model.with_suffix(".out" + "".join(options))
    words = ["run", "-i", inputs, "-m", model, "-o", output, "--device", "cpu", *options]
    if own:
        process = Fork(model.parent, [*map(str, words)], output.with_suffix(".log"), forked=1)
        night = Night(process.wait(), process.log.read_text(), output, model)
    else:
        ended = invoke(words, model.parent)
        night = Night(ended.returncode, ended.stdout + ended.stderr, output, model)
    assert "Traceback" not in night.said
    hidden = [path.relative_to(output).as_posix() for path in output.rglob(".*")]
    assert hidden in ([], [".overlap"]), "half-written files"  # scenes that share ground leave what was counted twice
    return night


def list_of(folder: Path, paths: list[Path]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.txt").write_text("\n".join(map(str, paths)))
    return folder / "cases.txt"


def seen(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Colour bands of a raster and where they are invalid: the oracle, by rasterio, block by block."""
    with rasterio.open(path) as source:
        alpha = [i for i, c in enumerate(source.colorinterp, 1) if c is ColorInterp.alpha]
        colours = [i for i in source.indexes if i not in alpha]
        pixels = np.zeros((len(colours), *source.shape), source.dtypes[0])
        invalid = np.zeros(source.shape, bool)
        for _, window in source.block_windows(1):
            where = window.toslices()
            for k, band in enumerate(colours):
                pixels[k][where] = source.read(band, window=window)
                invalid[where] |= source.read_masks(band, window=window) == 0
            for band in alpha:
                invalid[where] |= source.read(band, window=window) == 0
        for band, nodata in zip(pixels, source.nodatavals, strict=False):
            invalid |= np.isnan(band) | (band == nodata if nodata is not None else False)
    return pixels, invalid


def scores_of(model: Path, x: np.ndarray) -> np.ndarray:
    """What a network of one 1 x 1 convolution gives, in float64."""
    weights, bias = (numpy_helper.to_array(t).astype(float) for t in onnx.load(model).graph.initializer)
    return np.einsum("kc,chw->khw", weights[:, :, 0, 0], x) + bias[:, None, None]


def standardised(pixels: np.ndarray, invalid: np.ndarray) -> np.ndarray:
    """The z-score of each band over its valid pixels; a band without spread is 0."""
    x = np.where(invalid, 0, pixels).astype(float)
    valid = x[:, ~invalid] if not invalid.all() else np.zeros((len(x), 1))
    mean, std = valid.mean(axis=1)[:, None, None], valid.std(axis=1)[:, None, None]
    return np.divide(x - mean, std, out=np.zeros_like(x), where=std > 0)


def check_labels(night: Night, case: str, x: np.ndarray, invalid: np.ndarray) -> np.ndarray:
    """A mask has the right classes, but for pixels where two of them are as good as equal; nodata exactly where due."""
    with rasterio.open(night.mask(case)) as mask:
        labels = mask.read(1)
        assert mask.nodata == NODATA
    assert labels.shape == invalid.shape
    np.testing.assert_array_equal(labels == NODATA, invalid)
    scores = scores_of(night.model, x)
    second, best = np.sort(scores, axis=0)[-2:]
    clear = ~invalid & (best - second > 1e-4)
    assert clear.sum() >= 0.98 * (~invalid).sum()
    np.testing.assert_array_equal(labels[clear], scores.argmax(axis=0)[clear])
    return labels


def check_areas(night: Night, case: str, labels: np.ndarray, unit: str) -> None:
    rows = night.areas(case)
    counted = {name: int(row["pixels"]) for name, row in rows.items()}
    assert counted == {"nodata": (labels == NODATA).sum(), **{f"class{k}": (labels == k).sum() for k in range(3)}}
    assert {row["unit"] for row in rows.values()} == {unit}
    assert all((row["area"] == "") == (unit == "px") for row in rows.values())


def check_error(night: Night, case: str, words: str) -> None:
    """The error is in the record and on the screen, and no file of the case is there."""
    assert re.search(words, night.failed[case], re.DOTALL)
    assert f"failed  {case}: {night.failed[case]}" in night.said
    assert not list(night.output.glob(f"{case}.*"))
    assert not night.areas(case)


def grid_of(path: Path) -> tuple[Any, ...]:
    with rasterio.open(path) as dataset:
        points = [(p.row, p.col, p.x, p.y, p.z) for p in dataset.gcps[0]]
        return dataset.crs, tuple(dataset.transform), points, dataset.gcps[1]


# --- the shared rasters ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_night(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Night]:
    """All shared rasters with a number of colour bands in one run, done once."""
    root = tmp_path_factory.mktemp("shared")

    @cache
    def night(bands: int, executor: str = "serial") -> Night:
        paths = [DATA / "geotiff" / name for name, (n, *_) in SHARED.items() if n == bands]
        tiling = {"tile": [256, 256], "overlap": [32, 32]}
        model = pixelwise(root / f"{bands}.onnx", bands, normalize="zscore", scale=None, **tiling)
        return carry_out(list_of(root / str(bands), paths), model, "--executor", executor, own=executor == "dask")

    return night


def test_the_table_has_every_shared_raster():
    suffixes = {".tif", ".jpg"}
    assert set(SHARED) == {p.name for p in (DATA / "geotiff").iterdir() if p.suffix in suffixes}
    assert {name for group in EVIL.values() for name in group} == {p.name for p in (DATA / "evil").iterdir()}


@pytest.mark.parametrize("name", SHARED)
def test_shared_raster(name, shared_night):
    bands, nodata, unit = SHARED[name]
    path, case, night = DATA / "geotiff" / name, Path(name).stem, shared_night(bands)
    pixels, invalid = seen(path)
    assert (len(pixels), invalid.sum()) == (bands, nodata)
    labels = check_labels(night, case, standardised(pixels, invalid), invalid)
    check_areas(night, case, labels, unit)
    assert grid_of(night.mask(case)) == grid_of(path)


@pytest.mark.parametrize("bands", sorted({bands for bands, *_ in SHARED.values()}))
def test_runs_of_good_files_end_with_0(bands, shared_night):
    night = shared_night(bands)
    assert night.code == 0
    assert night.done == {Path(name).stem for name, (n, *_) in SHARED.items() if n == bands}


@pytest.mark.slow
def test_dask_gives_the_same_bytes(shared_night):
    serial, dask = shared_night(3), shared_night(3, "dask")
    assert dask.code == 0
    for case in sorted(serial.done):
        assert dask.mask(case).read_bytes() == serial.mask(case).read_bytes(), case
    assert (dask.output / "areas.csv").read_bytes() == (serial.output / "areas.csv").read_bytes()


# --- evil files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evil_night(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Night]:
    root = tmp_path_factory.mktemp("evil")

    @cache
    def night(bands: int) -> Night:
        model = pixelwise(root / f"{bands}.onnx", bands, normalize="zscore", scale=None)
        paths = [DATA / "evil" / name for name in EVIL[bands]]
        return carry_out(list_of(root / str(bands), paths), model, "--executor", "serial", own=True)

    return night


def stored(path: Path, dtype: str, offset: int, shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[Any, Any]:
    """Uncompressed pixels as they lie in the file; a fourth band is alpha."""
    pixels = np.frombuffer(path.read_bytes(), dtype, int(np.prod(shape)), offset).reshape(shape).transpose(axes)
    return pixels[:3], pixels[3] == 0 if len(pixels) == 4 else np.zeros(pixels.shape[1:], bool)


@pytest.mark.parametrize(("bands", "name"), [(bands, name) for bands, group in EVIL.items() for name in group])
def test_evil_file(bands, name, evil_night):
    night, expected, path = evil_night(bands), EVIL[bands][name], DATA / "evil" / name
    case = path.stem
    if isinstance(expected, str):
        check_error(night, case, f"{re.escape(name)}.*{expected}")
    elif name in MAY_BE_REFUSED and case in night.failed:
        check_error(night, case, re.escape(name))
    else:
        pixels, invalid = stored(path, *expected) if expected else seen(path)
        check_areas(night, case, check_labels(night, case, standardised(pixels, invalid), invalid), "px")


@pytest.mark.parametrize("bands", EVIL)
def test_evil_files_cost_only_themselves(bands, evil_night):
    night = evil_night(bands)
    right = {Path(name).stem for name, expected in EVIL[bands].items() if not isinstance(expected, str)}
    assert right - {Path(name).stem for name in MAY_BE_REFUSED} <= night.done
    assert night.code == bool(night.failed)


# --- odd and damaged files that the test makes ----------------------------------------------------------------------------

NORTH = count(0, -5_000)
"""Of each file in metres: none lies on another, or they would share ground."""
SHAPE = (90, 70)
TOP = np.where(np.arange(90)[:, None] < 20, 0, 255).astype(np.uint8) * np.ones((1, 70), np.uint8)
LEFT = np.where(np.arange(70)[None] < 10, 0, 255).astype(np.uint8) * np.ones((90, 1), np.uint8)


def picture(bands: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Smooth and a little noisy, with values from 1 to 120 that every pixel type holds."""
    rng = np.random.default_rng(bands)
    rows, cols, k = np.ogrid[: shape[0], : shape[1], :bands]
    waves = 60 + 30 * np.sin(cols / 17 + k) + 20 * np.cos(rows / 11 * (k + 1)) + rng.normal(0, 3, (*shape, bands))
    return np.moveaxis(waves, -1, 0).clip(1, 120).astype(np.uint8)


def write(path: Path, pixels: np.ndarray, *, mask: np.ndarray | None = None, inside: bool = True, **profile: Any) -> Path:
    bands, height, width = pixels.shape
    drivers = {".png": "PNG", ".jpg": "JPEG", ".jp2": "JP2OpenJPEG", ".bmp": "BMP", ".webp": "WEBP", ".img": "HFA"}
    driver = drivers.get(path.suffix, "GTiff")
    dtype = profile.pop("dtype", pixels.dtype)
    utm = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_400_000 + next(NORTH), 10, 10)}
    place = utm if driver in {"GTiff", "JP2OpenJPEG", "HFA"} else {}
    options = {"driver": driver, "count": bands, "height": height, "width": width, "dtype": dtype, **place, **profile}
    colormap = options.pop("colormap", None)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside), rasterio.open(path, "w", **options) as dataset:
        if colormap:
            dataset.write_colormap(1, colormap)
        dataset.write(pixels)
        if mask is not None:
            dataset.write_mask(mask)
    return path


def vrt(path: Path, sources: list[str], nodata: list[float | None], shape: tuple[int, int] = SHAPE) -> Path:
    """A VRT of the first bands of files in its folder."""
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{i}">{"" if n is None else f"<NoDataValue>{n}</NoDataValue>"}'
        f'<SimpleSource><SourceFilename relativeToVRT="1">{source}</SourceFilename><SourceBand>{i}</SourceBand>'
        "</SimpleSource></VRTRasterBand>"
        for i, (source, n) in enumerate(zip(sources, nodata, strict=True), 1)
    )
    path.write_text(f'<VRTDataset rasterXSize="{shape[1]}" rasterYSize="{shape[0]}">{bands}</VRTDataset>')
    return path


def with_nan(pixels: np.ndarray) -> np.ndarray:
    changed = pixels.astype(np.float32)
    changed[0, 5:9] = np.nan
    return changed


GREY, RGB = picture(1), picture(3)
ALL_VALID, NAN_ROWS = np.zeros(SHAPE, bool), np.isnan(with_nan(GREY)[0])
GREY_ALPHA = np.stack([GREY[0], LEFT])
TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")

Maker = Callable[[Path], Any]
# case: how to write it, the pixels and the invalid ones that a run must have seen
ODD: dict[int, dict[str, tuple[Maker, np.ndarray, np.ndarray]]] = {
    1: {
        **{f"{t}.tif": (lambda p, t=t: write(p, GREY.astype(t)), GREY, ALL_VALID) for t in TYPES},
        "grey.png": (lambda p: write(p, GREY), GREY, ALL_VALID),
        "grey16.png": (lambda p: write(p, GREY.astype(np.uint16)), GREY, ALL_VALID),
        "grey-alpha.png": (lambda p: write(p, GREY_ALPHA), GREY, LEFT == 0),
        "grey-nodata.png": (lambda p: write(p, GREY, nodata=60), GREY, GREY[0] == 60),
        "row-picture.png": (lambda p: write(p, GREY[:, :1]), GREY[:, :1], ALL_VALID[:1]),
        "row.tif": (lambda p: write(p, GREY[:, :1]), GREY[:, :1], ALL_VALID[:1]),
        "column.tif": (lambda p: write(p, GREY[:, :, :1]), GREY[:, :, :1], ALL_VALID[:, :1]),
        "dot.tif": (lambda p: write(p, GREY[:, :1, :1]), GREY[:, :1, :1], ALL_VALID[:1, :1]),
        "nan.tif": (lambda p: write(p, with_nan(GREY)), GREY, NAN_ROWS),
        "nan-nodata.tif": (lambda p: write(p, with_nan(GREY), nodata=np.nan), GREY, NAN_ROWS),
        "nodata-that-no-pixel-holds.tif": (lambda p: write(p, GREY.astype(np.int16), nodata=-9999), GREY, ALL_VALID),
        "inner-mask.tif": (lambda p: write(p, GREY, mask=TOP), GREY, TOP == 0),
        "outer-mask.tif": (lambda p: write(p, GREY, mask=TOP, inside=False), GREY, TOP == 0),
        "mask-and-nodata.tif": (lambda p: write(p, GREY, mask=TOP, nodata=60), GREY, TOP == 0),
        "mask-and-alpha.tif": (lambda p: write(p, GREY_ALPHA, mask=TOP, alpha="yes"), GREY, TOP == 0),
        "nodata-and-alpha.tif": (
            lambda p: write(p, GREY_ALPHA, nodata=60, alpha="yes"),
            GREY,
            (GREY[0] == 60) | (LEFT == 0),
        ),
    },
    3: {
        "rgb-more.png": (lambda p: with_more_behind(p, 3), RGB, ALL_VALID),
        "rgb.png": (lambda p: write(p, RGB), RGB, ALL_VALID),
        "rgba.png": (lambda p: write(p, np.stack([*RGB, LEFT])), RGB, LEFT == 0),
        "rgb16.png": (lambda p: write(p, RGB.astype(np.uint16)), RGB, ALL_VALID),
        "source.tif": (lambda p: write(p, RGB), RGB, ALL_VALID),
        "whole.vrt": (lambda p: vrt(p, ["source.tif"] * 3, [None] * 3), RGB, ALL_VALID),
        "nested.vrt": (lambda p: vrt(p, ["whole.vrt"] * 3, [None] * 3), RGB, ALL_VALID),
        "nodata-per-band.vrt": (
            lambda p: vrt(p, ["source.tif"] * 3, [60, None, 70]),
            RGB,
            (RGB[0] == 60) | (RGB[2] == 70),
        ),
    },
}


def cut(share: float, **profile: Any) -> Maker:
    """A file whose end is missing."""

    def make(path: Path, bands: int) -> None:
        whole = write(path, picture(bands, (300, 400)), **profile).read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])

    return make


def overwritten(path: Path, bands: int) -> None:
    """A file of full length with 40 bytes of zeros in its middle."""
    whole = write(path, picture(bands, (300, 400))).read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(40) + whole[middle + 40 :])


def lacking_some(path: Path, bands: int) -> None:
    """A file with its end, but with 40 bytes less in its middle."""
    whole = write(path, picture(bands, (300, 400))).read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + whole[middle + 40 :])


def lacking_a_chunk(path: Path, bands: int) -> None:
    """A PNG whose chunks are all whole, but one of its pixels is missing."""
    parts = chunks(write(path, picture(bands, (300, 400))).read_bytes())
    pixels = [part for part in parts if part[4:8] == b"IDAT"]
    assert len(pixels) > 2
    path.write_bytes(PNG_SIGNATURE + b"".join(part for part in parts if part is not pixels[1]))


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunks(png: bytes) -> list[bytes]:
    parts, at = [], len(PNG_SIGNATURE)
    while at < len(png):
        size = 12 + int.from_bytes(png[at : at + 4], "big")
        parts.append(png[at : at + size])
        at += size
    return parts


def vrt_of_a_cut_png(path: Path, bands: int) -> None:
    """A VRT whose only source is a PNG without its end."""
    source = path.with_name(".cut.png")  # hidden, so that it is no case of its own
    whole = write(source, picture(bands)).read_bytes()
    source.write_bytes(whole[: int(len(whole) * 0.6)])
    vrt(path, [source.name] * bands, [None] * bands)


def with_more_behind(path: Path, bands: int) -> None:
    """A PNG behind whose end another program has left something."""
    path.write_bytes(write(path, picture(bands)).read_bytes() + b"left behind" * 9)


TILED = {"tiled": True, "blockxsize": 128, "blockysize": 128}
# case: how to write it, and the words of its error after the path
DAMAGED: dict[str, tuple[Callable[[Path, int], Any], str]] = {
    "png.png": (cut(0.6), "is damaged.*IEND"),
    "png-end.png": (cut(0.97), "is damaged.*IEND"),
    "png-interlaced.png": (cut(0.6, interlace="YES"), "is damaged.*IEND"),
    "png-crc.png": (overwritten, "cannot be read"),
    "png-hole.png": (lacking_some, "is damaged.*IEND"),
    "png-chunk.png": (lacking_a_chunk, "cannot be read"),
    "jpeg.jpg": (cut(0.6), "cannot be read.*Premature end"),
    "jpeg-end.jpg": (cut(0.97), "cannot be read.*Premature end"),
    "jpeg-progressive.jpg": (cut(0.6, progressive="ON"), "cannot be (read|opened)"),
    "jp2.jp2": (cut(0.6), "cannot be read"),
    "strips-jpeg.tif": (cut(0.6, compress="jpeg"), "cannot be read"),
    "tiles-jpeg.tif": (cut(0.6, compress="jpeg", **TILED), "cannot be read"),
    "deflate.tif": (cut(0.6, compress="deflate"), "cannot be read"),
    "tiles-deflate.tif": (cut(0.97, compress="deflate", **TILED), "cannot be read"),
    "raw.tif": (cut(0.6), "cannot be read"),
    "raw-end.tif": (cut(0.999), "cannot be read"),
    "raw-tiles.tif": (cut(0.6, **TILED), "cannot be read"),
    "header.tif": (cut(0.001), "cannot be opened"),
    "zero.tif": (lambda p, n: p.write_bytes(b""), r"is empty \(0 bytes\)"),
    "zero-png.png": (lambda p, n: p.write_bytes(b""), r"is empty \(0 bytes\)"),
    "text.tif": (lambda p, n: p.write_text("not an image\n" * 99), "cannot be opened.*not recognized"),
    "of-a-cut-png.vrt": (vrt_of_a_cut_png, "cannot be read"),
    "gone.vrt": (lambda p, n: vrt(p, ["gone.tif"] * n, [None] * n), "cannot be read.*gone.tif: No such file"),
    "endless.vrt": (lambda p, n: vrt(p, ["endless.vrt"] * n, [None] * n), "cannot be read"),
    "not-xml.vrt": (lambda p, n: p.write_text("<VRTDataset rasterXSize="), "is not well-formed XML"),
    "complex.tif": (lambda p, n: write(p, picture(n).astype(np.complex64)), "must be integers or floats, got complex64"),
    "complex-int.tif": (
        lambda p, n: write(p, picture(n).astype(np.complex64), dtype="complex_int16"),
        "must be integers or floats, got complex_int16",
    ),
    "five.tif": (lambda p, n: write(p, picture(5)), "got 5 bands"),
}
PALETTE = {i: (i, 255 - i, 7, 255) for i in range(256)}

# tiles that cut a picture, and one that holds all of it: GDAL reads a whole PNG by a way of its own
TILES = (64, 512)


@pytest.fixture(scope="module")
def made_night(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Night]:
    """Good and damaged files of one number of bands in one folder and one run."""
    root = tmp_path_factory.mktemp("made")

    @cache
    def folder(bands: int) -> Path:
        place = root / str(bands)
        (place / "folder.tif").mkdir(parents=True)
        for name, (make, *_) in ODD[bands].items():
            make(place / name)
        for name, (damage, _) in DAMAGED.items():
            damage(place / name, bands)
        write(place / "palette.png", picture(1), colormap=PALETTE)
        return place

    @cache
    def night(bands: int, tile: int) -> Night:
        model = root / f"{bands}-{tile}.onnx"
        pixelwise(model, bands, normalize="none", scale=1 / 32, offset=-2.0, tile=[tile, tile])
        return carry_out(folder(bands), model, "--executor", "serial")

    return night


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("bands", "name"), [(bands, name) for bands, group in ODD.items() for name in group])
def test_odd_file(bands, name, tile, made_night):
    night, case, (_, pixels, invalid) = made_night(bands, tile), Path(name).stem, ODD[bands][name]
    labels = check_labels(night, case, pixels / 32 - 2, invalid)
    assert night.mask(case).suffix == (".png" if name.endswith(".png") else ".tif")
    check_areas(night, case, labels, "ha" if name.endswith(".tif") else "px")


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("bands", ODD)
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_file_is_an_error(name, bands, tile, made_night):
    night = made_night(bands, tile)
    check_error(night, Path(name).stem, f"{re.escape(name)}.*{DAMAGED[name][1]}")


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("bands", ODD)
def test_damaged_files_cost_only_themselves(bands, tile, made_night):
    night = made_night(bands, tile)
    assert night.code == 1
    assert {Path(name).stem for name in ODD[bands]} <= night.done
    assert "folder" not in night.done | night.failed.keys()


def test_palette_is_refused_unless_its_indices_are_asked_for(made_night, tmp_path):
    night = made_night(1, 64)
    check_error(night, "palette", r"band 1 holds palette indices.*--bands 1")
    model = shutil.copy(night.model, tmp_path / "m.onnx")
    source = write(tmp_path / "in.png", picture(1), colormap=PALETTE)
    asked = carry_out(source, model, "--executor", "serial", "--bands", "1")
    assert asked.code == 0
    check_labels(asked, "in", picture(1) / 32 - 2, ALL_VALID)


@pytest.mark.parametrize(("case", "files"), [("whole", ["source.tif"]), ("nested", ["source.tif", "whole.vrt"])])
def test_record_of_a_vrt_names_its_sources(case, files, made_night):
    record = json.loads((made_night(3, 64).output / f"{case}.json").read_text())
    assert sorted(Path(file["path"]).name for file in record["input"]["files"]) == sorted([f"{case}.vrt", *files])


def test_sidecars_are_in_the_record(made_night):
    record = json.loads((made_night(1, 64).output / "outer-mask.json").read_text())
    assert [Path(file["path"]).name for file in record["input"]["files"]] == ["outer-mask.tif", "outer-mask.tif.msk"]


def test_folder_with_the_name_of_a_raster_and_nothing_in_it(made_night, tmp_path):
    (tmp_path / "x.tif").mkdir()
    night = invoke(["run", "-i", tmp_path / "x.tif", "-m", made_night(1, 64).model], tmp_path)
    assert night.returncode == 2
    assert re.fullmatch(r"error: no raster or volume found in \S+x\.tif: .*\n", night.stderr)
