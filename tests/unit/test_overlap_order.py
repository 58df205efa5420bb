"""The order in which cases count: by name, by time, and what a rule needs of cases that meet."""

import tracemalloc
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from segpipe.errors import OverlapError
from segpipe.geometry.extents import extent
from segpipe.geometry.raster_grid import RasterGrid, ground_of
from segpipe.results.overlap.dates import Acquired
from segpipe.results.overlap.finished import FinishedCase
from segpipe.results.overlap.order import Neighbourhood
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


def on_grid(name: str, x: int, crs: str = "EPSG:32633") -> FinishedCase:
    """A scene of 100 x 100 pixels of 10 m, that far to the east in pixels."""
    grid = RasterGrid((100, 100), CRS.from_user_input(crs), Affine(10, 0, 500_000 + 10 * x, 0, -10, 5_400_000))
    return FinishedCase(name, "raster", None, 0, (100, 100), ((0, "a"), (1, "b")), 255, name, grid)


def test_dates_of_a_few_grids_meet_as_pairs_do() -> None:
    """Grids that overlap, touch, lie apart, and one in another zone; each has several dates, one of them a single one."""
    draw = np.random.default_rng(4)
    grids = [(0, "EPSG:32633"), (60, "EPSG:32633"), (160, "EPSG:32633"), (5000, "EPSG:32633"), (0, "EPSG:32634")]
    chosen = [*draw.integers(0, 4, 40), 4]
    cases = [on_grid(f"{k:02}", *grids[n]) for k, n in enumerate(chosen)]
    extents = [extent(ground_of(case.grid), case.shape) for case in cases if case.grid is not None]
    together = Neighbourhood.of(OUT, cases, extents, "first")
    met = {0: {0, 1}, 1: {0, 1}, 2: {2}, 3: {3}, 4: {4}}  # 60 to 160 and 160 to 260 touch
    for k, own in enumerate(chosen):
        expected = [f"{n:02}" for n, other in enumerate(chosen) if n != k and other in met[own]]
        found = together.around(k)
        assert [one.case for one in [*found.before, *found.after]] == expected
        assert together.meets(k) == bool(expected)


def test_a_long_time_series_needs_memory_for_its_scenes_and_not_for_pairs() -> None:
    cases = [on_grid(f"{k:04}", 0) for k in range(2000)]
    for case in cases:
        assert case.ground is not None
    extents = [extent(ground_of(cases[0].grid), (100, 100))] * 2000  # type: ignore[arg-type]
    tracemalloc.start()
    try:
        together = Neighbourhood.of(OUT, cases, extents, "first")
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(together.around(1000).before) == 1000
    assert peak < 4e6, f"{kept:,} bytes kept, {peak:,} at most"  # pairs took 176 MB
