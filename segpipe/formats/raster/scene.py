"""Scene metadata of a raster: when, by what sensor and in what weather it was taken."""

import re
from collections.abc import Mapping

from rasterio.io import DatasetReader

from segpipe.messages.url_secrets import cleaned

DOMAINS = ("", "IMD", "IMAGERY")
"""Metadata domains: GDAL's default, DigitalGlobe's, and the common one (time, cloud cover, satellite)."""

MOST_TAGS, MOST_CHARACTERS = 256, 1000
"""Limits per domain and per value: anything longer is a file within the file."""

NOT_THE_SCENE = re.compile(
    r"STATISTICS_|AREA_OR_POINT$|SEGPIPE$|MODEL_SHA256$|CLASS_\d+$|Band_?\d+|wavelength|TIFFTAG_(?!DATETIME$|COPYRIGHT$)"
    r"|EXIF_(?!DateTime|OffsetTime|SubSec|GPS|Make$|Model$)|(ns|bidx|self)$"
    r"|.*(SCALE|OFFSET|NODATA|FILL_?VALUE|MISSING_VALUE|VALID_(MIN|MAX|RANGE)|QUANTIFICATION|SPECIAL_VALUE|SATURAT|COLOU?R"
    r"|COMPRESS|INTERLEAV|PREDICTOR|OVERVIEW|OVR_|LAYER_TYPE|REPRESENTATION|NBITS|BIT.?(PER|DEPTH)|DATA_?TYPE|PIXEL_?TYPE"
    r"|HISTOGRAM|RESAMPL|RESOLUTIONUNIT|BLOCK|STRIP|DERIVED_|#|=)",
    re.IGNORECASE,
)
"""Keys that describe pixels, file or writer. All other keys describe the scene."""


def read_scene(dataset: DatasetReader) -> dict[str, dict[str, str]]:
    """Metadata of a raster that also hold for its mask, by domain; empty domains are omitted."""
    found = {domain: cleaned(scene_tags(dataset.tags(ns=domain or None))) for domain in DOMAINS}
    return {domain: tags for domain, tags in found.items() if tags}


def scene_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags that describe the scene, sorted by key; only those that fit on one line."""
    kept = {key: value for key, value in sorted(tags.items()) if not NOT_THE_SCENE.match(key) and _is_short(key, value)}
    return dict(list(kept.items())[:MOST_TAGS])


def _is_short(key: str, value: str) -> bool:
    return key.isprintable() and value.isprintable() and 0 < len(value) <= MOST_CHARACTERS
