"""Damage that GDAL only mutters about, or not even that, is an error of its case."""

import json
import logging
import logging.config
import os
import re
import shutil
import struct
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import imagecodecs
import mutants
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import tifffile
from mutants import georeference, picture, write
from networks import contract, pixelwise
from scenes import Silent

from segpipe.contract import parse_contract
from segpipe.errors import SourceError
from segpipe.formats.raster.gdal import gdal_options
from segpipe.formats.raster.gdal_messages import messages
from segpipe.formats.raster.source import RasterSource
from segpipe.formats.raster.tiff import check_tags, verify_files
from segpipe.formats.redaction import hidden_inputs
from segpipe.geometry.windows import Window
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.settings import load_settings

PLACE = georeference("damage")
RGB = picture(3, "uint8")


def run(root: Path, source: str, **flags):
    model = root / "m.onnx"
    if not model.exists():
        pixelwise(model)
    flags = {"input": (str(root / source),), "model": model, "output": str(root / "out"), "device": "cpu", **flags}
    settings = load_settings(None, {"executor": "serial", **flags})
    with hidden_inputs(settings):
        return carry_out(prepare(settings), Silent())


def error_of(root: Path, source: str, **flags) -> str:
    (failure,) = run(root, source, **flags).failed
    assert not list((root / "out").glob("*.tif"))
    return failure.error


def record_of(root: Path, source: str, **flags):
    summary = run(root, source, **flags)
    assert not summary.failed, summary.failed
    return json.loads((root / "out" / f"{Path(source).stem}.json").read_text())


def opened(path: Path) -> None:
    with gdal_options():
        RasterSource(str(path), parse_contract(contract(3), "here")).close()


# --- what GDAL says and goes on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiled", [False, True], ids=["one tile", "tiles, decoded in GDAL's own threads"])
@pytest.mark.parametrize("at", range(10))
def test_bytes_inserted_into_jpeg_2000(at, tiled, tmp_path):
    options = {"blockxsize": 64, "blockysize": 64} if tiled else {}
    path = write(tmp_path / "a.jp2", RGB, "JP2OpenJPEG", quality="100", reversible="yes", **options)
    data = path.read_bytes()
    place = int(len(data) * (0.25 + 0.07 * at))
    path.write_bytes(data[:place] + b"\x55\xaa\x12\x34" + data[place:])
    assert "GDAL says" in error_of(tmp_path, "a.jp2") or "cannot be" in error_of(tmp_path, "a.jp2")


@pytest.mark.parametrize("tag", [324, 325, 273, 279])
def test_tag_of_a_wrong_type(tag, tmp_path):
    layout = {"tiled": True, "blockxsize": 64, "blockysize": 64} if tag > 300 else {"blockysize": 16}
    path = write(tmp_path / "a.tif", RGB, "GTiff", **layout)
    assert "error" not in record_of(tmp_path, "a.tif")
    shutil.rmtree(tmp_path / "out")
    change(path, tag, kind=1)
    assert "a.tif" in error_of(tmp_path, "a.tif")


def entry_of(data: bytes, tag: int) -> int:
    """Where an entry of the first directory of a little-endian TIFF begins."""
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    return next(e for e in range(at + 2, at + 2 + 12 * count, 12) if struct.unpack_from("<H", data, e)[0] == tag)


def change(path: Path, tag: int, *, kind: int | None = None, count: int | None = None, value: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    entry = entry_of(data, tag)
    for form, offset, number in (("<H", 2, kind), ("<I", 4, count), ("<I", 8, value)):
        if number is not None:
            struct.pack_into(form, data, entry + offset, number)
    path.write_bytes(data)


def test_message_that_is_no_text_is_heard(tmp_path, capfd):
    path = write(tmp_path / "a.tif", RGB, "GTiff", **PLACE)
    (tmp_path / "a.vrt").write_bytes(
        b'<?xml version="1.0" encoding="ISO-8859-1"?><VRTDataset rasterXSize="130" rasterYSize="90">'
        b'<VRTRasterBand dataType="Byte" band="1" subClass="N\xff"/></VRTDataset>'
    )
    error = error_of(tmp_path, "a.vrt")
    assert "cannot be opened" in error
    assert "N\ufffd" in error
    assert path.exists()
    assert "Traceback" not in capfd.readouterr().err


def test_gdal_is_heard_in_its_own_threads(tmp_path):
    path = write(tmp_path / "a.jp2", RGB, "JP2OpenJPEG", quality="100", reversible="yes", blockxsize=64, blockysize=64)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\x55\xaa\x12\x34" + data[len(data) // 2 :])
    with gdal_options(), messages() as heard, suppress(rasterio.errors.RasterioError), rasterio.open(path) as dataset:
        dataset.read()
    assert set(heard.all()) - set(heard.own)


def silence(way: str) -> None:
    """What programs do that call segpipe, with the loggers of libraries."""
    if way == "configured":
        logging.config.dictConfig({"version": 1})  # disables all loggers that it does not name
    elif way == "disabled":
        logging.disable(logging.CRITICAL)
    elif way == "filtered":
        logging.getLogger("rasterio._env").addFilter(lambda record: False)
    elif way == "formatted":
        logging.getLogger("rasterio._env").addFilter(
            lambda record: vars(record).update(msg=record.getMessage(), args=()) or 1
        )


@pytest.fixture
def loud() -> Iterator[None]:
    """Loggers as in a new process, and as they were at the end."""
    loggers = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    before = [(logger, logger.disabled, logger.filters[:]) for logger in loggers]
    for logger in loggers:
        logger.filters.clear()
    yield
    logging.disable(logging.NOTSET)
    for logger, disabled, filters in before:
        logger.disabled, logger.filters[:] = disabled, filters


@pytest.mark.parametrize("way", ["as it is", "configured", "disabled", "filtered", "formatted", "names hidden"])
@pytest.mark.usefixtures("loud")
def test_gdal_is_heard_whatever_becomes_of_its_messages(way, tmp_path, capfd):
    """GDAL says that the place is damaged, and opens the file without an error."""
    path = write(tmp_path / "a.jp2", RGB, "JP2OpenJPEG", quality="100", reversible="yes", **PLACE)
    data = bytearray(path.read_bytes())
    tiff = data.index(b"II*\0")  # of GeoJP2
    struct.pack_into("<I", data, tiff + entry_of(data[tiff:], 278) + 4, 2)  # number of values of RowsPerStrip
    path.write_bytes(data)
    silence(way)
    assert 'GDAL says: TIFFFetchNormalTag:Incorrect count for "RowsPerStrip"' in error_of(
        tmp_path, "a.jp2", case_name="number" if way == "names hidden" else "path"
    )
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["profile", "tags out of order", "one strip"])
def test_harmless_messages(kind, tmp_path):
    if kind == "profile":
        (tmp_path / "a.png").write_bytes(with_profile(imagecodecs.png_encode(np.moveaxis(RGB, 0, -1).copy())))
        source = "a.png"
    else:
        source = "a.tif"
        extra = [(65000, "s", 0, "hello", True), (37724, "B", 4, b"abcd", True)] if kind == "tags out of order" else []
        tifffile.imwrite(tmp_path / source, np.moveaxis(RGB, 0, -1), photometric="rgb", extratags=extra, rowsperstrip=90)
        if kind == "one strip":
            without(tmp_path / source, 278)
    record_of(tmp_path, source)


MANY = np.random.default_rng(0).integers(0, 255, (90, 130, 4), np.uint8)

BY_OTHERS = {
    "copyright of two parts": {"photometric": "rgb", "extratags": [(33432, 2, 0, "photographer\0editor", True)]},
    "author as a number": {"photometric": "rgb", "extratags": [(315, 11, 1, 1.0, True)]},
    "page number of one": {"photometric": "rgb", "extratags": [(297, 3, 1, 1, True)]},
    "colours and a band": {"photometric": "rgb"},
    "four bands": {"photometric": "minisblack", "planarconfig": "contig"},
}
"""TIFFs of honest writers of which libtiff warns."""


@pytest.mark.parametrize("kind", BY_OTHERS)
def test_harmless_messages_of_tiffs_of_other_writers(kind, tmp_path):
    options, path = BY_OTHERS[kind], tmp_path / "a.tif"
    pixels = MANY if "band" in kind else MANY[..., :3]
    tifffile.imwrite(path, pixels, metadata=None, **options)
    if "band" in kind:
        without(path, 338)
    with gdal_options(), messages() as heard, rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(), np.moveaxis(pixels, -1, 0))
    assert heard.all()
    record_of(tmp_path, "a.tif", bands=(1, 2, 3))


@pytest.mark.parametrize("name", ["GDALNoDataValue", "GDALMetadata", "GeoASCIIParams"])
def test_texts_of_place_and_validity_that_hold_a_null_byte_are_damage(name, tmp_path):
    path = write(tmp_path / "a.tif", RGB.astype(np.float32), "GTiff", nodata=-12345.0, **PLACE)
    tag = {"GDALNoDataValue": 42113, "GDALMetadata": 42112, "GeoASCIIParams": 34737}[name]
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(A="b")
    data = bytearray(path.read_bytes())
    _, _, count, at = struct.unpack_from("<HHII", data, entry_of(data, tag))
    data[at + count // 2] = 0
    path.write_bytes(data)
    assert f'"{name}" contains null byte' in (told := error_of(tmp_path, "a.tif"))
    assert told.endswith("if the file is sound, rewrite it: gdal_translate IN OUT")


def test_cog_whose_tags_were_edited(tmp_path):
    write(tmp_path / "b.tif", np.tile(RGB, (1, 8, 8)), "GTiff", **PLACE)
    rasterio.shutil.copy(tmp_path / "b.tif", tmp_path / "a.tif", driver="COG", blocksize=128)
    with rasterio.open(tmp_path / "a.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        dataset.update_tags(A="b")
    assert b"KNOWN_INCOMPATIBLE_EDITION=YES" in (tmp_path / "a.tif").read_bytes()[:400]
    record_of(tmp_path, "a.tif")


CHUNKS = {"pHYs": b"12", "iTXt": b"key\0\1\0en\0k\0no zlib", "zTXt": b"key\0\0no", "tIME": bytes(7), "sPLT": b"n\0\x08123"}


@pytest.mark.parametrize("kind", CHUNKS)
def test_chunks_of_a_png_that_no_pixel_needs(kind, tmp_path):
    png = imagecodecs.png_encode(np.moveaxis(RGB, 0, -1).copy())
    body = kind.encode() + CHUNKS[kind]
    chunk = bytearray(struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)))
    (tmp_path / "a.png").write_bytes(png[:33] + chunk + png[33:])
    record_of(tmp_path, "a.png")
    chunk[-1] ^= 1
    (tmp_path / "b.png").write_bytes(png[:33] + chunk + png[33:])
    assert "CRC error" in error_of(tmp_path, "b.png", output=str(tmp_path / "other"))


def with_profile(png: bytes) -> bytes:
    """A picture with a colour profile that is none."""
    body = b"iCCPx\0\0" + zlib.compress(b"x" * 200)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:33] + chunk + png[33:]


def without(path: Path, tag: int) -> None:
    """A TIFF that lacks a tag."""
    data = bytearray(path.read_bytes())
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    entry = entry_of(data, tag)
    end = at + 2 + 12 * count
    data[entry : end + 4] = data[entry + 12 : end + 4] + bytes(12)
    struct.pack_into("<H", data, at, count - 1)
    path.write_bytes(data)


# --- what GDAL passes over without a word ---------------------------------------------------------------------------------


def test_aux_xml_that_is_cut(tmp_path):
    write(tmp_path / "a.png", RGB, "PNG", nodata=0)
    sidecar = tmp_path / "a.png.aux.xml"
    sidecar.write_text(
        "<PAMDataset>\n"
        + "".join(f'<PAMRasterBand band="{b}"><NoDataValue>0</NoDataValue></PAMRasterBand>\n' for b in (1, 2, 3))
        + "</PAMDataset>\n"
    )
    whole = sidecar.read_bytes()
    sidecar.write_bytes(whole[: int(len(whole) * 0.95)])
    assert "a.png.aux.xml is not well-formed XML" in error_of(tmp_path, "a.png")
    sidecar.write_bytes(whole.replace(b">0<", b">o<", 1))
    assert "must be numbers, got 'o'" in error_of(tmp_path, "a.png")
    sidecar.write_bytes(whole)
    record_of(tmp_path, "a.png")


@pytest.mark.parametrize("content", ["text", "empty", "other size", "cut"])
@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_msk_that_is_no_mask_of_it(content, suffix, tmp_path):
    write(tmp_path / f"a.{suffix}", RGB, {"tif": "GTiff", "png": "PNG"}[suffix])
    mask, valid = tmp_path / f"a.{suffix}.msk", np.where(RGB[:1] == 0, 0, 255).astype(np.uint8)
    write(mask, valid[:, :50] if content == "other size" else valid, "GTiff")
    with rasterio.open(mask, "r+") as dataset:
        dataset.update_tags(INTERNAL_MASK_FLAGS_1=2)
    if content in ("text", "empty"):
        mask.write_text("not a mask" * (content == "text"))
    if content == "cut":
        mask.write_bytes(mask.read_bytes()[:5000])
    assert "a." in error_of(tmp_path, f"a.{suffix}")


@pytest.mark.parametrize("lines", ["10\n0\n0\n-10\n500005\n", "10\n0\n0\n-10\n500005\n5x99995\n", "", "\0" * 40])
def test_world_file_that_is_damaged(lines, tmp_path):
    write(tmp_path / "a.png", RGB, "PNG")
    (tmp_path / "a.pgw").write_text(lines)
    assert "a.pgw must be a world file, six numbers" in error_of(tmp_path, "a.png")
    (tmp_path / "a.pgw").write_text("10\n0\n0\n-10\n500005\n5399995\n")
    record_of(tmp_path, "a.png")


def refused(path: Path, words: str) -> None:
    with pytest.raises(SourceError, match=re.escape(words)):
        opened(path)


def mask_of(path: Path, flags: int, bands: int) -> None:
    valid = np.repeat(np.where(RGB[:1] < 128, 0, 255), bands, 0).astype(np.uint8)
    write(path.with_name("m.tif"), valid, "GTiff")
    with rasterio.open(path.with_name("m.tif"), "r+") as dataset:
        dataset.update_tags(**{f"INTERNAL_MASK_FLAGS_{band}": flags for band in range(1, bands + 1)})
    path.with_name("m.tif").rename(f"{path}.msk")


@pytest.mark.parametrize(("flags", "bands"), [(2, 1), (0, 3)])
@pytest.mark.parametrize("nodata", [None, 0])
def test_mask_of_all_bands_or_of_each(nodata, flags, bands, tmp_path):
    path = write(tmp_path / "a.tif", RGB, "GTiff", nodata=nodata)
    mask_of(path, flags, bands)
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read_masks(1) == 0, RGB[0] < 128)
    opened(path)
    Path(f"{path}.msk").write_text("not a mask")
    refused(path, "a.tif.msk must be a raster of the size")


@pytest.mark.parametrize("nested", [False, True])
def test_sidecars_of_the_sources_of_a_vrt(nested, tmp_path):
    path = write(tmp_path / "a.png", RGB, "PNG")
    vrt = tmp_path / "a.vrt"
    for name, source in [("b.vrt", "a.png"), ("a.vrt", "b.vrt" if nested else "a.png")]:
        bands = "".join(vrt_band(band, source=source) for band in (1, 2, 3))
        (tmp_path / name).write_text(f'<VRTDataset rasterXSize="130" rasterYSize="90">{bands}</VRTDataset>')
    opened(vrt)
    mask_of(path, 2, 1)
    opened(vrt)
    Path(f"{path}.msk").write_text("not a mask")
    refused(vrt, "a.png.msk must be a raster of the size")
    Path(f"{path}.msk").unlink()
    (tmp_path / "a.wld").write_text("the world of a game\n")
    opened(vrt)
    (tmp_path / "a.pgw").write_text("10\n0\n0\n-10\n500005\n")
    refused(vrt, "a.pgw must be a world file, six numbers")


@pytest.mark.parametrize("suffix", ["pgw", "wld"])
def test_world_file_with_words_behind_its_numbers(suffix, tmp_path):
    path = write(tmp_path / "a.png", RGB, "PNG")
    (tmp_path / f"a.{suffix}").write_text("10.0 m\r\n0,0\r\n0\r\n-10 m\r\n500005 east\r\n5399995\r\nby hand\r\n")
    with rasterio.open(path) as dataset:
        assert tuple(dataset.transform)[:6] == (10, 0, 500000, 0, -10, 5400000)
    opened(path)


@pytest.mark.parametrize("content", [b"project world of the simulation\n", b"\x0a\0\0binary" * 99, b""])
def test_wld_of_other_software(content, tmp_path):
    path = write(tmp_path / "a.png", RGB, "PNG")
    (tmp_path / "a.wld").write_bytes(content)
    opened(path)
    (tmp_path / "a.wld").write_text("10\n0\n0\n-10\n500005\n5x99995\n")
    refused(path, "a.wld must be a world file, six numbers")


TAGS = {
    "type of the scale": (33550, {"kind": 3}, "33550, ModelPixelScale, cannot have 3 values of type 3"),
    "count of the scale": (33550, {"count": 1}, "ModelPixelScale, cannot have 1 values"),
    "count of tie points": (33922, {"count": 5}, "ModelTiepoint, cannot have 5 values"),
    "place of tie points": (33922, {"value": 0}, "ModelTiepoint, lies outside the file, at byte 0"),
    "type of GeoKeys": (34735, {"kind": 4}, "GeoKeyDirectory, cannot have"),
    "count of GeoKeys": (34735, {"count": 8}, "its GeoKeys must be of version 1"),
    "type of nodata": (42113, {"kind": 3}, "GDAL_NODATA, cannot have"),
    "nodata that is no number": (42113, {"value": 0x6F}, "its nodata value is no number, got 'o'"),
    "nodata behind a NUL": (42113, {"count": 3, "value": 0x3900}, "its nodata value is no number, got ''"),
    "floats for doubles": (33550, {"kind": 11}, "ModelPixelScale, must have two sizes of a pixel, got [0.0"),
}


@pytest.mark.parametrize("name", TAGS)
def test_tag_that_gdal_would_leave_out(name, tmp_path):
    tag, changes, words = TAGS[name]
    path = write(tmp_path / "a.tif", RGB, "GTiff", nodata=0, **PLACE)
    change(path, tag, **changes)
    error = error_of(tmp_path, "a.tif")
    assert words in error or "GDAL says" in error


def bare(path: Path, *tags) -> Path:
    tifffile.imwrite(path, np.moveaxis(RGB, 0, -1).astype(np.float32), photometric="rgb", metadata=None, extratags=tags)
    return path


NUMBERS = {
    **{"": None, "-9999,0": -9999, "-9999,5": -9999.5, "-9999 ": -9999, " .5": 0.5, "1e5": 1e5, "+7": 7, "3.": 3},
    **dict.fromkeys(("nan", "NaN", "+nan", "-1.#QNAN", "1.#QNAN", "-1.#IND", "1.#SNAN"), np.nan),
    **{"inf": np.inf, "-INF": -np.inf, "1.#INF": np.inf, "-1.#INF": -np.inf},
}


@pytest.mark.parametrize("text", NUMBERS)
def test_nodata_as_other_software_writes_it(text, tmp_path):
    path = bare(tmp_path / "a.tif", (42113, 2, 0, text, True))
    with rasterio.open(path) as dataset:
        np.testing.assert_equal(dataset.nodata, NUMBERS[text])
    opened(path)


@pytest.mark.parametrize("text", ["", "-1.#QNAN", "1.#QNAN", "-9999,0", "-9999"])
@pytest.mark.parametrize("kind", ["PAM", "VRT"])
def test_nodata_as_other_software_writes_it_in_xml(kind, text, tmp_path):
    write(tmp_path / "a.tif", RGB, "GTiff")
    bands = "".join(vrt_band(b, text) if kind == "VRT" else pam_band(b, text) for b in (1, 2, 3))
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset>" + bands * (kind == "PAM") + "</PAMDataset>")
    (tmp_path / "a.vrt").write_text(f'<VRTDataset rasterXSize="130" rasterYSize="90">{bands}</VRTDataset>')
    opened(tmp_path / ("a.tif" if kind == "PAM" else "a.vrt"))


def pam_band(number: int, nodata: str) -> str:
    return f'<PAMRasterBand band="{number}"><NoDataValue>{nodata}</NoDataValue></PAMRasterBand>'


def vrt_band(number: int, nodata: str | None = None, source: str = "a.tif") -> str:
    value = "" if nodata is None else f"<NoDataValue>{nodata}</NoDataValue>"
    name = f'<SourceFilename relativeToVRT="1">{source}</SourceFilename><SourceBand>{number}</SourceBand>'
    return f'<VRTRasterBand dataType="Byte" band="{number}">{value}<SimpleSource>{name}</SimpleSource></VRTRasterBand>'


@pytest.mark.parametrize("text", ["o", "-nan", "infinity", "1.#IND", "1x", "1d5", "1,2,3", "0x1F", "1_0"])
def test_nodata_of_which_gdal_makes_another_number(text, tmp_path):
    path = bare(tmp_path / "a.tif", (42113, 2, 0, text, True))
    with pytest.raises(SourceError, match=re.escape(f"its nodata value is no number, got {text!r}")):
        opened(path)


def wide(folder: Path, kind: str, text: str) -> Path:
    """A raster of 64-bit integers whose nodata value is that text."""
    own = [(42113, 2, 0, text, True)] if kind == "GTiff" else []
    tifffile.imwrite(folder / "a.tif", WIDE_PIXELS, metadata=None, extratags=own)
    if kind == "PAM":
        (folder / "a.tif.aux.xml").write_text(f"<PAMDataset>{pam_band(1, text)}</PAMDataset>")
    if kind == "VRT":
        band = vrt_band(1, text).replace("Byte", "Int64")
        (folder / "a.vrt").write_text(f'<VRTDataset rasterXSize="5" rasterYSize="1">{band}</VRTDataset>')
    return folder / ("a.vrt" if kind == "VRT" else "a.tif")


WIDE_PIXELS = np.array([[-(2**63), -9, 0, 1, 3]])
WIDE_NODATA = {"3": 4, "-9": 1, "+1.": 3, "0.0": 2, "3.5": 4, "-9223372036854775808": 0}
WIDE_CUT = ["-9.2233720368547758e+18", "1e3", "nan", "-inf"]


@pytest.mark.parametrize("text", [*WIDE_NODATA, *WIDE_CUT])
@pytest.mark.parametrize("kind", ["GTiff", "PAM", "VRT"])
def test_nodata_of_64_bit_integers_is_in_digits(kind, text, tmp_path):
    """GDAL, and so rasterio where it writes such values with an exponent, means the first digits."""
    path, terms = wide(tmp_path, kind, text), parse_contract(contract(1, 3), "test")
    if text in WIDE_CUT:
        with pytest.raises(SourceError, match=re.escape(f"must be written in digits, got {text!r}")):
            RasterSource(str(path), terms)
        return
    with closing(RasterSource(str(path), terms)) as source:
        _, invalid = source.read(Window((0, 0), (1, 5)))
    assert np.flatnonzero(invalid).tolist() == [WIDE_NODATA[text]]


@pytest.mark.parametrize("scale", [(11, 3), (12, 2), (11, 2), (12, 4)])
def test_scale_of_another_form(scale, tmp_path):
    kind, count = scale
    tie = (33922, 12, 6, (0.0, 0.0, 0.0, 500000.0, 5400000.0, 0.0), True)
    path = bare(tmp_path / "a.tif", (33550, kind, count, (10.0, 10.0, 0.0, 0.0)[:count], True), tie)
    with rasterio.open(path) as dataset:
        assert tuple(dataset.transform)[:6] == (10, 0, 500000, 0, -10, 5400000)
    opened(path)


def test_more_offsets_than_blocks(tmp_path):
    path = write(tmp_path / "a.tif", RGB, "GTiff", blockysize=15, interleave="pixel")
    change(path, 257, value=75)  # five strips of six
    with rasterio.open(path) as dataset:
        assert (dataset.read() == RGB[:, :75]).all()
    opened(path)


@pytest.mark.parametrize("number", [0, 3, 5, 6, 11, 17])
def test_short_block_among_many(number, tmp_path):
    """Blocks of several planes, of which the last one of each is lower; one byte less than it holds."""
    path = write(tmp_path / "a.tif", RGB, "GTiff", blockysize=16, interleave="band")
    with tifffile.TiffFile(path) as file:
        counts = file.pages[0].tags[279]
    data, size = bytearray(path.read_bytes()), 2 if counts.dtype == 3 else 4
    struct.pack_into("<H" if size == 2 else "<I", data, counts.valueoffset + size * number, counts.value[number] - 1)
    path.write_bytes(data)
    rows = 10 if number % 6 == 5 else 16
    words = f"block {number} of its pixels has {rows * 130 - 1} bytes, too few for the {rows * 130}"
    with pytest.raises(SourceError, match=words):
        _check_tags(path)


def test_colours_that_gdal_converts_are_no_damage(tmp_path):
    path = write(tmp_path / "a.tif", RGB, "GTiff", photometric="CIELAB")
    with rasterio.open(path) as dataset:
        assert dataset.count == 4
        assert (dataset.read([1, 2, 3]) != RGB).any()
    opened(path)


def test_tags_are_read_once(tmp_path, monkeypatch):
    path, reads = write(tmp_path / "a.tif", RGB, "GTiff", blockysize=1, interleave="band"), []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *arguments: reads.append(arguments) or pread(*arguments))
    _check_tags(path)
    assert len(reads) < 40  # of 270 strips


def test_blocks_that_begin_in_the_header_or_are_short(tmp_path):
    path = write(tmp_path / "a.tif", RGB, "GTiff", blockysize=16)
    whole = path.read_bytes()
    (at,) = struct.unpack_from("<I", whole, entry_of(whole, 273) + 8)
    path.write_bytes(whole[:at] + bytes(8) + whole[at + 8 :])
    assert "block 0 of its pixels begins at byte 0" in error_of(tmp_path, "a.tif")
    path.write_bytes(whole)
    with tifffile.TiffFile(path) as file:
        counts = file.pages[0].tags[279]
    data = bytearray(whole)
    struct.pack_into("<H" if counts.dtype == 3 else "<I", data, counts.valueoffset + (2 if counts.dtype == 3 else 4), 7)
    path.write_bytes(data)
    assert "block 1 of its pixels has 7 bytes, too few for the 6240" in error_of(tmp_path, "a.tif")


def test_image_of_another_size_than_its_blocks_or_its_mask(tmp_path):
    path = write(tmp_path / "a.tif", RGB, "GTiff", compress="lzw", blockysize=16)
    change(path, 257, value=97)
    assert "it has 6 blocks of pixels, where its size has 7" in error_of(tmp_path, "a.tif")
    (base,) = (base for base in mutants.geotiffs(tmp_path / "more") if base.name == "inner-mask")
    path.write_bytes(base.files["a.tif"])
    change(path, 257, value=91)
    assert "its mask has (90, 130) pixels, the image (91, 130)" in error_of(tmp_path, "a.tif")


def _check_tags(path):
    with path.open("rb") as file:
        check_tags(str(path), file)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("number", [2**31, 2**63, 2**64 - 1])
def test_numbers_of_a_damaged_file_ask_for_no_memory(number, big, tmp_path):
    path = write(tmp_path / "a.tif", RGB, "GTiff", compress="deflate", bigtiff="yes" if big else "no")
    data = bytearray(path.read_bytes())
    form, first, count = ("<Q", 8, "<Q") if big else ("<I", 4, "<H")
    (at,) = struct.unpack_from(form, data, first)
    (entries,) = struct.unpack_from(count, data, at)
    step, ahead = (20, 8) if big else (12, 2)
    for entry in range(at + ahead, at + ahead + entries * step, step):
        changed = bytearray(data)
        struct.pack_into(form, changed, entry + 4, number % 2 ** (64 if big else 32))
        path.write_bytes(changed)
        with suppress(SourceError):
            _check_tags(path)
            verify_files([str(path)])
    changed = bytearray(data)
    struct.pack_into(form, changed, at + ahead + entries * step, number % 2 ** (64 if big else 32))
    path.write_bytes(changed)
    _check_tags(path)


def test_tiff_whose_empty_blocks_are_left_out(tmp_path):
    write(tmp_path / "a.tif", np.zeros((3, 90, 130), np.uint8), "GTiff", sparse_ok=True, blockysize=16)
    record_of(tmp_path, "a.tif")


# --- checksums ------------------------------------------------------------------------------------------------------------


def flipped(path: Path, seed: int) -> bool:
    """Flip one bit in the pixels of a DEFLATE file so that GDAL sees nothing; whether there is such a bit."""
    whole = path.read_bytes()
    rng = np.random.default_rng(seed)
    with rasterio.open(path) as dataset:
        before = dataset.read()
    for _ in range(200):
        data = bytearray(whole)
        data[int(rng.integers(1000, len(data) - 200))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        with suppress(rasterio.errors.RasterioError), rasterio.open(path) as dataset:
            if (dataset.read() != before).any():
                return True
    return False


@pytest.mark.parametrize("layout", ["strips", "tiles", "planar", "big"])
def test_flipped_bits_in_deflate_are_found_by_checksum(layout, tmp_path):
    path = write(tmp_path / "a.tif", RGB, "GTiff", compress="deflate", **mutants.LAYOUTS[layout])
    assert not [note for note in record_of(tmp_path, "a.tif", verify_input=True)["notes"] if "verified" in note]
    shutil.rmtree(tmp_path / "out")
    assert flipped(path, 0)
    assert "is damaged: block" in error_of(tmp_path, "a.tif", verify_input=True)
    assert "is damaged: block" in error_of(tmp_path, "a.tif", verify_input=True, parts=3)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_what_has_no_checksum_is_noted(name, tmp_path):
    driver = {"a.png": "PNG", "a.jpg": "JPEG", "a.tif": "GTiff"}[name]
    write(tmp_path / name, RGB, driver, **({"compress": "lzw"} if driver == "GTiff" else {}))
    notes = [note for note in record_of(tmp_path, name, verify_input=True)["notes"] if "is not verified" in note]
    assert len(notes) == (name != "a.png")


def test_verified_is_done_only_if_it_was(tmp_path):
    write(tmp_path / "a.tif", RGB, "GTiff", compress="deflate")
    assert run(tmp_path, "a.tif").done == ["a"]
    assert run(tmp_path, "a.tif", verify_input=True).done == ["a"]
    assert run(tmp_path, "a.tif", verify_input=True).skipped == ["a"]
    assert run(tmp_path, "a.tif").skipped == ["a"]  # what was verified is done for a run that does not ask
