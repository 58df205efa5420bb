"""A grid of three axes that is no format's: planes of different thickness, turned in space."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SLABS = 4
"""Planes of one thickness."""


@dataclass(frozen=True)
class Slabs:
    """Volumes of voxels whose thickness grows from slab to slab."""

    shape: tuple[int, ...]
    unit: str = "mm3"
    per_unit: float = 1.0
    cell: tuple[int, ...] = (SLABS, 2**31, 2**31)

    def sizes(self, edges: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
        """Of a slab, or of several that share a cell, the mean of their planes."""
        thickness = np.array([self.size(plane) for plane in range(self.shape[0])])
        of_cells = np.add.reduceat(thickness, edges[0][:-1]) / np.diff(edges[0])
        return of_cells[:, None, None]

    def size(self, plane: int) -> float:
        return 0.25 * (1 + plane // SLABS)


@dataclass(frozen=True)
class Lattice:
    """Spacing and world coordinates by hand; ``spacing`` None stands for a file that says nothing."""

    shape: tuple[int, ...] = (10, 20, 30)
    spacing: tuple[float, ...] | None = (3.0, 1.0, 0.5)
    unit: str = "mm"
    spacing_unknown: str = ""
    slabs: bool = True

    def as_json(self) -> dict[str, str | None]:
        return {"spacing": str(self.spacing)}

    @property
    def measure(self) -> Slabs | None:
        return Slabs(self.shape) if self.slabs else None

    def world(self, index: NDArray[np.float64]) -> NDArray[np.float64]:
        """Axes in reverse order, x first."""
        return (np.asarray(index) * self.spacing)[..., ::-1]
