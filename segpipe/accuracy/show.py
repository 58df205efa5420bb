"""Estimates for a person, a spreadsheet or a program."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from segpipe.accuracy.estimate import OVERALL, Estimate, Estimates
from segpipe.messages.console import cells, console, echo
from segpipe.messages.printable import counted, one_row, printable_json
from segpipe.messages.url_secrets import cleaned
from segpipe.storage.files import commit, output_errors, partial, unlinked

COLUMNS = ("class", "quantity", "value", "standard_error", "low", "high", "interval", "unit")


def print_estimates(found: Estimates) -> None:
    """A table of the classes, the overall accuracy, and warnings."""
    design = found.design
    echo(f"{counted(int(design.sample.count.sum()), 'unit')}, {len(design.strata)} strata; {design.method}")
    table = [_cells(found, name, k) for k, name in enumerate(design.classes)]
    unit = f" {design.unit}" if design.unit else ""
    head = (
        "class",
        f"mapped{unit}",
        f"area{unit}",
        f"{found.level:.0%} interval",
        "user's",
        "interval",
        "producer's",
        "interval",
    )
    print_table(head, table)
    overall = found.of(OVERALL, "overall_accuracy")
    echo(f"\noverall accuracy {_share(overall)}, {_limits(overall)}")
    if any(row.interval and row.interval.kind == "exact" for row in found.rows):
        echo("* exact interval (Clopper-Pearson): too few units for a normal one")
    for warning in found.warnings:
        echo(f"warning: {warning}", err=True)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table in a terminal, aligned lines elsewhere; the first column is on the left."""
    terminal = console()
    if terminal.is_terminal:
        from rich.table import Table

        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for number, name in enumerate(head):
            justify: Literal["left", "right"] = "right" if number else "left"
            table.add_column(name, justify=justify, overflow="fold")
        for row in rows:
            table.add_row(*cells(row))
        terminal.print(table)
        return
    rows = [[one_row(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        right = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        echo("  ".join([row[0].ljust(widths[0]), *right]).rstrip())


def _cells(found: Estimates, name: str, k: int) -> list[str]:
    area, user, producer = (found.of(name, what) for what in ("area", "users_accuracy", "producers_accuracy"))
    mapped = "" if found.design.mapped is None else _amount(float(found.design.mapped[k]))
    shares = [cell for row in (user, producer) for cell in (_share(row), _limits(row))]
    return [name, mapped, _amount(area.value), _limits(area), *shares]


def _amount(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.4g}"


def _share(row: Estimate) -> str:
    return "-" if row.value is None else f"{row.value:.4f}"


def _limits(row: Estimate) -> str:
    """Plus and minus where the interval is normal, its limits with a star where it is exact."""
    if row.interval is None:
        return ""
    text = _amount if row.quantity == "area" else "{:.4f}".format
    if row.interval.kind == "exact":
        return f"{text(row.interval.low)} to {text(row.interval.high)}*"
    return f"± {text((row.interval.high - row.interval.low) / 2)}"


def as_json(found: Estimates) -> str:
    """One object with all estimates."""
    design = found.design
    values = {
        "method": design.method,
        "level": found.level,
        "units": int(design.sample.count.sum()),
        "unit": design.unit or None,
        "area": design.area,
        "classes": list(design.classes),
        "mapped_area": None if design.mapped is None else design.mapped.tolist(),
        "estimates": [dict(zip(COLUMNS, _values(row), strict=True)) for row in found.rows],
        "matrix": found.matrix.tolist(),
        "warnings": list(found.warnings),
    }
    return printable_json(json.dumps(cleaned(values), ensure_ascii=False, allow_nan=False))


def _values(row: Estimate) -> list[Any]:
    limits = (None, None, None) if row.interval is None else (row.interval.low, row.interval.high, row.interval.kind)
    return [row.class_name, row.quantity, row.value, row.error, *limits, row.unit or None]


def as_csv(found: Estimates) -> str:
    """A row per estimate."""
    return csv_text(COLUMNS, map(_values, found.rows))


def csv_text(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV, one line per row, for programs that read line by line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([[one_row(cell) if isinstance(cell, str) else cell for cell in row] for row in rows])
    return text.getvalue()


def write_estimates(found: Estimates, folder: Path) -> list[Path]:
    """Write ``estimate.csv`` and ``estimate.json`` into a folder, and return their paths."""
    return write_files(folder, {"estimate.csv": as_csv(found), "estimate.json": as_json(found) + "\n"})


def number(value: Any) -> float | None:
    """A number for JSON and CSV; None if it is not a number."""
    return None if math.isnan(value) else float(value)


def write_files(folder: Path, texts: dict[str, str]) -> list[Path]:
    """Write files into a folder, each whole or not at all, and return their paths.

    Raises:
        OutputError: it cannot be written.
    """
    for name, text in texts.items():
        with output_errors(folder / name):
            folder.mkdir(parents=True, exist_ok=True)
            draft = unlinked(partial(folder / name))
            draft.write_text(text, encoding="utf-8", errors="backslashreplace")
            commit(draft, folder / name)
    return [folder / name for name in texts]
