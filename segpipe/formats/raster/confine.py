"""Restrict which drivers GDAL uses and which servers it contacts while it reads a local file.

rasterio has no function for this, so GDAL's C interface is called in the library that rasterio has loaded.
"""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import rasterio
import rasterio._env
from rasterio.session import DummySession

_LOCAL = """
    AAIGrid AIG BAG BMP BT CEOS COG DIMAP DTED EHdr ENVI GIF GPKG GRIB GS7BG GSAG GSBG GTiff GTX GXF HDF5 HDF5Image HF2 HFA
    JP2OpenJPEG JPEG LCP MBTiles MEM Memory netCDF NITF NTv2 NWT_GRD PCRaster PNG PNM RMF RS2 RST SAFE SAGA SENTINEL2 SIGDEM
    SNAP_TIFF SRTMHGT TIL TSX USGSDEM VRT WEBP XYZ Zarr
"""
LOCAL = frozenset(_LOCAL.split())
"""Drivers that read pixels from the bytes of local files: allowed for VRT sources, masks and overviews. The others contact
servers, or read raw bytes of any file that a header names as pixels (ERS, MRF, PDS, ISIS)."""

NETWORK = frozenset({"EEDA", "EEDAI", "GTI", "HTTP", "OGCAPI", "PLMOSAIC", "STACIT", "STACTA", "WCS", "WMS", "WMTS"})
"""Drivers that contact servers, or lead to files anywhere."""

ALLOWED = b"CPL_VSIL_CURL_ALLOWED_FILENAME"
"""GDAL option: the only file that its network file systems may open."""

NO_FILE = b"none"

CHUNK = 2**20
"""Bytes per read."""


@cache
def _gdal() -> ctypes.CDLL:
    library = ctypes.CDLL(rasterio._env.__file__)
    library.GDALGetDriverByName.restype = library.VSIFOpenL.restype = ctypes.c_void_p
    library.VSIFReadL.restype = ctypes.c_size_t
    return library


_lock = threading.Lock()
_registered: bool | None = None
"""Whether drivers that contact servers are registered; None: all of GDAL's drivers are."""


def allow_drivers(*, remote: bool) -> None:
    """Register only the drivers that read local files, and with ``remote`` those that contact servers."""
    global _registered  # noqa: PLW0603 - GDAL has one list per process
    with _lock:
        if _registered is remote:
            return
        if _registered is not None:
            _gdal().GDALAllRegister()
        with rasterio.Env(session=DummySession()) as environment:
            names = set(environment.drivers())
        for name in names - LOCAL - (NETWORK if remote else frozenset()):
            _gdal().GDALDeregisterDriver(ctypes.c_void_p(_gdal().GDALGetDriverByName(name.encode())))
        _registered = remote


def allow_all_drivers() -> None:
    """Register all of GDAL's drivers again, as before the first ``allow_drivers``."""
    global _registered  # noqa: PLW0603 - GDAL has one list per process
    with _lock:
        if _registered is not None:
            _gdal().GDALAllRegister()
        _registered = None


class _Depth(threading.local):
    confined = 0


_depth = _Depth()


@contextmanager
def confined(to_this_machine: bool) -> Iterator[None]:
    """Keep this thread from opening anything through GDAL's network file systems."""
    if not to_this_machine:
        yield
        return
    _depth.confined += 1
    _gdal().CPLSetThreadLocalConfigOption(ALLOWED, NO_FILE)
    try:
        yield
    finally:
        _depth.confined -= 1
        if not _depth.confined:
            _gdal().CPLSetThreadLocalConfigOption(ALLOWED, None)


def read_start(path: str, size: int) -> bytes:
    """The first bytes of a file in any of GDAL's file systems; empty where it cannot be opened."""
    if not (handle := _gdal().VSIFOpenL(os.fsencode(path), b"rb")):
        return b""
    file, data = ctypes.c_void_p(handle), b""
    try:
        while len(data) < size and (more := _read(file, min(size - len(data), CHUNK))):
            data += more
    finally:
        _gdal().VSIFCloseL(file)
    return data


def _read(file: ctypes.c_void_p, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    count = _gdal().VSIFReadL(buffer, ctypes.c_size_t(1), ctypes.c_size_t(size), file)
    return buffer.raw[:count]
