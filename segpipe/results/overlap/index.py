"""An index of the masks of a mosaic, which GDAL from 3.9 on opens as one raster: a GeoPackage for GDAL's driver GTI.

Where masks overlap, GDAL draws them in the order of the rule. It is written with SQLite alone.
"""

import errno
import os
import sqlite3
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray

from segpipe.geometry.extents import SAMPLES
from segpipe.geometry.raster_grid import RasterGrid
from segpipe.geometry.reference import horizontal, transformer

SUFFIX = ".gti.gpkg"

GEOPACKAGE, VERSION = 0x47504B47, 10300
"""Application id and version of GeoPackage 1.3."""
TIME = "2000-01-01T00:00:00.000Z"
"""Of every change, so that the same masks give the same bytes."""
SRS = 100_001
"""Number of the mosaic's CRS within the file."""
PRIMARY = 0xFF
"""Bits of the primary result code in an extended error code of SQLite."""

TABLES = """
CREATE TABLE gpkg_spatial_ref_sys (srs_name TEXT NOT NULL, srs_id INTEGER NOT NULL PRIMARY KEY, organization TEXT NOT NULL,
    organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL, description TEXT);
CREATE TABLE gpkg_contents (table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL, identifier TEXT UNIQUE,
    description TEXT DEFAULT '', last_change DATETIME NOT NULL, min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE,
    srs_id INTEGER, CONSTRAINT fk_gc_r_srs_id FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys(srs_id));
CREATE TABLE gpkg_geometry_columns (table_name TEXT NOT NULL, column_name TEXT NOT NULL, geometry_type_name TEXT NOT NULL,
    srs_id INTEGER NOT NULL, z TINYINT NOT NULL, m TINYINT NOT NULL,
    CONSTRAINT pk_geom_cols PRIMARY KEY (table_name, column_name));
CREATE TABLE gpkg_metadata (id INTEGER PRIMARY KEY, md_scope TEXT NOT NULL DEFAULT 'dataset', md_standard_uri TEXT NOT NULL,
    mime_type TEXT NOT NULL DEFAULT 'text/xml', metadata TEXT NOT NULL DEFAULT '');
CREATE TABLE gpkg_metadata_reference (reference_scope TEXT NOT NULL, table_name TEXT, column_name TEXT, row_id_value INTEGER,
    timestamp DATETIME NOT NULL, md_file_id INTEGER NOT NULL, md_parent_id INTEGER);
CREATE TABLE gpkg_extensions (table_name TEXT, column_name TEXT, extension_name TEXT NOT NULL, definition TEXT NOT NULL,
    scope TEXT NOT NULL, UNIQUE (table_name, column_name, extension_name));
CREATE TABLE masks (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, geom BLOB, location TEXT, name TEXT, position INTEGER,
    acquired TEXT);
"""

METADATA = "http://www.geopackage.org/spec121/#extension_metadata"


Ring = NDArray[np.float64]


@dataclass(frozen=True)
class IndexedMask:
    """A mask in the index."""

    name: str
    location: str
    """Path for GDAL: relative to the index, or of a bucket."""
    grid: RasterGrid
    acquired: str | None = None


def is_possible(grid: RasterGrid) -> bool:
    """Whether GDAL's driver knows grids of this kind: with north up."""
    t = grid.transform
    return t is not None and t.b == 0 == t.d and t.e < 0 < t.a


def write_index(path: Path, entries: Sequence[IndexedMask], grid: RasterGrid, kind: Mapping[str, str]) -> None:
    """Write a GeoPackage that GDAL (driver GTI) reads as one mosaic of the masks, without a copy of their pixels.

    Args:
        path: the file, which must not exist.
        entries: the masks, that which counts first in front.
        grid: the grid of the mosaic.
        kind: more of GDAL's properties of the raster: bands, type and nodata.

    Raises:
        OSError: it cannot be written.
    """
    with _as_os_errors(path), closing(sqlite3.connect(path)) as base, base:
        base.execute(f"PRAGMA application_id = {GEOPACKAGE}")
        base.execute(f"PRAGMA user_version = {VERSION}")
        base.executescript(TABLES)
        _add_crs(base, grid)
        bounds = _bounds(_ring(grid, grid))
        contents = ("masks", "features", "masks", "masks of a mosaic by segpipe", TIME, *bounds, SRS)
        base.execute(f"INSERT INTO gpkg_contents VALUES ({', '.join('?' * len(contents))})", contents)
        base.execute("INSERT INTO gpkg_geometry_columns VALUES ('masks', 'geom', 'POLYGON', ?, 0, 0)", (SRS,))
        _add_metadata(base, {**_properties(grid), **kind})
        base.executemany(
            # names of files may be other bytes than UTF-8
            "INSERT INTO masks (geom, location, name, position, acquired) "
            "VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT), ?, ?)",
            _rows(entries, grid),
        )


@contextmanager
def _as_os_errors(path: Path) -> Iterator[None]:
    """Turn an error of SQLite, which names no file, into an ``OSError``."""
    try:
        yield
    except sqlite3.OperationalError as error:
        is_full = error.sqlite_errorcode & PRIMARY == sqlite3.SQLITE_FULL
        number, words = (errno.ENOSPC, os.strerror(errno.ENOSPC)) if is_full else (errno.EIO, str(error))
        raise OSError(number, words, str(path)) from error


def _add_crs(base: sqlite3.Connection, grid: RasterGrid) -> None:
    assert grid.crs is not None
    code = grid.crs.to_epsg()
    rows = [
        ("Undefined Cartesian SRS", -1, "NONE", -1, "undefined", None),
        ("Undefined geographic SRS", 0, "NONE", 0, "undefined", None),
        ("mosaic", SRS, "EPSG" if code else "NONE", code or SRS, grid.crs.to_wkt(), None),
    ]
    base.executemany("INSERT INTO gpkg_spatial_ref_sys VALUES (?, ?, ?, ?, ?, ?)", rows)


def _properties(grid: RasterGrid) -> dict[str, str]:
    """The grid, and the order of drawing, in the terms of GDAL's driver."""
    assert grid.transform is not None
    geotransform = ",".join(map(repr, map(float, grid.transform.to_gdal())))
    rows, cols = grid.shape
    drawn = {"SORT_FIELD": "position", "SORT_FIELD_ASC": "NO", "LOCATION_FIELD": "location"}
    return {"GEOTRANSFORM": geotransform, "XSIZE": str(cols), "YSIZE": str(rows), "RESAMPLING": "NEAREST", **drawn}


def _add_metadata(base: sqlite3.Connection, items: Mapping[str, str]) -> None:
    lines = "".join(f"<MDI key={quoteattr(key)}>{escape(value)}</MDI>" for key, value in items.items())
    text = f"<GDALMultiDomainMetadata><Metadata>{lines}</Metadata></GDALMultiDomainMetadata>"
    base.execute("INSERT INTO gpkg_metadata VALUES (1, 'dataset', 'http://gdal.org', 'text/xml', ?)", (text,))
    base.execute("INSERT INTO gpkg_metadata_reference VALUES ('table', 'masks', NULL, NULL, ?, 1, NULL)", (TIME,))
    for table in ("gpkg_metadata", "gpkg_metadata_reference"):
        base.execute("INSERT INTO gpkg_extensions VALUES (?, NULL, 'gpkg_metadata', ?, 'read-write')", (table, METADATA))


def _rows(entries: Sequence[IndexedMask], grid: RasterGrid) -> Iterator[tuple[bytes, bytes, bytes, int, str | None]]:
    for position, entry in enumerate(entries):
        location, name = (text.encode(errors="surrogateescape") for text in (entry.location, entry.name))
        yield _polygon(_ring(entry.grid, grid)), location, name, position, entry.acquired


def _ring(own: RasterGrid, grid: RasterGrid) -> Ring:
    """The outline of a grid in the CRS of the mosaic, ``(points, 2)``, closed."""
    assert own.crs is not None
    assert own.transform is not None
    assert grid.crs is not None
    rows, cols = own.shape
    straight = own.crs == grid.crs
    along = np.linspace(0, 1, 2 if straight else SAMPLES)[:-1]
    corners = np.array([(0, 0), (0, rows), (cols, rows), (cols, 0)], np.float64)
    sides = zip(corners, np.roll(corners, -1, axis=0), strict=True)
    points = np.concatenate([start + along[:, None] * (stop - start) for start, stop in sides])
    t = own.transform
    x, y = t.a * points[:, 0] + t.b * points[:, 1] + t.c, t.d * points[:, 0] + t.e * points[:, 1] + t.f
    if not straight:
        x, y = transformer(horizontal(own.crs), horizontal(grid.crs)).transform(x, y)
    ring = np.column_stack([x, y])
    ring = ring[np.isfinite(ring).all(axis=1)]
    return np.concatenate([ring, ring[:1]])


def _bounds(ring: Ring) -> tuple[float, float, float, float]:
    (west, south), (east, north) = ring.min(axis=0).tolist(), ring.max(axis=0).tolist()
    return west, south, east, north


def _polygon(ring: Ring) -> bytes:
    """A geometry of GeoPackage: a header with the extent, and well-known binary."""
    west, south, east, north = _bounds(ring)
    header = b"GP\0\x03" + struct.pack("<idddd", SRS, west, east, south, north)
    return header + struct.pack("<BIII", 1, 3, 1, len(ring)) + np.ascontiguousarray(ring, "<f8").tobytes()
