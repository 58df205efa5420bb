"""Points of a sample in a vector file, for the interpreter; and beside it, out of sight, what the design knows of them."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segpipe.accuracy.draw import DrawnPixel
from segpipe.accuracy.matrix import read_rows
from segpipe.accuracy.population import Population
from segpipe.errors import InputError, OutputError, correct_path, of_system, one_line
from segpipe.messages.printable import printable, printable_json
from segpipe.storage.documents import DocumentError, parse_json
from segpipe.storage.existence import exists
from segpipe.storage.files import commit, output_errors, partial, remove, unlinked
from segpipe.storage.invalid import readable
from segpipe.vectors.file import LON_LAT, explained, is_pointer, needing_extra, truncated, unwritten
from segpipe.vectors.shapefile import check_again, check_parts
from segpipe.vectors.written import check_written, clear

if TYPE_CHECKING:
    from geopandas import GeoDataFrame, GeoSeries

ID, REFERENCE = "id", "reference"
DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON"}
MOST_BYTES = 2**28


class Stratum(BaseModel):
    """One stratum of a design."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    name: str
    pixels: int = Field(ge=0, le=10**15)
    area: float = Field(ge=0, le=1e15)
    """In the unit of the design."""
    sampled: int = Field(ge=0)


class Point(BaseModel):
    """One point of a design."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    id: int
    stratum: int = Field(ge=0)
    """Position in the list of strata, which are the classes of the map."""
    case: str
    row: int
    col: int
    area: float = Field(gt=0, le=1e15)
    x: float
    y: float
    crs: str


class SampleDesign(BaseModel):
    """The design of a sample: everything that estimates need besides the labels."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    form: int = 1
    map: str
    """Output folder of the run."""
    identity: str
    seed: int
    unit: str
    strata: tuple[Stratum, ...]
    points: tuple[Point, ...]


def design_path(points: Path) -> Path:
    """The file beside the points that has what an interpreter must not see."""
    return points.with_name(f"{points.stem}.design.json")


def write_sample(path: Path, population: Population, units: Sequence[DrawnPixel], seed: int, *, show: bool) -> None:
    """Write points and their design.

    Args:
        path: of the points: ``.gpkg`` or ``.geojson``.
        population: the map.
        units: the sample, in the order of the points.
        seed: of the draw.
        show: give points the class of the map and the weight, too, which an interpreter should not see.

    Raises:
        InputError: a pixel lies off the Earth.
        OutputError: a file cannot be written.
        InstallationError: an optional dependency is missing.
    """
    design = _design(population, units, seed)
    with _vector_errors(OutputError, f"{path} cannot be written"):
        frame = _frame(path, design, show=show)
    with _drafted(frame, path) as draft:
        with output_errors(path):
            path.unlink(missing_ok=True)  # so that no points lie beside the design of others
        _write_design(design_path(path), design)
        try:
            with output_errors(path):
                commit(draft, path)
        except OutputError:
            remove(design_path(path))  # a leftover would make the same command fail
            raise


def _write_design(path: Path, design: SampleDesign) -> None:
    text = printable_json(json.dumps(design.model_dump(), ensure_ascii=False) + "\n")
    with output_errors(path):
        draft = unlinked(partial(path))
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
        commit(draft, path)


def _design(population: Population, units: Sequence[DrawnPixel], seed: int) -> SampleDesign:
    if off := next((unit for unit in units if not unit.area > 0), None):
        raise InputError(
            f"points must lie on the Earth, and pixel {off.row}, {off.col} of {printable(off.case)} does not: give pixels "
            "off the Earth no data in the input, and run it again"
        )
    sampled = np.bincount([unit.stratum for unit in units], minlength=len(population.classes))
    sizes = zip(population.classes, population.pixels.sum(axis=0), population.areas.sum(axis=0), sampled, strict=True)
    strata = [Stratum(name=name, pixels=int(p), area=float(a), sampled=int(n)) for name, p, a, n in sizes]
    points = [Point(id=number, **asdict(unit)) for number, unit in enumerate(units, 1)]
    facts = {"map": str(population.store), "identity": population.identity, "seed": seed, "unit": population.unit}
    return SampleDesign(strata=tuple(strata), points=tuple(points), **facts)


def _frame(path: Path, design: SampleDesign, *, show: bool) -> "GeoDataFrame":
    import geopandas

    crs = {point.crs for point in design.points}
    target = crs.pop() if len(crs) == 1 and path.suffix.lower() != ".geojson" else LON_LAT
    columns: dict[str, Any] = {ID: [point.id for point in design.points], REFERENCE: [None] * len(design.points)}
    if show:
        names = [design.strata[point.stratum].name for point in design.points]
        weights = [design.strata[point.stratum] for point in design.points]
        columns |= {"map": names, "stratum": names, "weight": [one.pixels / one.sampled for one in weights]}
    frame = geopandas.GeoDataFrame(columns, geometry=_placed(design.points, target), crs=target)
    return frame.astype({REFERENCE: "object"})


def _placed(points: Sequence[Point], target: str) -> "GeoSeries":
    """Centres of pixels in one CRS, in the order of the points."""
    import geopandas
    import pandas as pd

    series = []
    for crs in {point.crs for point in points}:
        own = {number: point for number, point in enumerate(points) if point.crs == crs}
        xy = geopandas.points_from_xy([p.x for p in own.values()], [p.y for p in own.values()], crs=crs)
        series.append(geopandas.GeoSeries(xy, index=list(own)).to_crs(target))
    return pd.concat(series).sort_index()


@contextmanager
def _drafted(frame: "GeoDataFrame", path: Path) -> Iterator[Path]:
    """A file of points beside its place; gone afterwards, if it was not moved there."""
    draft = path.with_name(f".{path.stem}.partial{path.suffix}")
    driver = DRIVERS[path.suffix.lower()]
    options = {"RFC7946": "YES"} if driver == "GeoJSON" else {}
    try:
        with _vector_errors(OutputError, f"{path} cannot be written", path):
            import pyogrio

            clear(draft)
            pyogrio.write_dataframe(frame, draft, driver=driver, layer=path.stem, **options)
            check_written(draft, len(frame))
        yield draft
    finally:
        clear(draft)


@contextmanager
def _vector_errors(kind: type[InputError] | type[OutputError], what: str, made: Path | None = None) -> Iterator[None]:
    """Turn errors of libraries into one line; ``made`` is the file that is written."""
    with needing_extra("points"):
        from pyogrio.errors import DataLayerError, DataSourceError, FeatureError, FieldError, GeometryError

        try:
            yield
        except (DataLayerError, DataSourceError, FeatureError, FieldError, GeometryError, OSError, ValueError) as error:
            why = unwritten(made, error) if made else explained(error) if kind is InputError else one_line(error)
            raise kind(f"{what}: {why}") from error


@dataclass(frozen=True, eq=False)
class Labelled:
    """Rows of a file of labelled points."""

    labels: tuple[str, ...]
    """Text of the interpreter for each point; empty if there is none."""
    ids: tuple[int, ...] | None
    """Numbers of the points in their design; None if the file has none."""
    frame: Any = None
    """Table with geometries; None for a CSV file."""


def read_labels(path: Path, column: str) -> Labelled:
    """Labels of a vector file, or of a CSV file with the numbers of the points.

    Raises:
        InputError: it cannot be read, or has no such column.
        InstallationError: an optional dependency is missing.
    """
    if path.suffix.lower() == ".csv":
        head, *rows = read_rows(path)
        names = [name.strip() for name in head]
        _check_column(path, names, column)
        at = names.index(ID) if ID in names else None
        labels = tuple(label_text(row[names.index(column)]) for row in rows)
        return Labelled(labels, None if at is None else _ids(path, [row[at] for row in rows]))
    frame = read_frame(path, column)
    ids = _ids(path, frame[ID].tolist()) if ID in frame.columns else None
    return Labelled(tuple(map(label_text, frame[column].tolist())), ids, frame)


def read_frame(path: Path, column: str) -> "GeoDataFrame":
    """A vector file that has a column.

    Raises:
        InputError: it cannot be read, or has no such column.
        InstallationError: an optional dependency is missing.
    """
    with _vector_errors(InputError, f"{path} cannot be read as a vector file"):
        import geopandas

        if not exists(path):
            raise InputError(f"{path} must be a vector file, and does not exist: {correct_path(path)}")
        if is_pointer(path):
            raise InputError(f"{path} must hold its data, and leads to other sources: convert it with ogr2ogr")
        if (reason := truncated(path)) is not None:
            raise InputError(reason)

        check_parts(path)
        parquet = path.suffix.lower() in (".parquet", ".geoparquet")
        frame = geopandas.read_parquet(path) if parquet else geopandas.read_file(path, engine="pyogrio")
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise InputError(f"{path} must have geometries, and has none")
    check_again(path, frame, None)
    _check_column(path, [str(name) for name in frame.columns], column)
    return frame.reset_index(drop=True)  # Parquet may keep one of its own


def _check_column(path: Path, names: Sequence[str], column: str) -> None:
    if column not in names:
        raise InputError(f"{path} must have the column {column!r}, and has {', '.join(names)}")


def label_text(value: Any) -> str:
    """A label as text; whole numbers without a point, as a spreadsheet or a GeoPackage may give ids of classes."""
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def _ids(path: Path, values: Sequence[Any]) -> tuple[int, ...]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = [math.nan]
    if not all(number.is_integer() for number in numbers):
        raise InputError(f"{path} must have a whole number in each row of the column {ID!r}")
    ids = tuple(map(int, numbers))
    if len(set(ids)) < len(ids):
        raise InputError(f"{path} must have each {ID!r} once, and some are there twice")
    return ids


def read_design(points: Path) -> SampleDesign | None:
    """The design beside a file of points; None if there is none.

    Raises:
        InputError: it cannot be read, or is damaged.
    """
    path = design_path(points)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {of_system(error)}") from None
    try:
        design = SampleDesign.model_validate(parse_json(data, most=MOST_BYTES))
    except DocumentError as error:
        raise InputError(f"{path} {error}") from None
    except ValidationError as error:
        raise InputError(f"{path} must be the design of a sample, and is not: {readable(error)}") from None
    if any(point.stratum >= len(design.strata) for point in design.points):
        raise InputError(f"{path} must be the design of a sample, and has points of no stratum")
    return design
