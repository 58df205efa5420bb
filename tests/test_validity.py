"""Where pixels are valid: GDAL's masks are the oracle, but for the exceptions that are named here."""

from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from networks import contract
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader

from segpipe.pipeline.contract import Contract
from segpipe.pipeline.errors import SourceError
from segpipe.pipeline.gdal import gdal_options
from segpipe.pipeline.overrides import AS_STORED, Overrides
from segpipe.pipeline.sources.raster import RasterSource
from segpipe.pipeline.sources.validity import is_odd, nodata_interval
from segpipe.pipeline.windows import Window

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")  # within rasterio

DATA = Path(__file__).parents[2] / "shared" / "data"
SHAPE = (24, 40)


def invalid(path: Path, bands: tuple[int, ...], overrides: Overrides = AS_STORED) -> np.ndarray:
    """Where a run takes pixels of some bands for invalid: read in two windows."""
    chosen = Overrides(bands, overrides.nodata, overrides.ignore_alpha)
    with gdal_options(), closing(RasterSource(str(path), Contract.model_validate(contract(len(bands))), chosen)) as source:
        rows, cols = source.grid.shape
        found = np.zeros((rows, cols), bool)
        for start, stop in ((0, rows // 2), (rows // 2, rows)):
            mask = source.read(Window((start, 0), (stop, cols)))[1] if stop > start else None
            found[start:stop] = False if mask is None else mask
    return found


def notes(path: Path, channels: Any, overrides: Overrides = AS_STORED) -> tuple[str, ...]:
    with gdal_options(), closing(RasterSource(str(path), Contract.model_validate(contract(channels)), overrides)) as source:
        return source.notes


def colours(dataset: DatasetReader) -> tuple[int, ...]:
    return tuple(i for i, c in enumerate(dataset.colorinterp, 1) if c is not ColorInterp.alpha)


def masked_by_gdal(dataset: DatasetReader, bands: tuple[int, ...]) -> np.ndarray:
    return np.any([dataset.read_masks(band) == 0 for band in bands], axis=0)


def not_finite(dataset: DatasetReader, bands: tuple[int, ...]) -> np.ndarray:
    """First exception: no network takes NaN or infinity."""
    return np.any([~np.isfinite(dataset.read(band)) for band in bands], axis=0)


def transparent(dataset: DatasetReader, bands: tuple[int, ...]) -> np.ndarray:
    """Second exception: alpha makes pixels invalid wherever it stands, beside nodata values, and of any type."""
    alpha = [band for band in dataset.indexes if band not in colours(dataset) and band not in bands]
    return np.any([dataset.read(band) == 0 for band in alpha], axis=0) if alpha else np.zeros(dataset.shape, bool)


# --- the tolerance of floats ----------------------------------------------------------------------------------------------


FLOATS = [-3.40282e38, -3.4028235e38, -3.4e38, 1.8e38, -9999.0, -9999.9, 1e-3, 0.1, -1.0, 1e30, 1e-40, 0.0, 255.0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", FLOATS)
def test_floats_equal_a_nodata_value_as_gdal_has_it(value, dtype, raster):
    """Twenty values on either side, the ends of the interval, and what lies beyond them."""
    dtype = np.dtype(dtype)
    low, high = nodata_interval(value, dtype)
    pixels = [dtype.type(value), low, high, np.finfo(dtype).max, np.finfo(dtype).min, dtype.type(0), dtype.type(-value)]
    with np.errstate(over="ignore"):
        for end in (dtype.type(value), low, high):
            for to in (-np.inf, np.inf):
                near = end
                for _ in range(20):
                    pixels.append(near := np.nextafter(near, dtype.type(to)))
    path = raster("f.tif", np.array([[p for p in pixels if np.isfinite(p)]], dtype)[None], nodata=value)
    with rasterio.open(path) as dataset:
        expected = masked_by_gdal(dataset, (1,))
    assert expected[0, 0]
    np.testing.assert_array_equal(invalid(path, (1,)), expected)


def test_esri_minimum_over_the_minimum_of_float32(raster):
    """2,490 such pixels became a class."""
    pixels = np.full((1, *SHAPE), 0.5, np.float32)
    pixels[0, :10] = np.finfo(np.float32).min
    path = raster("esri.tif", pixels, nodata=-3.40282e38)
    assert invalid(path, (1,)).sum() == 10 * SHAPE[1]


@pytest.mark.parametrize("value", [9.96921e36, -1.6e38, 1e37])
def test_sums_that_overflow_are_left_to_gdal(value, raster):
    assert is_odd(value, np.dtype("float32"))
    largest = np.finfo(np.float32).max
    path = raster("odd.tif", np.array([[[value, largest, -largest, 0, 2e38, -2e38]]], np.float32), nodata=value)
    with rasterio.open(path) as dataset:
        expected = masked_by_gdal(dataset, (1,))
    assert expected.sum() > 1  # GDAL's own oddity
    np.testing.assert_array_equal(invalid(path, (1,)), expected)


# --- a family of rasters --------------------------------------------------------------------------------------------------

TYPES = {
    "uint8": "Byte", "int8": "Int8", "uint16": "UInt16", "int16": "Int16", "uint32": "UInt32", "int32": "Int32",
    "uint64": "UInt64", "int64": "Int64", "float32": "Float32", "float64": "Float64",
}  # fmt: skip
KINDS = ["none", "zero", "least", "most", "usual", "fraction", "outside", "nan", "inf", "wide", "together"]
MASKS = ["none", "inside", "beside", "by band", "alpha", "alpha of five", "alpha beside a mask"]


def limits_of(dtype: np.dtype[Any]) -> Any:
    return np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)


def nodata_text(kind: str, dtype: np.dtype[Any]) -> str | None:
    """As a VRT says it."""
    least, most = limits_of(dtype).min, limits_of(dtype).max
    wide = {"int64": 2**53 + 1, "uint64": 2**63 + 1, "float32": -3.40282e38, "float64": -1.79769e308}
    texts = {
        "zero": "0",
        "least": str(least),
        "most": str(most),
        "usual": "-9999" if np.can_cast(np.int16, dtype) else "99",
        "fraction": "7.5",
        "outside": "1e50" if dtype.name == "float32" else str(2 * int(most) + 5) if dtype.kind != "f" else "1e308",
        "nan": "nan",
        "inf": "-inf",
        "wide": str(wide.get(dtype.name, 77)),
    }
    return texts.get(kind)


@np.errstate(over="ignore")
def pixels_around(text: str | None, dtype: np.dtype[Any], shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Values that a nodata value may be mistaken for."""
    limits = limits_of(dtype)
    pool = [0, 1, 7, 8, 99, limits.min, limits.max]
    if dtype.kind == "f":
        value = dtype.type(0 if text is None else float(text))
        pool += [np.nan, np.inf, value, np.nextafter(value, dtype.type(0))]
        pool += [value * dtype.type(1 + n * 1e-7) for n in range(-6, 7)] if np.isfinite(value) else []
    elif text is not None and text not in ("nan", "-inf"):
        value = int(float(text)) if "." in text else int(text)
        pool += [n for n in (value - 1, value, value + 1) if limits.min <= n <= limits.max]
    return rng.choice(np.array([dtype.type(n) for n in pool]), shape)


def described(path: Path, pixels: np.ndarray, text: str | None, kind: str, mask: str, rng: np.random.Generator) -> Path:
    """A VRT over a TIFF with pixels, nodata as a text, and a mask of some kind."""
    dtype, bands = pixels.dtype, len(pixels)
    stem = path.with_suffix("")
    profile = {"driver": "GTiff", "width": SHAPE[1], "height": SHAPE[0]}
    with rasterio.open(f"{stem}-p.tif", "w", **profile, count=bands, dtype=dtype) as dataset:
        dataset.write(pixels)
    with rasterio.open(f"{stem}-m.tif", "w", **profile, count=1, dtype="uint8") as dataset:
        dataset.write(rng.choice(np.array([0, 1, 255], np.uint8), (1, *SHAPE)))
    gdal_type, alpha = TYPES[dtype.name], mask.startswith("alpha")
    source = "<SimpleSource><SourceFilename relativeToVRT='1'>{}</SourceFilename><SourceBand>{}</SourceBand></SimpleSource>"
    stored = f"<MaskBand><VRTRasterBand dataType='Byte'>{source.format(f'{stem.name}-m.tif', 1)}</VRTRasterBand></MaskBand>"
    lines = [f"<VRTDataset rasterXSize='{SHAPE[1]}' rasterYSize='{SHAPE[0]}'>"]
    if kind == "together":
        lines.append(f"<Metadata><MDI key='NODATA_VALUES'>{' '.join(['7'] * bands)}</MDI></Metadata>")
    for band in range(1, bands + 1):
        lines += [
            f"<VRTRasterBand dataType='{gdal_type}' band='{band}'>",
            f"<NoDataValue>{text}</NoDataValue>" if text is not None and not (alpha and band == bands) else "",
            "<ColorInterp>Alpha</ColorInterp>" if alpha and band == bands else "",
            source.format(f"{stem.name}-p.tif", band),
            stored if mask == "by band" and band == 1 else "",
            "</VRTRasterBand>",
        ]
    lines += [stored if mask in ("inside", "beside", "alpha beside a mask") else "", "</VRTDataset>"]
    path.write_text("\n".join(lines))
    return path


def expected(path: Path, bands: tuple[int, ...], mask: str) -> np.ndarray:
    with rasterio.open(path) as dataset:
        found = masked_by_gdal(dataset, bands) | not_finite(dataset, bands)
        return found if mask == "alpha beside a mask" else found | transparent(dataset, bands)


COMBINATIONS = [
    (name, kind, mask)
    for i, (name, kind) in enumerate(product(TYPES, KINDS))
    for mask in ("none", *np.random.default_rng(i).choice(MASKS[1:], 2, replace=False).tolist())
]
"""Types and nodata values without a mask, and with two other kinds of mask each."""


@pytest.mark.parametrize(("name", "kind", "mask"), COMBINATIONS)
def test_validity_is_that_of_gdal(name, kind, mask, tmp_path):
    """As a VRT and as the GeoTIFF that GDAL makes of it."""
    rng = np.random.default_rng([KINDS.index(kind), MASKS.index(mask), list(TYPES).index(name)])
    dtype, text = np.dtype(name), nodata_text(kind, np.dtype(name))
    bands = {"alpha": 2, "alpha beside a mask": 4, "alpha of five": 5}.get(mask, 2)
    pixels = pixels_around(text, dtype, (bands, *SHAPE), rng)
    if kind == "together":
        pixels[:, :8] = 7
    path = described(tmp_path / "a.vrt", pixels, text, kind, mask, rng)
    used = tuple(range(1, bands + (not mask.startswith("alpha"))))
    np.testing.assert_array_equal(invalid(path, used), expected(path, used, mask))
    if mask != "by band":  # which GeoTIFF has no place for
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=mask != "beside"):
            rasterio.shutil.copy(path, tmp_path / "a.tif", driver="GTiff")
        np.testing.assert_array_equal(invalid(tmp_path / "a.tif", used), expected(tmp_path / "a.tif", used, mask))


@pytest.mark.parametrize(("dtype", "value"), [("int64", 2**63 - 1), ("int64", 2**53 + 1), ("uint64", 2**64 - 1)])
def test_nodata_of_64_bits_is_exact(dtype, value, tmp_path):
    pixels = np.full((1, *SHAPE), value, dtype)
    pixels[0, 3:] -= np.array(1, dtype)
    path = described(tmp_path / "a.vrt", pixels, str(value), "wide", "none", np.random.default_rng(0))
    assert invalid(path, (1,)).sum() == 3 * SHAPE[1]


# --- real rasters ---------------------------------------------------------------------------------------------------------


def shared() -> list[Path]:
    folders = [DATA / name for name in ("geotiff", "zones", "evil")]
    return sorted(
        p for folder in folders if folder.is_dir() for p in folder.iterdir() if p.suffix in {".tif", ".tiff", ".jpg"}
    )


@pytest.mark.shared_data
def test_validity_of_every_shared_raster_is_that_of_gdal():
    seen = 0
    for path in shared():
        try:
            with rasterio.open(path) as dataset:
                bands = colours(dataset)
                by_gdal = masked_by_gdal(dataset, bands)
            found = invalid(path, bands)
        except (rasterio.RasterioIOError, SourceError):
            continue
        seen += 1
        np.testing.assert_array_equal(found, by_gdal, err_msg=str(path))
    assert seen > 40
