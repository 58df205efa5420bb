"""The statistics of every case, and the tables of a run."""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial

from segpipe.contract import Contract
from segpipe.formats.cases import Case
from segpipe.formats.registry import FORMATS
from segpipe.formats.source import Invalid, Pixels, Source
from segpipe.geometry.grid import Grid
from segpipe.geometry.windows import Window
from segpipe.messages.printable import one_row
from segpipe.pipeline.decide import Decided
from segpipe.results.areas import Areas
from segpipe.results.records import AREA_COLUMNS, records
from segpipe.results.statistics import Box, Row, State, Statistic
from segpipe.storage import Store

STATISTICS: dict[str, Callable[[Grid, Contract], Statistic]] = {"areas": Areas}
"""All statistics of a run, by the name of their table in the record."""


class Statistics:
    """All statistics of one case, or of a part of it."""

    def __init__(self, grid: Grid, contract: Contract, opened: Callable[[], Source]) -> None:
        """Create all statistics; ``opened`` opens the case again if a statistic asks for its pixels."""
        self._each = {name: make(grid, contract) for name, make in STATISTICS.items()}
        self._opened = opened
        self._source: Source | None = None

    @property
    def areas(self) -> Areas:
        areas = self._each["areas"]
        assert isinstance(areas, Areas)
        return areas

    def add(self, box: Decided) -> None:
        """Count a box in all statistics; its pixels are read at most once, and only if a statistic asks for them."""
        seen = Box(box.window, box.labels, box.confidence, cache(partial(self._pixels, box.window)))
        for statistic in self._each.values():
            statistic.add(seen)

    def _pixels(self, window: Window) -> tuple[Pixels, Invalid | None]:
        self._source = self._source or self._opened()
        return self._source.read(window)

    def close(self) -> None:
        """Close the case if it was opened to read pixels."""
        if self._source is not None:
            self._source.close()
        self._source = None

    @property
    def states(self) -> dict[str, State]:
        return {name: statistic.state for name, statistic in self._each.items()}

    def merge(self, states: Mapping[str, State]) -> None:
        """Add the states of a part."""
        for name, statistic in self._each.items():
            statistic.merge(states[name])

    def rows(self) -> dict[str, list[Row]]:
        """Tables by name."""
        return {name: statistic.rows() for name, statistic in self._each.items()}


def area_columns(cases: Iterable[Case]) -> tuple[str, ...]:
    """Columns of ``areas.csv``: the common ones, then those that the formats of these cases add."""
    more = (column for name in dict.fromkeys(case.format for case in cases) for column in FORMATS[name].area_columns)
    return (*AREA_COLUMNS, *dict.fromkeys(more))


def write_areas(output: Store, cases: Iterable[Case], columns: Sequence[str] = AREA_COLUMNS) -> None:
    """Write ``areas.csv`` row by row; a field without a value is empty."""
    with output.writing("areas.csv") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        for record in records(output, cases):
            name = one_row(record.case)  # one line per row, for programs that read line by line
            writer.writerows([name, *map(row.get, columns[1:])] for row in record.areas)
