"""Runs of labelled components along the rows of a box, the basis of all measurements of components."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Integers


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of equal component along the last axis of a box, in the order of the box."""

    place: Integers
    """Index of the first voxel of each run, ``(axes, runs)``."""
    flat: Integers
    """Flat index of the first voxel in the box."""
    length: Integers
    component: Integers
    """Component of each run, from 0."""
    size: int
    """Voxels of the box."""
    order: Integers
    """Permutation that sorts the runs by component."""
    edges: Integers
    """Position of the first run of each component in that order."""

    @classmethod
    def of(cls, components: NDArray[Any], count: int) -> "Runs":
        """Runs of an array whose values are 0, or a component from 1 to ``count``, each of which occurs."""
        columns = components.shape[-1]
        padded = np.zeros((components.size // columns, columns + 1), components.dtype)
        padded[:, 1:] = components.reshape(-1, columns)
        line = padded.ravel()
        bounds = np.flatnonzero(line[1:] != line[:-1]) + 1
        value, stop = line[bounds], np.append(bounds[1:], line.size)
        held = value != 0
        bounds, component, stop = bounds[held], value[held].astype(np.int64) - 1, stop[held]
        row, column = bounds // (columns + 1), bounds % (columns + 1) - 1
        place = np.stack([*np.unravel_index(row, components.shape[:-1]), column]).astype(np.int64)
        order = np.argsort(component, kind="stable")
        edges = np.searchsorted(component[order], np.arange(count))
        return cls(
            place=place,
            flat=row * columns + column,
            length=stop - bounds,
            component=component,
            size=components.size,
            order=order,
            edges=edges,
        )

    def __len__(self) -> int:
        """Number of components."""
        return len(self.edges)

    def add(self, values: NDArray[Any]) -> Integers:
        """Sum of integers per run, over each component."""
        return np.asarray(np.add.reduceat(values[self.order], self.edges, dtype=np.int64))

    def least(self, values: NDArray[Any]) -> NDArray[Any]:
        """Minimum of values per run, over each component."""
        return np.asarray(np.minimum.reduceat(values[self.order], self.edges))

    def most(self, values: NDArray[Any]) -> NDArray[Any]:
        """Maximum of values per run, over each component."""
        return np.asarray(np.maximum.reduceat(values[self.order], self.edges))

    def total(self, values: NDArray[Any]) -> Integers:
        """Sum of integers per voxel of the box, over each component."""
        return self.add(self._over(np.add, values, dtype=np.int64))

    def range(self, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Minimum and maximum of values per voxel of the box, over each component."""
        return self.least(self._over(np.minimum, values)), self.most(self._over(np.maximum, values))

    def _over(self, function: np.ufunc, values: NDArray[Any], **options: Any) -> NDArray[Any]:
        """Reduce values per voxel of the box over each run."""
        # each run and the gap behind it; the results of gaps are dropped
        cuts = np.stack([self.flat, self.flat + self.length], axis=1).ravel()
        cuts = cuts[:-1] if cuts[-1] == self.size else cuts
        return np.asarray(function.reduceat(values.ravel(), cuts, **options)[::2])
