"""Where pixels are valid: GDAL's masks are the oracle, but for the exceptions that are named here."""

import json
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from networks import contract, pixelwise
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader

from segpipe.contract import Contract
from segpipe.errors import SettingsError, SourceError
from segpipe.formats.raster.gdal import gdal_options
from segpipe.formats.raster.source import RasterSource
from segpipe.formats.raster.validity import is_odd, nodata_interval
from segpipe.geometry.windows import Window
from segpipe.overrides import AS_STORED, Overrides, parse_nodata
from segpipe.settings import load_settings

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")  # within rasterio

DATA = Path(__file__).parents[3] / "shared" / "data"
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
    if dtype.itemsize == 8 and dtype.kind in "iu" and kind in ("nan", "inf"):  # which GDAL takes for 0
        with pytest.raises(SourceError, match="must be written in digits"):
            invalid(path, used)
        return
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


# --- what the user states -------------------------------------------------------------------------------------------------

VALUES = np.array([[[0, 7, 60, 255], [0, 7, 60, 255]]], np.uint8)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("none", "none"),
        ("NaN", "nan"),
        (0, 0),
        ("-9999.0", -9999),
        (0.5, 0.5),
        (str(2**64 - 1), 2**64 - 1),
        ("1e20", 10**20),
    ],
)
def test_nodata_of_a_flag_or_a_file(text, value):
    assert parse_nodata(text) == value
    assert load_settings(None, {"input": "x", "model": "m", "nodata": text}).overrides.nodata == value


@pytest.mark.parametrize("text", ["inf", "-inf", "water", "1e999", "9" * 400, "", True])
def test_nodata_that_is_no_number(text):
    with pytest.raises(SettingsError, match="nodata: must be a finite number, nan or none"):
        load_settings(None, {"input": "x", "model": "m", "nodata": text})


@pytest.mark.parametrize(
    ("nodata", "columns"), [(None, [1]), (60, [2]), ("none", []), (0, [0])], ids=["as stored", "another", "none", "zero"]
)
def test_nodata_in_place_of_the_files(nodata, columns, raster):
    path = raster("n.tif", VALUES, nodata=7)
    assert np.flatnonzero(invalid(path, (1,), Overrides(nodata=nodata))[0]).tolist() == columns


def test_nodata_in_place_of_values_of_all_bands_together(tmp_path):
    pixels = np.concatenate([VALUES, VALUES[..., ::-1]])
    path = tmp_path / "t.tif"
    with rasterio.open(path, "w", driver="GTiff", width=4, height=2, count=2, dtype="uint8") as dataset:
        dataset.write(pixels)
        dataset.update_tags(NODATA_VALUES="7 60")
    assert np.flatnonzero(invalid(path, (1, 2))[0]).tolist() == [1]
    assert np.flatnonzero(invalid(path, (1, 2), Overrides(nodata="none"))[0]).tolist() == []
    assert np.flatnonzero(invalid(path, (1, 2), Overrides(nodata=0))[0]).tolist() == [0, 3]


def test_nodata_counts_beside_a_stored_mask(raster):
    mask = np.array([[255, 255, 255, 0]] * 2, np.uint8)
    path = raster("m.tif", VALUES, nodata=7, mask=mask)
    assert np.flatnonzero(invalid(path, (1,))[0]).tolist() == [3]
    assert notes(path, 1) == (
        "the file has a mask and nodata values: the mask alone decides, as in GDAL; --nodata 7 heeds both",
    )
    assert np.flatnonzero(invalid(path, (1,), Overrides(nodata=7))[0]).tolist() == [1, 3]
    assert notes(path, 1, Overrides(nodata=7)) == ()


@pytest.mark.parametrize(
    ("dtype", "value", "limits"),
    [
        ("uint8", -9999, "uint8 of 0 to 255, got -9999"),
        ("uint16", 0.5, "uint16 of 0 to 65535, got 0.5"),
        ("int16", "nan", "int16 of -32768 to 32767, got nan"),
        ("float32", 1e300, "float32 up to 3.4028235e[+]38, got 1"),
        ("int64", 2**63, "int64 of -9223372036854775808 to 9223372036854775807, got 9223372036854775808"),
    ],
)
def test_nodata_that_no_pixel_can_hold(dtype, value, limits, raster):
    path = raster("n.tif", VALUES.astype(dtype))
    with pytest.raises(SourceError, match=rf"n.tif: --nodata must be a value that the pixels can hold, {limits}"):
        invalid(path, (1,), Overrides(nodata=value))


@pytest.mark.parametrize(("dtype", "value"), [("uint64", 2**64 - 1), ("int64", 2**53 + 1), ("float32", -3.40282e38)])
def test_stated_nodata_is_compared_as_stored_nodata_is(dtype, value, raster):
    pixels = np.full((1, 2, 3), value, dtype)
    pixels[0, 1] = value - 1 if dtype != "float32" else np.finfo(np.float32).min
    found = invalid(raster("n.tif", pixels), (1,), Overrides(nodata=value))
    assert found.all(axis=1).tolist() == [True, dtype == "float32"]


def test_a_case_done_with_another_nodata_value_is_done_again(raster, tmp_path, segpipe):
    path, model = raster("in/n.tif", VALUES, nodata=7), pixelwise(tmp_path / "m.onnx", 1)
    record = tmp_path / "out" / "n.json"
    for flags, stated, valid in (
        ((), (None, False), 6),
        (("--nodata", "none"), ("none", False), 8),
        (("--nodata", "60.0", "--ignore-alpha"), (60, True), 6),
    ):
        ended = segpipe("run", "-i", path, "-m", model, "-o", tmp_path / "out", "--executor", "serial", *flags)
        assert ended.returncode == 0, ended.stderr
        recorded = json.loads(record.read_text())
        assert (recorded["settings"]["nodata"], recorded["settings"]["ignore_alpha"]) == stated
        assert recorded["valid"]["pixels"] == valid


def test_nodata_that_does_not_fit_is_a_problem_of_its_case(raster, tmp_path, segpipe):
    raster("in/n.tif", VALUES)
    raster("in/f.tif", VALUES.astype(np.float32))
    model = pixelwise(tmp_path / "m.onnx", 1)
    ended = segpipe("run", "-i", tmp_path / "in", "-m", model, "--nodata", "-9999", "--dry-run")
    assert ended.returncode == 1
    assert "problem  n: " in ended.stdout
    assert "1 case to do, 0 done before, 1 with problems" in ended.stdout
    seen = segpipe("inspect", tmp_path / "in" / "n.tif", "--nodata", "-9999")
    assert seen.returncode == 1
    assert "--nodata must be a value that the pixels can hold, uint8 of 0 to 255, got -9999" in seen.stderr


# --- alpha ----------------------------------------------------------------------------------------------------------------


def near_infrared(shape: tuple[int, int]) -> np.ndarray:
    """Smooth land, and a lake of zeros."""
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    values = 120 + 80 * np.sin(rows / 13) * np.cos(cols / 17)
    values[shape[0] // 2 :, : shape[1] // 4] = 0
    return values.astype(np.uint8)


def four_bands(raster: Any, fourth: np.ndarray) -> Path:
    """As GDAL writes four bands of 8 bits unless asked otherwise: the fourth is alpha."""
    return raster(
        "four.tif", np.concatenate([np.full((3, *fourth.shape), 99, np.uint8), fourth[None]]), photometric="RGB", alpha="yes"
    )


LOOKS = (
    "band 4 is tagged alpha but has values as an image has: pixels where it is 0 are taken for invalid; "
    "if it holds data, give --ignore-alpha"
)


@pytest.mark.parametrize("shape", [(90, 120), (700, 900)])
def test_near_infrared_tagged_alpha_is_noted_and_can_be_ignored(shape, raster):
    fourth = near_infrared(shape)
    path = four_bands(raster, fourth)
    assert notes(path, 3) == (LOOKS,)
    assert (invalid(path, (1, 2, 3)) == (fourth == 0)).all()
    ignoring = Overrides(ignore_alpha=True)
    assert notes(path, 3, ignoring) == ()
    assert not invalid(path, (1, 2, 3), ignoring).any()


def test_inspect_tells_of_alpha_that_looks_like_data(raster, segpipe):
    path = four_bands(raster, near_infrared((90, 120)))
    assert json.loads(segpipe("inspect", path, "--json").stdout)["notes"] == [LOOKS]
    assert "tagged alpha but has values" in segpipe("inspect", path).stdout
    assert json.loads(segpipe("inspect", path, "--ignore-alpha", "--json").stdout)["notes"] == []


class Reads:
    """A dataset that notes the rows that are read of it."""

    def __init__(self, dataset: DatasetReader) -> None:
        self._dataset, self.ends = dataset, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def read(self, bands: Any, window: Any) -> np.ndarray:
        self.ends.append(window.row_off + window.height)
        return self._dataset.read(bands, window=window)


def test_of_a_picture_the_first_rows_are_looked_at_and_only_for_notes(tmp_path, monkeypatch):
    """PNG decodes all rows up to the one that is asked for."""
    path = tmp_path / "tall.png"
    fourth = near_infrared((900, 300))
    Image.fromarray(np.dstack([np.full((900, 300, 3), 99, np.uint8), fourth])).save(path)
    assert notes(path, 3) == (LOOKS,)
    with gdal_options(), closing(RasterSource(str(path), Contract.model_validate(contract(3)))) as source:
        source._dataset = reads = Reads(source._dataset)
        assert reads.ends == []
        assert source.notes == source.notes == (LOOKS,)
        assert reads.ends == [128]


def test_a_case_in_parts_has_the_note_of_a_whole_one(raster, tmp_path, segpipe):
    path = four_bands(raster, near_infrared((300, 400)))
    model = pixelwise(tmp_path / "model.onnx", 3)
    notes = []
    for flags in (("--executor", "serial"), ("--workers", "2", "--parts", "3")):
        output = tmp_path / str(len(flags))
        ended = segpipe("run", "-i", path, "-m", model, "-o", output, "--tile", "64", "--overlap", "0", *flags)
        assert ended.returncode == 0, ended.stderr
        notes.append(json.loads((output / "four.json").read_text())["notes"])
    assert notes[0] == notes[1]
    assert LOOKS in notes[0]


@pytest.mark.parametrize("kind", ["opaque", "disc", "soft edge", "translucent"])
def test_alpha_that_is_alpha_is_not_noted(kind, raster):
    rows, cols = np.ogrid[:400, :400]
    distance = np.hypot(rows - 200, cols - 200)
    values = {
        "opaque": 255,
        "disc": np.where(distance < 180, 255, 0),
        "soft edge": (1900 - 10 * distance),
        "translucent": 128,
    }
    fourth = np.broadcast_to(np.clip(values[kind], 0, 255), (400, 400)).astype(np.uint8)
    assert notes(four_bands(raster, fourth), 3) == ()


@pytest.mark.shared_data
def test_no_alpha_of_a_shared_raster_looks_like_data():
    seen = 0
    for path in shared():
        try:
            with rasterio.open(path) as dataset:
                bands = colours(dataset)
            seen += len(bands) < dataset.count
            assert not any("tagged alpha" in note for note in notes(path, len(bands), Overrides(bands)))
        except (rasterio.RasterioIOError, SourceError):
            continue
    assert seen >= 6


# --- pictures and mixed types ---------------------------------------------------------------------------------------------


def pictures() -> dict[str, tuple[Image.Image, dict[str, Any], tuple[int, ...]]]:
    """PNGs with transparency of every kind, as Pillow writes them, and the bands to use."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 4, (20, 30)).astype(np.uint8)
    colour = rng.integers(0, 2, (20, 30, 3)).astype(np.uint8)
    palette = Image.fromarray(grey)
    palette = palette.convert("P")
    return {
        "grey": (Image.fromarray(grey), {"transparency": 2}, (1,)),
        "colour": (Image.fromarray(colour), {"transparency": (1, 0, 1)}, (1, 2, 3)),
        "one of a palette": (palette, {"transparency": 2}, (1,)),
        "some of a palette": (palette, {"transparency": bytes([0, 128, 255, 0])}, (1,)),
        "grey with alpha": (Image.fromarray(np.stack([grey, grey % 2 * 255], axis=-1)), {}, (1,)),
        "colour with alpha": (Image.fromarray(np.concatenate([colour, grey[..., None]], axis=-1)), {}, (1, 2, 3)),
    }


@pytest.mark.parametrize("kind", pictures())
def test_pictures_with_transparency(kind, tmp_path):
    image, options, bands = pictures()[kind]
    image.save(tmp_path / "p.png", **options)
    with rasterio.open(tmp_path / "p.png") as dataset:
        expected = masked_by_gdal(dataset, bands)
    assert expected.any() == (kind != "some of a palette")
    np.testing.assert_array_equal(invalid(tmp_path / "p.png", bands), expected)


def test_transparent_entries_of_a_palette_are_told(tmp_path):
    """GDAL makes a nodata value of one, and nothing of several."""
    image, options, _ = pictures()["some of a palette"]
    image.save(tmp_path / "p.png", **options)
    (note,) = notes(tmp_path / "p.png", 1, Overrides(bands=(1,)))
    assert note.startswith("2 entries of the palette of band 1 are transparent, 0, 3, and their pixels are taken for data")
    image.save(tmp_path / "p.png", transparency=2)
    assert notes(tmp_path / "p.png", 1, Overrides(bands=(1,))) == ()


def test_bands_of_different_types_and_nodata_values(tmp_path):
    """Pixels are read as one type; each band keeps its own rule."""
    lines = ["<VRTDataset rasterXSize='9' rasterYSize='2'>"]
    nodata = {"uint8": "255", "int16": "-9999", "float32": "-3.40282e38", "float64": "0.1"}
    profile = {"driver": "GTiff", "width": 9, "height": 2, "count": 1}
    for band, (dtype, text) in enumerate(nodata.items(), 1):
        values = np.array([0, 255, 7, -9999, -3.4028235e38, -3.40282e38, 0.1, np.float32(0.1), 1])
        with np.errstate(over="ignore", invalid="ignore"):
            pixels = np.where(np.abs(values) < 10_000, values, values if dtype.startswith("f") else 0).astype(np.float64)
            limits = limits_of(np.dtype(dtype))
            pixels = pixels.clip(limits.min, limits.max).astype(dtype)
        with rasterio.open(tmp_path / f"{dtype}.tif", "w", **profile, dtype=dtype) as dataset:
            dataset.write(np.stack([np.roll(pixels, band), pixels])[None])
        lines.append(
            f"<VRTRasterBand dataType='{TYPES[dtype]}' band='{band}'><NoDataValue>{text}</NoDataValue><SimpleSource>"
            f"<SourceFilename relativeToVRT='1'>{dtype}.tif</SourceFilename></SimpleSource></VRTRasterBand>"
        )
    path = tmp_path / "mixed.vrt"
    path.write_text("\n".join([*lines, "</VRTDataset>"]))
    for bands in ((1, 2), (3, 1), (1, 2, 3, 4), (4, 2)):
        with rasterio.open(path) as dataset:
            expected = masked_by_gdal(dataset, bands)
        assert expected.any()
        np.testing.assert_array_equal(invalid(path, bands), expected)


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
