"""The tables of a run, from the records of its cases."""

import csv
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from heapq import nsmallest
from typing import Any

from segpipe.contract import Contract
from segpipe.formats.case import Case
from segpipe.formats.registry import FORMATS
from segpipe.messages.printable import one_row
from segpipe.results.audit import DOUBT, audit_columns
from segpipe.results.lesions.statistic import CONFIDENCE, FIRST, IMAGE, VOLUME, intensity_columns
from segpipe.results.records import records
from segpipe.results.schema import Record, Values
from segpipe.storage import Store
from segpipe.storage.files import output_errors
from segpipe.storage.ownership import AUDIT_TRAIL, AUDIT_WINDOWS, LESIONS, forget_table, write_table

AREA_COLUMNS = ("case", "class_id", "class_name", "pixels", "area", "unit", "share")


def area_columns(cases: Iterable[Case]) -> tuple[str, ...]:
    """Columns of ``areas.csv``: the common ones, then those that the formats of these cases add."""
    more = (column for name in dict.fromkeys(case.format for case in cases) for column in FORMATS[name].area_columns)
    return (*AREA_COLUMNS, *dict.fromkeys(more))


def write_audit_trail(output: Store, cases: Iterable[Case]) -> None:
    """Write ``audit.jsonl``, a line for each case whose format has UIDs; if there is no such case, remove an earlier one."""
    audited = [case for case in cases if FORMATS[case.format].uids is not None]
    if not audited:
        forget_table(output, AUDIT_TRAIL)
        return
    with output.writing(AUDIT_TRAIL) as stream:
        for record in records(output, audited):
            stream.write(json.dumps(_audited(record, _time(output, record)), ensure_ascii=False) + "\n")


def _time(output: Store, record: Record) -> str:
    """Time at which a case was finished; of a record of an earlier version that of its file, which a copy changes."""
    if record.time is not None:
        return record.time
    written = datetime.now(UTC) - timedelta(seconds=output.age(f"{record.case}.json"))
    return written.isoformat(timespec="seconds")


def _audited(record: Record, time: str) -> Values:
    """Line of a case: model, images read, objects written, and time."""
    model = {key: value for key, value in record.model.as_json().items() if key != "path"}
    what = {"audit": record.case, "time": time, "segpipe": record.segpipe, "model": model}
    return {**what, **(record.uids or {}), "files": list(record.outputs)}


def write_areas(output: Store, cases: Iterable[Case], columns: Sequence[str] = AREA_COLUMNS) -> None:
    """Write ``areas.csv`` row by row; a field without a value is empty."""
    each = ((record.case, record.areas) for record in records(output, cases))
    write_table(output, "areas.csv", columns, ([case, *map(row.get, columns[1:])] for case, rows in each for row in rows))


def counts_any(output: Store, cases: Iterable[Case]) -> bool:
    """Whether the ``areas.csv`` of an earlier run has rows of one of these cases.

    Raises:
        OutputError: the table cannot be read.
    """
    names = {one_row(case.name) for case in cases}
    with output_errors(output.path("areas.csv")), suppress(FileNotFoundError):
        rows = csv.reader(output.read("areas.csv").decode("utf-8", "replace").splitlines())
        return any(row and row[0] in names for row in rows)
    return False


def lesion_columns(cases: Iterable[Case], contract: Contract, *, confidence: bool) -> tuple[str, ...]:
    """Columns of ``lesions.csv`` in a run with these cases."""
    volumes = {FORMATS[name].element == "voxel" for name in {case.format for case in cases}}
    own = [column for kind, columns in ((True, VOLUME), (False, IMAGE)) if kind in volumes for column in columns]
    intensities = (column for columns in intensity_columns(contract) for column in columns)
    return tuple(dict.fromkeys((*FIRST, *own, *(CONFIDENCE if confidence else ()), *intensities)))


def write_lesions(output: Store, cases: Iterable[Case], columns: Sequence[str]) -> None:
    """Write ``lesions.csv`` row by row; a field without a value is empty."""
    each = ((record.case, record.statistics.get("lesions", ())) for record in records(output, cases))
    fields = ([case, *(_field(row.get(column)) for column in columns[1:])] for case, rows in each for row in rows)
    write_table(output, LESIONS, columns, fields)


def write_audit_windows(output: Store, cases: Iterable[Case], most: int) -> None:
    """Write ``audit.csv``: the windows of all cases that are least sure, the worst first."""
    rows = ((record.case, row) for record in records(output, cases) for row in record.statistics.get("audit", ()))
    worst = nsmallest(most, rows, key=lambda one: (-one[1][DOUBT], one[0], one[1]["rank"]))
    columns = audit_columns(volumes=any("plane_start" in row for _, row in worst))
    ranked = ([case, rank, *map(row.get, columns[1:])] for rank, (case, row) in enumerate(worst, 1))
    write_table(output, AUDIT_WINDOWS, ("case", *columns), ranked)


def _field(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value
