"""Cells of a grid, in each of which all elements count as one size: tables of the same case share them."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from segpipe.array_types import Float
from segpipe.geometry.grid import Measure

COUNT_BYTES = 2**26
"""Most bytes of the counts of a case; cells are enlarged until the counts fit."""


@dataclass(frozen=True)
class Cells:
    """The cells of a grid, which begin at index 0 of each axis."""

    measure: Measure | None
    shape: tuple[int, ...]
    """Shape of the grid."""
    side: tuple[int, ...]
    """Elements of a cell along each axis."""

    @classmethod
    def of(cls, measure: Measure | None, shape: tuple[int, ...], counts: int) -> "Cells":
        """Cells of a grid that are large enough to hold ``counts`` integers for each within ``COUNT_BYTES``."""
        cells = cls(measure, shape, measure.cell if measure else (2**31,) * len(shape))
        while max(cells.count) > 1 and math.prod((*cells.count, counts, 8)) > COUNT_BYTES:
            cells = cls(measure, shape, tuple(2 * side for side in cells.side))
        return cells

    @property
    def count(self) -> tuple[int, ...]:
        """Number of cells along each axis."""
        return tuple(-(-size // side) for size, side in zip(self.shape, self.side, strict=True))

    @cached_property
    def sizes(self) -> Float:
        """Size of an element of each cell, in the unit of ``Measure.sizes``; it broadcasts against the cells."""
        assert self.measure is not None
        axes = zip(self.count, self.side, self.shape, strict=True)
        return self.measure.sizes([np.minimum(np.arange(count + 1) * side, size) for count, side, size in axes])

    def of_elements(self, start: tuple[int, ...], stop: tuple[int, ...]) -> Float:
        """Size of each element of a window."""
        found = self.sizes
        for axis, (first, last, side) in enumerate(zip(start, stop, self.side, strict=True)):
            cell = np.arange(first, last) // side if found.shape[axis] > 1 else np.zeros(last - first, np.intp)
            found = np.take(found, cell, axis=axis)
        return np.ascontiguousarray(found)
