"""The order in which cases count: by name, by time, and what a rule needs of cases that meet."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from segpipe.errors import OverlapError
from segpipe.overlap.dates import Acquired
from segpipe.overlap.finished import FinishedCase
from segpipe.overlap.order import Neighbourhood
from segpipe.storage.folder import Folder

OUT = Folder(Path("out"))
"""Of which nothing is read here."""


def case(name: str, day: int | None = None, confidence: str | None = None) -> FinishedCase:
    acquired = None if day is None else Acquired(datetime(2023, 6, day, tzinfo=UTC), "its name")
    classes = ((0, "a"), (1, "b"))
    return FinishedCase(name, "raster", None, 0, (1, 1), classes, 255, name, acquired=acquired, confidence=confidence)


def boxes(*starts: float) -> list[np.ndarray]:
    return [np.array([[x, 0, 0], [x + 10, 1, 1]]) for x in starts]


def around(cases: list[FinishedCase], rule: str, k: int = 1) -> tuple[list[str], list[str]]:
    together = Neighbourhood.of(OUT, cases, boxes(0, 5, 8, 500), rule)  # type: ignore[arg-type]
    found = together.around(k)
    return [one.case for one in found.before], [one.case for one in found.after]


def test_cases_count_by_name_or_the_newest_first() -> None:
    cases = [case("a", 5), case("b", 7), case("c", 9), case("d")]  # nothing meets the last one, which needs no time
    assert around(cases, "first") == (["a"], ["c"])
    assert around(cases, "newest") == (["c"], ["a"])
    assert around(cases, "first", 3) == ([], [])


def test_names_decide_ties() -> None:
    cases = [case("a", 7), case("b", 7), case("c", 7), case("d", 7)]
    assert around(cases, "newest") == (["a"], ["c"])


def test_what_a_rule_needs_is_named() -> None:
    cases = [case("a", 5, "a.confidence.tif"), case("b"), case("c", 9), case("d", 9)]
    with pytest.raises(OverlapError, match="neither the metadata nor the name of b says it: give --overlap-rule first"):
        around(cases, "newest")
    with pytest.raises(OverlapError, match="compares the confidence of cases, and b has none: run again with --confidence"):
        around(cases, "confidence")


def test_results_depend_on_the_order_and_not_on_its_name() -> None:
    """A rule that changes nothing around a case measures nothing again; confidence is another thing than an order."""
    cases = [case("a", 9, "a"), case("b", 7, "b"), case("c", 5, "c"), case("d", 5, "d")]
    by = {rule: Neighbourhood.of(OUT, cases, boxes(0, 5, 8, 500), rule).around(1).digest for rule in ("first", "newest")}  # type: ignore[arg-type]
    assert by["first"] == by["newest"]
    assert Neighbourhood.of(OUT, cases, boxes(0, 5, 8, 500), "confidence").around(1).digest != by["first"]
