"""The result of a run, in memory or read from its output."""

import html
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

from segpipe.api.labels import LabelMetadata, Labels
from segpipe.choices import RULES, OverlapRule
from segpipe.errors import InputError, OutputError
from segpipe.formats.case import Case
from segpipe.formats.registry import CONFIDENCE, read_mask
from segpipe.jobs.last_run import done_names, last_run
from segpipe.jobs.prepare import Prepared
from segpipe.jobs.summary import Summary
from segpipe.messages.printable import and_more, counted, printable
from segpipe.process.environment import clean_environment
from segpipe.results.masks import mask_name
from segpipe.results.overlap.totals import run_totals
from segpipe.results.records import finished_record
from segpipe.results.schema import Record
from segpipe.results.totals import UNITS, StatedTotals, Totals
from segpipe.storage import Store
from segpipe.storage.lock import sign_of
from segpipe.storage.stores import store_at

ADDED_UP = 500
"""Maximum number of cases whose records are read to show a result."""


@dataclass(frozen=True, slots=True)
class ClassTotal:
    """Pixels and area of one class over all cases of a run."""

    pixels: int
    area: float | None
    """Area in ``unit``; None if a case has no area in this unit, such as a picture without georeferencing."""
    unit: str
    """``ha`` on the ground, ``mm3`` of volumes, ``px`` without an area."""
    share: float | None
    """Share of the valid area, or of the valid pixels without an area; None for nodata."""


class Records(Mapping[str, Record]):
    """Records of the cases that have a mask, by name; each is read when it is first used."""

    def __init__(self, store: Store, names: list[str]) -> None:
        self._store, self._names = store, dict.fromkeys(names)

    def __getitem__(self, name: str) -> Record:
        if name not in self._names:
            raise KeyError(name)
        return finished_record(self._store, Case(name, name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Records of {counted(len(self), 'case')} in {self._store}"


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    >>> import segpipe
    >>> result = segpipe.open_run(done)
    >>> result.done
    ['danube', 'morava', 'pirai']
    >>> result.records["danube"].windows
    9
    >>> round(result.totals["maize"].area), result.totals["maize"].unit
    (1516, 'ha')
    >>> result.open("danube").array.shape
    (518, 603)
    """

    output: str
    """The folder, or ``s3://bucket/prefix``."""
    done: list[str]
    """Names of the cases finished in this run, sorted. A name is the path below the input without suffix."""
    skipped: list[str]
    """Names of the cases that earlier runs finished."""
    failed: dict[str, str]
    """Reason of each failed case, by name."""
    problems: list[str]
    """Problems apart from the cases: a full disk, an unreadable folder of the input, a lost scheduler."""
    interrupted: bool
    """Whether the run was stopped or died before its end."""
    seconds: float
    """Time from the first case to the last table."""
    _store: Store = field(repr=False)
    outside: list[str] = field(default_factory=list)
    """Names of the cases outside the area of interest; they have no mask."""
    _stated: StatedTotals | None = field(default=None, repr=False)
    """Totals as the run wrote them; None, as after an interrupted run: they are added up on demand."""
    _rule: OverlapRule = field(default="first", repr=False)

    @classmethod
    def of(cls, prepared: Prepared, summary: Summary) -> Self:
        """The result of a run that has just ended."""
        store = prepared.run.output.settled()
        return cls(
            output=str(store),
            done=summary.done,
            skipped=summary.skipped,
            failed={failure.case.name: failure.error for failure in summary.failed},
            problems=list(summary.problems),
            interrupted=summary.interrupted,
            seconds=round(summary.seconds, 3),
            outside=summary.outside,
            _store=store,
            _stated=summary.totals,
            _rule=prepared.run.settings.overlap_rule,
        )

    @cached_property
    def records(self) -> Mapping[str, Record]:
        """The record of each case that has a mask, by name: input, model, settings, areas, notes, seconds.

        Each is read from the output on demand.
        """
        return Records(self._store, sorted([*self.done, *self.skipped]))

    @cached_property
    def totals(self) -> dict[str, ClassTotal]:
        """Pixels and area over all cases, of each class by name and of ``nodata``; ground that cases share counts once.

        Raises:
            SegpipeError: the run did not add its cases up, and what several of them share cannot be found.
        """
        totals = self._totals
        unit = next(name for name, unit in UNITS.items() if unit is totals.unit) if totals.measured else "px"
        return {
            name: ClassTotal(one.pixels, one.area if totals.measured else None, unit, totals.share(name))
            for name, one in totals.classes.items()
        }

    @cached_property
    def doubled(self) -> ClassTotal:
        """Pixels and area that several cases saw, and that ``totals`` have once: each time but the first."""
        totals = self._totals
        one = totals.doubled
        return ClassTotal(one.pixels, one.area if totals.measured else None, "ha" if totals.measured else "px", None)

    @cached_property
    def _totals(self) -> Totals:
        if self._stated is not None:
            return self._stated.totals()
        clean_environment()
        return run_totals(self._store, [Case(name, name) for name in self.records], self._rule).totals()

    def open(self, case: str, *, confidence: bool = False) -> Labels:
        """Read the mask of a case.

        Args:
            case: its name.
            confidence: read the confidence, too, which the run must have written.

        Returns:
            Labels of shape ``(rows, cols)``, or ``(planes, rows, cols)`` of a volume, on the grid of the input; with a first
            axis of classes if these are independent (``multilabel``).

        Raises:
            InputError: no such case has a mask.
            OutputError: the file cannot be read.
        """
        if case not in self.records:
            why = f"it failed: {self.failed[case]}" if case in self.failed else f"cases are {_some(self.records)}"
            raise InputError(f"a case must have a mask in {self.output}, got {case!r}: {why}")
        record = self.records[case]
        array, grid = read_mask(record.input.format, self._store, _file(record))
        likely = read_mask(record.input.format, self._store, _file(record, CONFIDENCE))[0] if confidence else None
        return Labels.of_bands(array, likely, LabelMetadata.of_record(record, array.dtype, grid))

    def __repr__(self) -> str:
        head = f"{self.output}: {_counts(self)}"
        return "\n".join([head, *(f"  {name}  {text}" for name, text in self._lines())])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(text)}</td></tr>" for name, text in self._lines())
        return f"<p>{html.escape(f'{self.output}: {_counts(self)}')}</p><table>{rows}</table>"

    def _lines(self) -> Iterator[tuple[str, str]]:
        """Rows of the summary: failed cases, problems, and the total of each class."""
        yield from ((f"failed {printable(name)}", printable(why)) for name, why in list(self.failed.items())[:3])
        if len(self.failed) > 3:
            yield "failed", f"and {len(self.failed) - 3} more"
        yield from (("problem", printable(text)) for text in self.problems)
        if len(self.records) <= ADDED_UP:
            yield from ((name, self._totals.text(name)) for name, one in self._totals.classes.items() if one.pixels)


def _counts(result: RunResult) -> str:
    stopped = ", interrupted" * result.interrupted
    done, skipped, failed = len(result.done), len(result.skipped), len(result.failed)
    outside = f", {len(result.outside)} outside the area of interest" if result.outside else ""
    return f"{done} done, {skipped} skipped, {failed} failed{outside} in {result.seconds:.1f} s{stopped}"


def _some(names: Mapping[str, Any]) -> str:
    return and_more(list(names), 5) or "none"


def _file(record: Record, kind: str = "") -> str:
    """Name of the mask, or of the confidence."""
    if (name := mask_name(record, kind)) is None:
        raise OutputError(f"{record.case} must have a confidence, and has none: run again with confidence=True")
    return name


def open_run(output: str | os.PathLike[str]) -> RunResult:
    """The result of the last run into an output folder, as ``run`` returns it.

    Args:
        output: the folder, or ``s3://bucket/prefix``.

    Raises:
        OutputError: it is not the output of a run.
    """
    store = store_at(os.fspath(output)).settled()
    last = last_run(store)
    over = last.state != "running"
    died = not over and ((sign := sign_of(store)) is None or not sign.alive)
    return RunResult(
        output=str(store),
        done=done_names(store, last),
        skipped=last.skipped,
        failed={failure.case: failure.error for failure in last.failed},
        problems=last.problems,
        interrupted=died or last.state == "interrupted",
        seconds=last.seconds,
        outside=last.outside,
        _store=store,
        _stated=last.totals if over else None,
        _rule=next((one for one in RULES if one == last.settings.get("overlap_rule")), RULES[0]),
    )
