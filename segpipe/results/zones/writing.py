"""The polygons of a file with the columns of ``zones.csv``, as a vector file."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.errors import ZonesError
from segpipe.results.zones.polygons import Zones
from segpipe.results.zones.table import FIRST, LAST, ZoneTotals
from segpipe.storage.files import draft_name
from segpipe.vectors.file import (
    DRIVERS,
    LON_LAT,
    PARQUET,
    Selection,
    check_replaceable,
    check_target,
    read_frame,
    writing_errors,
)
from segpipe.vectors.written import check_written, clear

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

RESERVED = frozenset({"fid", "ogc_fid", "geom", "geometry"})
"""Columns that drivers create themselves."""


def check_zones_out(path: Path, zones: Zones) -> None:
    """Check that polygons can be written to a file, by writing them with empty columns to its draft.

    Raises:
        ZonesError: the suffix is unknown, the folder is missing, segpipe did not write the existing file, or the driver
            refuses the name or the polygons.
    """
    selection = zones.selection
    check_target(path, "--zones-out", ZonesError)
    with writing_errors(path, "--zones-out", ZonesError):
        if path.resolve() == selection.path.resolve():
            raise ZonesError(f"--zones-out must not replace the polygons of --zones, got {path}: name another file")
        check_replaceable(path, "--zones-out", ZonesError, _is_own)
    with _draft(path, selection, ZoneTotals.empty(zones, ())):
        pass


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
    with _draft(path, selection, totals) as draft:
        draft.replace(path)


@contextmanager
def _draft(path: Path, selection: Selection, totals: ZoneTotals) -> Iterator[Path]:
    """The file under another name, which is removed at the end."""
    frame = _with_columns(read_frame(selection), totals)
    draft = path.with_name(f".{draft_name(path.stem)}.partial{path.suffix}")
    try:
        with writing_errors(path, "--zones-out", ZonesError):
            clear(draft)
            _write(frame, draft, path)
            yield draft
    finally:
        with suppress(OSError):
            clear(draft)


def _with_columns(frame: "GeoDataFrame", totals: ZoneTotals) -> "GeoDataFrame":
    """Append the columns of ``zones.csv`` to a frame; its own columns are renamed if they have the same names."""
    from geopandas import GeoDataFrame

    if len(frame) != len(totals.zones):
        raise ZonesError(f"{totals.zones.selection.path} has changed since it was read: run the same command again")
    columns, rows, shapes = totals.columns(), list(totals.rows()), frame.geometry
    ours = _free(columns, (), "_class")
    geometry = str(shapes.name)
    own = frame.drop(columns=shapes.name)
    own.columns = _free([str(name) for name in own.columns], (*ours, *RESERVED, geometry), "_file")
    values = {name: [row[column] for row in rows] for name, column in zip(ours, columns, strict=True)}
    whole = GeoDataFrame(own.assign(**values), geometry=shapes)
    return whole if geometry in (*whole.columns, *ours) else whole.rename_geometry(geometry)


def _free(names: Sequence[str], taken: Iterable[str], suffix: str) -> list[str]:
    """Names that differ in more than case from each other and from those taken; the suffix is added until one is free.

    >>> _free(["zone", "zone_file", "Name", "name"], ["zone"], "_file")
    ['zone_file_file', 'zone_file', 'Name', 'name_file']
    """
    used = {name.casefold() for name in taken}
    found: list[str | None] = []
    for name in names:  # names that are free keep theirs, in whatever order they come
        found.append(None if name.casefold() in used else name)
        used.add(name.casefold())
    return [_next_free(name, used, suffix) if kept is None else kept for name, kept in zip(names, found, strict=True)]


def _next_free(name: str, used: set[str], suffix: str) -> str:
    while name.casefold() in used:
        name += suffix
    used.add(name.casefold())
    return name


def _write(frame: "GeoDataFrame", draft: Path, path: Path) -> None:
    if path.suffix.lower() in PARQUET:
        frame.to_parquet(draft, index=False)
        return
    import pyogrio

    driver, options = DRIVERS[path.suffix.lower()], dict[str, Any]()
    if driver == "GeoJSON":
        frame, options = frame.to_crs(LON_LAT), {"RFC7946": "YES", "COORDINATE_PRECISION": "9"}
    if driver == "FlatGeobuf" and (frame.geometry.isna() | frame.geometry.is_empty).any():
        options = {"SPATIAL_INDEX": "NO"}  # the index takes no row without a geometry
    pyogrio.write_dataframe(frame, draft, driver=driver, layer=path.stem, **options)
    check_written(draft, len(frame))
