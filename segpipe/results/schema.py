"""The record of a case: its fields, its JSON, and the schemas of it that can be read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, Strict, TypeAdapter, ValidationError
from pydantic_core.core_schema import CoreSchema, with_default_schema

from segpipe.contract import readable
from segpipe.storage.documents import DocumentError, Text, parse_json

SCHEMA = 2
"""Of the records written here. Schema 1 had no number, the areas at the top, and the CRS beside the shape of the input."""

BELIEVABLE = 1000
"""From this number on a schema is damage and no later one."""

Values = dict[str, Any]
"""A JSON object."""

Rows = Sequence[Mapping[str, Any]]
"""A table: one mapping from column to value per row."""

T = TypeVar("T")


class _ElseNone:
    """Takes a value that is not valid for None, without a call of Python."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return with_default_schema(handler(source), default=None, on_error="default")


Optionally = Annotated[T | None, _ElseNone()]
"""A field that no decision depends on: None in a record where it is absent or of another type."""

Count = Annotated[int, Strict(), Field(ge=0)]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Flag = Annotated[bool, Strict()]


def _with_path(file: Values) -> Values:
    if not isinstance(file.get("path"), str):
        raise ValueError("must have a path")
    return file


FileIdentity = Annotated[dict[str, Any], AfterValidator(_with_path)]
"""``path`` and what tells one state of the file from another, as in ``formats/identity.py``."""


@dataclass(frozen=True, slots=True)
class RecordedInput:
    """What the pixels were read from."""

    path: Text
    """With links resolved."""
    shape: Annotated[tuple[Annotated[int, Strict(), Field(gt=0)], ...], Field(min_length=1)]
    """Of the case's own grid, slowest axis first."""
    files: tuple[FileIdentity, ...]
    format: Text = "raster"
    """Name of the family of formats."""
    grid: Optionally[dict[str, Any]] = None
    """Where the array lies, in the terms of the family: ``crs`` of a raster; ``affine``, ``spacing``, ``unit`` and
    ``orientation`` of a volume."""
    scene: Optionally[dict[str, str]] = None
    """When and by what it was taken; not written where nothing is known."""

    def as_json(self) -> Values:
        absent = set() if self.scene else {"scene"}
        return {key: getattr(self, key) for key in self.__slots__ if key not in absent}


@dataclass(frozen=True, slots=True)
class RecordedModel:
    """What inferred the case."""

    sha256: Text
    path: Optionally[str] = None
    contract: Optionally[str] = None
    """Where the contract came from."""


@dataclass(frozen=True, slots=True)
class Amount:
    """How much of a case something covers."""

    pixels: Count
    area: Number | None
    unit: Text
    """Of ``area``; ``px`` where there is no area."""


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
    """All that is known of a case that is done: what it was made from, with what, and what came of it."""

    case: Text
    segpipe: Text
    """Version."""
    input: RecordedInput
    model: RecordedModel
    settings: dict[str, Any]
    """Those that change labels."""
    confidence: Flag
    outputs: tuple[Text, ...]
    """Names of the files, below the output folder."""
    valid: Amount
    statistics: _Tables
    verified: Optionally[Flag] = None
    """Whether the input was compared with its checksums."""
    device: Optionally[dict[str, Any]] = None
    windows: Optionally[Count] = None
    """That cover the case."""
    inferred: Optionally[Count] = None
    """Windows that show a valid pixel; in parts, some count twice."""
    seconds: Optionally[Number] = None
    sizes: Optionally[dict[str, Optionally[Count]]] = None
    """Bytes of each raster."""
    nodata: Optionally[Annotated[int, Strict()]] = None
    notes: Optionally[tuple[str, ...]] = None
    thumbnail: Text | None = None
    """The one of ``outputs`` that is a small picture of the mask; not written where there is none."""

    @property
    def areas(self) -> Rows:
        """Rows of ``areas.csv`` without the case."""
        return self.statistics["areas"]

    def as_json(self) -> Values:
        """The record as it is written; ``parse_record`` reads it back as an equal one."""
        absent = {"case", "thumbnail"} if self.thumbnail is None else {"case"}
        values = {key: getattr(self, key) for key in self.__slots__ if key not in absent}
        nested = {"input": self.input.as_json(), "model": asdict(self.model), "valid": asdict(self.valid)}
        return {"case": self.case, "schema": SCHEMA, **values, **nested}


class LaterSchemaError(DocumentError):
    """A record of a later version of segpipe."""


def parse_record(data: bytes) -> Record:
    """The record in the JSON of any schema up to this one.

    Raises:
        DocumentError: it is not JSON, or no whole record.
        LaterSchemaError: its schema is a later one.
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
    """What brings the values of a schema into the form of this one."""
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
    """Beside the shape stood the CRS as text; all cases were rasters."""
    if not isinstance(stated, dict):
        return stated
    return stated | {"format": "raster", "grid": {"crs": stated.get("crs")}}


def _valid_of_schema_1(stated: Any) -> Any:
    """All areas were in hectares."""
    if not isinstance(stated, dict) or "hectares" not in stated:
        return None
    hectares = stated["hectares"]
    return stated | {"area": hectares, "unit": "px" if hectares is None else "ha"}


_READERS: dict[int, Callable[[Values], Values]] = {1: _from_schema_1, SCHEMA: lambda values: values}
