"""Show the results of a tuning as tables or JSON."""

import json
import shlex
from collections.abc import Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from segpipe.messages.console import console, echo
from segpipe.messages.printable import printable, printable_json
from segpipe.messages.url_secrets import cleaned
from segpipe.tune.candidates import Axes, TunedNetwork
from segpipe.tune.measure import Tuned
from segpipe.tune.table import Row

HEAD = ("", "model", "tile", "overlap", "batch", "tiles/Mpx", "s/Mpx", "times as fast", "labels equal", "seam error")

NARROW = {"overlap": "over-\nlap", "tiles/Mpx": "tiles\n/Mpx", "times as fast": "times\nas fast"} | {
    name: name.replace(" ", "\n") for name in ("labels equal", "seam error")
}
"""Column headers on two lines: numbers keep all digits in 80 columns, and model names wrap."""


def print_tuned(tuned: Tuned) -> None:
    """Print candidates from the fastest to the slowest, the times of tiles, and the flags to use."""
    terminal = console()
    for line in _about(tuned):
        echo(line)
    more = ["mean IoU"] if any(row.mean_iou is not None for row in tuned.rows) else []
    head = [name.replace("Mpx", f"M{tuned.element}") for name in (*HEAD, *more)]
    _print(terminal, head, [_cells(row)[: len(head)] for row in tuned.rows])
    echo("\n* no other is as fast with as many equal labels   > to take   = the contract's own\n")
    _print(terminal, ("", "model", "tile", "batch", "s/tile", "spread", "rounds"), _speed_cells(tuned))
    echo()
    for line in _advice(tuned):
        echo(line)


def as_json(tuned: Tuned) -> str:
    """All results as one JSON object."""
    speeds = [
        _engine(n) | {"tile": tile, "batch": batch, "seconds_per_tile": speed.seconds, "rounds": speed.rounds}
        for (n, tile, batch), speed in tuned.speeds.items()
    ]
    values = {
        "compared_on": tuned.compared_on,
        "reference": tuned.reference,
        "min_agreement": tuned.min_agreement,
        "max_loss": tuned.max_loss,
        "calls": tuned.calls,
        "seconds": round(tuned.seconds, 1),
        "device": tuned.device,
        "notes": tuned.notes,
        "choices": [_values(row) for row in tuned.rows],
        "speeds": speeds,
        "command": command(tuned, tuned.best) if tuned.best else None,
    }
    return printable_json(json.dumps(cleaned(values), ensure_ascii=False, allow_nan=False))


def _values(row: Row) -> dict[str, Any]:
    tiling = row.candidate.tiling
    keys = ("batch", "tiles_per_megapixel", "seconds_per_megapixel", "seam_error", "equal", "mean_iou", "times_as_fast")
    marks = ("front", "best")
    where = {**_engine(row.candidate.network), "tile": tiling.input, "overlap": tiling.overlap}
    return {**where, **{key: getattr(row, key) for key in (*keys, *marks)}, "own": row.candidate.is_own}


def _engine(network: TunedNetwork) -> dict[str, Any]:
    spec = network.spec
    precision = None if spec.engine is None else spec.engine.precision
    return {"model": str(spec.path), "device": spec.device, "precision": precision}


def command(tuned: Tuned, row: Row) -> str:
    """Command of the run that a row stands for."""
    tiling = row.candidate.tiling
    sizes = {"--tile": _flag(tiling.input), "--overlap": _flag(tiling.overlap), "--batch": str(row.batch)}
    chosen = [part for flag, value in sizes.items() for part in (flag, value)]
    return shlex.join(["segpipe", "run", *row.candidate.network.flags, *chosen, *tuned.flags])


def _about(tuned: Tuned) -> list[str]:
    noise = [] if any(part == "--input" for part in tuned.flags) else ["note: seam error on noise says little of scenes"]
    return [
        f"labels compared on {tuned.compared_on}",
        f"reference: {tuned.reference}",
        f"speed: tiles in memory, {tuned.calls} calls in flight on {tuned.device['processor']}; without reading and writing",
        *noise,
        *(f"note: {note}" for note in tuned.notes),
        "",
    ]


def _cells(row: Row) -> list[str]:
    tiling = row.candidate.tiling
    marks = ("*" if row.front else " ") + (">" if row.best else " ") + ("=" if row.candidate.is_own else " ")
    sizes = [_flag(tiling.input), _flag(tiling.overlap), str(row.batch)]
    cost = [f"{row.tiles_per_megapixel:.2f}", f"{row.seconds_per_megapixel:.3f}", f"{row.times_as_fast:.2f}"]
    truth = "" if row.mean_iou is None else f"{row.mean_iou:.4f}"
    return [marks, row.candidate.network.name, *sizes, *cost, f"{row.equal:.3%}", f"{row.seam_error:.3%}", truth]


def _speed_cells(tuned: Tuned) -> list[list[str]]:
    return [
        ["", n.name, _flag(n.seen(tile)), str(batch), f"{s.seconds:.4f}", f"{s.spread:.0%}", str(len(s.rounds))]
        for (n, tile, batch), s in tuned.speeds.items()
    ]


def _print(terminal: Console, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table in a terminal, aligned lines elsewhere."""
    rows = [list(map(printable, row)) for row in rows]
    if terminal.is_terminal:
        terminal.print(table_of(head, rows))
        return
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        echo("  ".join([*left, *right]).rstrip())


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table in which only model names may wrap."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for number, name in enumerate(head):
        justify: Literal["left", "right"] = "left" if number < 2 else "right"
        table.add_column(_narrow(name), justify=justify, no_wrap=name != "model", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _narrow(name: str) -> str:
    return NARROW.get(name, name.replace("/Mvoxel", "\n/Mvoxel"))


def _advice(tuned: Tuned) -> list[str]:
    if tuned.max_loss is not None:
        return _advice_by_loss(tuned, tuned.max_loss)
    best, asked = tuned.best, f"{tuned.min_agreement:.2%}"
    if best is None:
        top = max(tuned.rows, key=lambda row: row.equal)
        return [f"no choice gives {asked} equal labels; the nearest, with {top.equal:.3%}:", f"  {command(tuned, top)}"]
    return [
        f"the fastest with at least {asked} equal labels: {best.times_as_fast:.2f} times as fast as the contract's own, "
        f"{best.equal:.3%} equal labels",
        f"  {command(tuned, best)}",
    ]


def _advice_by_loss(tuned: Tuned, most: float) -> list[str]:
    best = tuned.best
    if best is None:
        return [f"no choice loses at most {most:g} of mean IoU: the reference knows no class of these boxes"]
    return [
        f"the fastest that loses at most {most:g} of mean IoU: {best.times_as_fast:.2f} times as fast as the contract's "
        f"own, mean IoU {best.mean_iou:.4f}",
        f"  {command(tuned, best)}",
    ]


def _flag(sizes: Axes) -> str:
    """Sizes in the form of ``--tile``."""
    return str(sizes[0]) if len(set(sizes)) == 1 else ",".join(map(str, sizes))
