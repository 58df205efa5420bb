"""Which windows of a case are least sure: low confidence, and overlapping tiles that give different labels."""

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.geometry.grid import Grid, Measure
from segpipe.geometry.ground import Ground
from segpipe.geometry.windows import Window
from segpipe.pipeline.decision import CONFIDENCE_TOP
from segpipe.results.areas import rounded
from segpipe.results.statistics import Box, Row, State

DOUBT = "doubt"

AXES = ("plane", "row", "column")
"""Names of the axes of a volume; an image has the last two."""

COUNTED = ("rank", "windows", DOUBT, "confidence_mean", "disagreement", "pixels")

DEEP = ("plane_start", "plane_stop", "z")
"""Columns for volumes alone."""

PLACED = ("plane_start", "plane_stop", "row_start", "row_stop", "column_start", "column_stop", "x", "y", "z", "lon", "lat")


def audit_columns(*, volumes: bool) -> tuple[str, ...]:
    """Columns of ``audit.csv`` after the case."""
    return (*COUNTED, *(column for column in PLACED if volumes or column not in DEEP))


DIGITS, DEGREES = 6, 7


class Audit:
    """Counts per window, which are integers: neither parts nor the order of boxes change them."""

    def __init__(self, grid: Grid, contract: Contract, most: int) -> None:
        """Begin an audit that lists ``most`` windows."""
        self._grid, self._most = grid, most
        self._bands = len(contract.mask_classes) if contract.task == "multilabel" else 1
        self._counts: dict[int, NDArray[np.int64]] = {}
        """Valid pixels, sum of confidence, and pixels where tiles differ, by number of the window."""
        self._windows: dict[int, Window] = {}

    def add(self, box: Box) -> None:
        """Count a box, which may be a part of the box that a window finishes."""
        for one in box.checked:
            self._add(one.number, one.window, np.array([one.valid, one.confidence, one.differing], np.int64))

    def _add(self, number: int, window: Window, counts: NDArray[np.int64]) -> None:
        there = self._windows.get(number, window)
        self._windows[number] = Window(tuple(map(min, there.start, window.start)), tuple(map(max, there.stop, window.stop)))
        self._counts[number] = self._counts.get(number, 0) + counts

    @property
    def state(self) -> State:
        """A row per window: its number, its counts, its start and its stop."""
        rows = [
            [number, *self._counts[number], *window.start, *window.stop] for number, window in sorted(self._windows.items())
        ]
        return {"windows": np.array(rows, np.int64).reshape(len(rows), 4 + 2 * len(self._grid.shape))}

    def merge(self, state: State) -> None:
        """Add the windows of another part of the same case."""
        axes = len(self._grid.shape)
        for number, *row in state["windows"].tolist():
            self._add(number, Window(tuple(row[3 : 3 + axes]), tuple(row[3 + axes :])), np.array(row[:3], np.int64))

    def rows(self) -> list[Row]:
        """The windows with a valid pixel that are least sure, the worst first; of equal ones the first."""
        valid = {number: counts for number, counts in self._counts.items() if counts[0]}
        rows = sorted((self._row(number, *counts.tolist()) for number, counts in valid.items()), key=_order)
        found = [{"rank": rank, "windows": len(rows), **row} for rank, row in enumerate(rows[: self._most], 1)]
        for row in found:
            row.update(self._place(self._windows[row.pop("number")]))
        return found

    def _row(self, number: int, valid: int, confidence: int, differing: int) -> Row:
        mean, share = confidence / (CONFIDENCE_TOP * valid * self._bands), differing / valid
        return {
            "number": number,
            DOUBT: round(1 - mean * (1 - share), DIGITS),
            "confidence_mean": round(mean, DIGITS),
            "disagreement": round(share, DIGITS),
            "pixels": valid,
        }

    def _place(self, window: Window) -> Row:
        """Where a window lies: in the array, and its centre in the CRS, or in mm, and on the Earth."""
        row = Row()
        for axis, start, stop in zip(AXES[-len(window.start) :], window.start, window.stop, strict=True):
            row |= {f"{axis}_start": start, f"{axis}_stop": stop}
        centre = [(a + b - 1) / 2 for a, b in zip(window.start, window.stop, strict=True)]
        world = self._grid.world(np.array(centre))
        if world is not None:
            row |= {name: rounded(float(value)) for name, value in zip("xyz", world, strict=False)}
        return row | _lonlat(self._grid.measure, centre)


def _lonlat(measure: Measure | None, centre: list[float]) -> Row:
    """Longitude and latitude in degrees, on the datum of the CRS; nothing off the Earth."""
    if not isinstance(measure, Ground):
        return {}
    lon, lat = measure.lonlat(*(np.array([value + 0.5]) for value in centre))
    if not np.isfinite([lon[0], lat[0]]).all():
        return {}
    return {"lon": round(float(np.degrees(lon[0])), DEGREES), "lat": round(float(np.degrees(lat[0])), DEGREES)}


def _order(row: Row) -> tuple[float, int]:
    return -row[DOUBT], row["number"]
