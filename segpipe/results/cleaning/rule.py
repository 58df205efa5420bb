"""How labels are cleaned before they are counted; recorded, because a run with another rule labels its cases again."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import SourceError
from segpipe.geometry.cells import Cells
from segpipe.geometry.grid import Grid
from segpipe.geometry.quantity import Quantity

MEASURED = {"ha": "m2", "mm3": "mm3"}
"""Unit of ``Measure.sizes`` by the unit of the measure."""

STEPS = 30
"""Sizes of elements are rounded to this many binary digits of the largest, so that their sums are exact."""

EQUAL = 1e-9
"""Share by which a region may be below the least size and still counts as that size: more than its rounding."""


@dataclass(frozen=True, slots=True)
class ElementSizes:
    """Sizes of elements as whole numbers, and the least size of a region in these."""

    least: int
    of: Callable[[int, int], NDArray[Any] | None]
    """Sizes between two rows, which broadcast against these; None: each element counts 1."""

    @classmethod
    def of_grid(cls, least: Quantity, grid: Grid, path: str) -> "ElementSizes":
        """The sizes of the elements of a grid, that of the case at ``path``.

        Raises:
            SourceError: the grid does not measure in the unit of ``least``.
        """
        if least.unit == "px":
            return cls(int(least.size), lambda *_: None)
        measure = grid.measure
        if measure is None or MEASURED[measure.unit] != least.unit:
            has = "pixels of unknown size" if measure is None else f"a case measured in {measure.unit}"
            raise SourceError(f"{path}: sieve must fit the case, got {least} and {has}: give --sieve in pixels, such as 12")
        cells = Cells.of(measure, grid.shape, 1)
        step = 2.0 ** (math.frexp(float(cells.sizes.max()))[1] - STEPS)
        rest = grid.shape[1:]

        def between(start: int, stop: int) -> NDArray[Any]:
            sizes = cells.of_elements((start, *(0,) * len(rest)), (stop, *rest))
            return np.rint(sizes / step).astype(np.int64)

        return cls(math.ceil(least.size * (1 - EQUAL) / step), between)


@dataclass(frozen=True, slots=True)
class Cleaning:
    """What is done to labels: first a majority filter, then a sieve."""

    majority: int | None = None
    """Side of the window, an odd number of elements."""
    least: Quantity | None = None
    """Size of the smallest region that the sieve leaves."""

    @classmethod
    def of(cls, majority: int | None, sieve: str | None) -> "Cleaning | None":
        """The rule of a run's settings; None if labels stay as they are."""
        if majority is None and sieve is None:
            return None
        return cls(majority, None if sieve is None else Quantity.parse(sieve))

    def weights(self, grid: Grid, path: str) -> ElementSizes | None:
        """The sizes of the elements of a grid, that of the case at ``path``; None without a sieve.

        Raises:
            SourceError: the grid does not measure in the unit of the sieve.
        """
        return None if self.least is None else ElementSizes.of_grid(self.least, grid, path)

    def as_json(self) -> dict[str, Any]:
        """The keys that say in the record of a case how its labels were cleaned."""
        majority = {} if self.majority is None else {"majority": self.majority}
        return majority | ({} if self.least is None else {"sieve": str(self.least)})
