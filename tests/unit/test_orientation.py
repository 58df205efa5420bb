"""Pictures are segmented upright: Pillow's ``exif_transpose`` is the oracle."""

import io
import json
import struct
import zipfile
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from affine import Affine
from networks import Network, contract
from numpy.typing import NDArray
from PIL import Image, ImageOps

from segpipe.contract import Contract
from segpipe.formats.raster.gdal import gdal_options
from segpipe.formats.raster.orientation import Turn
from segpipe.formats.raster.source import RasterSource
from segpipe.geometry.windows import Window

ALL = range(1, 9)
SUFFIXES = (".jpg", ".png", ".webp", ".tif")


def picture(path: Path, orientation: int | None, shape: tuple[int, int] = (60, 91), *, exif: bytes | None = None) -> Path:
    """A picture of three values in blocks, as a camera would store it that was held in some way."""
    rng = np.random.default_rng(3)
    pixels = np.kron(rng.integers(0, 3, (-(-shape[0] // 8), -(-shape[1] // 8))), np.ones((8, 8))).astype(np.uint8)
    image = Image.fromarray(pixels[: shape[0], : shape[1]] * 100)
    path.parent.mkdir(exist_ok=True)
    block = Image.Exif()
    block[0x0132] = "2026:01:02 03:04:05"
    if orientation is not None:
        block[274] = orientation
    if path.suffix == ".tif":
        image.save(path, tiffinfo={274: orientation} if orientation else None)
    elif path.suffix == ".webp":
        image.convert("RGB").save(path, lossless=True, exif=block.tobytes() if exif is None else exif)
    else:
        image.save(path, exif=block.tobytes() if exif is None else exif)
    return path


def upright(path: Path) -> NDArray[Any]:
    """Oracle. A TIFF's pixels go through it as a PNG: Pillow 13 drops the tag of some TIFFs and leaves them as they are."""
    with Image.open(path) as image:
        if path.suffix == ".tif":
            with tifffile.TiffFile(path) as file:
                page = file.pages[0]
                return as_upright(page.asarray(), int(page.tags[274].value) if 274 in page.tags else 1)
        return np.asarray(ImageOps.exif_transpose(image).convert("L"))


def as_upright(stored: NDArray[Any], orientation: int) -> NDArray[Any]:
    image = Image.fromarray(stored)
    image.getexif()[274] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


def levels(path: Path, count: int) -> Path:
    """A model whose label is the level, of 0, 100 and 200, of its first channel."""
    k = np.arange(3, dtype=np.float32)
    weights = np.zeros((3, count, 1, 1), np.float32)
    weights[:, 0, 0, 0] = 2 * k
    classes = [{"id": i, "name": f"level{i}"} for i in range(3)]
    values = {**contract(count), "scale": 0.01, "tile": [32, 32], "overlap": [8, 8], "classes": classes}
    return Network(count).add("Conv", weights, -(k**2)).save(path, values, classes=3)


def read(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as dataset:
        return np.asarray(dataset.read(1))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("orientation", ALL)
def test_a_mask_is_upright(orientation, suffix, run_serial, tmp_path):
    source = picture(tmp_path / "in" / f"a{suffix}", orientation)
    model = levels(tmp_path / "m.onnx", 3 if suffix == ".webp" else 1)
    out = run_serial(source, model, confidence=True)
    expected = upright(source)
    record = json.loads((out / "a.json").read_text())
    mask = read(out / ("a.tif" if suffix == ".tif" else "a.png"))
    assert mask.shape == expected.shape == tuple(record["input"]["shape"])
    np.testing.assert_array_equal(mask, np.rint(expected / 100))
    assert read(next(out.glob("a.confidence.*[fg]"))).shape == expected.shape
    said = f"turned upright, as its orientation tag, {orientation}, says: 60 x 91 rows and columns are stored"
    nowhere = "areas are in pixels: the file has no georeferencing"  # which of a picture need not be said
    assert record["notes"] == [said] * (orientation > 1) + [nowhere] * (suffix == ".tif")


@pytest.mark.parametrize("orientation", ALL)
def test_parts_of_a_turned_picture_give_the_same_bytes(orientation, run_serial, tmp_path):
    source = picture(tmp_path / "in" / "a.jpg", orientation, (150, 210))
    model = levels(tmp_path / "m.onnx", 1)
    whole = run_serial(source, model, output=tmp_path / "whole")
    parts = run_serial(source, model, output=tmp_path / "parts", parts=5)
    assert (parts / "a.png").read_bytes() == (whole / "a.png").read_bytes()
    np.testing.assert_array_equal(read(whole / "a.png"), np.rint(upright(source) / 100))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("orientation", ALL)
def test_any_window_is_a_window_of_the_upright_picture(orientation, suffix, tmp_path):
    path = picture(tmp_path / f"a{suffix}", orientation, (70, 53))
    expected = upright(path)
    taken = Contract.model_validate(contract(3 if suffix == ".webp" else 1))
    with gdal_options(), closing(RasterSource(str(path), taken)) as source:
        assert source.grid.shape == expected.shape
        assert all(b <= n for b, n in zip(source.near((0.9, 0.9), 16).stop, expected.shape, strict=True))
        for top, left, bottom, right in np.random.default_rng(1).integers(0, 53, (20, 4)):
            rows, cols = sorted((top, bottom + 1)), sorted((left, right + 1))
            window = Window((rows[0], cols[0]), (rows[1], cols[1]))
            if window.size:
                pixels, _ = source.read(window)
                np.testing.assert_array_equal(pixels[0], expected[rows[0] : rows[1], cols[0] : cols[1]])
                assert pixels.flags.c_contiguous


@pytest.mark.parametrize("orientation", ALL)
def test_windows_and_pixels_turn_alike(orientation):
    stored = np.arange(7 * 11).reshape(1, 7, 11)
    turn = Turn(orientation, (7, 11))
    whole = turn(stored)
    assert whole.shape[1:] == turn.shape
    for row in range(turn.shape[0]):
        for col in range(turn.shape[1]):
            one = Window((row, col), (row + 1, col + 1))
            (top, left), (bottom, right) = (w := turn.stored(one)).start, w.stop
            assert turn.upright(w) == one
            assert stored[0, top:bottom, left:right].item() == whole[0, row, col]


def test_transparent_pixels_turn_along(run_serial, tmp_path):
    pixels = np.zeros((40, 24, 4), np.uint8)
    pixels[:10, :, 3] = 255
    block = Image.Exif()
    block[274] = 6
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png", exif=block.tobytes())
    out = run_serial(tmp_path / "in" / "a.png", levels(tmp_path / "m.onnx", 3))
    with Image.open(tmp_path / "in" / "a.png") as image:
        alpha = np.asarray(ImageOps.exif_transpose(image))[..., 3]
    np.testing.assert_array_equal(read(out / "a.png") == 255, alpha == 0)


def test_a_georeferenced_file_stays_as_it_is_stored(run_serial, tmp_path):
    """As GDAL and GIS read it: its transform is that of the stored pixels."""
    source = picture(tmp_path / "in" / "a.tif", 6)
    (tmp_path / "in" / "a.tfw").write_text("10\n0\n0\n-10\n500005\n5399995\n")
    out = run_serial(source, levels(tmp_path / "m.onnx", 1))
    with rasterio.open(out / "a.tif") as mask, rasterio.open(source) as dataset:
        assert mask.transform == dataset.transform == Affine(10, 0, 500_000, 0, -10, 5_400_000)
        np.testing.assert_array_equal(mask.read(), np.rint(dataset.read() / 100))
    (note,) = [n for n in json.loads((out / "a.json").read_text())["notes"] if "orientation" in n]
    assert note == "its orientation tag, 6, is left alone: the file is georeferenced as its pixels are stored"


def big_endian(orientation: int) -> bytes:
    return b"Exif\0\0" + struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 274, 3, 1, orientation, 0, 0)


def test_either_byte_order(run_serial, tmp_path):
    source = picture(tmp_path / "in" / "a.jpg", None, exif=big_endian(8))
    out = run_serial(source, levels(tmp_path / "m.onnx", 1))
    np.testing.assert_array_equal(read(out / "a.png"), np.rint(upright(source) / 100))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_no_orientation_is_none(value, run_serial, tmp_path):
    source = picture(tmp_path / "in" / "a.jpg", None, exif=big_endian(value))
    out = run_serial(source, levels(tmp_path / "m.onnx", 1))
    assert read(out / "a.png").shape == upright(source).shape == (60, 91)


WHOLE = big_endian(6)
DAMAGED = {
    "no order": WHOLE[:6] + b"XX" + WHOLE[8:],
    "cut in the header": WHOLE[:10],
    "cut in the directory": WHOLE[:20],
    "directory far away": WHOLE[:10] + b"\xff\xff\xff\xf0" + WHOLE[14:],
    "many entries": WHOLE[:14] + b"\xff\xff",
    "a type of no integer": WHOLE[:18] + b"\0\2" + WHOLE[20:],
}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_block_is_noted(damage, suffix, run_serial, tmp_path):
    source = picture(tmp_path / "in" / f"a{suffix}", None, exif=DAMAGED[damage])
    out = run_serial(source, levels(tmp_path / "m.onnx", 3 if suffix == ".webp" else 1))
    assert read(out / "a.png").shape == (60, 91)
    notes = json.loads((out / "a.json").read_text())["notes"]
    assert notes == ["its EXIF block or TIFF directory is damaged: the pixels are taken to be stored upright"]


def test_random_blocks_end_in_an_orientation_or_a_note(tmp_path):
    rng = np.random.default_rng(7)
    taken = Contract.model_validate(contract(1))
    for number in range(200):
        block = bytearray(WHOLE)
        for at in rng.integers(6, len(block), 3):
            block[at] = rng.integers(256)
        path = picture(tmp_path / "a.jpg", None, (16, 24), exif=bytes(block[: rng.integers(8, len(block) + 1)]))
        with gdal_options(), closing(RasterSource(str(path), taken)) as source:
            pixels, _ = source.read(Window((0, 0), source.grid.shape))
            assert pixels.shape[1:] in ((16, 24), (24, 16)), number


def test_a_late_chunk_counts(tmp_path):
    """eXIf may stand behind the pixels."""
    plain = picture(tmp_path / "plain.png", None, exif=b"").read_bytes()
    block = big_endian(3)[6:]
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block + struct.pack(">I", zlib.crc32(b"eXIf" + block))
    path = tmp_path / "a.png"
    path.write_bytes(plain[:-12] + chunk + plain[-12:])
    expected = upright(path)
    assert not np.array_equal(expected, np.asarray(Image.open(io.BytesIO(plain))))
    with gdal_options(), closing(RasterSource(str(path), Contract.model_validate(contract(1)))) as source:
        pixels, _ = source.read(Window((0, 0), source.grid.shape))
    np.testing.assert_array_equal(pixels[0], expected)


def test_archives_are_said_not_to_be_looked_into(run_serial, tmp_path):
    picture(tmp_path / "a.png", 6)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")
    out = run_serial(f"/vsizip/{tmp_path}/a.zip/a.png", levels(tmp_path / "m.onnx", 1))  # type: ignore[arg-type]
    (note,) = json.loads((out / "a.json").read_text())["notes"]
    assert note.startswith("no orientation is looked for behind a URL or in an archive")


def test_a_jpeg_is_decoded_once(monkeypatch, tmp_path):
    """Upside down, each row of windows would begin at the first row of the file: blocks are kept instead."""
    path = picture(tmp_path / "a.jpg", 3, (256, 64))
    with gdal_options(), closing(RasterSource(str(path), Contract.model_validate(contract(1)))) as source:
        assert source.memory((32, 64)) == 256 * 64
        source.read(Window((0, 0), (32, 64)))
        assert not source._against
