"""The polygons of a vector file, with a list of problems for each: nothing is left out silently."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS
from pyproj.exceptions import CRSError

from segpipe.errors import InstallationError, ZonesError, one_line
from segpipe.geometry.ground import NowhereError, horizontal
from segpipe.process.extras import install

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

PARQUET = (".parquet", ".geoparquet")
SURFACES = (3, 6)
"""GEOS type ids of Polygon and MultiPolygon."""
POINTER, HEAD = b"<OGR", 4096
"""The start of an XML description of a source, and the number of bytes in which it must lie."""
SHAPEFILE = (9994).to_bytes(4, "big")
"""The first bytes of a Shapefile."""
SHOWN = 8
"""Maximum number of layers or columns that a message names."""
MOST_DEGREES = 180.0
"""A ring's edge that spans more degrees of longitude than this takes the other way, across the antimeridian."""

Shapes = NDArray[Any]
"""Shapely geometries; ``dtype`` is object."""


@dataclass(frozen=True)
class Selection:
    """A choice of polygons: file, layer and column."""

    path: Path
    layer: str | None = None
    column: str | None = None
    """Column with the names of zones; None: zones are numbered in the order of the file."""


@dataclass(frozen=True, eq=False)
class Zones:
    """The polygons of a file, in its order."""

    selection: Selection
    names: tuple[str, ...]
    """Value of the column of each polygon, or its number from 1."""
    shapes: Shapes
    """Valid polygons in ``crs``, without heights; empty if a zone has none."""
    crs: CRS
    problems: tuple[tuple[str, ...], ...]
    """Problems of each polygon."""
    digest: str = field(repr=False)
    """Hash of shapes and CRS."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Minimum x and y, maximum x and y, over all polygons."""
        import shapely

        west, south, east, north = shapely.total_bounds(self.shapes)
        return float(west), float(south), float(east), float(north)


@contextmanager
def vector_errors(path: Path | str) -> Iterator[None]:
    """Turn errors of the libraries that read and write vector files into one line.

    Raises:
        InstallationError: an optional dependency is missing.
        ZonesError: a file cannot be read or written.
    """
    try:
        from pyogrio.errors import DataLayerError, DataSourceError
    except ModuleNotFoundError as error:
        raise missing(error) from None
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing(error) from None
    except (DataLayerError, DataSourceError, OSError, ValueError, CRSError) as error:
        raise ZonesError(f"{path} cannot be read as a file of polygons: {explained(error)}") from error


def explained(error: Exception) -> str:
    """The message of a library that could not read a file, with the mend; without GDAL's hint for programmers."""
    return f"{one_line(error).partition('; It might help')[0].rstrip('.')}: copy it again, or convert it with ogr2ogr"


def truncated(path: Path) -> str | None:
    """Describe a file that is empty, or a Shapefile that is shorter than its header says; None for all others.

    GDAL reads the polygons behind the end of such a Shapefile as rows without geometry (ESRI 1998, "The Main File Header").
    """
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        head, size = stream.read(28), path.stat().st_size
    if not size:
        return f"{path} is empty (0 bytes): copy it again"
    words = int.from_bytes(head[24:28], "big") if head[:4] == SHAPEFILE else 0
    says = f"its header says {2 * words:,} bytes, and it has {size:,}"
    return f"{path} is truncated: {says}: copy it again" if size < 2 * words else None


def missing(error: ModuleNotFoundError) -> InstallationError:
    """The error that asks to install the extra ``zones``."""
    return InstallationError(f"zones need {error.name}, which is not installed: run {install('zones')}")


def read_zones(selection: Selection) -> Zones:
    """Read the polygons of a file and repair them.

    Raises:
        ZonesError: no such file, layer or column, no CRS, or no polygon.
        InstallationError: an optional dependency is missing.
    """
    if not selection.path.exists():
        raise ZonesError(f"--zones must be a file of polygons, and {selection.path} does not exist: correct the path")
    frame = read_frame(selection, [selection.column] if selection.column else [])
    crs = _crs(frame, selection.path)
    if not len(frame):
        raise ZonesError(f"--zones must hold polygons, and {selection.path} holds nothing: name another file or layer")
    names, named_problems = _names(frame, selection.column)
    shapes, problems = repaired(np.asarray(frame.geometry.array), crs)
    if _all_empty(shapes):
        raise ZonesError(f"--zones must hold polygons, and {selection.path} holds none: {problems[0][0]}")
    both = tuple(tuple(a) + tuple(b) for a, b in zip(named_problems, problems, strict=True))
    return Zones(selection, names, shapes, crs, both, _digest(shapes, crs))


def read_frame(selection: Selection, columns: Sequence[str] | None = None) -> "GeoDataFrame":
    """Geometries and columns of the chosen layer; ``columns``: only these, None for all.

    Raises:
        ZonesError: no such layer or column, or the file cannot be read.
    """
    path = selection.path
    with vector_errors(path):
        _refuse_pointer(path)
        if (reason := truncated(path)) is not None:
            raise ZonesError(reason)
        if path.suffix.lower() in PARQUET:
            return _parquet(selection, columns)
        import pyogrio

        layer = _layer(path, selection.layer)
        known = list(pyogrio.read_info(path, layer=layer)["fields"])
        _check_columns(path, known, columns)
        return pyogrio.read_dataframe(path, layer=layer, columns=columns, on_invalid="ignore")


def _refuse_pointer(path: Path) -> None:
    if is_pointer(path):
        raise ZonesError(f"--zones must hold its polygons, and {path} leads to other sources: convert it with ogr2ogr")


def is_pointer(path: Path) -> bool:
    """Whether a file names other sources, as a VRT or a service does: what it leads to may be a server."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return POINTER in stream.read(HEAD)


def _parquet(selection: Selection, columns: Sequence[str] | None) -> "GeoDataFrame":
    import geopandas
    from pyarrow.lib import ArrowException
    from pyarrow.parquet import read_schema

    path = selection.path
    if selection.layer is not None:
        raise ZonesError(f"a Parquet file has no layers, got --zones-layer {selection.layer}: leave it out")
    try:
        _check_columns(path, list(read_schema(path).names), columns)
        frame = geopandas.read_parquet(path)
    except ArrowException as error:
        raise ZonesError(f"{path} cannot be read as a file of polygons: {one_line(error)}") from error
    return frame if columns is None else frame[[*columns, frame.geometry.name]]


def _layer(path: Path, chosen: str | None) -> str:
    """Name of the chosen layer, or of the only one with geometries."""
    import pyogrio

    layers = [(str(name), kind) for name, kind in pyogrio.list_layers(path)]
    spatial = [name for name, kind in layers if kind is not None]
    if chosen is not None:
        if chosen not in [name for name, _ in layers]:
            raise ZonesError(f"{path} has no layer {chosen!r}, it has {listed(spatial)}: name one with --zones-layer")
        return chosen
    if not spatial:
        raise ZonesError(f"--zones must hold polygons, and {path} has tables without geometries: name another file")
    if len(spatial) > 1:
        raise ZonesError(f"{path} has {len(spatial)} layers, {listed(spatial)}: name one with --zones-layer")
    return spatial[0]


def _check_columns(path: Path, known: Sequence[str], asked: Sequence[str] | None) -> None:
    for column in asked or ():
        if column not in known:
            raise ZonesError(f"{path} has no column {column!r}, it has {listed(known)}: name one with --zone-id")


def listed(names: Sequence[str]) -> str:
    """The first names of a list, for a message."""
    more = f" and {len(names) - SHOWN} more" * (len(names) > SHOWN)
    return (", ".join(names[:SHOWN]) or "none") + more


def _crs(frame: "GeoDataFrame", path: Path) -> CRS:
    """The CRS of a layer."""
    if not hasattr(frame, "crs"):
        raise ZonesError(
            f"--zones must hold polygons, and the layer of {path} has no geometries: name another with --zones-layer"
        )
    if frame.crs is None:
        raise ZonesError(
            f"--zones must have a CRS, and {path} has none: add it, as by ogr2ogr -a_srs EPSG:32633 new.gpkg {path.name}"
        )
    try:
        return horizontal(frame.crs)
    except NowhereError as error:
        raise ZonesError(f"--zones must lie on the Earth, and {path} does not: {error}") from None


def _names(frame: "GeoDataFrame", column: str | None) -> tuple[tuple[str, ...], list[list[str]]]:
    """The name of each zone, and problems with the names."""
    if column is None:
        return tuple(str(k + 1) for k in range(len(frame))), [[] for _ in range(len(frame))]
    import pandas

    values = frame[column]
    names = ["" if lost else _name(value) for value, lost in zip(values, pandas.isna(values), strict=True)]
    count = pandas.Series(names).value_counts()
    return tuple(names), [["no id"] if not name else ["duplicated id"] * int(count[name] > 1) for name in names]


def _name(value: Any) -> str:
    """An id as text; a column of numbers with missing values holds floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _all_empty(shapes: Shapes) -> bool:
    import shapely

    return bool(shapely.is_empty(shapes).all())


def repaired(shapes: Shapes, crs: CRS) -> tuple[Shapes, list[list[str]]]:
    """Valid polygons without heights, and the problems of each."""
    import shapely

    problems: list[list[str]] = [[] for _ in shapes]
    shapes = shapely.force_2d(shapes)
    for which, repair in (
        (_absent, _emptied),
        (_endless, _emptied),
        (_not_surfaces, surfaces),
        (_crossing(crs), _unwrapped(crs)),
        (_invalid, _made_valid),
        (_flat, _emptied),
    ):
        found, words = which(shapes)
        at = np.flatnonzero(found)
        for k, text in zip(at, words, strict=True):
            problems[k].append(text)
        if at.size:
            shapes[at] = repair(shapes[at])
    return shapes, problems


Found = tuple[NDArray[np.bool_], list[str]]


def _emptied(shapes: Shapes) -> Shapes:
    import shapely

    return np.full(len(shapes), shapely.Polygon(), object)


def _absent(shapes: Shapes) -> Found:
    import shapely

    found = shapely.is_missing(shapes) | shapely.is_empty(shapes)
    return found, ["no geometry" if shape is None else "empty geometry" for shape in shapes[found]]


def _endless(shapes: Shapes) -> Found:
    """Select geometries with coordinates that are not finite."""
    import shapely

    coordinates, index = shapely.get_coordinates(shapes, return_index=True)
    found = np.zeros(len(shapes), np.bool_)
    found[index[~np.isfinite(coordinates).all(axis=1)]] = True
    return found, ["coordinates are not finite"] * int(found.sum())


def _not_surfaces(shapes: Shapes) -> Found:
    import shapely

    found = ~np.isin(shapely.get_type_id(shapes), SURFACES) & ~shapely.is_empty(shapes)
    words = [
        f"{shape.geom_type} instead of a polygon" if shapely.is_empty(own) else f"{shape.geom_type}: only its polygons count"
        for shape, own in zip(shapes[found], surfaces(shapes[found]), strict=True)
    ]
    return found, words


def surfaces(shapes: Shapes) -> Shapes:
    """Reduce each geometry to its polygons, merged into one geometry."""
    import shapely

    return np.array([_polygons_of(shape) for shape in shapes] or [shapely.Polygon()], object)[: len(shapes)]


def _polygons_of(shape: Any) -> Any:
    import shapely

    parts = (
        shapely.get_parts(shapely.get_parts(shape)) if shape.geom_type == "GeometryCollection" else shapely.get_parts(shape)
    )
    kept = [part for part in np.atleast_1d(parts) if part.geom_type == "Polygon"]
    return shapely.union_all(kept) if kept else shapely.Polygon()


def _crossing(crs: CRS) -> Callable[[Shapes], Found]:
    """Select rings with an edge over more than half a turn of longitude: they cross the antimeridian."""

    def found(shapes: Shapes) -> Found:
        import shapely

        crossing = np.zeros(len(shapes), np.bool_)
        if not crs.is_geographic:
            return crossing, []
        width = shapely.bounds(shapes)[:, 2] - shapely.bounds(shapes)[:, 0]
        wide = np.flatnonzero(width > MOST_DEGREES)
        crossing[wide] = [any(_leaps(ring) for ring in _rings(shape)) for shape in shapes[wide]]
        return crossing, ["crosses the antimeridian: long edges taken the short way"] * int(crossing.sum())

    return found


def _rings(shape: Any) -> Iterator[Any]:
    import shapely

    yield from shapely.get_rings(shape)


def _leaps(ring: Any) -> bool:
    import shapely

    steps = np.abs(np.diff(shapely.get_coordinates(ring)[:, 0]))
    return bool(((steps > MOST_DEGREES) & (steps < 2 * MOST_DEGREES)).any())


def _unwrapped(crs: CRS) -> Callable[[Shapes], Shapes]:
    """Shift western longitudes of rings that cross the antimeridian east by a turn."""
    del crs

    def unwrapped(shapes: Shapes) -> Shapes:
        import shapely

        def moved(coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.column_stack([coordinates[:, 0] % (2 * MOST_DEGREES), coordinates[:, 1]])

        return np.asarray(shapely.transform(shapes, moved))

    return unwrapped


def _invalid(shapes: Shapes) -> Found:
    import shapely

    found = ~shapely.is_valid(shapes)
    return found, [f"repaired: {reason}" for reason in shapely.is_valid_reason(shapes[found])]


def _made_valid(shapes: Shapes) -> Shapes:
    import shapely

    return surfaces(shapely.make_valid(shapes))


def _flat(shapes: Shapes) -> Found:
    import shapely

    found = (shapely.area(shapes) == 0) & ~shapely.is_empty(shapes)
    return found, ["no area"] * int(found.sum())


def _digest(shapes: Shapes, crs: CRS) -> str:
    import shapely

    found = hashlib.sha256(crs.to_wkt().encode())
    for one in shapely.to_wkb(shapes):
        found.update(one)
    return found.hexdigest()
