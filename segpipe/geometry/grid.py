"""Where the array of a case lies, whatever its family of formats: one protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

METRES = {"m": 1.0, "mm": 1e-3, "um": 1e-6}
"""Metres per unit of a spacing."""


class Measure(Protocol):
    """What the elements of a grid measure, as tables give it: area on the ground, or volume."""

    @property
    def unit(self) -> str:
        """Unit of tables: ``ha`` or ``mm3``."""
        ...

    @property
    def per_unit(self) -> float:
        """How much of what ``sizes`` gives is one such unit: 10,000 m2 are 1 ha."""
        ...

    @property
    def cell(self) -> tuple[int, ...]:
        """Elements per axis that share one size; cells begin at index 0 of each axis."""
        ...

    def sizes(self, edges: Sequence[NDArray[np.int64]]) -> Float:
        """Size of one element of each cell; the array broadcasts against the cells.

        Args:
            edges: per axis, where its cells begin, and where the last one ends.
        """
        ...


class Grid(Protocol):
    """Where the array of a case lies: shape, spacing and world coordinates; carried unchanged from input to mask.

    An element is a pixel or a voxel. Axes are in array order: rows before columns, planes before rows.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per spatial axis."""
        ...

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Size of an element along each axis, in ``unit``; where it varies, in the middle of the grid. None if unknown."""
        ...

    @property
    def unit(self) -> str:
        """Of ``spacing``, a key of ``METRES``: ``m`` on the ground, or ``mm``."""
        ...

    @property
    def spacing_unknown(self) -> str:
        """Why ``spacing`` is None, as a clause for a note; empty where it is known."""
        ...

    @property
    def measure(self) -> Measure | None:
        """What elements measure; None where only their number is known."""
        ...

    def world(self, index: Float) -> Float | None:
        """World coordinates ``(..., 2 or 3)``, x first, of indices ``(..., axes)``, which may be fractions; None if unknown.

        An integer index is the centre of its element.
        """
        ...

    def as_json(self) -> dict[str, Any]:
        """What a record says beside the shape, in the terms of the family: ``crs``, or ``affine`` and ``unit``."""
        ...


@dataclass(frozen=True)
class UniformMeasure:
    """Elements of one size all over a grid."""

    axes: int
    size: float
    unit: str
    per_unit: float = 1.0

    @property
    def cell(self) -> tuple[int, ...]:
        """One cell holds the grid."""
        return (2**31,) * self.axes

    def sizes(self, edges: Sequence[NDArray[np.int64]]) -> Float:
        return np.full((1,) * len(edges), self.size)


@dataclass(frozen=True)
class BareGrid:
    """The grid of an array of which nothing but its shape is known."""

    shape: tuple[int, ...]
    spacing: None = None
    unit: str = "m"
    spacing_unknown: str = "an array alone has no spacing"
    measure: None = None

    def world(self, index: Float) -> None:  # noqa: ARG002 - the protocol's
        return None

    def as_json(self) -> dict[str, Any]:
        return {}
