"""Output for people: a progress bar and a table in a terminal, a line per case elsewhere."""

import os
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from segpipe.errors import OutputError
from segpipe.formats.registry import FORMATS, element_of
from segpipe.jobs.case_states import CaseState
from segpipe.jobs.prepare import Prepared
from segpipe.jobs.summary import Summary
from segpipe.jobs.tasks import Outcome
from segpipe.messages.console import cells, console, echo, words
from segpipe.messages.printable import printable
from segpipe.results.records import records
from segpipe.results.totals import ADDED_UP, Totals
from segpipe.storage.ownership import AUDIT_WINDOWS, LESIONS, ZONES

if TYPE_CHECKING:  # runs outside terminals print no table
    from rich.table import Table


def say(line: str) -> None:
    """Print a line on stdout; a closed pipe, for example to ``head``, ends the output but not the run."""
    try:
        echo(printable(line))
    except BrokenPipeError:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open until the process ends


def stamped(line: str) -> str:
    """A line with the local time in front."""
    return f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}"


class Lines:
    """One line per case on stdout with the time in front, for logs and pipes."""

    def __init__(self, prepared: Prepared) -> None:
        self._skipped, self._outside = prepared.plan.done, prepared.plan.outside
        self._total = len(prepared.cases)
        self._count = 0

    def __enter__(self) -> Self:
        for case in self._skipped:
            self._count += 1
            say(stamped(f"[{self._count}/{self._total}] skipped  {case.name}  done before"))
        for case in self._outside:
            self.outcome(Outcome(case, 0.0, outside=True))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def progress(self, pixels: int) -> None:
        """Print nothing: a case has one line, at its end."""

    def note(self, line: str) -> None:
        echo(printable(line), err=True)

    def outcome(self, outcome: Outcome) -> None:
        """Print the line of a case that has ended."""
        self._count += 1
        say(stamped(f"[{self._count}/{self._total}] {described(outcome)}"))


def described(outcome: Outcome) -> str:
    """One line that says how a case ended."""
    if outcome.error is not None:
        return f"failed  {outcome.case.name}: {outcome.error}"
    if outcome.outside:
        return f"outside  {outcome.case.name}  no pixel in the area of interest"
    rate, unit = outcome.pixels / 1e6 / outcome.seconds if outcome.seconds else 0, f"M{FORMATS[outcome.case.format].element}"
    return f"done  {outcome.case.name}  {outcome.pixels / 1e6:.1f} {unit}  {outcome.seconds:.1f} s  {rate:.1f} {unit}/s"


def watcher(prepared: Prepared) -> Lines:
    """A bar in a terminal, lines elsewhere."""
    if not sys.stdout.isatty():
        return Lines(prepared)
    from segpipe.terminal.bar import Bar

    return Bar(prepared)


def print_conclusion(prepared: Prepared, summary: Summary) -> None:
    """Print counts of cases, areas per class and where to look: with a table in a terminal, as lines elsewhere."""
    totals, where = _totals_line(summary, element_of(prepared.cases)), [*filter(None, [_where_line(prepared, summary)])]
    areas = _areas_table if sys.stdout.isatty() else _areas_line
    try:
        found: list[Table | str] = [*areas(prepared, summary)]
    except OutputError as error:
        found = [f"areas: not added up: {error}"]
    if sys.stdout.isatty():
        terminal = console()
        for part in (*found, totals, *where):
            terminal.print(words(part) if isinstance(part, str) else part)
        return
    for line in (totals, *found, *where):
        say(stamped(str(line)))


def _areas_table(prepared: Prepared, summary: Summary) -> "Iterator[Table | str]":
    """Areas per class over all cases that have a mask, with a note if shared ground counts several times."""
    totals = _totals(prepared, summary)
    yield areas_table(totals, prepared.run.settings.overlap_rule)
    yield from _in_full(summary, totals)


def _totals_line(summary: Summary, element: str) -> str:
    states = summary.states
    missing, outside = states.count(CaseState.MISSING), states.count(CaseState.OUTSIDE)
    return (
        f"{states.count(CaseState.DONE)} done, {states.count(CaseState.SKIPPED)} done before, {len(summary.failed)} failed"
        + f", {outside} outside the area of interest" * bool(outside)
        + f", {missing} missing" * bool(missing)
        + f" in {summary.seconds:.1f} s, {summary.megapixels_per_second:.1f} M{element}/s"
    )


def _areas_line(prepared: Prepared, summary: Summary) -> Iterator[str]:
    """Areas per class over all cases that have a mask."""
    cases = summary.states.count(CaseState.DONE) + summary.states.count(CaseState.SKIPPED)
    if cases > ADDED_UP:
        yield f"areas: not added up for more than {ADDED_UP:,} cases"
    elif cases:
        totals = _totals(prepared, summary)
        if text := largest(totals):
            yield f"areas: {text}"
        if said := doubled_line(totals, prepared.run.settings.overlap_rule):
            yield said
        yield from _in_full(summary, totals)


def _in_full(summary: Summary, totals: Totals) -> Iterator[str]:
    """A note on the sums of an interrupted run, which does not look for shared ground."""
    if summary.interrupted and summary.totals is None and totals.unit.symbol == "ha" and _several(summary):
        yield "ground that several cases share counts once for each in these sums: the run was interrupted"


def _several(summary: Summary) -> bool:
    return sum(1 for _ in summary.good) > 1


def _totals(prepared: Prepared, summary: Summary) -> Totals:
    """Sums over all cases that have a mask; each case counts in full if the run has not stated totals.

    Raises:
        OutputError: a record cannot be read.
    """
    if summary.totals is not None:
        return summary.totals.totals()
    return Totals.over(records(prepared.run.output, summary.good))


def largest(totals: Totals) -> str:
    """Areas of the classes that occur, in the contract's order, and nodata; with many classes, only the largest."""
    there = {name: one for name, one in totals.classes.items() if one.pixels and name != "nodata"}
    shown = list(there)
    if len(there) > LINE_CLASSES:
        shown = sorted(there, key=lambda name: (-there[name].area * totals.measured, -there[name].pixels))[:LINE_CLASSES]
    texts = [f"{name} {totals.text(name)}" for name in shown]
    texts += [f"{more} smaller classes"] if (more := len(there) - len(shown)) else []
    nodata = totals.classes.get("nodata")
    texts += [f"nodata {totals.text('nodata')}"] if nodata and nodata.pixels else []
    return ", ".join(texts)


def _where_line(prepared: Prepared, summary: Summary) -> str:
    """Names of the tables and what they hold, but for those that could not be written."""
    path = prepared.run.output.path
    zones = prepared.zones is not None and not summary.interrupted and prepared.run.output.has(ZONES)
    tables = [
        ("areas", "areas.csv", True),
        ("lesions", LESIONS, prepared.run.lesions is not None),
        ("least sure windows", AUDIT_WINDOWS, prepared.run.settings.audit is not None),
        ("zones", ZONES, zones),
        ("what failed and why", "run.json", bool(summary.failed)),
    ]
    lost = {name for _, name, _ in tables for problem in summary.problems if problem.startswith(f"{path(name)} cannot")}
    return ", ".join(f"{what} in {path(name)}" for what, name, there in tables if there and name not in lost)


LINE_CLASSES = 8
"""Maximum number of classes whose areas are printed in one line."""


def areas_table(totals: Totals, rule: str) -> "Table":
    """Pixels, area and share of each class over all cases; a caption says what does not count, or counts once."""
    from rich.table import Column, Table

    columns = (Column(name, justify="right") for name in ("pixels", totals.unit.heading, "share"))
    table = Table("class", *columns)
    for name, one in totals.classes.items():
        area = totals.unit.text(one.area) if totals.measured or one.area else "-"
        share = totals.share(name)
        table.add_row(*cells([name, f"{one.pixels:,}", area, "" if share is None else f"{share:.1%}"]))
    table.caption = "\n".join(_notes(totals, rule)) or None
    return table


def _notes(totals: Totals, rule: str) -> list[str]:
    notes = [] if totals.measured else [f"some cases have no area in {totals.unit.heading}: they count in pixels only"]
    return [*notes, said] if (said := doubled_line(totals, rule)) else notes


def doubled_line(totals: Totals, rule: str) -> str | None:
    """What several cases saw and the totals have once; None if that is nothing."""
    if not totals.doubled.pixels:
        return None
    return f"{totals.amount(totals.doubled)} that several cases share are left out of these totals (--overlap-rule {rule})"
