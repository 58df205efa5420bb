"""Read back vector files that GDAL wrote: GDAL does not report errors of its last writes, such as a full disk."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from segpipe.storage.existence import exists

GEOPACKAGE = ".gpkg"

WITHOUT_CRS = "SELECT 1 FROM gpkg_geometry_columns WHERE srs_id NOT IN (SELECT srs_id FROM gpkg_spatial_ref_sys)"

NOT_EMPTY = "substr(hex(substr({}, 4, 1)), 1, 1) IN ('0', '2')"
"""SQL condition: the flags of a geometry say that it is not empty (OGC 12-128, 2.1.3); only such are in a spatial index."""


def clear(draft: Path) -> None:
    """Remove a draft and its rollback journal, which SQLite would otherwise apply to the next draft of that name."""
    draft.unlink(missing_ok=True)
    journal(draft).unlink(missing_ok=True)


def journal(path: Path) -> Path:
    """Path of the rollback journal that SQLite keeps during a transaction."""
    return path.with_name(f"{path.name}-journal")


def check_written(path: Path, rows: int) -> None:
    """Check that a file holds all rows.

    Raises:
        OSError: rows are missing.
    """
    import pyogrio

    with pyogrio.open_arrow(path, use_pyarrow=True) as (_, reader):
        found = sum(batch.num_rows for batch in reader)
    counts = {found} if path.suffix.lower() != GEOPACKAGE else {found, *_counts(path, found)}
    if counts != {rows} or exists(journal(path)):
        raise OSError(errno.EIO, f"only {min(counts):,} of {rows:,} rows could be written whole", str(path))


def _counts(path: Path, found: int) -> Iterator[int]:
    """Row counts of a GeoPackage with one layer: that of its catalogue, then ``found`` or 0 for each check of integrity."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as base:
            yield from (
                count for (count,) in base.execute("SELECT feature_count FROM gpkg_ogr_contents") if count is not None
            )
            yield found if base.execute("PRAGMA quick_check(1)").fetchone() == ("ok",) else 0
            yield found if not base.execute(WITHOUT_CRS).fetchone() else 0
            for table, column in base.execute("SELECT table_name, column_name FROM gpkg_geometry_columns").fetchall():
                yield found if _is_indexed(base, table, column) else 0
    except sqlite3.Error:
        yield 0


def _is_indexed(base: sqlite3.Connection, table: str, column: str) -> bool:
    """Whether the spatial index of a column, if there is one, lists every geometry."""
    index, table, column = (name.replace('"', '""') for name in (f"rtree_{table}_{column}", table, column))
    if not base.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (index.replace('""', '"'),)).fetchone():
        return True
    empty = NOT_EMPTY.format(f'"{column}"')
    (there,) = base.execute(f'SELECT count(*) FROM "{table}" WHERE {empty}').fetchone()
    (indexed,) = base.execute(f'SELECT count(*) FROM "{index}"').fetchone()
    return bool(there == indexed)
