"""The statistics of every case, and the tables of a run."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from heapq import nsmallest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.formats.case import Case
from segpipe.formats.registry import FORMATS
from segpipe.formats.source import Invalid, Pixels, Source
from segpipe.geometry.grid import Grid
from segpipe.geometry.windows import Window
from segpipe.messages.printable import one_row
from segpipe.pipeline.decide import Decided
from segpipe.results.areas import Areas
from segpipe.results.audit import DOUBT, Audit, audit_columns
from segpipe.results.lesions.rule import LesionRule
from segpipe.results.lesions.statistic import CONFIDENCE, FIRST, IMAGE, VOLUME, Lesions, intensity_columns
from segpipe.results.records import records
from segpipe.results.schema import Record, Values
from segpipe.results.statistics import Box, Row, State, Statistic
from segpipe.storage import Store
from segpipe.storage.files import output_errors
from segpipe.storage.ownership import AUDIT, DOUBTFUL, LESIONS, forget_table, write_table

STATISTICS: dict[str, Callable[[Grid, Contract], Statistic]] = {"areas": Areas}
"""All statistics of a run, by the name of their table in the record."""

AREA_COLUMNS = ("case", "class_id", "class_name", "pixels", "area", "unit", "share")


class Statistics:
    """All statistics of one case, or of a part of it."""

    def __init__(
        self,
        grid: Grid,
        contract: Contract,
        opened: Callable[[], Source],
        rule: LesionRule | None = None,
        audit: int | None = None,
    ) -> None:
        """Create all statistics; ``opened`` opens the case again if a statistic asks for its pixels.

        ``audit`` is the number of windows that an audit lists; None: there is no audit.
        """
        self._each = {name: make(grid, contract) for name, make in STATISTICS.items()}
        self.lesions = None if rule is None else Lesions(grid, contract, rule)
        self.audit = None if audit is None else Audit(grid, contract, audit)
        self._opened = opened
        self._source: Source | None = None

    @property
    def areas(self) -> Areas:
        """The areas, which every run counts."""
        areas = self._each["areas"]
        assert isinstance(areas, Areas)
        return areas

    @property
    def _all(self) -> dict[str, Statistic]:
        more = {"lesions": self.lesions, "audit": self.audit}
        return {**self._each, **{name: statistic for name, statistic in more.items() if statistic is not None}}

    def add(self, box: Decided) -> NDArray[np.int32] | None:
        """Count a box in all statistics, and return the names of its components for a volume of instances, if there is one.

        The box's pixels are read at most once, and only if a statistic asks for them.
        """
        pixels = cache(partial(self._pixels, box.window))
        seen = Box(
            window=box.window,
            labels=box.labels,
            confidence=box.confidence,
            pixels=pixels,
            tags=self._tags,
            checked=box.checked,
        )
        for statistic in self._each.values():
            statistic.add(seen)
        if self.audit is not None:
            self.audit.add(seen)
        return None if self.lesions is None else self.lesions.name(seen)

    def _pixels(self, window: Window) -> tuple[Pixels, Invalid | None]:
        return self._again().read(window)

    def _tags(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        return self._again().tags()

    def _again(self) -> Source:
        """The case, opened for its pixels."""
        self._source = self._source or self._opened()
        return self._source

    def close(self) -> None:
        """Close the case if it was opened to read pixels."""
        if self._source is not None:
            self._source.close()
        self._source = None

    @property
    def states(self) -> dict[str, State]:
        """The state of each statistic, by name."""
        return {name: statistic.state for name, statistic in self._all.items()}

    def merge(self, states: Mapping[str, State]) -> None:
        """Add the states of a part."""
        for name, statistic in self._all.items():
            statistic.merge(states[name])

    def check(self, box: Decided) -> None:
        """Add a box whose labels are not final to the audit, which does not depend on them."""
        if self.audit is not None:
            self.audit.add(Box(box.window, box.labels, checked=box.checked))

    def merge_checked(self, states: Mapping[str, State]) -> None:
        """Add the audit of a part whose labels were not final."""
        if self.audit is not None:
            self.audit.merge(states["audit"])

    def rows(self) -> dict[str, list[Row]]:
        """Tables by name."""
        return {name: statistic.rows() for name, statistic in self._all.items()}


def area_columns(cases: Iterable[Case]) -> tuple[str, ...]:
    """Columns of ``areas.csv``: the common ones, then those that the formats of these cases add."""
    more = (column for name in dict.fromkeys(case.format for case in cases) for column in FORMATS[name].area_columns)
    return (*AREA_COLUMNS, *dict.fromkeys(more))


def write_audit(output: Store, cases: Iterable[Case]) -> None:
    """Write ``audit.jsonl``, a line for each case whose format has UIDs; if there is no such case, remove an earlier one."""
    audited = [case for case in cases if FORMATS[case.format].uids is not None]
    if not audited:
        forget_table(output, AUDIT)
        return
    with output.writing(AUDIT) as stream:
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


def write_doubtful(output: Store, cases: Iterable[Case], most: int) -> None:
    """Write ``audit.csv``: the windows of all cases that are least sure, the worst first."""
    rows = ((record.case, row) for record in records(output, cases) for row in record.statistics.get("audit", ()))
    worst = nsmallest(most, rows, key=lambda one: (-one[1][DOUBT], one[0], one[1]["rank"]))
    columns = audit_columns(volumes=any("plane_start" in row for _, row in worst))
    ranked = ([case, rank, *map(row.get, columns[1:])] for rank, (case, row) in enumerate(worst, 1))
    write_table(output, DOUBTFUL, ("case", *columns), ranked)


def _field(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value
