"""Output for people: a progress bar and a table in a terminal, a line per case elsewhere."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from segpipe.formats.left_out import listed
from segpipe.formats.registry import FORMATS, by_suffix, element_of
from segpipe.jobs.disk import forecast, shortages
from segpipe.jobs.launch import Prepared, Summary
from segpipe.jobs.ledger import State
from segpipe.jobs.plan import Plan, memory_mb
from segpipe.jobs.status import Status
from segpipe.jobs.tasks import Outcome
from segpipe.jobs.unpacking import unpacking, unpacking_shortages
from segpipe.messages.console import console, echo, words
from segpipe.messages.printable import printable, printable_json
from segpipe.messages.redact import cleaned
from segpipe.messages.veil import HIDDEN
from segpipe.pipeline.memory import worker_memory
from segpipe.results.records import Run, records
from segpipe.results.totals import ADDED_UP, Totals
from segpipe.settings import Settings
from segpipe.storage.ownership import DOUBTFUL, LESIONS, ZONES
from segpipe.terminal.areas import areas_table, doubled_line
from segpipe.timing.report import Profile

if TYPE_CHECKING:  # torch and all that comes with it; runs outside terminals need no rich
    from rich.table import Table

    from segpipe.export.attach import Attached
    from segpipe.export.make import Exported


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
        pass

    def note(self, line: str) -> None:
        echo(printable(line), err=True)

    def outcome(self, outcome: Outcome) -> None:
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


def conclude(prepared: Prepared, summary: Summary) -> None:
    """Print counts of cases, areas per class and where to look: with a table in a terminal, as lines elsewhere."""
    totals, where = _totals_line(summary, element_of(prepared.cases)), _where_line(prepared, summary)
    if sys.stdout.isatty():
        terminal = console()
        found = _totals(prepared, summary)
        terminal.print(areas_table(found, prepared.run.settings.overlap_rule))
        for line in (*_in_full(summary, found), totals, where):
            terminal.print(words(line))
        return
    for line in (totals, *_areas_line(prepared, summary), where):
        say(stamped(line))


def _totals_line(summary: Summary, element: str) -> str:
    ledger = summary.ledger
    missing, outside = ledger.count(State.MISSING), ledger.count(State.OUTSIDE)
    return (
        f"{ledger.count(State.DONE)} done, {ledger.count(State.SKIPPED)} done before, {len(summary.failed)} failed"
        + f", {outside} outside the area of interest" * bool(outside)
        + f", {missing} missing" * bool(missing)
        + f" in {summary.seconds:.1f} s, {summary.megapixels_per_second:.1f} M{element}/s"
    )


def _areas_line(prepared: Prepared, summary: Summary) -> Iterator[str]:
    """Areas per class over all cases that have a mask."""
    cases = summary.ledger.count(State.DONE) + summary.ledger.count(State.SKIPPED)
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
    """Sums over all cases that have a mask; of a run that has not added them up, each case counts in full."""
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
    path = prepared.run.output.path
    more = f", lesions in {path(LESIONS)}" * (prepared.run.lesions is not None)
    more += f", least sure windows in {path(DOUBTFUL)}" * (prepared.run.settings.audit is not None)
    if prepared.zones is not None and not summary.interrupted and prepared.run.output.has(ZONES):
        more += f", zones in {path(ZONES)}"
    return f"areas in {path('areas.csv')}{more}" + f", what failed and why in {path('run.json')}" * bool(summary.failed)


LINE_CLASSES = 8
"""Maximum number of classes whose areas are printed in one line."""


def print_profile(summary: Summary) -> None:
    """Print the shares of the wall time on stderr: as a table in a terminal, as lines elsewhere."""
    profile = summary.profile
    if profile is None:
        return
    if sys.stderr.isatty():
        console(stderr=True).print(profile_table(profile))
    else:
        for row in _profile_rows(profile):
            echo("profile  " + "  ".join(row), err=True)
    for line in profile_lines(profile):
        echo(line, err=True)
    echo(f"open {summary.trace} in ui.perfetto.dev or chrome://tracing", err=True)


def profile_table(profile: Profile) -> "Table":
    """Seconds per stage: wall time, whose shares add up to 1, and the work of all threads."""
    from rich.table import Column, Table

    columns = (Column(name, justify="right") for name in ("wall s", "share", "all threads s", "on a core s"))
    table = Table("stage", *columns, title=f"where {profile.seconds:.1f} s went")
    for row in _profile_rows(profile):
        table.add_row(*row)
    return table


def _profile_rows(profile: Profile) -> Iterator[tuple[str, ...]]:
    for name, total in profile.stages.items():
        work = (f"{total.busy:.2f}", f"{total.core:.2f}") if name not in ("idle", "other") else ("", "")
        yield name, f"{total.wall:.2f}", f"{total.wall / profile.seconds:.1%}", *work


def profile_lines(profile: Profile) -> list[str]:
    """The limiting stage, how close the run came to it, and the stages that took the rest."""
    rest = {name: total.wall for name, total in profile.stages.items() if name != "infer"}
    most = sorted(rest, key=lambda name: -rest[name])[:MOST]
    beside = ", ".join(f"{name} {rest[name]:.2f} s" for name in most if rest[name] >= profile.seconds / 200)
    lines = [
        f"limit: the model alone needs {profile.limit:.2f} s of {profile.seconds:.2f} s, {profile.reached:.0%}; "
        f"without start and end {profile.limit / profile.working:.0%}" + f"; beside it most: {beside}" * bool(beside)
    ]
    if profile.unserved > UNSERVED:
        lines.append(
            f"note: calls of the model were without a processor for {profile.unserved:.0%} of their time: "
            "other programs, or this run's own threads, had it"
        )
    if profile.dropped:
        lines.append(f"note: the trace is full, its last {profile.dropped:,} spans are left out; the table counts them")
    return lines


UNSERVED = 0.1
"""A note appears if the model's calls spend more than this share of their time without a processor."""

MOST = 4
"""Maximum number of stages named beside the model."""


def print_export(exported: "Exported") -> None:
    """Print what was exported, and how well it agrees with torch."""
    agreement, contract = exported.agreement, exported.contract
    for note in exported.notes:
        echo(f"note: {note}", err=True)
    size = "rows and columns free" if exported.free_size else "size fixed to the tile"
    tile = " x ".join(map(str, contract.tile or ()))
    shift = "" if exported.stride.equivariant else f", though scores change by {exported.stride.error:.1%} under such shifts"
    score = contract.provenance["verification"].get("output")
    whose = f"torch's output {score}" if score else "torch"
    echo(
        f"{exported.path}: {contract.provenance['architecture']}, {contract.provenance['parameters']:,} parameters, "
        f"{contract.provenance['precision']}, {contract.channel_count} channels to {contract.scores} scores\n"
        f"tile {tile}, {size}; windows start at multiples of {exported.stride.align}{shift}\n"
        f"agrees with {whose} on {agreement.tiles} tiles of {agreement.source}: {agreement.equal_labels:.4%} equal labels, "
        f"mIoU {agreement.miou:.4f}, largest difference of scores {agreement.max_difference:.2g} of the largest"
    )


def print_attached(attached: "Attached") -> None:
    """Print which contract was attached to which model."""
    for note in attached.notes:
        echo(f"note: {note}", err=True)
    contract = attached.contract
    echo(f"{attached.path}: {contract.channel_count} channels to {contract.scores} scores, contract attached")
    if attached.stride is not None:
        shift = (
            "" if attached.stride.equivariant else f", though scores change by {attached.stride.error:.1%} under such shifts"
        )
        echo(f"windows start at multiples of {attached.stride.align}, as measured{shift}")


def print_status(status: Status, as_json: bool) -> None:
    """Print how far a run has come, in a few lines or as JSON."""
    if as_json:
        click.echo(printable_json(json.dumps(cleaned(asdict(status)), ensure_ascii=False, allow_nan=False)))
        return
    running = f", written by {status.running} now" if status.running else ""
    running += f", last sign of life {status.last_sign}" if status.running and status.last_sign else ""
    speed = status.megapixels_per_second
    rate = f", {speed:.1f} M{status.element}/s in the last run" if speed else ""
    outside = f", {len(status.outside)} outside the area of interest" if status.outside else ""
    say(f"{status.output}{running}")
    if status.state == "died":
        who, when = status.died or "it", status.last_sign or "at a time that is not known"
        say(f"its last run died: {who} gave its last sign of life {when}")
    say(f"{status.done} done, {len(status.failed)} failed, {len(status.missing)} missing{outside}{rate}")
    for problem in status.problems:
        say(f"problem  {problem}")
    for failure in status.failed:
        say(f"failed   {failure['case']}: {failure['error']}")
    for name in status.missing[:LISTED]:
        parts = f"  {status.parts[name]} parts done" if status.parts.get(name) else ""
        say(f"missing  {name}{parts}")
    if len(status.missing) > LISTED:
        say(f"missing  and {len(status.missing) - LISTED} more")
    if status.missing or status.failed or status.state == "died":
        hint = " (with the inputs in place of their hashes)" * bool(HIDDEN.search(status.command))
        say(f"to go on: {status.command}{hint}")


LISTED = 20
"""Maximum number of missing cases that are named."""


def print_left_out(prepared: Prepared) -> None:
    """Print on stderr how many files of folders and globs were left out."""
    if prepared.left_out:
        taken = " ".join(sorted(by_suffix()))
        echo(f"left out: {listed(prepared.left_out)} (a folder is searched for {taken})", err=True)


def print_plan(prepared: Prepared) -> None:
    """Print what a run would do, for ``--dry-run``."""
    run, plan = prepared.run, prepared.plan
    for planned in plan.seen:
        size, element = " x ".join(map(str, planned.shape)), FORMATS[planned.case.format].element
        say(f"case  {planned.case.name}  {size} {element.replace('voxel', 'voxels')}  {planned.windows} windows")
        for note in planned.notes:
            say(f"note  {planned.case.name}: {note}")
    for case in plan.done:
        say(f"done  {case.name}")
    for case in plan.outside:
        say(f"outside  {case.name}")
    for failure in plan.failed:
        say(f"problem  {failure.case.name}: {failure.error}")
    for problem in prepared.problems:
        say(f"problem  {problem}")
    for cut in plan.cuts:
        say(f"parts  {cut.case.case.name}  {len(cut.parts)} parts, {cut.repeated:.1%} of the windows inferred twice")
    outside = f", {len(plan.outside)} outside the area of interest" if plan.outside else ""
    windows = sum(case.windows for case in plan.seen)
    jobs = len(list(plan.jobs(run))) + sum(len(cut.parts) for cut in plan.cuts)
    echo(
        f"{len(plan)} cases to do, {len(plan.done)} done before, {len(plan.failed)} with problems{outside}; "
        f"{windows} windows in {jobs} jobs; {plan.workers} workers, calls in flight in each: {plan.calls}; "
        f"about {memory_mb(plan, run):,.0f} MB of memory per worker"
    )
    for line in _passes_line(run):
        echo(line)
    echo(f"disk  {forecast(plan, run)}")
    for line in [*unpacking(plan, run), *shortages(plan, run), *unpacking_shortages(plan, run)]:
        echo(line)


def _passes_line(run: Run) -> Iterator[str]:
    """How often a tile is scored, if more than once."""
    model = run.model
    if model.passes > 1:
        models, flips = len(model.members), len(model.flips)
        yield (
            f"each tile is scored {model.passes} times: {models} model{'s' * (models > 1)}, {flips} flip{'s' * (flips > 1)}"
        )


def note_lines(prepared: Prepared) -> list[str]:
    """Notes on cases for stderr, without repetitions."""
    cases: dict[str, list[str]] = {}
    for planned in prepared.plan.seen:
        for note in planned.notes:
            cases.setdefault(note, []).append(planned.case.name)
    lines = [f"note: {names[0]}{f' and {len(names) - 1} more' * (len(names) > 1)}: {note}" for note, names in cases.items()]
    run, plan = prepared.run, prepared.plan
    space = [*shortages(plan, run), *unpacking_shortages(plan, run)]
    return [*lines, *_lesion_line(run), *_cut_line(plan), *_memory_line(prepared), *space]


def _lesion_line(run: Run) -> Iterator[str]:
    """Note on a first class that is left out as background although its name does not say so."""
    lesions, contract = run.lesions, run.model.contract
    if lesions is None or run.settings.lesions is not True or contract.task == "multilabel":
        return
    for c in contract.mask_classes:
        if c.id == 0 and c.name.strip(" _").casefold() != "background":
            yield f"note: --lesions leaves out class 0, {c.name}, as the background: name the classes to measure it"


def _cut_line(plan: Plan) -> Iterator[str]:
    """The cost of cutting cases into parts."""
    if plan.cuts:
        windows = sum(cut.case.windows for cut in plan.cuts)
        twice = sum(cut.repeated * cut.case.windows for cut in plan.cuts) / windows
        parts = sum(len(cut.parts) for cut in plan.cuts)
        count = len(plan.cuts)
        yield f"note: {count} case{'s' * (count > 1)} in {parts} parts: {twice:.1%} of their windows are inferred twice"


def _memory_line(prepared: Prepared) -> Iterator[str]:
    """A note if a worker is expected to need more memory than it may use."""
    run, plan = prepared.run, prepared.plan
    needed, allowed = memory_mb(plan, run), worker_memory(run.settings, plan.workers) / 1e6
    if needed > allowed:
        yield (
            f"note: a worker is expected to take {needed:,.0f} MB, and may take {allowed:,.0f}: "
            "raise --memory, or lower --workers, --tile or --batch"
        )


def settings_lines(prepared: Prepared, *, everything: bool = False) -> list[str]:
    """Settings for stderr: one line with model, place and non-default values; or one line per setting."""
    if everything:
        return [f"{key} = {value}" for key, value in _resolved(prepared).items()]
    run = prepared.run
    chosen = [f"{key} = {_shown(value)}" for key, value in _chosen(run.settings).items()]
    device = f"device {run.model.device} ({run.model.device_reason})"
    models = f"model{'s' * bool(run.model.folds)} {run.model.title}"
    head = f"{models}, {device}, {_where(prepared)}, output {run.output}"
    return ["; ".join([head, *chosen])]


def _resolved(prepared: Prepared) -> dict[str, Any]:
    """Every setting, including the values that the contract and the machine gave."""
    run = prepared.run
    return (
        run.settings.model_dump(mode="json")
        | run.label_settings
        | {
            "batch": run.model.batch,
            "device": f"{run.model.device} ({run.model.device_reason})",
            "workers": prepared.plan.workers,
            "contract": run.model.contract_origin,
        }
    )


IN_HEAD = {"input", "model", "output", "device", "executor", "workers", "scheduler", "cluster"}
"""Settings that the line words in its own way, and the input, whose cases are listed."""


def _chosen(settings: Settings) -> dict[str, Any]:
    """Settings that differ from the defaults."""
    return settings.model_dump(mode="json", exclude_defaults=True, exclude=IN_HEAD)


def _shown(value: Any) -> str:
    """
    >>> _shown([512, 256]), _shown(True), _shown("linear")
    ('512,256', 'true', 'linear')
    """
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _where(prepared: Prepared) -> str:
    """Description of the processes that do the work."""
    settings, count = prepared.run.settings, prepared.plan.workers
    if settings.executor == "serial":
        return "in this process"
    place = settings.scheduler or settings.cluster
    return f"{count} worker{'s' * (count != 1)}" + (f" of {place}" if place else "")
