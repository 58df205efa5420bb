"""Inputs that are made to harm, by what should come of each."""

import gzip
import os
import socket
import struct
import zipfile
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import rasterio
import tifffile
from rasterio.io import MemoryFile

PIXELS = np.random.default_rng(0).integers(1, 255, (3, 40, 50), dtype=np.uint8)
PLACE = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5.4e6)}
NO_TEXT = os.fsdecode(b"caf\xe9\xff")


def tiff(pixels: np.ndarray = PIXELS, **more) -> bytes:
    """A good scene."""
    bands, rows, cols = pixels.shape
    with MemoryFile() as file:
        with file.open(driver="GTiff", count=bands, height=rows, width=cols, dtype=pixels.dtype, **PLACE, **more) as dataset:
            dataset.write(pixels)
        return bytes(file.read())


def directory(*entries: tuple[int, int, int, int], more: bytes = b"") -> bytes:
    """A TIFF of entries ``(tag, type, count, value)``, and what lies behind its directory."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4) + more


def claims(rows: int, cols: int, *, bands: int = 1, tile: tuple[int, int] | None = None) -> bytes:
    """A file of some bytes that says that it is large."""
    size = [(256, 4, 1, cols), (257, 4, 1, rows), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, bands)]
    if tile is None:
        return directory(*size, (278, 4, 1, 1 if rows > 1000 else rows), (273, 4, 1, 8), (279, 4, 1, 1))
    height, width = (side & 0xFFFFFFFF for side in tile)
    return directory(*size, (322, 4, 1, width), (323, 4, 1, height), (324, 4, 1, 8), (325, 4, 1, 1))


def png_that_claims(side: int) -> bytes:
    """A picture of some bytes: its size is a number, and its pixels are zeros that pack well."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def vrt(*sources: str, kinds: tuple[str, ...] = ("Byte",) * 3, head: str = "") -> bytes:
    """A band of each source."""
    rows = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{band}"><SimpleSource><SourceFilename relativeToVRT="1">{name}'
        f"</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for band, (name, kind) in enumerate(zip(sources, kinds, strict=True), 1)
    )
    return f'<VRTDataset rasterXSize="50" rasterYSize="40">{head}{rows}</VRTDataset>'.encode()


def raw_vrt(file: str) -> bytes:
    """Bands that are the bytes of any file."""
    rows = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}" subClass="VRTRawRasterBand"><SourceFilename relativeToVRT="0">{file}'
        "</SourceFilename><ImageOffset>0</ImageOffset><PixelOffset>1</PixelOffset><LineOffset>4</LineOffset></VRTRasterBand>"
        for band in (1, 2, 3)
    )
    return f'<VRTDataset rasterXSize="4" rasterYSize="4">{rows}</VRTDataset>'.encode()


def geotransform(text: str) -> str:
    return f"<GeoTransform>{text}</GeoTransform>"


def zipped(folder: Path) -> bytes:
    """An archive of a few kB that is 64 MB once it is opened."""
    path = folder / "bomb"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.tif", bytes(2**26))
    data = path.read_bytes()
    path.unlink()
    return data


def damaged_jpeg() -> bytes:
    data = bytearray(imagecodecs.jpeg_encode(np.moveaxis(np.tile(PIXELS, (1, 4, 4)), 0, -1).copy()))
    data[len(data) // 2 : len(data) // 2 + 40] = b"\xff\xd9" * 20
    return bytes(data)


GOOD = ["good", NO_TEXT, "new\nline", "esc\x1b[31mred", "[/]", "[bold]b[/bold]", "dir.tif/inner", "n" * 243]
"""Names under which a good scene is done."""

DONE = [*GOOD, "mixed", "nan", "zeros"]
"""With VRTs that are odd and can be read: of several types, and without a place."""

BAD = {
    "bands": r"got 65535 bands \(unnamed, (unnamed, )+unnamed,? and 65515 more\)",
    "bomb": "bomb.png cannot be read.*Not enough image data",
    "broken": "broken.tif cannot be opened: .*No such file",
    "claims": "claims.tif cannot be opened",
    "claims too": "claims too.tif (is damaged|cannot be opened)",
    "device": "must be a regular file",
    "empty": "empty.tif is empty",
    "fifo": "must be a regular file",
    "jpeg": "jpeg.jpg cannot be read.*Corrupt JPEG data",
    "loop": "loop.tif cannot be opened",
    "m" * 251: "File name too long",
    "missing": "gone.tif: No such file",
    "negative": "negative.tif cannot be opened",
    "network": "127.0.0.1:9|--allow-remote-sources",
    "noise": "packed with gzip",
    "raw": "raw",
    "run": "reserved, got in/run.tif",
    "self": "self.vrt cannot be read.*Recursion|itself",
    "shut": "shut.tif cannot be .*Permission denied",
    "socket": "must be a regular file",
    "text": "text.tif cannot be opened",
    "truncated": "truncated.tif cannot be read",
    "twins": "two inputs would get one name, twins: in/twins.png and in/twins.tif",
    "zero": "zero.tif cannot be opened",
    "zip": "is a zip archive",
}
"""Names of the others, and what is said of each."""


def make(folder: Path) -> socket.socket:
    """All of them in one folder; the socket lies there while it is open."""
    folder.mkdir()
    good = tiff()
    for name in GOOD:
        path = folder / f"{name}.tif"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(good)
    (folder / "broken.tif").symlink_to("gone.tif")
    (folder / "loop.tif").symlink_to("loop.tif")
    (folder / "back").symlink_to(".")
    (folder / "again").symlink_to(".")
    (folder / "device.tif").symlink_to("/dev/zero")
    os.mkfifo(folder / "fifo.tif")
    listener = socket.socket(socket.AF_UNIX)
    before = Path.cwd()
    os.chdir(folder)  # the name of a socket is short
    listener.bind("socket.tif")
    os.chdir(before)
    files = {
        "claims.tif": claims(2**31 - 1, 2**31 - 1, bands=3),
        "claims too.tif": claims(2**31 - 1, 2**31 - 1, bands=3, tile=(2**20, 2**20)),
        "truncated.tif": tiff(np.tile(PIXELS, (1, 8, 8)))[:9000],
        "empty.tif": b"",
        "text.tif": b"no raster\n",
        "self.vrt": vrt("self.vrt", "self.vrt", "self.vrt"),
        "missing.vrt": vrt("gone.tif", "gone.tif", "gone.tif"),
        "network.vrt": vrt(*["/vsicurl/http://127.0.0.1:9/a.tif"] * 3).replace(b'relativeToVRT="1"', b'relativeToVRT="0"'),
        "raw.vrt": raw_vrt("/etc/passwd"),
        "zeros.vrt": vrt("good.tif", "good.tif", "good.tif", head=geotransform("0,0,0,0,0,0")),
        "nan.vrt": vrt("good.tif", "good.tif", "good.tif", head=geotransform("nan,nan,nan,nan,nan,nan")),
        ".short": tiff(PIXELS[:1].astype("uint16")),
        ".float": tiff(PIXELS[:1].astype("float32")),
        "mixed.vrt": vrt(".short", ".float", ".short", kinds=("UInt16", "Float32", "UInt16")),
        "shut.tif": good,
        "twins.tif": good,
        "twins.png": good,
        "run.tif": good,
        f"{'m' * 251}.tif": good,
        "bomb.png": png_that_claims(200_000),
        "zip.tif": zipped(folder),
        "noise.tif": gzip.compress(np.random.default_rng(0).bytes(5000)),
        "jpeg.jpg": damaged_jpeg(),
        "negative.tif": claims(40, 50, tile=(-16, -16)),
        "zero.tif": claims(40, 50, tile=(0, 0)),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    many = np.ones((1, 1, 65535), np.uint8)
    tifffile.imwrite(folder / "bands.tif", many, photometric="minisblack", planarconfig="contig", metadata=None)
    return listener
