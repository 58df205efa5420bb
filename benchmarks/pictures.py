"""Many small pictures, and the same pixels in one mosaic: seeded, made once into benchmarks/scratch."""

import zlib
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window
from scenes import SCRATCH

BANDS = 3
CELL = 16
"""Pixels of a field's side."""


def picture(number: int, size: int) -> NDArray[np.uint8]:
    """Shape ``(3, size, size)``: fields with a little noise, as a camera sees them."""
    rng = np.random.default_rng((number, size))
    fields = rng.integers(20, 230, (BANDS, size // CELL, size // CELL)).repeat(CELL, axis=1).repeat(CELL, axis=2)
    return (fields + rng.integers(0, 4, (BANDS, size, size))).astype(np.uint8)


def pictures(count: int, size: int) -> Path:
    """A folder of PNG files, a thousand to a sub-folder."""
    folder = SCRATCH / f"pictures_{count}_{size}"
    if not folder.exists():
        draft = folder.with_suffix(".draft")
        for number in range(count):
            path = draft / f"{number // 1000:03}" / f"{number:06}.png"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(picture(number, size)))
        draft.rename(folder)
    return folder


def png(pixels: NDArray[np.uint8]) -> bytes:
    """An RGB picture of shape ``(3, rows, cols)`` as a PNG file, filtered by the row above."""
    rows = np.moveaxis(pixels, 0, -1).reshape(pixels.shape[1], -1)
    above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    filtered = np.hstack([np.full((len(rows), 1), 2, np.uint8), rows - above])
    head = np.array([pixels.shape[2], pixels.shape[1]], ">u4").tobytes() + bytes([8, 2, 0, 0, 0])
    chunks = (b"IHDR", head), (b"IDAT", zlib.compress(filtered.tobytes(), 1)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def mosaic(count: int, size: int) -> Path:
    """The same pictures side by side in one tiled GeoTIFF, in rows of about as many as there are rows."""
    across = next(n for n in range(int(count**0.5), 0, -1) if count % n == 0)
    path = SCRATCH / f"mosaic_{count}_{size}" / "mosaic.tif"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = {"dtype": "uint8", "count": BANDS, "height": size * (count // across), "width": size * across}
        tiles = {"tiled": True, "blockxsize": size, "blockysize": size, "compress": "deflate", "predictor": 2, "zlevel": 1}
        draft = path.with_suffix(".draft")
        how = {"photometric": "rgb", "interleave": "pixel", "bigtiff": "if_safer", "crs": "EPSG:32633"}
        with rasterio.open(draft, "w", driver="GTiff", **shape, **tiles, **how) as dataset:
            for number in range(count):
                row, col = divmod(number, across)
                dataset.write(picture(number, size), window=Window(col * size, row * size, size, size))
        draft.rename(path)
    return path
