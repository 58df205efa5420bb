"""The protocol of grids: shape, spacing and world coordinates of the array of a case, in any format."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Float

METRES = {"m": 1.0, "mm": 1e-3, "um": 1e-6}
"""Metres per unit of a spacing."""

M2_PER_HA, MM3_PER_ML = 1e4, 1000
"""Square metres per hectare, and cubic millimetres per millilitre."""


class Measure(Protocol):
    """The quantity that the elements of a grid measure, for tables: area on the ground, or volume."""

    @property
    def unit(self) -> str:
        """Unit in tables: ``ha`` or ``mm3``."""
        ...

    @property
    def per_unit(self) -> float:
        """The factor between the unit of ``sizes`` and ``unit``: 10,000 m2 are 1 ha."""
        ...

    @property
    def cell(self) -> tuple[int, ...]:
        """Shape of a cell, in which all elements have one size; cells begin at index 0 of each axis."""
        ...

    def sizes(self, edges: Sequence[NDArray[np.int64]]) -> Float:
        """Size of one element of each cell; the array broadcasts against the cells.

        Args:
            edges: for each axis, the start of every cell, and the end of the last one.
        """
        ...


class Grid(Protocol):
    """Shape, spacing and world coordinates of the array of a case; the mask has the same grid as its input.

    An element is a pixel or a voxel. Axes are in array order: rows before columns, planes before rows.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per spatial axis."""
        ...

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Size of an element along each axis, in ``unit``; if it varies, in the middle of the grid. None if unknown."""
        ...

    @property
    def unit(self) -> str:
        """Unit of ``spacing``, a key of ``METRES``: ``m`` on the ground, or ``mm``."""
        ...

    @property
    def spacing_unknown(self) -> str:
        """Why ``spacing`` is None, as a clause for a note; empty if it is known."""
        ...

    @property
    def measure(self) -> Measure | None:
        """Measure of the elements, such as an area; None if they can only be counted."""
        ...

    def world(self, index: Float) -> Float | None:
        """World coordinates ``(..., 2 or 3)``, x first, of indices ``(..., axes)``, possibly fractional; None if unknown.

        An integer index is the centre of its element.
        """
        ...

    def as_json(self) -> dict[str, Any]:
        """The fields of a record besides the shape; they depend on the format: ``crs``, or ``affine`` and ``unit``."""
        ...


@dataclass(frozen=True)
class UniformMeasure:
    """A measure whose elements all have the same size."""

    axes: int
    size: float
    unit: str
    per_unit: float = 1.0

    @property
    def cell(self) -> tuple[int, ...]:
        """The whole grid is one cell."""
        return (2**31,) * self.axes

    def sizes(self, edges: Sequence[NDArray[np.int64]]) -> Float:
        return np.full((1,) * len(edges), self.size)


@dataclass(frozen=True)
class BareGrid:
    """The grid of an array of which only the shape is known."""

    shape: tuple[int, ...]
    spacing: None = None
    unit: str = "m"
    spacing_unknown: str = "an array alone has no spacing"
    measure: None = None

    def world(self, index: Float) -> None:  # noqa: ARG002 - the protocol's
        return None

    def as_json(self) -> dict[str, Any]:
        return {}
