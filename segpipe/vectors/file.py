"""Read the geometries and columns of a vector file, and say why one cannot be written."""

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pyproj import CRS
from pyproj.exceptions import CRSError

from segpipe.errors import InstallationError, OutputError, SegpipeError, ZonesError, correct_path, of_system, one_line
from segpipe.geometry.reference import NowhereError, horizontal
from segpipe.messages.printable import and_more
from segpipe.process.extras import install
from segpipe.storage.existence import exists, is_file, is_folder, is_taken
from segpipe.storage.files import is_nearly_full
from segpipe.vectors.shapefile import check_again, check_parts
from segpipe.vectors.surfaces import Shapes, all_empty, repaired

if TYPE_CHECKING:
    import pyarrow
    from geopandas import GeoDataFrame

DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".fgb": "FlatGeobuf"}
"""GDAL's driver of the vector files that are written, by suffix."""
PARQUET = (".parquet", ".geoparquet")
"""Suffixes of GeoParquet, which pyarrow writes."""
POINTER, HEAD = b"<OGR", 4096
"""The start of an XML description of a source, and the number of bytes in which it must lie."""
SQLITE_FULL = "database or disk is full"

SHAPEFILE = (9994).to_bytes(4, "big")
"""The first bytes of a Shapefile."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
LON_LAT = "EPSG:4326"
"""CRS of GeoJSON (RFC 7946)."""

NULLABLE = {"bool": "boolean"} | {
    f"{sign}int{bits}": f"{sign.upper()}Int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
"""pandas' types of whole numbers and booleans that may be missing, by the names of NumPy and Arrow."""

SHOWN = 8
"""Maximum number of layers or columns that a message names."""


@dataclass(frozen=True)
class Selection:
    """A choice of polygons: file, layer and column."""

    path: Path
    layer: str | None = None
    column: str | None = None
    """Column with the names of zones; None: zones are numbered in the order of the file."""
    flag: str = "--zones"
    """Flag that names the file, for messages."""


def check_target(path: Path, flag: str, error: type[SegpipeError]) -> None:
    """Check that a vector file may be written here, by its suffix and its folder.

    Args:
        path: the file.
        flag: the flag that names it, for the message.
        error: raised if it may not.
    """
    if path.suffix.lower() not in (*DRIVERS, *PARQUET):
        raise error(f"{flag} must end with {', '.join((*DRIVERS, *PARQUET[:1]))}, got {path.name}: name another file")
    if not is_folder(path.absolute().parent):
        raise error(f"{flag} must lie in a folder that exists, got {path}: make {path.absolute().parent} first")


def unwritten(path: Path, error: Exception) -> str:
    """Why a vector file cannot be written, and the mend. GDAL reports a full disk only by what fails afterwards."""
    if isinstance(error, OSError) and error.errno in FULL:
        return of_system(error)
    said = one_line(error)
    if is_nearly_full(path.absolute().parent) or said.endswith(SQLITE_FULL):
        return of_system(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    if isinstance(error, OSError) and error.errno == errno.EIO:
        return of_system(error)
    if said.startswith("sqlite3_exec("):  # a statement of many lines
        said = said.rpartition(" failed: ")[2]
    return f"{getattr(error, 'strerror', None) or said}: name another file"


@contextmanager
def needing_extra(what: str = "polygons") -> Iterator[None]:
    """Turn the error of a missing library, which ``what`` needs, into one that names the extra ``zones``."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InstallationError(f"{what} need {error.name}, which is not installed: run {install('zones')}") from None


@contextmanager
def writing_errors(path: Path, flag: str, kind: type[OutputError | ZonesError]) -> Iterator[None]:
    """Turn errors of the libraries that write vector files into one line, which names the flag of the file.

    Raises:
        InstallationError: an optional dependency is missing.
        OutputError or ZonesError, as ``kind`` says: the file cannot be written.
    """
    with needing_extra():
        from pyarrow.lib import ArrowException
        from pyogrio.errors import DataLayerError, DataSourceError, FeatureError, FieldError

        try:
            yield
        except (ArrowException, DataLayerError, DataSourceError, FeatureError, FieldError, OSError, ValueError) as error:
            raise kind(f"{flag} {path} cannot be written: {unwritten(path, error)}") from error


def check_replaceable(path: Path, flag: str, kind: type[OutputError | ZonesError], is_own: Callable[[Path], bool]) -> None:
    """Check that a file does not exist, or is one that segpipe wrote.

    Raises:
        OutputError or ZonesError, as ``kind`` says: it is another one, or cannot be read.
        OSError: the file system does not say whether it exists.
    """
    if not is_taken(path):
        return
    try:
        with path.open("rb") as stream:
            stream.read(1)
    except OSError as error:
        raise kind(
            f"{flag} replaces its file, and {path} cannot be read: {of_system(error)}, or name another file"
        ) from error
    if not is_own(path):
        raise kind(f"{flag} replaces its file, and {path} was not written by segpipe, or is damaged: name another file")


@contextmanager
def vector_errors(path: Path | str) -> Iterator[None]:
    """Turn errors of the libraries that read and write vector files into one line.

    Raises:
        InstallationError: an optional dependency is missing.
        ZonesError: a file cannot be read or written.
    """
    with needing_extra():
        from pyogrio.errors import DataLayerError, DataSourceError

        try:
            yield
        except (DataLayerError, DataSourceError, OSError, ValueError, CRSError) as error:
            raise ZonesError(f"{path} cannot be read as a file of polygons: {explained(error)}") from error


def explained(error: Exception) -> str:
    """The message of a library that could not read a file, with the mend; without GDAL's hint for programmers."""
    if isinstance(error, OSError) and error.errno:
        return of_system(error)
    return f"{one_line(error).partition('; It might help')[0].rstrip('.')}: copy it again, or convert it with ogr2ogr"


def truncated(path: Path) -> str | None:
    """Describe a file that is empty, or a Shapefile that is shorter than its header says; None for all others.

    GDAL reads the polygons behind the end of such a Shapefile as rows without geometry (ESRI 1998, "The Main File Header").
    """
    if not is_file(path):
        return None
    with path.open("rb") as stream:
        head, size = stream.read(28), path.stat().st_size
    if not size:
        return f"{path} is empty (0 bytes): copy it again"
    words = int.from_bytes(head[24:28], "big") if head[:4] == SHAPEFILE else 0
    says = f"its header says {2 * words:,} bytes, and it has {size:,}"
    return f"{path} is truncated: {says}: copy it again" if size < 2 * words else None


@dataclass(frozen=True, eq=False)
class Surfaces:
    """The polygons of a file, in its order, after their repair."""

    frame: "GeoDataFrame"
    """The requested columns."""
    shapes: Shapes
    """Valid polygons in ``crs``, without heights; empty where a feature has none."""
    crs: CRS
    problems: list[list[str]]
    """Problems of each polygon."""


def read_surfaces(selection: Selection) -> Surfaces:
    """Read the polygons of a file with the chosen column, and repair them.

    Raises:
        ZonesError: no such file, layer or column, no CRS, or no polygon.
        InstallationError: an optional dependency is missing.
    """
    path, flag = selection.path, selection.flag
    if not exists(path):
        raise ZonesError(f"{flag} must be a file of polygons, and {path} does not exist: {correct_path(path)}")
    frame = read_frame(selection, [selection.column] if selection.column else [])
    crs = crs_of(frame, selection)
    if not len(frame):
        raise ZonesError(f"{flag} must hold polygons, and {path} holds nothing: name another file or layer")
    shapes, problems = repaired(np.asarray(frame.geometry.array), crs)
    if all_empty(shapes):
        raise ZonesError(f"{flag} must hold polygons, and {path} holds none: {problems[0][0]}")
    return Surfaces(frame, shapes, crs, problems)


def read_frame(selection: Selection, columns: Sequence[str] | None = None) -> "GeoDataFrame":
    """Geometries and columns of the chosen layer; ``columns``: only these, None for all.

    Raises:
        ZonesError: no such layer or column, or the file cannot be read.
    """
    try:
        return _frame(selection, columns)
    except ZonesError as error:
        if error.__cause__ is None or isinstance(error.__cause__, OSError):
            raise
        # GDAL passes on no error numbers: a storage fault that has passed looks like damage
        return _frame(selection, columns)


def _frame(selection: Selection, columns: Sequence[str] | None) -> "GeoDataFrame":
    path = selection.path
    with vector_errors(path):
        _refuse_pointer(selection)
        if (reason := truncated(path)) is not None:
            raise ZonesError(reason)
        if path.suffix.lower() in PARQUET:
            return _parquet(selection, columns)
        import pyogrio

        check_parts(path)
        layer = _layer(selection)
        info = pyogrio.read_info(path, layer=layer)
        kinds = dict(zip(map(str, info["fields"]), map(str, info["dtypes"]), strict=True))
        _check_columns(path, list(kinds), columns)
        frame = pyogrio.read_dataframe(path, layer=layer, columns=columns, on_invalid="ignore")
        check_again(path, frame, columns)
        # not all by Arrow, which reads neither curves nor texts in an unknown encoding
        return _exact(frame, kinds, lambda lost: pyogrio.read_arrow(path, layer=layer, columns=lost, read_geometry=False)[1])


def _refuse_pointer(selection: Selection) -> None:
    path, flag = selection.path, selection.flag
    if is_pointer(path):
        raise ZonesError(f"{flag} must hold its polygons, and {path} leads to other sources: convert it with ogr2ogr")


def is_pointer(path: Path) -> bool:
    """Whether a file names other sources, as a VRT or a service does: what it leads to may be a server."""
    if not is_file(path):
        return False
    with path.open("rb") as stream:
        return POINTER in stream.read(HEAD)


def _parquet(selection: Selection, columns: Sequence[str] | None) -> "GeoDataFrame":
    import geopandas
    from pyarrow.lib import ArrowException
    from pyarrow.parquet import read_schema, read_table

    path = selection.path
    if selection.layer is not None:
        raise ZonesError(f"a Parquet file has no layers, got {selection.flag}-layer {selection.layer}: leave it out")
    try:
        schema = read_schema(path)
        _check_columns(path, list(schema.names), columns)
        kinds = {column.name: str(column.type) for column in schema}
        frame = _exact(geopandas.read_parquet(path), kinds, lambda lost: read_table(path, columns=lost))
    except ArrowException as error:
        raise ZonesError(f"{path} cannot be read as a file of polygons: {one_line(error)}") from error
    return frame if columns is None else frame[[*columns, frame.geometry.name]]


def _exact(frame: "GeoDataFrame", kinds: Mapping[str, str], read: "Callable[[list[str]], pyarrow.Table]") -> "GeoDataFrame":
    """Restore whole numbers and booleans of columns with missing values, which pandas reads as floats of 53 bits.

    Args:
        frame: a layer, or some of its columns.
        kinds: type of each column of the layer.
        read: returns columns of the layer.
    """
    import pandas

    lost = [name for name, kind in kinds.items() if kind in NULLABLE and name in frame and frame[name].dtype.kind in "fO"]
    if not lost:
        return frame
    table = read(lost).to_pandas(types_mapper=lambda kind: pandas.api.types.pandas_dtype(NULLABLE[str(kind)]))
    return frame.assign(**{name: table[name].array for name in lost})


def _layer(selection: Selection) -> str:
    """Name of the chosen layer, or of the only one with geometries."""
    import pyogrio

    path, chosen, flag = selection.path, selection.layer, selection.flag
    layers = [(str(name), kind) for name, kind in pyogrio.list_layers(path)]
    spatial = [name for name, kind in layers if kind is not None]
    if chosen is not None:
        if chosen not in [name for name, _ in layers]:
            raise ZonesError(f"{path} has no layer {chosen!r}, it has {listed(spatial)}: name one with {flag}-layer")
        return chosen
    if not spatial:
        raise ZonesError(f"{flag} must hold polygons, and {path} has tables without geometries: name another file")
    if len(spatial) > 1:
        raise ZonesError(f"{path} has {len(spatial)} layers, {listed(spatial)}: name one with {flag}-layer")
    return spatial[0]


def _check_columns(path: Path, known: Sequence[str], asked: Sequence[str] | None) -> None:
    for column in asked or ():
        if column not in known:
            raise ZonesError(f"{path} has no column {column!r}, it has {listed(known)}: name one with --zone-id")


def listed(names: Sequence[str]) -> str:
    """The first names of a list, for a message."""
    return and_more(names, SHOWN) or "none"


def crs_of(frame: "GeoDataFrame", selection: Selection) -> CRS:
    """The CRS of a layer."""
    path, flag = selection.path, selection.flag
    if not hasattr(frame, "crs"):
        raise ZonesError(
            f"{flag} must hold polygons, and the layer of {path} has no geometries: name another with {flag}-layer"
        )
    if frame.crs is None:
        raise ZonesError(
            f"{flag} must have a CRS, and {path} has none: add it, as by ogr2ogr -a_srs EPSG:32633 new.gpkg {path.name}"
        )
    try:
        return horizontal(frame.crs)
    except NowhereError as error:
        raise ZonesError(f"{flag} must lie on the Earth, and {path} does not: {error}") from None
