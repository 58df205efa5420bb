"""Check the files that belong to a Shapefile: GDAL silently ignores those that it cannot read."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.errors import ZonesError, of_system

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

PARTS = (".shx", ".dbf", ".prj", ".cpg")
"""Suffixes of the files with the offsets, columns, CRS and encoding."""


def check_parts(path: Path) -> None:
    """Check that every part of a Shapefile can be read; other formats have no parts.

    Raises:
        ZonesError: one cannot be read.
    """
    if path.suffix.lower() != ".shp":
        return
    try:
        for name in os.listdir(path.parent):  # noqa: PTH208 - names alone
            stem, suffix = os.path.splitext(name)  # noqa: PTH122
            if suffix.lower() in PARTS and stem.lower() == path.stem.lower():
                with path.with_name(name).open("rb") as stream:
                    stream.read(1)
    except OSError as error:
        raise ZonesError(f"{error.filename or path} cannot be read, and belongs to {path}: {of_system(error)}") from error


def check_again(path: Path, frame: "GeoDataFrame", columns: Sequence[str] | None) -> None:
    """Read the columns of a Shapefile a second time and compare them with ``frame``, since GDAL reopens all parts.

    Raises:
        ZonesError: they differ, because GDAL could not read a part, such as the encoding, in one of the two readings.
    """
    names = [name for name in frame.columns if name != frame.geometry.name] if path.suffix.lower() == ".shp" else []
    if not names:
        return
    import pyogrio

    other = pyogrio.read_dataframe(path, columns=columns, read_geometry=False)
    if names != list(other.columns) or not frame[names].equals(other):
        raise ZonesError(
            f"{path}: a file that belongs to it could be read in only one of two tries: check the disk, "
            "and run the same command again"
        )
