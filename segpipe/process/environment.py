"""Make results independent of the inherited environment: GDAL's options, and the location of PROJ's data."""

import logging
import math
import os
from collections.abc import Callable, Mapping, Set
from functools import cache
from pathlib import Path

import rasterio
from pyproj import Transformer
from pyproj.exceptions import DataDirError, ProjError
from rasterio._env import get_gdal_config, set_proj_data_search_path
from rasterio.env import getenv, hasenv
from rasterio.errors import CRSError, RasterioError
from rasterio.session import DummySession
from rasterio.warp import transform

from segpipe.errors import InstallationError

LOG = logging.getLogger("segpipe")

BY_EFFECT = {
    "sidecars, and whether they count": """
        GDAL_DISABLE_READDIR_ON_OPEN GDAL_READDIR_LIMIT_ON_OPEN GDAL_PAM_ENABLED GDAL_PAM_MODE GDAL_PAM_PROXY_DIR
        ESRI_XML_PAM CPL_VSIL_CURL_ALLOWED_EXTENSIONS CPL_VSIL_CURL_ALLOWED_FILENAME
        CPL_VSIL_ZIP_ALLOWED_EXTENSIONS
    """,
    "where a raster lies": """
        GDAL_GEOREF_SOURCES GDAL_GCPS_TO_GEOTRANSFORM_APPROX_OK GDAL_GCPS_TO_GEOTRANSFORM_APPROX_THRESHOLD
        GTIFF_POINT_GEO_IGNORE GTIFF_HONOUR_NEGATIVE_SCALEY GTIFF_LINEAR_UNITS GTIFF_READ_ANGULAR_PARAMS_IN_DEGREE
        GTIFF_IMPORT_FROM_EPSG GTIFF_SRS_SOURCE GTIFF_ESRI_CITATION GTIFF_REPORT_COMPD_CS USE_OSR_FIND_MATCHES
        GDAL_IGNORE_AXIS_ORIENTATION GDAL_JP2K_ALT_OFFSETVECTOR_ORDER GDAL_USE_GEOJP2 GDAL_USE_GMLJP2
        GMLJP2OVERRIDE HFA_USE_ESRI_PE_STRING TAB_APPROX_GEOTRANSFORM OSR_DEFAULT_AXIS_MAPPING_STRATEGY
        OSR_ADD_TOWGS84_ON_IMPORT_FROM_EPSG OSR_ADD_TOWGS84_ON_EXPORT_TO_WKT1 OSR_ADD_TOWGS84_ON_EXPORT_TO_PROJ4
        OSR_STRIP_TOWGS84 OSR_USE_NON_DEPRECATED OSR_USE_ETMERC OSR_USE_APPROX_TMERC
        OSR_CT_USE_DEFAULT_EPSG_TOWGS84 OSR_WKT_FORMAT PROJ_USE_PROJ4_INIT_RULES
    """,
    "what pixels are; a warped VRT computes its own": """
        CONVERT_YCBCR_TO_RGB GDAL_JPEG_TO_RGB JPEG_MASK_BIT_ORDER JPEG_READ_MASK GDAL_ENABLE_TIFF_SPLIT
        GTIFF_IGNORE_READ_ERRORS GTIFF_VIRTUAL_MEM_IO GTIFF_DIRECT_IO GTIFF_USE_MMAP
        GDAL_TIFF_INTERNAL_MASK_TO_8BIT GDAL_PNG_SINGLE_BLOCK USE_OPENJPEG_SINGLE_TILE_OPTIM
        JP2OPENJPEG_PROMOTE_1BIT_ALPHA_AS_8BIT USE_TILE_AS_BLOCK VRT_VIRTUAL_OVERVIEWS VRT_SHARED_SOURCE
        GDAL_RASTERIO_RESAMPLING GDAL_NO_COSTLY_OVERVIEW GDAL_OVERVIEW_OVERSAMPLING_THRESHOLD
        GDALWARP_OVERSAMPLING_THRESHOLD GDAL_WARP_USE_AFFINE_OPTIMIZATION GDAL_WARP_USE_TRANSLATION_OPTIM
        GDAL_VRT_WARP_USE_DATASET_RASTERIO PROJ_NETWORK PROJ_ONLY_BEST_DEFAULT CPL_CURL_IGNORE_ERROR
        CPL_ACCUM_ERROR_MSG
    """,
    "what is written": """
        USE_RRD TIFF_USE_OVR COMPRESS_OVERVIEW PREDICTOR_OVERVIEW PHOTOMETRIC_OVERVIEW INTERLEAVE_OVERVIEW
        BIGTIFF_OVERVIEW ZLEVEL_OVERVIEW SPARSE_OK_OVERVIEW GDAL_TIFF_OVR_BLOCKSIZE GDAL_OVR_PROPAGATE_NODATA
        GDAL_TIFF_INTERNAL_MASK GDAL_TIFF_DEFLATE_SUBCODEC GDAL_TIFF_ENDIANNESS GTIFF_ALPHA GTIFF_DONT_WRITE_BLOCKS
        GTIFF_WRITE_TOWGS84 GTIFF_WRITE_ANGULAR_PARAMS_IN_DEGREE GTIFF_WRITE_IMAGE_STRUCTURE_METADATA
        GTIFF_DELETE_ON_ERROR
    """,
}
OPTIONS = frozenset(name for names in BY_EFFECT.values() for name in names.split())
"""Options of GDAL and PROJ that change pixels, validity, georeferencing, or the bytes of a mask; GDAL's defaults are used.
Others are left to the user: network, credentials, caches, debugging, and drivers, since a missing driver is an error.
``formats/raster/gdal.py`` sets what a VRT may do."""

WHEEL = Path(rasterio.__file__).parent
"""Folder in which a wheel of rasterio has GDAL's and PROJ's data, which those of another version cannot replace. Other
installations find their own data; pyproj looks into its wheel first."""

WHERE, THERE = (0.5, 50.5), (577274.99, 69740.50)
"""A known point: longitude and latitude on OSGB36, and easting and northing on the British National Grid (example in IOGP's
Guidance Note 7-2, 3.2.3.1)."""

CENTIMETRES = 0.02


@cache
def clean_environment() -> None:
    """Make this process independent of its inherited environment, once; changes ``os.environ``.

    Raises:
        InstallationError: GDAL's configuration file, or ``rasterio.Env`` around this call, sets one of the options, or PROJ
            misplaces the known point.
    """
    _forget(OPTIONS, "GDAL's default holds")
    if is_wheel := (WHEEL / "proj_data" / "proj.db").is_file():
        # search paths alone do not reach contexts that GDAL creates itself, as for a warped VRT
        _forget({"PROJ_LIB", "PROJ_DATA", "GDAL_DATA"}, "rasterio has data of its own")
        os.environ["GDAL_DATA"] = str(WHEEL / "gdal_data")
    around = getenv() if hasenv() else {}
    with rasterio.Env(session=DummySession()):
        if is_wheel:
            set_proj_data_search_path(str(WHEEL / "proj_data"))
        _refuse_configured(around)
        _check("rasterio", rasterio_point)
        _check("pyproj", pyproj_point)


def _forget(names: Set[str], reason: str) -> None:
    """Remove variables from the environment, and say so."""
    for name in sorted(names & os.environ.keys()):
        if (value := os.environ.pop(name)) != str(WHEEL / name.lower()):  # unless set by an earlier call
            LOG.warning("note: %s=%s of the environment is not used: %s", name, value, reason)


def _refuse_configured(around: Mapping[str, object]) -> None:
    """Refuse options that persist after the environment is cleared: of GDAL's configuration file, or of ``rasterio.Env``."""
    for name in sorted(OPTIONS):
        if (value := get_gdal_config(name, normalize=False)) is not None:
            of_file = "GDAL's configuration file", "remove that line, or export GDAL_CONFIG_FILE=/dev/null"
            who, mend = ("rasterio.Env around this call", "call segpipe outside of it") if name in around else of_file
            raise InstallationError(f"{who} must not change what is read or written, got {name}={value}: {mend}")


def _check(library: str, find: Callable[[], tuple[float, float]]) -> None:
    try:
        found = find()
    except (RasterioError, CRSError, ProjError, DataDirError) as error:
        raise InstallationError(_unfit(library, str(error))) from error
    if not math.dist(found, THERE) < CENTIMETRES:
        raise InstallationError(_unfit(library, f"puts it at {found[0]:.2f}, {found[1]:.2f}"))


def _unfit(library: str, found: str) -> str:
    named = [f"{name}={os.environ[name]}" for name in ("PROJ_DATA", "PROJ_LIB") if name in os.environ]
    mend = f"unset {' and '.join(named)}" if named else f"install {library} again"
    return f"{library} must place a known point of the British National Grid within 2 cm, and does not: {found}: {mend}"


def rasterio_point() -> tuple[float, float]:
    """The known point by the PROJ that GDAL uses."""
    (x,), (y,) = transform("EPSG:4277", "EPSG:27700", [WHERE[0]], [WHERE[1]])
    return float(x), float(y)


def pyproj_point() -> tuple[float, float]:
    """The known point by pyproj's PROJ."""
    x, y = Transformer.from_crs("EPSG:4277", "EPSG:27700", always_xy=True).transform(*WHERE)
    return float(x), float(y)
