"""Frame for measuring components: the axes of the case's file, slices first, and their steps in space."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Float
from segpipe.geometry.grid import METRES, Grid
from segpipe.geometry.voxel_grid import Turned, VoxelGrid
from segpipe.geometry.windows import Window


@dataclass(frozen=True, eq=False)
class VolumeAxes:
    """A grid as a volume of slices, rows and columns in the file's order; an image is one slice."""

    shape: tuple[int, int, int]
    steps: Float
    """Matrix ``(3, 3)`` whose columns are the steps along slices, rows and columns, in ``unit``."""
    origin: Float
    """World coordinates of the centre of the first voxel; 0 if the grid has none in ``unit``."""
    unit: str
    """``mm``, ``m`` or ``px``."""
    volume: bool
    """Whether it has slices."""
    size: float
    """Area or volume of an element in the unit of ``--min-size``; for a raster, in its middle."""
    _turned: Turned | None = None
    _grid_shape: tuple[int, ...] = ()

    def start(self, window: Window) -> tuple[int, ...]:
        """Index of the first voxel of a window of the grid."""
        start = window.start if self._turned is None else self._turned.window_back(window, self._grid_shape).start
        return start if self.volume else (0, *start)

    def array(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values ``(bands, *window.shape)`` as ``(bands, slices, rows, columns)``."""
        turned = values if self._turned is None else self._turned.back(values)
        return turned if self.volume else turned[:, None]

    def back(self, values: NDArray[Any]) -> NDArray[Any]:
        """The inverse of ``array``."""
        values = values if self.volume else values[:, 0]
        return values if self._turned is None else self._turned.array(values)


def axes_of(grid: Grid) -> VolumeAxes:
    """The frame of a grid of two or three axes."""
    if isinstance(grid, VoxelGrid):
        stored = grid.stored
        affine = stored.affine
        return VolumeAxes(
            shape=_three(stored.shape),
            steps=affine[:3, :3],
            origin=affine[:3, 3],
            unit="mm",
            volume=True,
            size=grid.cell,
            _turned=grid.turned,
            _grid_shape=grid.shape,
        )
    spacing = grid.spacing
    steps = np.eye(3) if spacing is None else np.diag((*(1.0,) * (3 - len(spacing)), *spacing)) * METRES[grid.unit]
    volume, measure = len(grid.shape) == 3, grid.measure
    size = float(np.prod(np.diag(steps))) if spacing is not None and measure is not None else 1.0
    return VolumeAxes(
        shape=_three(grid.shape),
        steps=steps,
        origin=np.zeros(3),
        unit="px" if spacing is None else "m",
        volume=volume,
        size=size,
    )


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    slices, rows, columns = shape if len(shape) == 3 else (1, *shape)
    return slices, rows, columns
