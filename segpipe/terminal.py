"""What a person sees: a progress bar and a table in a terminal, a line per case elsewhere."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click
import numpy as np
from rich import filesize
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from segpipe.pipeline.contract import METADATA_KEY, Contract, SegmentationClass
from segpipe.pipeline.inspect import Band, Facts, Fit, Flops, ModelFacts, RasterFacts, Tensor, Valid, plain
from segpipe.pipeline.launch import Prepared, Summary
from segpipe.pipeline.plan import memory_mb
from segpipe.pipeline.records import Record, records
from segpipe.pipeline.run import Outcome
from segpipe.pipeline.status import Status

if TYPE_CHECKING:  # torch and all that comes with it
    from segpipe.export.attach import Attached
    from segpipe.export.make import Exported


def say(line: str) -> None:
    """A line on stdout; the work goes on where nobody listens any more, as behind ``| head``."""
    try:
        click.echo(line)
    except BrokenPipeError:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open until the process ends


class Lines:
    """One line per case on stdout, for logs and pipes."""

    def __init__(self, prepared: Prepared) -> None:
        self._skipped = prepared.plan.done
        self._total = len(prepared.cases)
        self._count = 0

    def __enter__(self) -> Self:
        for case in self._skipped:
            self._count += 1
            say(f"[{self._count}/{self._total}] skipped  {case.name}  done before")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def progress(self, pixels: int) -> None:
        pass

    def outcome(self, outcome: Outcome) -> None:
        self._count += 1
        say(f"[{self._count}/{self._total}] {described(outcome)}")


class Bar(Lines):
    """One progress bar for the run: cases, megapixels per second, time left."""

    def __init__(self, prepared: Prepared) -> None:
        super().__init__(prepared)
        columns = (TextColumn("{task.description}"), BarColumn(), _Rate(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(), transient=False)
        self._task = self._bar.add_task(self._caption(), total=prepared.plan.pixels)

    def _caption(self) -> str:
        return f"{self._count}/{self._total} cases"

    def __enter__(self) -> Self:
        self._count = len(self._skipped)
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def progress(self, pixels: int) -> None:
        self._bar.advance(self._task, pixels)

    def outcome(self, outcome: Outcome) -> None:
        self._count += 1
        self._bar.update(self._task, description=self._caption())
        if outcome.error is not None:
            self._bar.console.print(Text(described(outcome), style="red"))


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{(task.finished_speed or task.speed or 0) / 1e6:.1f} Mpx/s")


def described(outcome: Outcome) -> str:
    """One line on how a case ended."""
    if outcome.error is not None:
        return f"failed  {outcome.case.name}: {outcome.error}"
    rate = outcome.pixels / 1e6 / outcome.seconds if outcome.seconds else 0
    return f"done  {outcome.case.name}  {outcome.pixels / 1e6:.1f} Mpx  {outcome.seconds:.1f} s  {rate:.1f} Mpx/s"


def watcher(prepared: Prepared) -> Lines:
    """A bar in a terminal, lines elsewhere."""
    return Bar(prepared) if sys.stdout.isatty() else Lines(prepared)


def conclude(prepared: Prepared, summary: Summary) -> None:
    """After the bar: areas of the whole run, and what to open. Elsewhere the lines have said it all."""
    if not sys.stdout.isatty():
        return
    console = Console()
    done = [case for case in prepared.cases if case.name in summary.good]
    console.print(areas_table(records(prepared.run.output, done)))
    console.print(
        f"{len(summary.done)} done, {len(summary.skipped)} done before, {len(summary.failed)} failed"
        f" in {summary.seconds:.1f} s, {summary.megapixels_per_second:.1f} Mpx/s"
    )
    console.print(f"open {prepared.run.output / 'areas.csv'} and the masks beside it")


def areas_table(records: Iterable[Record]) -> Table:
    """Pixels and hectares per class over all cases; where one has no place on Earth, shares are of pixels."""
    totals: dict[str, list[float]] = {}
    valid, placed = [0.0, 0.0], True
    for record in records:
        placed = placed and record["valid"]["hectares"] is not None
        valid = [valid[0] + record["valid"]["pixels"], valid[1] + (record["valid"]["hectares"] or 0)]
        for row in record["areas"]:
            total = totals.setdefault(row["class_name"], [0, 0])
            total[0], total[1] = total[0] + row["pixels"], total[1] + (row["area"] or 0)
    table = Table("class", *(_right(name) for name in ("pixels", "hectares", "share")))
    for name, total in totals.items():
        share = total[placed] / valid[placed] if valid[placed] and name != "nodata" else None
        shown = ["-" if not placed and not total[1] else f"{total[1]:,.1f}", "" if share is None else f"{share:.1%}"]
        table.add_row(name, f"{total[0]:,.0f}", *shown)
    if not placed:
        table.caption = "some cases have no place on Earth: they count in pixels only"
    return table


def _right(name: str) -> Any:
    return Column(name, justify="right")


def print_export(exported: "Exported") -> None:
    """What was exported, and how well it agrees."""
    agreement, contract = exported.agreement, exported.contract
    for note in exported.notes:
        click.echo(f"note: {note}", err=True)
    size = "rows and columns free" if exported.free_size else "size fixed to the tile"
    tile = " x ".join(map(str, contract.tile or ()))
    shift = "" if exported.stride.equivariant else f", though scores change by {exported.stride.error:.1%} under such shifts"
    click.echo(
        f"{exported.path}: {contract.provenance['architecture']}, {contract.provenance['parameters']:,} parameters, "
        f"{contract.provenance['precision']}, {contract.channel_count} channels to {contract.scores} scores\n"
        f"tile {tile}, {size}; windows start at multiples of {exported.stride.align}{shift}\n"
        f"agrees with torch on {agreement.tiles} tiles of {agreement.source}: {agreement.equal_labels:.4%} equal labels, "
        f"mIoU {agreement.miou:.4f}, largest difference of scores {agreement.max_difference:.2g} of the largest"
    )


def print_attached(attached: "Attached") -> None:
    """What was attached to what."""
    for note in attached.notes:
        click.echo(f"note: {note}", err=True)
    contract = attached.contract
    click.echo(f"{attached.path}: {contract.channel_count} channels to {contract.scores} scores, contract attached")
    if attached.stride is not None:
        shift = (
            "" if attached.stride.equivariant else f", though scores change by {attached.stride.error:.1%} under such shifts"
        )
        click.echo(f"windows start at multiples of {attached.stride.align}, as measured{shift}")


def print_status(status: Status, as_json: bool) -> None:
    """How far runs have come, in a few lines or as JSON."""
    if as_json:
        click.echo(json.dumps({**asdict(status), "output": str(status.output)}, ensure_ascii=False))
        return
    running = f", written by {status.running} now" if status.running else ""
    rate = f", {status.megapixels_per_second:.1f} Mpx/s in the last run" if status.megapixels_per_second else ""
    click.echo(f"{status.output}{running}")
    click.echo(f"{status.done} done, {len(status.failed)} failed, {len(status.missing)} missing{rate}")
    for failure in status.failed:
        click.echo(f"failed   {failure['case']}: {failure['error']}")
    for name in status.missing[:LISTED]:
        parts = f"  {status.parts[name]} parts done" if status.parts.get(name) else ""
        click.echo(f"missing  {name}{parts}")
    if len(status.missing) > LISTED:
        click.echo(f"missing  and {len(status.missing) - LISTED} more")
    if status.missing or status.failed:
        click.echo(f"to go on: {status.command}")


LISTED = 20
"""Missing cases that are named."""


def print_plan(prepared: Prepared) -> None:
    """What a run would do, for ``--dry-run``."""
    run, plan = prepared.run, prepared.plan
    for planned in plan.cases:
        size = " x ".join(map(str, planned.shape))
        click.echo(f"case  {planned.case.name}  {size} px  {planned.windows} windows")
        for note in planned.notes:
            click.echo(f"note  {planned.case.name}: {note}")
    for case in plan.done:
        click.echo(f"done  {case.name}")
    for failure in plan.failed:
        click.echo(f"problem  {failure.case.name}: {failure.error}")
    for cut in plan.cuts:
        click.echo(f"parts  {cut.case.case.name}  {len(cut.parts)} parts, {cut.repeated:.1%} of the windows inferred twice")
    windows = sum(case.windows for case in plan.cases)
    jobs = len(plan.jobs) + sum(len(cut.parts) for cut in plan.cuts)
    click.echo(
        f"{len(plan.cases)} cases to do, {len(plan.done)} done before, {len(plan.failed)} with problems; "
        f"{windows} windows in {jobs} jobs; {plan.workers} workers, calls in flight in each: {plan.calls}; "
        f"about {memory_mb(plan, run):,.0f} MB of memory per worker"
    )


def note_lines(prepared: Prepared) -> list[str]:
    """What was seen in cases that is no error, each note once, for stderr."""
    cases: dict[str, list[str]] = {}
    for planned in prepared.plan.cases:
        for note in planned.notes:
            cases.setdefault(note, []).append(planned.case.name)
    return [f"note: {names[0]}{f' and {len(names) - 1} more' * (len(names) > 1)}: {note}" for note, names in cases.items()]


def settings_lines(prepared: Prepared) -> list[str]:
    """The resolved settings, for stderr."""
    run = prepared.run
    resolved = run.settings.model_dump(mode="json") | run.label_settings
    resolved |= {
        "batch": run.model.batch,
        "device": f"{run.model.device} ({run.model.device_reason})",
        "workers": prepared.plan.workers,
    }
    resolved |= {"contract": run.model.contract_origin}
    return [f"{key} = {value}" for key, value in resolved.items()]


CLASS_ROWS = 24
"""Classes up to which each has a line of its own; above, they run in."""

BAND_ROWS = 16
"""Bands up to which each has a line of its own; above, neighbours that differ in their names alone share one."""

FIRST_KEYS = ("architecture", "framework", "weights_sha256", "precision", "date")
"""Of a provenance, in this order; then the rest, verification last."""

Row = tuple[str, str]


def print_facts(facts: Facts) -> None:
    """What ``segpipe inspect`` found, for a person; names may hold anything, so nothing in them is markup."""
    console = Console(markup=False, highlight=False, emoji=False)
    if isinstance(facts, ModelFacts):
        _print_model(console, facts)
    else:
        _print_raster(console, facts)


def _section(console: Console, title: str, rows: Iterable[Row]) -> None:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for row in rows:
        grid.add_row(*row)
    if grid.row_count:
        console.print(Text(title, style="bold"))
        console.print(grid)
        console.print()


def _print_model(console: Console, facts: ModelFacts) -> None:
    _section(console, f"model {facts.file}", _model_rows(facts))
    if facts.contract is None:
        return
    contract = Contract.model_validate(facts.contract)
    _section(console, f"contract, from {facts.contract_origin}", _contract_rows(contract, facts.tiling))
    _print_classes(console, contract.mask_classes)
    _section(console, "provenance", _provenance_rows(contract.provenance))


def _model_rows(facts: ModelFacts) -> Iterator[Row]:
    yield "size", filesize.decimal(facts.bytes)
    if facts.producer:
        yield "made by", facts.producer
    yield "opset", ", ".join(f"{name} {n}" for name, n in facts.opset.items()) + f"; IR {facts.ir}"
    yield from (("input", _tensor_words(tensor)) for tensor in facts.inputs)
    yield from (("output", _tensor_words(tensor)) for tensor in facts.outputs)
    parameters = facts.parameters
    types = ", ".join(parameters.types if len(parameters.types) < 2 else (f"{n:,} {t}" for t, n in parameters.types.items()))
    yield "parameters", f"{parameters.count:,} in {filesize.decimal(parameters.bytes)}" + f" ({types})" * bool(types)
    yield "FLOPs", _flops_words(facts.flops)
    yield "operators", ", ".join(f"{n} {name}" for name, n in facts.operators.items())
    if others := [key for key in facts.metadata if key != METADATA_KEY]:
        yield "metadata", ", ".join(others)
    if facts.sha256:
        yield "identity", facts.sha256


def _tensor_words(tensor: Tensor) -> str:
    return f"{tensor.name}  {tensor.dtype} ({', '.join(map(str, tensor.shape))})"


def _flops_words(flops: Flops | None) -> str:
    if flops is None:
        return "not known: the tile is not known, or the sizes inside depend on more than it"
    parts = ", ".join(f"{name} {n / flops.total:.0%}" for name, n in flops.operators.items() if n)
    left = f"; not counted: {', '.join(flops.not_counted)}" if flops.not_counted else ""
    return f"{_si(flops.total)} for one tile, {_by(flops.shape)}" + f" ({parts})" * (len(flops.operators) > 1) + left


def _si(number: float) -> str:
    """``2.86 G``."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number:.3g}"


def _by(numbers: Iterable[float]) -> str:
    return " x ".join(f"{n:.10g}" for n in numbers)


def _contract_rows(contract: Contract, tiling: Mapping[str, Sequence[int]] | None) -> Iterator[Row]:
    names = contract.channel_names
    yield "channels", str(contract.channel_count) + (f": {', '.join(names)}" if names else ", without names")
    yield "scaling", _scaling_words(contract)
    yield from ((key, ", ".join(f"{n:.6g}" for n in contract.column(key))) for key in _varying(contract))
    yield "tile", _tile_words(contract, tiling)
    yield "equivariant", _EQUIVARIANT[contract.equivariant]
    yield "spacing", _spacing_words(contract)
    yield "task", _TASKS[contract.task] + f", above {contract.threshold:g}" * (contract.task != "multiclass")
    yield "activation", _ACTIVATIONS.get(contract.activation, contract.activation)
    yield from ((key, value) for key in ("input", "output", "orientation") if (value := getattr(contract, key)))
    if contract.layout != "NCHW":
        yield "layout", contract.layout


_TASKS = {
    "multiclass": "multiclass: each pixel has one class",
    "binary": "binary: one score, class 1",
    "multilabel": "multilabel: each class has a mask band of its own",
}
_ACTIVATIONS = {"none": "none: the outputs are probabilities"}
_EQUIVARIANT = {
    True: "yes: scores do not depend on where a tile starts",
    False: "no: scores depend on where a tile starts",
    None: "not measured",
}


def _varying(contract: Contract) -> list[str]:
    """Keys of the scaling whose channels differ."""
    return [key for key in ("scale", "offset", "mean", "std") if len(set(contract.column(key))) > 1]


def _scaling_words(contract: Contract) -> str:
    """The formula; what differs between channels goes by its key, and its numbers follow."""
    if contract.scaling == "graph":
        return "inside the model, which takes pixels as they are"
    words = {key: key if key in _varying(contract) else f"{[*contract.column(key), 0][0]:.6g}" for key in _SCALING}
    x = "pixel" if contract.pixel == "stored" else "physical value by the file's tags"
    x += f" * {words['scale']}" * (words["scale"] != "1") + f" + {words['offset']}" * (words["offset"] != "0")
    if contract.clip:
        x = f"clip({x}, {contract.clip[0]:g}, {contract.clip[1]:g})"
    after = {
        "fixed": f"({x} - {words['mean']}) / {words['std']}",
        "zscore": f"{x}; then mean 0 and deviation 1 over the case's valid pixels",
        "minmax": f"{x}; then 0 to 1 over the case's valid pixels",
    }
    return f"x = {after.get(contract.normalize, x)}"


_SCALING = ("scale", "offset", "mean", "std")


def _tile_words(contract: Contract, tiling: Mapping[str, Sequence[int]] | None) -> str:
    sizes = tiling or {key: np.atleast_1d(getattr(contract, key) or []).tolist() for key in ("tile", "overlap", "align")}
    known = [f"{key} {_by(sizes[key])}" for key in ("overlap", "align") if sizes[key]]
    return ", ".join([_by(sizes["tile"]) or "not named", *known])


def _spacing_words(contract: Contract) -> str:
    if contract.spacing is None:
        return "any: pixel sizes are not checked"
    return f"{_by(contract.spacing)} {contract.spacing_unit} on the ground, within {contract.spacing_tolerance:.0%}"


def _print_classes(console: Console, classes: Sequence[SegmentationClass]) -> None:
    title = f"{len(classes)} classes"
    if len(classes) > CLASS_ROWS:
        _section(console, title, [("", ", ".join(f"{c.id} {c.name}" for c in classes))])
        return
    grid = Table.grid(padding=(0, 2, 0, 0))
    for c in classes:
        swatch = Text("  ", style=f"on {c.color}") if c.color and console.color_system else ""
        grid.add_row(
            Text(str(c.id), justify="right"), c.name, c.color or "", swatch, f"score {c.channel}" * (c.channel != c.id)
        )
    console.print(Text(title, style="bold"), grid, "", sep="\n")


def _provenance_rows(provenance: Mapping[str, Any]) -> Iterator[Row]:
    rest = [key for key in provenance if key not in FIRST_KEYS and key != "verification"]
    for key in (*FIRST_KEYS, *rest, "verification"):
        if key in provenance:
            yield from _flat(key, plain(provenance[key]))


def _flat(key: str, value: Any) -> Iterator[Row]:
    """Nested keys as rows, each under its whole name."""
    if isinstance(value, dict) and value:
        for inner, below in value.items():
            yield from _flat(f"{key}.{inner}", below)
    else:
        yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _print_raster(console: Console, facts: RasterFacts) -> None:
    _section(console, f"raster {facts.file}", _raster_rows(facts))
    if facts.bands:
        console.print(_bands_table(facts.bands))
        console.print()
    _section(console, "what a model for it would need", _need_rows(facts))
    if facts.fit:
        fit = facts.fit
        _section(console, f"under {fit.model}, contract from {fit.contract_origin}", _fit_rows(fit, facts))


def _raster_rows(facts: RasterFacts) -> Iterator[Row]:
    blocks = {tuple(band.block) for band in facts.bands}
    overviews = f"overviews {', '.join(map(str, facts.overviews))}" if facts.overviews else "no overviews"
    stored = [facts.driver, facts.compression or "uncompressed", *(f"blocks of {_by(b)}" for b in sorted(blocks)), overviews]
    yield "format", ", ".join(stored)
    yield "size", f"{_by(facts.shape)} px (rows x columns)"
    if facts.subdatasets:
        yield "images", str(len(facts.subdatasets))
    yield "CRS", _crs_words(facts)
    if facts.transform:
        yield "transform", _transform_words(facts.transform)
    yield "pixel size", _ground_words(facts.pixel_size)
    yield from (("source", file) for file in facts.files if file != facts.file)


def _metres(size: Sequence[float]) -> str:
    """Height and width."""
    return " x ".join(f"{n:,.0f}" if n >= 1000 else f"{n:.4g}" for n in size) + " m"


def _ground_words(size: Sequence[float] | None) -> str:
    return "not known: no place on Earth" if size is None else f"{_metres(size)} on the ground"


def _crs_words(facts: RasterFacts) -> str:
    code = facts.crs if facts.crs and not facts.crs.lstrip().endswith("]") else None
    name = "without a name, WKT with --json" if facts.crs_name in {"unnamed", "unknown"} else facts.crs_name
    named = ", ".join(word for word in (code, name) if word) or facts.crs or "none"
    points = f"{facts.control_points} control points" if facts.control_points else ""
    return "; ".join(word for word in (named, points, "RPCs" * facts.rpcs) if word)


def _transform_words(transform: Sequence[float]) -> str:
    a, b, c, d, e, f = (f"{n:.10g}" for n in transform)
    if (b, d) == ("0", "0"):
        return f"corner ({c}, {f}), pixel ({a}, {e})"
    return f"x = {c} + {a} col + {b} row, y = {f} + {d} col + {e} row"


def _bands_table(bands: Sequence[Band]) -> Table:
    """Columns in which no band has anything to say are left out."""
    groups = [[band] for band in bands] if len(bands) <= BAND_ROWS else _alike(bands)
    cells = [_band_cells(group) for group in groups]
    shown = [key for key in cells[0] if any(row[key] for row in cells)]
    table = Table(*shown, box=None, pad_edge=False, header_style="bold")
    for row in cells:
        table.add_row(*(row[key] for key in shown))
    return table


def _alike(bands: Sequence[Band]) -> list[list[Band]]:
    groups: list[list[Band]] = []
    for band in bands:
        if groups and _kind(groups[-1][0]) == _kind(band):
            groups[-1].append(band)
        else:
            groups.append([band])
    return groups


def _kind(band: Band) -> tuple[Any, ...]:
    return band.dtype, band.color, str(band.nodata), band.mask, band.scale, band.offset


def _band_cells(group: Sequence[Band]) -> dict[str, str]:
    first, last = group[0], group[-1]
    names = [band.description or "" for band in group]
    return {
        "band": str(first.index) if first is last else f"{first.index} to {last.index}",
        "name": ", ".join(names if len(names) < 4 else [*names[:2], "...", names[-1]]) if any(names) else "",
        "type": first.dtype,
        "colour": first.color.replace("undefined", ""),
        "nodata": "" if first.nodata is None else f"{first.nodata:.10g}",
        "validity": ", ".join(_MASKS.get(flag, flag) for flag in first.mask),
        "scale": f"{first.scale:g}" * (first.scale != 1),
        "offset": f"{first.offset:g}" * (first.offset != 0),
    }


_MASKS = {"all_valid": "all valid", "per_dataset": "mask of all bands"}


def _need_rows(facts: RasterFacts) -> Iterator[Row]:
    """As lines of a contract, and what share of it there is to label."""
    needs = facts.needs
    if needs.names and needs.channels > BAND_ROWS:
        yield "channels", f"channels = {needs.channels}, or the list of their names, which --json gives"
    else:
        yield "channels", f"channels = {json.dumps(needs.names or needs.channels, ensure_ascii=False)}"
    if needs.spacing:
        yield "spacing", f"spacing = {json.dumps(needs.spacing)}"
    if facts.valid:
        yield "valid pixels", _valid_words(facts.valid, facts.shape[0] * facts.shape[1])


def _valid_words(valid: Valid, pixels: int) -> str:
    if valid.pixels == pixels:
        return f"{valid.share:.1%}, all pixels read"
    return f"about {valid.share:.0%}, sampled: {valid.pixels:,} of {pixels:,} pixels read"


def _fit_rows(fit: Fit, facts: RasterFacts) -> Iterator[Row]:
    described = {b.index: f"band {b.index}" + f" ({b.description})" * bool(b.description) for b in facts.bands}
    pairs = [(pair["channel"], described[pair["band"]]) for pair in fit.bands]
    yield from pairs if len(pairs) <= BAND_ROWS else [("bands", ", ".join(f"{channel}: {band}" for channel, band in pairs))]
    if fit.spacing:
        yield "pixel size", f"{_metres(fit.spacing)} wanted, {_ground_words(facts.pixel_size)}"
    empty = "" if fit.empty_windows is None else f"; {fit.empty_windows} without a valid pixel"
    yield "windows", f"{fit.windows} ({_by(fit.grid)}) of {_by(fit.tile)} px{empty}"
    yield "memory", f"about {fit.memory_mb:,.0f} MB for a worker on the CPU"
    yield from (("note", note) for note in facts.notes)
