"""Vector files that are written batch by batch, and appear whole or not at all."""

import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pyproj import CRS

from segpipe.array_types import Float
from segpipe.errors import OutputError, SegpipeError, SettingsError
from segpipe.geometry.grid import M2_PER_HA
from segpipe.messages.printable import one_row
from segpipe.pipeline.decision import CONFIDENCE_TOP
from segpipe.polygons.case import Features
from segpipe.polygons.geojson import columns_of, write_geojson
from segpipe.results.overlap.finished import Classes
from segpipe.storage.files import commit, draft_name
from segpipe.vectors.file import DRIVERS, PARQUET, check_replaceable, check_target, writing_errors
from segpipe.vectors.written import check_written, clear

if TYPE_CHECKING:
    import pyarrow


COLUMNS = ("case", "number", "class_id", "class_name", "area_ha", "area_m2", "pixels", "mean_confidence")
GEOMETRY = "geometry"
MODULES = ("cc3d", "pyarrow", "pyogrio", "shapely")
ROWS = 2**16
"""Rows that are written at once."""
DIGITS = 6
PARQUET_VERSION = "1.1.0"
"""Version of the GeoParquet specification."""
DATED = "1970-01-01T00:00:00Z"
"""Date of change in a GeoPackage: the same polygons give the same bytes."""


@dataclass(frozen=True)
class VectorFile:
    """A file to write."""

    path: Path
    crs: CRS | None
    """None: coordinates are pixels."""
    multi: bool
    """Whether geometries are multipolygons."""

    @property
    def kind(self) -> str:
        """Type of geometry, by the name that GDAL gives it."""
        return "MultiPolygon" if self.multi else "Polygon"


def check_path(path: Path) -> None:
    """Check a path before the computation.

    Raises:
        SettingsError: its suffix is unknown, its folder is missing, or its file was not written by ``segpipe polygons``.
        InstallationError: an optional dependency is missing.
    """
    check_target(path, "--output", SettingsError)
    with writing_errors(path, "--output", OutputError):
        for module in MODULES:  # fail now rather than at the first mask
            import_module(module)
        check_replaceable(path, "--output", OutputError, _is_own)


def _is_own(path: Path) -> bool:
    """Whether a file has our columns."""
    from pyarrow.lib import ArrowException
    from pyarrow.parquet import read_schema
    from pyogrio import read_info
    from pyogrio.errors import DataLayerError, DataSourceError

    try:
        parquet = path.suffix.lower() in PARQUET
        known = columns_of(path)  # read_info reads a GeoJSON file to its end
        columns = read_schema(path).names if parquet else known or list(read_info(path)["fields"])
    except (ArrowException, DataLayerError, DataSourceError, OSError):
        return False
    return {*COLUMNS} <= {*columns}


def schema() -> "pyarrow.Schema":
    """Names and types of the columns."""
    import pyarrow

    text, integer, number = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
    kinds = (text, integer, pyarrow.int32(), text, number, number, integer, number)
    return pyarrow.schema([*zip(COLUMNS, kinds, strict=True), (GEOMETRY, pyarrow.binary())])


@dataclass(frozen=True)
class CaseRows:
    """Rows of one case."""

    name: str
    classes: Classes
    first: int
    """Number of the first one."""

    def table(self, features: Features) -> "pyarrow.RecordBatch":
        """Columns of some polygons."""
        import pyarrow
        import shapely

        found, count = features.table, len(features)
        where = found.kind - 1
        area = rounded(found.area) if "area" in features.known else None
        sure = (
            np.round(found.confidence / (found.pixels * CONFIDENCE_TOP), DIGITS) if "confidence" in features.known else None
        )
        columns = (
            pyarrow.repeat(one_row(self.name), count),
            np.arange(self.first, self.first + count),
            np.array([number for number, _ in self.classes])[where],
            pyarrow.array([one_row(name) for _, name in self.classes]).take(pyarrow.array(where)),
            None if area is None else rounded(area / M2_PER_HA),
            area,
            found.pixels,
            sure,
            shapely.to_wkb(features.shapes),
        )
        own = schema()
        arrays = [
            pyarrow.nulls(count, kind) if one is None else pyarrow.array(one, kind) if isinstance(one, np.ndarray) else one
            for one, kind in zip(columns, own.types, strict=True)
        ]
        return pyarrow.RecordBatch.from_arrays(arrays, schema=own)


def rounded(amounts: Float) -> Float:
    """Round to ten digits, as tables of areas: sums that differ in order alone are the same then."""
    with np.errstate(divide="ignore"):
        digits = np.where(amounts > 0, np.floor(np.log10(amounts)), 0.0)
    return np.asarray([round(value, 9 - int(place)) for value, place in zip(amounts.tolist(), digits, strict=True)])


def write(target: VectorFile, batches: "Iterable[pyarrow.RecordBatch]") -> None:
    """Write rows; the file has its name when it is complete.

    Raises:
        OutputError: it cannot be written.
    """
    path = target.path
    draft = path.with_name(f".{draft_name(path.stem)}.partial{path.suffix}")
    try:
        with writing_errors(path, "--output", OutputError):
            clear(draft)
            WRITERS.get(path.suffix.lower(), _write_with_gdal)(target, draft, _regrouped(batches))
            commit(draft, path)
    finally:
        clear(draft)


def _regrouped(batches: "Iterable[pyarrow.RecordBatch]") -> "Iterator[pyarrow.RecordBatch]":
    """The same rows in groups of ``ROWS``, so that files do not depend on how the polygons came."""
    import pyarrow

    waiting, count = list[Any](), 0
    for batch in batches:
        waiting.append(batch)
        count += len(batch)
        while count >= ROWS:
            table = pyarrow.Table.from_batches(waiting)
            yield from table.slice(0, ROWS).combine_chunks().to_batches()
            count -= ROWS
            waiting = table.slice(ROWS).to_batches()
    if count:
        yield from pyarrow.Table.from_batches(waiting).combine_chunks().to_batches()


def _write_parquet(target: VectorFile, draft: Path, batches: "Iterator[pyarrow.RecordBatch]") -> None:
    from pyarrow.parquet import ParquetWriter

    bounds = _Bounds()
    with ParquetWriter(draft, schema(), compression="zstd") as writer:
        for batch in batches:
            bounds.add(batch)
            writer.write_batch(batch, row_group_size=ROWS)
        writer.add_key_value_metadata({"geo": json.dumps(_geo(target, bounds.found))})


class _Bounds:
    """Least and largest coordinates."""

    def __init__(self) -> None:
        self.found: list[float] | None = None

    def add(self, batch: "pyarrow.RecordBatch") -> None:
        import shapely

        own = shapely.total_bounds(shapely.from_wkb(batch.column(GEOMETRY).to_numpy(zero_copy_only=False)))
        both = own if self.found is None else [*np.minimum(self.found[:2], own[:2]), *np.maximum(self.found[2:], own[2:])]
        self.found = [float(value) for value in both]


def _geo(target: VectorFile, bounds: list[float] | None) -> dict[str, Any]:
    """Metadata of a GeoParquet file."""
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": [target.kind], "orientation": "counterclockwise"}
    column["crs"] = None if target.crs is None else target.crs.to_json_dict()
    column |= {} if bounds is None else {"bbox": bounds}
    return {"version": PARQUET_VERSION, "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}


def _write_geojson(target: VectorFile, draft: Path, batches: "Iterator[pyarrow.RecordBatch]") -> None:
    write_geojson(draft, COLUMNS, batches, on_earth=target.crs is not None)


def _write_with_gdal(target: VectorFile, draft: Path, batches: "Iterator[pyarrow.RecordBatch]") -> None:
    import pyarrow
    import pyogrio

    driver = DRIVERS[target.path.suffix.lower()]
    raised, rows = list[BaseException](), list[int]()
    reader = pyarrow.RecordBatchReader.from_batches(schema(), _noting(batches, raised, rows))
    names = {"driver": driver, "layer": target.path.stem, "geometry_name": GEOMETRY, "geometry_type": target.kind}
    with _date(pyogrio.set_gdal_config_options), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")
        try:
            pyogrio.write_arrow(reader, draft, crs=_wkt(target), **names)
        finally:
            if raised:
                raise raised[0] from None
    check_written(draft, sum(rows))


def _wkt(target: VectorFile) -> str | None:
    return None if target.crs is None else str(target.crs.to_wkt())


def _noting(
    batches: "Iterator[pyarrow.RecordBatch]", raised: list[BaseException], rows: list[int]
) -> "Iterator[pyarrow.RecordBatch]":
    """Pass batches on, and note their row counts and our own errors, which pyogrio would report as errors of the driver."""
    try:
        for batch in batches:
            rows.append(len(batch))
            yield batch
    except (SegpipeError, KeyboardInterrupt) as error:
        raised.append(error)
        raise


@contextmanager
def _date(configure: Callable[[dict[str, str | None]], None]) -> Iterator[None]:
    configure({"OGR_CURRENT_DATE": DATED})
    try:
        yield
    finally:
        configure({"OGR_CURRENT_DATE": None})


WRITERS = {".geojson": _write_geojson, **dict.fromkeys(PARQUET, _write_parquet)}
