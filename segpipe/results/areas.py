"""How much ground each class covers: exact counts per cell of the grid, times the area of a pixel there.

A cell is small enough for one pixel area to hold in all of it, and cells depend on the grid alone, so that a table does not
depend on how the case was cut into jobs.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.geometry.grid import Grid
from segpipe.geometry.ground import ground_of
from segpipe.geometry.windows import Window

MOST_BYTE = 255
FEW = 10
"""Classes, nodata too, up to which each is counted by itself: four times as fast as all in one go with 5, half with 30
(measured)."""
COUNT_BYTES = 2**26
"""Room for the counts of a case; cells grow until they fit, so that memory does not grow with the case."""
Float = NDArray[np.float64]


def _in_cells(start: int, stop: int, side: int) -> tuple[int, NDArray[np.intp]]:
    """The first cell along an axis that a window touches, and where in the window each of its cells begins."""
    first = start // side
    edges = np.arange(first * side, stop, side, dtype=np.intp) - start
    edges[0] = 0
    return first, edges


def _in_each(present: NDArray[np.bool_], rows: NDArray[np.intp], cols: NDArray[np.intp]) -> NDArray[np.int64]:
    """How often it is true in each cell. Cells are summed along the axis that has fewer, in bytes, which is what is fast."""
    if len(rows) > len(cols):
        return _in_each(present.T, cols, rows).T
    edges = np.unique([*rows, *range(0, len(present), MOST_BYTE)])
    ends = [*edges[1:], len(present)]
    sums = [np.add.reduce(present[a:b].view(np.uint8), axis=0, dtype=np.uint8) for a, b in zip(edges, ends, strict=True)]
    of_cols = np.add.reduceat(np.stack(sums), cols, axis=1, dtype=np.int64)
    return np.asarray(np.add.reduceat(of_cols, np.searchsorted(edges, rows), axis=0))


def _of_each(positions: NDArray[Any], rows: NDArray[np.intp], cols: NDArray[np.intp], count: int) -> NDArray[np.int64]:
    """How often each position is in each cell, in one go: the time does not grow with the positions."""
    lengths = [np.diff(edges, append=n) for edges, n in zip((rows, cols), positions.shape, strict=True)]
    row, col = (np.repeat(np.arange(len(edges)), own) for edges, own in zip((rows, cols), lengths, strict=True))
    index = (row[:, None] * len(cols) + col) * count + positions
    found = np.bincount(index.ravel(), minlength=len(rows) * len(cols) * count)
    return found.reshape(len(rows), len(cols), count)


def _present(positions: NDArray[Any], count: int) -> Sequence[int]:
    """Positions of the table that there may be; where there are many, those that there are."""
    if count <= FEW:
        return range(count)
    seen = np.zeros(count, np.bool_)
    seen[positions] = True
    return list(np.flatnonzero(seen))


class Areas:
    """Pixels per class and cell; tables come from these integers alone."""

    def __init__(self, grid: Grid, contract: Contract) -> None:
        self._grid = grid
        self._ground = ground_of(grid)
        self._contract = contract
        self._lookup = self._class_lookup()
        bands = len(contract.mask_classes) if contract.task == "multilabel" else 1
        self._cell = self._ground.cell if self._ground else (2**31, 2**31)
        while self._cells[0] > 1 and math.prod((*self._cells, bands, len(self._ids) + 1, 8)) > COUNT_BYTES:
            self._cell = (2 * self._cell[0], 2 * self._cell[1])
        self._counts = np.zeros((bands, *self._cells, len(self._ids) + 1), np.int64)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Pixels per band, cell row, cell column and position in the table; those of parts of a case add up to its own."""
        return self._counts

    @property
    def _cells(self) -> tuple[int, ...]:
        return tuple(-(-size // side) for size, side in zip(self._grid.shape, self._cell, strict=True))

    def _class_lookup(self) -> NDArray[np.int64] | None:
        """From label to position in the table, None where they are the same but for nodata."""
        multilabel = self._contract.task == "multilabel"
        self._ids = [0, 1] if multilabel else [c.id for c in self._contract.mask_classes]
        if self._ids == list(range(len(self._ids))):
            return None
        lookup = np.full(max(self._ids) + 1, len(self._ids), np.int64)
        lookup[self._ids] = np.arange(len(self._ids))
        return lookup

    def merge(self, counts: NDArray[np.int64]) -> None:
        """Add what another job has counted of the same case."""
        self._counts += counts

    def add(self, window: Window, labels: NDArray[Any]) -> None:
        """Count labels of shape ``window.shape``, or ``(classes, *window.shape)`` for a multilabel model."""
        axes = [_in_cells(*axis) for axis in zip(window.start, window.stop, self._cell, strict=True)]
        (first_row, rows), (first_col, cols) = axes
        where = np.s_[first_row : first_row + len(rows), first_col : first_col + len(cols)]
        for counts, band in zip(self._counts, labels.reshape(-1, *window.shape), strict=True):
            positions = self._position(band)
            present = _present(positions, count := len(self._ids) + 1)
            if len(present) > FEW:
                counts[where] += _of_each(positions, rows, cols, count)
                continue
            for k in present:
                counts[(*where, k)] += _in_each(positions == k, rows, cols)

    def _position(self, labels: NDArray[Any]) -> NDArray[Any]:
        position = np.minimum(labels, len(self._ids)) if self._lookup is None else labels
        if self._lookup is not None:
            position = self._lookup[np.minimum(labels, len(self._lookup) - 1)]
            position[labels >= len(self._lookup)] = len(self._ids)
        return position

    @cached_property
    def _cell_areas(self) -> Float:
        """Area in m² of a pixel of each cell, shape ``(cell rows, cell columns)``."""
        assert self._ground is not None
        rows, cols = self._counts.shape[1:3]
        if self._ground.rows_are_parallels:
            edges = np.minimum(np.arange(rows + 1) * self._cell[0], self._grid.shape[0])
            return (self._ground.zone_areas(edges) / np.diff(edges))[:, None]
        middle = [self._middles(n, axis) for axis, n in enumerate((rows, cols))]
        grid = np.meshgrid(*middle, indexing="ij")
        return self._ground.pixel_areas(*grid)

    def _middles(self, count: int, axis: int) -> Float:
        """Middles of the cells along an axis, in pixels; the last cell ends with the case."""
        edges = np.minimum(np.arange(count + 1) * self._cell[axis], self._grid.shape[axis])
        return np.asarray((edges[:-1] + edges[1:]) / 2, np.float64)

    def valid(self) -> tuple[int, float | None]:
        """Valid pixels, and their hectares."""
        amounts = [self._amount(0, k) for k in range(len(self._ids))]
        hectares = math.fsum(area or 0.0 for _, area in amounts) / 1e4
        return sum(pixels for pixels, _ in amounts), hectares if self._ground else None

    def table(self) -> list[dict[str, Any]]:
        """One row per class and one for nodata: pixels, area in ha and share of the valid area.

        Without ground the area is None, the unit ``px``, and the share that of the valid pixels.
        """
        if self._contract.task == "multilabel":
            named = [(c, self._amount(band, 1)) for band, c in enumerate(self._contract.mask_classes)]
        else:
            named = [(c, self._amount(0, k)) for k, c in enumerate(self._contract.mask_classes)]
        unseen = self._amount(0, len(self._ids))
        seen = [self._amount(0, k) for k in range(len(self._ids))]
        valid = math.fsum(pixels if area is None else area for pixels, area in seen)
        rows = [self._row(c.id, c.name, amount, valid) for c, amount in named]
        return [*rows, self._row(None, "nodata", unseen, 0)]

    def _amount(self, band: int, position: int) -> tuple[int, float | None]:
        """Pixels and square metres of one position of the table."""
        counts = self._counts[band, ..., position]
        area = math.fsum((counts * self._cell_areas).ravel()) if self._ground else None
        return int(counts.sum()), area

    def _row(self, class_id: int | None, name: str, amount: tuple[int, float | None], valid: float) -> dict[str, Any]:
        pixels, area = amount
        share = (pixels if area is None else area) / valid if valid else None
        return {
            "class_id": class_id,
            "class_name": name,
            "pixels": pixels,
            "area": None if area is None else float(f"{area / 1e4:.10g}"),
            "unit": "px" if area is None else "ha",
            "share": None if share is None else float(f"{share:.6f}"),
        }
