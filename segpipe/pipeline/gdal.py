"""How GDAL is used everywhere: its options, its drivers, its errors."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import rasterio
from rasterio._env import set_gdal_config
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from segpipe.pipeline.errors import SegpipeError

DRIVERS = ("GTiff", "VRT", "JP2OpenJPEG", "PNG", "JPEG", "WEBP", "BMP", "HFA")
"""Formats that are opened. An explicit list: a file must not decide by its content which of GDAL's 150 drivers reads it.
The sources of a VRT are GDAL's to open, in any format; the record names them."""

CACHE_MB, MOST_CACHE_MB = 128, 1024
"""GDAL's block cache, which is one for the process: at least what most cases need, at most what any gets."""

OPTIONS = {
    # A truncated JPEG decodes as grey with a warning only: such a mask would hide the damage.
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "YES",
    # GDAL's shortcut for a PNG that is read whole does not tell of one that ends early.
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",
}


_cache = 0
"""Bytes, as set in this process."""


def cache_bytes(room: int) -> int:
    """Size of a cache for blocks of so many bytes, within its bounds."""
    return min(max(CACHE_MB * 2**20, room + room // 8), MOST_CACHE_MB * 2**20)


def make_room(room: int = 0) -> None:
    """Let the cache hold blocks of so many bytes from now on; it never shrinks.

    Not an option of the environment: that belongs to a thread, and takes the cache of all with it when it is left.
    """
    global _cache  # noqa: PLW0603 - as GDAL has it: one for the process
    if (size := cache_bytes(room)) > _cache:
        # in bytes: rasterio hands the number to GDAL, past the option's own "small numbers are MB"
        set_gdal_config("GDAL_CACHEMAX", size)
        _cache = size


def gdal_options() -> rasterio.Env:
    """The environment that every thread that touches GDAL enters."""
    make_room()
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    return rasterio.Env(**OPTIONS)


@contextmanager
def gdal_errors(kind: type[SegpipeError], what: str) -> Iterator[None]:
    """Turn GDAL's errors into one of ours: what was done, to which path, and GDAL's own words."""
    try:
        yield
    except (RasterioError, CPLE_BaseError, OSError, MemoryError) as error:
        raise kind(f"{what}: {_root(error)}") from error


def _root(error: BaseException) -> str:
    """GDAL's first word: rasterio's own message often only points at the chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__
