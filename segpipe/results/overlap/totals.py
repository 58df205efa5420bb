"""Totals of a run in which ground that several cases share counts once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from segpipe.array_types import Float
from segpipe.choices import OverlapRule
from segpipe.formats.case import Case
from segpipe.geometry.extents import extent, meeting
from segpipe.geometry.grid import M2_PER_HA
from segpipe.geometry.raster_grid import NoGroundError, ground_of
from segpipe.results.overlap.doubled import Doubled, PixelsAndArea, doubled_of
from segpipe.results.overlap.finished import FinishedCase, extent_of, stated_of
from segpipe.results.overlap.order import Neighbourhood
from segpipe.results.records import finished_record, records
from segpipe.results.schema import Record
from segpipe.results.totals import StatedTotals, Sum, Totals
from segpipe.storage import Store


def run_totals(
    output: Store, cases: Sequence[Case], rule: OverlapRule, *, checkpoint: Callable[[], None] = lambda: None
) -> StatedTotals:
    """Add up cases, and leave out what of each counts in others.

    Args:
        output: the output of the run, in which results of each case are kept.
        cases: the cases that have a mask, sorted by name.
        rule: which case counts where several share ground.
        checkpoint: called before each case that shares ground, which takes long; what it raises ends the sum.

    Raises:
        OverlapError: a case that shares ground lacks what the rule needs.
        OutputError: a mask or a record of such a case cannot be read.
    """
    places = _Places(output)
    sums = Totals.over(places.noting(records(output, cases)))
    together = _meeting(output, places, rule)
    less = _Less()
    found = dict[int, Doubled]()
    for k in together.by_stack:
        if together.meets(k):
            checkpoint()
            found[k] = doubled_of(output, together.cases[k], together.around(k))
    for k in sorted(found):  # sums depend on the order
        less.add(together.cases[k], found[k])
    return StatedTotals.of(sums.less(less.classes, less.seen), rule, dict(_dates(together)))


@dataclass(frozen=True)
class _Places:
    """Cases with a position on the Earth, noted while their records pass by."""

    output: Store
    names: list[str] = field(default_factory=list)
    extents: list[Float] = field(default_factory=list)

    def noting(self, each: Iterable[Record]) -> Iterator[Record]:
        for record in each:
            if record.valid.unit == "ha":
                self._note(record)
            yield record

    def _note(self, record: Record) -> None:
        grid = stated_of(record)
        try:
            if grid is None:  # a record of an earlier version
                place = extent_of(self.output, FinishedCase.of(self.output, record))
            else:
                place = extent(ground_of(grid), grid.shape)
        except NoGroundError:
            return
        self.names.append(record.case)
        self.extents.append(place)


def _meeting(output: Store, places: _Places, rule: OverlapRule) -> Neighbourhood:
    """The cases that may share ground with another one; of the others, nothing more is read."""
    chosen = [k for k, others in enumerate(meeting(np.reshape(places.extents, (-1, 2, 3)))) if others.size]
    cases = [_finished(output, places.names[k]) for k in chosen]
    return Neighbourhood.of(output, cases, [places.extents[k] for k in chosen], rule)


def _finished(output: Store, name: str) -> FinishedCase:
    return FinishedCase.of(output, finished_record(output, Case(name, name)))


def _dates(together: Neighbourhood) -> Iterator[tuple[str, dict[str, str]]]:
    """Times by which cases are ordered, for ``run.json``."""
    for k, case in enumerate(together.cases):
        if together.rule == "newest" and together.meets(k) and case.acquired is not None:
            yield case.case, {"time": case.acquired.time.isoformat(), "source": case.acquired.source}


@dataclass
class _Less:
    """Sums of what counts in other cases, in hectares."""

    classes: dict[str, Sum] = field(default_factory=dict)
    seen: Sum = field(default_factory=Sum)

    def add(self, case: FinishedCase, doubled: Doubled) -> None:
        names = [name for _, name in case.classes]
        for name, part in zip([*names, "nodata"], [*doubled.classes, doubled.unseen], strict=True):
            self.classes[name] = _plus(self.classes.get(name, Sum()), part)
        self.seen = _plus(self.seen, doubled.seen)


def _plus(one: Sum, part: PixelsAndArea) -> Sum:
    pixels, size = part
    return one.plus(pixels, size / M2_PER_HA)
