"""The area or volume of each class: exact counts per cell of the grid, times the size of a pixel or voxel in the cell.

A cell is so small that all its elements have the same size. Cells depend on the grid alone, so that a table does not depend
on how the case was cut into jobs.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.geometry.cells import Cells
from segpipe.geometry.grid import MM3_PER_ML, Grid
from segpipe.geometry.scanlines import Scanlines
from segpipe.geometry.windows import Window
from segpipe.results.schema import Amount
from segpipe.results.statistics import Box, Row, State

MOST_BYTE = 255
FEW = 10
"""Most classes, with nodata, that are counted one by one. Measured: with 5 classes this is four times as fast as counting
all at once, with 30 half as fast."""
AT_ONCE = 2**20
"""Elements of windows, one per class, that are counted in one pass; they stay in the processor's cache."""

PIECE = 1024
"""Side of the windows in which pixels inside an area are counted."""


def _in_cells(start: int, stop: int, side: int) -> tuple[int, NDArray[np.intp]]:
    """The first cell along an axis that a window touches, and where in the window each of its cells begins."""
    first = start // side
    edges = np.arange(first * side, stop, side, dtype=np.intp) - start
    edges[0] = 0
    return first, edges


def _in_each(present: NDArray[np.bool_], edges: Sequence[NDArray[np.intp]]) -> NDArray[np.int64]:
    """Number of true elements per cell, of each of several masks ``(masks, *window)``; shape ``(masks, *cells)``.

    The axis with the fewest cells is summed first, as bytes, which is fast.
    """
    first = min(range(len(edges)), key=lambda axis: (len(edges[axis]), present.shape[axis + 1] == 1))
    if first:
        others = [edges[first], *edges[:first], *edges[first + 1 :]]
        return np.moveaxis(_in_each(np.moveaxis(present, first + 1, 1), others), 1, first + 1)
    starts = np.unique([*edges[0], *range(0, present.shape[1], MOST_BYTE)])
    ends = [*starts[1:], present.shape[1]]
    ones = present.view(np.uint8)
    sums = np.stack([np.add.reduce(ones[:, a:b], axis=1, dtype=np.uint8) for a, b in zip(starts, ends, strict=True)], 1)
    for axis, own in enumerate(edges[1:], 2):
        sums = np.add.reduceat(sums, own, axis=axis, dtype=np.int64)
    return np.asarray(np.add.reduceat(sums, np.searchsorted(starts, edges[0]), axis=1, dtype=np.int64))


def _of_each(positions: NDArray[Any], edges: Sequence[NDArray[np.intp]], count: int) -> NDArray[np.int64]:
    """Count each position in each cell in one pass, whose time does not depend on the number of positions."""
    cells = tuple(map(len, edges))
    index = np.zeros((), np.intp)
    for own, size in zip(edges, positions.shape, strict=True):
        index = index[..., None] * len(own) + np.repeat(np.arange(len(own)), np.diff(own, append=size))
    index *= count
    index += positions
    found = np.bincount(index.ravel(), minlength=math.prod(cells) * count)
    return found.reshape(*cells, count)


def _present(positions: NDArray[Any], count: int) -> NDArray[np.intp]:
    """Positions of the table that must be counted: all if they are few, else those that occur."""
    if count <= FEW:
        return np.arange(count)
    seen = np.zeros(count, np.bool_)
    seen[positions] = True
    return np.flatnonzero(seen)


def count_positions(counts: NDArray[np.int64], cells: Cells, window: Window, positions: NDArray[Any]) -> None:
    """Add the elements of a window to ``counts``, shape ``(*cells.count, number of positions)``."""
    axes = [_in_cells(*axis) for axis in zip(window.start, window.stop, cells.side, strict=True)]
    edges = [own for _, own in axes]
    where: tuple[Any, ...] = tuple(slice(first, first + len(own)) for first, own in axes)
    present = _present(positions, count := counts.shape[-1])
    if len(present) > FEW:
        counts[where] += _of_each(positions, edges, count)
        return
    step = max(1, AT_ONCE // window.size)
    for some in (present[first : first + step] for first in range(0, len(present), step)):
        masks = positions == some.astype(positions.dtype).reshape(-1, *(1,) * positions.ndim)
        counts[(*where, some)] += np.moveaxis(_in_each(masks, edges), 0, -1)


class Areas:
    """Counts elements per class and cell; tables are computed from these integers alone."""

    def __init__(self, grid: Grid, contract: Contract) -> None:
        self._measure = grid.measure
        self._contract = contract
        self._lookup = self._class_lookup()
        bands = len(contract.mask_classes) if contract.task == "multilabel" else 1
        self._cells = Cells.of(self._measure, grid.shape, bands * (len(self._ids) + 1))
        self._counts = np.zeros((bands, *self._cells.count, len(self._ids) + 1), np.int64)

    def _class_lookup(self) -> NDArray[np.int64] | None:
        """Position in the table by label; None where they are equal except for nodata."""
        multilabel = self._contract.task == "multilabel"
        self._ids = [0, 1] if multilabel else [c.id for c in self._contract.mask_classes]
        if self._ids == list(range(len(self._ids))):
            return None
        lookup = np.full(max(self._ids) + 1, len(self._ids), np.int64)
        lookup[self._ids] = np.arange(len(self._ids))
        return lookup

    @property
    def state(self) -> State:
        """Counts ``(bands, *cells, positions in the table)``."""
        return {"counts": self._counts}

    def merge(self, state: State) -> None:
        """Add the counts of another part of the same case."""
        self._counts += state["counts"]

    def add(self, box: Box) -> None:
        """Count the labels of a box."""
        for counts, band in zip(self._counts, box.labels.reshape(-1, *box.window.shape), strict=True):
            count_positions(counts, self._cells, box.window, self._position(band))

    def _position(self, labels: NDArray[Any]) -> NDArray[Any]:
        if self._lookup is None:  # finding the largest is ten times as fast as the minimum of each, which few boxes need
            return labels if labels.max(initial=0) <= len(self._ids) else np.minimum(labels, len(self._ids))
        position: NDArray[Any] = self._lookup[np.minimum(labels, len(self._lookup) - 1)]
        position[labels >= len(self._lookup)] = len(self._ids)
        return position

    def valid(self) -> tuple[int, float | None]:
        """Number of valid pixels, and their area or volume in the measure's unit."""
        amounts = [self._amount(0, k) for k in range(len(self._ids))]
        size = math.fsum(size or 0.0 for _, size in amounts)
        return sum(pixels for pixels, _ in amounts), size / self._measure.per_unit if self._measure else None

    def rows(self) -> list[Row]:
        """One row per class and one for nodata: pixels, area or volume in the grid's unit, and share of the valid area.

        If the grid has no measure, the area is None, the unit is ``px``, and the share is of the valid pixels. Rows of
        volumes include millilitres.
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
        """Number of elements at one position of the table, and their size in the unit of ``Measure.sizes``."""
        counts = self._counts[band, ..., position]
        size = math.fsum((counts * self._cells.sizes).ravel()) if self._measure else None
        return int(counts.sum()), size

    def _row(self, class_id: int | None, name: str, amount: tuple[int, float | None], valid: float) -> Row:
        pixels, size = amount
        share = (pixels if size is None else size) / valid if valid else None
        return {
            "class_id": class_id,
            "class_name": name,
            "pixels": pixels,
            **self._measured(size),
            "share": None if share is None else float(f"{share:.6f}"),
        }

    def _measured(self, size: float | None) -> Row:
        if size is None or self._measure is None:
            return {"area": None, "unit": "px"}
        row = {"area": rounded(size / self._measure.per_unit), "unit": self._measure.unit}
        return row | {"ml": rounded(size / MM3_PER_ML)} if self._measure.unit == "mm3" else row


def amount_inside(grid: Grid, lines: Scanlines) -> Amount:
    """Pixels of a grid inside polygons, and their area in the unit of ``areas.csv``."""
    cells = Cells.of(grid.measure, grid.shape, 1)
    counts = np.zeros(cells.count, np.int64)
    for window in () if lines.bounds is None else lines.bounds.blocks((PIECE, PIECE)):
        axes = [_in_cells(*axis) for axis in zip(window.start, window.stop, cells.side, strict=True)]
        where = tuple(slice(first, first + len(own)) for first, own in axes)
        (found,) = _in_each(lines.covered(window)[None], [own for _, own in axes])
        counts[where] += found
    measure, pixels = grid.measure, int(counts.sum())
    if measure is None:
        return Amount(pixels, None, "px")
    return Amount(pixels, rounded(math.fsum((counts * cells.sizes).ravel()) / measure.per_unit), measure.unit)


def rounded(amount: float) -> float:
    """Round to ten digits, which exceeds the accuracy of any grid."""
    return float(f"{amount:.10g}")
