"""The polygons of a file with the columns of ``zones.csv``, as a vector file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.errors import ZonesError, one_line
from segpipe.zones.polygons import PARQUET, Selection, missing, read_frame
from segpipe.zones.table import FIRST, LAST, ZoneTotals

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".fgb": "FlatGeobuf"}
RESERVED = frozenset({"fid", "ogc_fid", "geom", "geometry"})
"""Columns that drivers create themselves."""
LON_LAT = "EPSG:4326"
"""CRS of GeoJSON (RFC 7946)."""


def check_target(path: Path, selection: Selection) -> None:
    """Check that polygons can be written to a file.

    Raises:
        ZonesError: the suffix is unknown, the folder is missing, or segpipe did not write the existing file.
    """
    known = (*DRIVERS, *PARQUET[:1])
    if path.suffix.lower() not in (*DRIVERS, *PARQUET):
        raise ZonesError(f"--zones-out must end with {', '.join(known)}, got {path.name}: name another file")
    if not path.absolute().parent.is_dir():
        raise ZonesError(f"--zones-out must lie in a folder that exists, got {path}: make {path.absolute().parent} first")
    if path.exists() and (path.resolve() == selection.path.resolve() or not _is_own(path)):
        raise ZonesError(f"--zones-out replaces its file, and {path} was not written by segpipe: name another file")


def _is_own(path: Path) -> bool:
    """Whether a file has the columns of ``zones.csv``."""
    try:
        columns = read_frame(Selection(path)).columns
    except ZonesError:
        return False
    return {*FIRST, LAST} <= {*columns}


def write_polygons(path: Path, selection: Selection, totals: ZoneTotals) -> None:
    """Write the polygons unchanged, with their own columns and those of ``zones.csv``; whole or not at all.

    Raises:
        ZonesError: the file cannot be written.
    """
    frame = _with_columns(read_frame(selection), totals)
    draft = path.with_name(f".{path.stem}.partial{path.suffix}")
    draft.unlink(missing_ok=True)
    try:
        with _writing_errors(path):
            _write(frame, draft, path)
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _writing_errors(path: Path) -> Iterator[None]:
    from pyogrio.errors import DataSourceError, FeatureError, FieldError

    try:
        yield
    except ModuleNotFoundError as error:
        raise missing(error) from None
    except (DataSourceError, FeatureError, FieldError, OSError, ValueError) as error:
        raise ZonesError(f"{path} cannot be written: {one_line(error)}") from error


def _with_columns(frame: "GeoDataFrame", totals: ZoneTotals) -> "GeoDataFrame":
    """Append the columns of ``zones.csv`` to a frame; its own columns are renamed if they have the same names."""
    ours = totals.columns()
    if len(frame) != len(totals.zones):
        raise ZonesError(f"{totals.zones.selection.path} has changed since it was read: run the same command again")
    frame = frame.rename(columns=_renamed([str(name) for name in frame.columns], frame.geometry.name, ours))
    rows = list(totals.rows())
    values = {column: [row[column] for row in rows] for column in ours}
    return frame.assign(**values)


def _renamed(names: Sequence[str], geometry: str, ours: Sequence[str]) -> dict[str, str]:
    taken = {name.casefold() for name in (*ours, *RESERVED)}
    found = {}
    for name in names:
        if name != geometry and name.casefold() in taken:
            found[name] = f"{name}_file"
    return found


def _write(frame: "GeoDataFrame", draft: Path, path: Path) -> None:
    if path.suffix.lower() in PARQUET:
        frame.to_parquet(draft, index=False)
        return
    import pyogrio

    driver, options = DRIVERS[path.suffix.lower()], dict[str, Any]()
    if driver == "GeoJSON":
        frame, options = frame.to_crs(LON_LAT), {"RFC7946": "YES", "COORDINATE_PRECISION": "9"}
    pyogrio.write_dataframe(frame, draft, driver=driver, layer=path.stem, **options)
