"""How GDAL is used everywhere: its options, its drivers, its errors."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from segpipe.pipeline.errors import SegpipeError

DRIVERS = ("GTiff", "VRT", "JP2OpenJPEG", "PNG", "JPEG", "WEBP", "BMP", "HFA")
"""Formats that are opened. An explicit list: a file must not decide by its content which of GDAL's 150 drivers reads it.
The sources of a VRT are GDAL's to open, in any format; the record names them."""

CACHE_MB = 128
"""GDAL's block cache, which is one for the process: two rows of 512 px blocks of a 4-band uint16 scene of 16,384 px."""

OPTIONS = {
    # in bytes: rasterio hands the number to GDAL, past the option's own "small numbers are MB"
    "GDAL_CACHEMAX": CACHE_MB * 2**20,
    # A truncated JPEG decodes as grey with a warning only: such a mask would hide the damage.
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "YES",
    # GDAL's shortcut for a PNG that is read whole does not tell of one that ends early.
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",
}


def gdal_options(decoders: int = 1) -> rasterio.Env:
    """The environment that every thread that touches GDAL enters; ``decoders`` threads share the blocks of a window."""
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    return rasterio.Env(**OPTIONS, **({"GDAL_NUM_THREADS": decoders} if decoders > 1 else {}))


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
