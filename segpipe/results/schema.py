"""The record of a case: its fields, its JSON, and the schema versions that can be read."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, Strict, TypeAdapter, ValidationError
from pydantic_core.core_schema import CoreSchema, with_default_schema

from segpipe.formats.source import Scene
from segpipe.storage.documents import DocumentError, Text, parse_json
from segpipe.storage.invalid import readable

SCHEMA = 2
"""Schema of new records. Schema 1 had no number, ``areas`` at the top level, and the CRS next to the shape of the input."""

BELIEVABLE = 1000
"""From this number on, a schema counts as damage and not as a later version."""

Values = dict[str, Any]
"""A JSON object."""

Rows = Sequence[Mapping[str, Any]]
"""A table: one mapping from column to value per row."""

T = TypeVar("T")


class _ElseNone:
    """Validates an invalid value as None, without calling Python code."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return with_default_schema(handler(source), default=None, on_error="default")


Optionally = Annotated[T | None, _ElseNone()]
"""A field on which no decision depends: None if it is missing or has another type."""

Count = Annotated[int, Strict(), Field(ge=0)]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Flag = Annotated[bool, Strict()]


def _with_path(file: Values) -> Values:
    if not isinstance(file.get("path"), str):
        raise ValueError("must have a path")
    return file


FileIdentity = Annotated[dict[str, Any], AfterValidator(_with_path)]
"""``path``, and the values that identify a version of the file, as in ``formats/identity.py``."""


@dataclass(frozen=True, slots=True)
class RecordedInput:
    """The input of the case."""

    path: Text
    """Path of the input, with links resolved."""
    shape: Annotated[tuple[Annotated[int, Strict(), Field(gt=0)], ...], Field(min_length=1)]
    """Shape of the case's own grid, slowest axis first."""
    files: tuple[FileIdentity, ...]
    format: Text = "raster"
    """Name of the format."""
    grid: Optionally[dict[str, Any]] = None
    """The grid of the array; fields depend on the format: ``crs`` for a raster; ``affine``, ``spacing``, ``unit`` and
    ``orientation`` for a volume."""
    scene: Optionally[dict[str, str]] = None
    """Acquisition time and sensor; not written if unknown."""

    def as_json(self) -> Values:
        absent = set() if self.scene else {"scene"}
        return {key: getattr(self, key) for key in self.__slots__ if key not in absent}


BRIEF = re.compile(r"date|time|satellite|platform|spacecraft|constellation|sensor|instrument|mission|cloud", re.IGNORECASE)
MOST_BRIEF, BRIEF_CHARACTERS = 12, 100
"""Keys of acquisition time and sensor; most of them in a record, and their longest value."""


def brief(scene: Scene) -> dict[str, str]:
    """The scene metadata that a record holds: acquisition time and sensor."""
    tags = {key: value for domain in scene.values() for key, value in domain.items()}
    short = {key: value for key, value in sorted(tags.items()) if BRIEF.search(key) and len(value) <= BRIEF_CHARACTERS}
    return dict(list(short.items())[:MOST_BRIEF])


@dataclass(frozen=True, slots=True)
class RecordedModel:
    """The model that inferred the case."""

    sha256: Text
    path: Optionally[str] = None
    contract: Optionally[str] = None
    """Source of the contract."""
    models: Optionally[list[dict[str, str]]] = None
    """Path, hash and source of the contract of each model whose scores were averaged; not written if there is one."""

    def as_json(self) -> Values:
        absent = {"models"} if self.models is None else set()
        return {key: getattr(self, key) for key in self.__slots__ if key not in absent}


@dataclass(frozen=True, slots=True)
class Amount:
    """Pixels and area that a class, or all valid pixels, cover."""

    pixels: Count
    area: Number | None
    unit: Text
    """Unit of ``area``; ``px`` if there is no area."""


@dataclass(frozen=True, slots=True)
class AreaRow(Amount):
    """A row of ``areas.csv`` without the case."""

    class_id: Annotated[int, Strict()] | None
    """None for nodata."""
    class_name: Text
    share: Number | None


_AREA_ROWS = TypeAdapter(tuple[AreaRow, ...])


def _with_areas(statistics: dict[str, Rows]) -> dict[str, Rows]:
    _AREA_ROWS.validate_python(statistics.get("areas"))
    return statistics


_Tables = Annotated[dict[str, list[dict[str, Any]]], AfterValidator(_with_areas)]
"""The rows of each statistic, by its name; ``areas`` is always there."""


@dataclass(frozen=True, slots=True)
class Record:
    """Everything known about a finished case: input, model, settings and results."""

    case: Text
    segpipe: Text
    """Version of segpipe."""
    input: RecordedInput
    model: RecordedModel
    settings: dict[str, Any]
    """Settings that change labels."""
    confidence: Flag
    outputs: tuple[Text, ...]
    """Names of the output files, relative to the output folder."""
    valid: Amount
    statistics: _Tables
    verified: Optionally[Flag] = None
    """Whether the input was compared with its checksums."""
    device: Optionally[dict[str, Any]] = None
    windows: Optionally[Count] = None
    """Number of windows that cover the case."""
    inferred: Optionally[Count] = None
    """Number of windows with a valid pixel; if the case was cut, some count twice."""
    seconds: Optionally[Number] = None
    sizes: Optionally[dict[str, Optionally[Count]]] = None
    """Size of each mask and confidence in bytes, by name."""
    nodata: Optionally[Annotated[int, Strict()]] = None
    notes: Optionally[tuple[str, ...]] = None
    lesions: Optionally[dict[str, Any]] = None
    """Rule of the components in ``statistics.lesions``, and numbers of unlisted ones; not written if not measured."""
    uids: Optionally[dict[str, Any]] = None
    """UIDs ``read`` and ``written``; not written for formats without UIDs."""
    time: Optionally[str] = None
    """When the files were complete, in UTC; only with ``uids``: the time of the record's file changes if it is copied."""
    aoi: Optionally[dict[str, Any]] = None
    """File and digest of the area of interest, and the pixels and area inside it; not written if there was none."""
    thumbnail: Text | None = None
    """The name in ``outputs`` of a small picture of the mask; not written if there is none."""

    @property
    def areas(self) -> Rows:
        """Rows of ``areas.csv`` without the case."""
        return self.statistics["areas"]

    def as_json(self) -> Values:
        """The record as JSON; ``parse_record`` returns an equal record from it."""
        absent = {"case", *(key for key in ("aoi", "lesions", "thumbnail", "time", "uids") if getattr(self, key) is None)}
        values = {key: getattr(self, key) for key in self.__slots__ if key not in absent}
        nested = {"input": self.input.as_json(), "model": self.model.as_json(), "valid": asdict(self.valid)}
        return {"case": self.case, "schema": SCHEMA, **values, **nested}


class LaterSchemaError(DocumentError):
    """The record was written by a later version of segpipe."""


def parse_record(data: bytes) -> Record:
    """Parse a record of any schema up to ``SCHEMA``.

    Raises:
        DocumentError: the data is not JSON, or not a complete record.
        LaterSchemaError: the schema is later than ``SCHEMA``.
    """
    values = parse_json(data)
    if not isinstance(values, dict):
        raise DocumentError("is not a record: it must be an object")
    try:
        return _RECORD.validate_python(_reader(values)(values))
    except ValidationError as error:
        raise DocumentError(f"is not a record: {readable(error)}") from None


_RECORD = TypeAdapter(Record)


def _reader(values: Values) -> Callable[[Values], Values]:
    """The function that converts the values of a record to the current schema."""
    schema = values.get("schema", 1)
    if type(schema) is int and schema in _READERS:
        return _READERS[schema]
    if type(schema) is int and SCHEMA < schema < BELIEVABLE:
        raise LaterSchemaError(f"has schema {schema}, and this version of segpipe reads schemas up to {SCHEMA}")
    raise DocumentError("is not a record: its schema must be a number from 1 on")


def _from_schema_1(values: Values) -> Values:
    return values | {
        "statistics": {"areas": values.get("areas")},
        "input": _input_of_schema_1(values.get("input")),
        "valid": _valid_of_schema_1(values.get("valid")),
    }


def _input_of_schema_1(stated: Any) -> Any:
    """Convert the input of schema 1, which had the CRS as text beside the shape; all cases were rasters."""
    if not isinstance(stated, dict):
        return stated
    return stated | {"format": "raster", "grid": {"crs": stated.get("crs")}}


def _valid_of_schema_1(stated: Any) -> Any:
    """Convert the valid area of schema 1, in which all areas were in hectares."""
    if not isinstance(stated, dict) or "hectares" not in stated:
        return None
    hectares = stated["hectares"]
    return stated | {"area": hectares, "unit": "px" if hectares is None else "ha"}


_READERS: dict[int, Callable[[Values], Values]] = {1: _from_schema_1, SCHEMA: lambda values: values}
