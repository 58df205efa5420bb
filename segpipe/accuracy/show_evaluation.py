"""An evaluation for a person, a spreadsheet or a program."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segpipe.accuracy.evaluate import CaseScores, Evaluation
from segpipe.accuracy.picture import as_svg
from segpipe.accuracy.scores import QUANTITIES, SUMMARIES, scores
from segpipe.accuracy.show import csv_text, number, print_table, write_files
from segpipe.messages.console import echo
from segpipe.messages.printable import counted, printable, printable_json
from segpipe.messages.url_secrets import cleaned

WORDS = {
    "mean_iou": "mean IoU",
    "frequency_weighted_iou": "frequency-weighted IoU",
    "mean_dice": "mean Dice",
    "overall_accuracy": "overall pixel accuracy",
    "mean_accuracy": "mean pixel accuracy",
    "kappa": "Cohen's kappa",
}
COLUMNS = ("case", "class", "reference_pixels", "mapped_pixels", *QUANTITIES, "missed", "false")
SHOWN = 5


def print_evaluation(found: Evaluation) -> None:
    """A table of the classes, scores of all of them, and warnings."""
    echo(f"{counted(len(found.cases), 'case')}, {counted(int(found.pooled.matrix.sum()), 'pixel')}")
    missed, false = _events(found)
    head = ("class", "reference", "mapped", "IoU", "Dice", "precision", "recall", "missed in", "false in")
    rows = [
        [
            name,
            *(f"{int(each[k]):,}" for each in (found.found.support, found.found.mapped)),
            *(_text(float(getattr(found.found, what)[k])) for what in QUANTITIES),
            *(f"{each[k]:,}" for each in (missed, false)),
        ]
        for k, name in enumerate(found.classes.names)
    ]
    print_table(head, rows)
    _print_boundaries(found)
    echo()
    for what, words in WORDS.items():
        low, high = found.limits.get(what, (math.nan, math.nan))
        between = "" if math.isnan(low) else f", {found.level:.0%} of draws of cases: {low:.4f} to {high:.4f}"
        echo(f"{words} {_text(float(getattr(found.found, what)))}{between}")
    for warning in found.warnings:
        echo(f"warning: {warning}", err=True)
    for name, why in list(found.failed.items())[:SHOWN]:
        echo(f"failed {printable(name)}: {printable(why)}", err=True)
    if len(found.failed) > SHOWN:
        echo(f"failed: {len(found.failed) - SHOWN:,} more", err=True)


def _print_boundaries(found: Evaluation) -> None:
    if not (rows := boundaries(found)):
        return
    unit = found.cases[0].unit
    head = (
        f"boundary within {found.boundary:g} {unit}",
        "F1",
        "surface Dice",
        "IoU",
        f"HD95 {unit}",
        "of cases",
        "lacking in",
    )
    echo()
    names = ("f1", "surface_dice", "iou", "hd95")
    numbers = [[_text(row[name] if row[name] is not None else math.nan) for name in names] for row in rows]
    print_table(
        head,
        [[row["class"], *own, str(row["cases"]), str(row["cases_lacking"])] for row, own in zip(rows, numbers, strict=True)],
    )


def boundaries(found: Evaluation) -> list[dict[str, Any]]:
    """Rows of the classes: means over cases, IoU over all pixels, and cases where only map or reference has it.

    Where one lacks the class, F1 and surface Dice are 0, and there is no distance.
    """
    if found.boundary is None or not found.cases:
        return []
    rows = []
    for k, name in enumerate(found.classes.names):
        each = [one.boundary[k] for one in found.cases]
        there = [one for one in each if one.f1 is not None]
        near = [one.hd95 for one in there if one.hd95 is not None]
        union = sum(one.union for one in each)
        rows.append(
            {
                "class": name,
                "f1": _mean([one.f1 for one in there]),
                "surface_dice": _mean([one.surface_dice for one in there]),
                "iou": sum(one.intersection for one in each) / union if union else None,
                "hd95": _mean(near),
                "cases": len(near),
                "cases_lacking": len(there) - len(near),
            }
        )
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _text(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _events(found: Evaluation) -> tuple[list[int], list[int]]:
    """Number of cases in which each class was missed, and in which it is only on the map."""
    missed, false = Counter[int](), Counter[int]()
    for one in found.cases:
        missed.update(one.missed().tolist())
        false.update(one.false().tolist())
    each = range(len(found.classes.names))
    return [missed[k] for k in each], [false[k] for k in each]


def as_json(found: Evaluation) -> str:
    """One object with all scores, pooled and per case."""
    missed, false = _events(found)
    values = {
        "pooled": {
            **{what: number(getattr(found.found, what)) for what in SUMMARIES},
            "intervals": {what: _numbers(found.limits[what]) for what in SUMMARIES if what in found.limits},
            "unseen_pixels": found.pooled.unseen,
            "ignored_pixels": found.pooled.ignored,
        },
        "level": found.level,
        "classes": [
            {
                "name": name,
                "reference_pixels": int(found.found.support[k]),
                "mapped_pixels": int(found.found.mapped[k]),
                **{what: number(getattr(found.found, what)[k]) for what in QUANTITIES},
                "intervals": {what: _numbers(found.limits[what][:, k]) for what in QUANTITIES if what in found.limits},
                "cases_missed": missed[k],
                "cases_false": false[k],
            }
            for k, name in enumerate(found.classes.names)
        ],
        "confusion": found.pooled.matrix.tolist(),
        **_boundary_values(found),
        "cases": [_case(found, one) for one in found.cases],
        "failed": dict(found.failed),
        "warnings": list(found.warnings),
    }
    return printable_json(json.dumps(cleaned(values), ensure_ascii=False, allow_nan=False))


def _boundary_values(found: Evaluation) -> dict[str, Any]:
    if found.boundary is None:
        return {}
    units = sorted({one.unit for one in found.cases})
    return {"boundary": {"tolerance": found.boundary, "unit": "/".join(units), "classes": boundaries(found)}}


def _case(found: Evaluation, one: CaseScores) -> dict[str, Any]:
    own, names = scores(one.margins), found.classes.names
    return {
        "case": one.name,
        **{what: number(getattr(own, what)) for what in SUMMARIES},
        "missed": [names[k] for k in one.missed()],
        "false": [names[k] for k in one.false()],
        "unseen_pixels": one.unseen,
        "ignored_pixels": one.ignored,
        **({} if one.matrix is None else {"confusion": one.matrix.tolist()}),
        **({"boundary": {name: asdict(b) for name, b in zip(names, one.boundary, strict=True)}} if one.boundary else {}),
    }


def _numbers(values: Any) -> list[float | None]:
    return [number(value) for value in values]


def as_csv(found: Evaluation) -> str:
    """A row per case and class."""
    return csv_text(COLUMNS, (row for one in found.cases for row in _rows(found, one)))


def _rows(found: Evaluation, one: CaseScores) -> Iterator[list[Any]]:
    own, missed, false = scores(one.margins), {*one.missed().tolist()}, {*one.false().tolist()}
    for k, name in enumerate(found.classes.names):
        each = [number(getattr(own, what)[k]) for what in QUANTITIES]
        events = [str(k in events).lower() for events in (missed, false)]
        yield [one.name, name, int(own.support[k]), int(own.mapped[k]), *each, *events]


def write_evaluation(found: Evaluation, folder: Path) -> list[Path]:
    """Write ``evaluation.json``, ``evaluation.csv`` and a picture of the matrix into a folder, and return their paths."""
    picture = as_svg(found.classes.names, found.pooled.matrix)
    texts = {"evaluation.json": as_json(found) + "\n", "evaluation.csv": as_csv(found), "evaluation.svg": picture}
    return write_files(folder, texts)
