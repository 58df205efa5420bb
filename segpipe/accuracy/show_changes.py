"""A comparison of two runs for a person, a spreadsheet or a program."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from segpipe.accuracy.compare import Change, Changes
from segpipe.accuracy.scores import Margins, scores
from segpipe.accuracy.show import csv_text, number, print_table, write_files
from segpipe.array_types import Float, Integers
from segpipe.messages.console import echo
from segpipe.messages.printable import counted, printable, printable_json
from segpipe.messages.url_secrets import cleaned
from segpipe.results.areas import rounded

UNSEEN = "unseen"
COLUMNS = ("case", "from_id", "from", "to_id", "to", "pixels", "amount", "unit")
SHOWN, FAILED = 20, 5
"""Most cases of the table in a terminal, and most failures."""


def print_changes(found: Changes) -> None:
    """The matrix of each unit, a row per case, and warnings."""
    for unit, (pixels, sizes) in found.pooled().items():
        _print_matrix(found, unit, sizes)
        own = _summary(pixels, sizes)
        echo(
            f"\n{_amount(own['changed'])} {unit} changed, {_share(own['changed_share'])} of what both runs saw; "
            f"overall agreement {_text(own['agreement'])}, Cohen's kappa {_text(own['kappa'])}\n"
        )
    head = ("case", "agreement", "kappa", "changed", "unit", "share")
    rows = [_row(one) for one in found.cases[:SHOWN]]
    if rows:
        print_table(head, rows)
    if (more := len(found.cases) - SHOWN) > 0:
        echo(f"and {counted(more, 'more case')}")
    for warning in found.warnings:
        echo(f"warning: {warning}", err=True)
    for name, why in list(found.failed.items())[:FAILED]:
        echo(f"failed {printable(name)}: {printable(why)}", err=True)
    if (more := len(found.failed) - FAILED) > 0:
        echo(f"failed: {more:,} more", err=True)


def _print_matrix(found: Changes, unit: str, sizes: Float) -> None:
    names = (*found.classes.names, UNSEEN)
    rows = [
        [name, *(_amount(value) for value in row), _amount(math.fsum(row))] for name, row in zip(names, sizes, strict=True)
    ]
    total = [math.fsum(column) for column in sizes.T]
    print_table((f"{unit}: from, to", *names, "total"), [*rows, ["total", *map(_amount, total), _amount(math.fsum(total))]])


def _row(one: Change) -> list[str]:
    own = _summary(one.pixels, one.sizes)
    scores_ = (_text(own["agreement"]), _text(own["kappa"]))
    return [one.name, *scores_, _amount(own["changed"]), one.unit, _share(own["changed_share"])]


def _summary(pixels: Integers, sizes: Float) -> dict[str, Any]:
    """Agreement by pixels that both runs saw, and what changed by size."""
    own, seen = scores(Margins.of(pixels[:-1, :-1])), sizes[:-1, :-1]
    both = math.fsum(seen.ravel())
    changed = math.fsum(seen[~np.eye(len(seen), dtype=bool)])
    return {
        "agreement": number(own.overall_accuracy),
        "kappa": number(own.kappa),
        "changed": rounded(changed),
        "changed_share": changed / both if both else None,
        "seen_by_both": rounded(both),
    }


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _amount(value: float) -> str:
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:,.4g}"


def as_json(found: Changes) -> str:
    """One object with all matrices, pooled and per case: rows and columns are the classes, then unseen."""
    values = {
        "classes": [{"id": one, "name": name} for one, name in zip(found.classes.ids, found.classes.names, strict=True)],
        "pooled": [{"unit": unit, **_values(*sums)} for unit, sums in found.pooled().items()],
        "cases": [
            {
                "case": one.name,
                "unit": one.unit,
                "resampled": one.moved,
                "map": one.written,
                **(_values if found.listed() else _summary)(one.pixels, one.sizes),
            }
            for one in found.cases
        ],
        "failed": found.failed,
        "warnings": list(found.warnings),
    }
    return printable_json(json.dumps(cleaned(values), ensure_ascii=False, allow_nan=False))


def _values(pixels: Integers, sizes: Float) -> dict[str, Any]:
    return {
        **_summary(pixels, sizes),
        "pixels": pixels.tolist(),
        "amounts": [[rounded(value) for value in row] for row in sizes.tolist()],
    }


def as_csv(found: Changes) -> str:
    """A row per case and pair of classes that occurs."""
    return csv_text(COLUMNS, (row for one in found.cases for row in _rows(found, one)))


def _rows(found: Changes, one: Change) -> Iterator[list[Any]]:
    ids, names = (*found.classes.ids, ""), (*found.classes.names, UNSEEN)
    for at, pixels, size in zip(one.at.tolist(), one.counts.tolist(), one.each_size.tolist(), strict=True):
        a, b = divmod(at, one.side)
        amount = "" if one.amounts is None else rounded(size)
        yield [one.name, ids[a], names[a], ids[b], names[b], pixels, amount, one.unit]


def write_changes(found: Changes, folder: Path) -> list[Path]:
    """Write ``change.csv`` and ``compare.json`` into a folder, and return their paths and those of the maps there."""
    paths = write_files(folder, {"change.csv": as_csv(found), "compare.json": as_json(found) + "\n"})
    return [*paths, *(folder / one.written for one in found.cases if one.written is not None)]
