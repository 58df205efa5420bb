"""The grid of a volume: an affine in mm, and the permutation and flips that led from the file's axes to its axes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.geometry.grid import UniformMeasure
from segpipe.geometry.windows import Window

Rows = tuple[tuple[float, float, float, float], ...]
"""The upper three rows of a 4 x 4 matrix."""


@dataclass(frozen=True, slots=True)
class Turned:
    """A permutation and flips of stored axes; they can be reversed.

    Axis ``a`` of a turned array is axis ``order[a]`` of the stored one, reversed where ``flipped[a]``.
    """

    order: tuple[int, ...]
    flipped: tuple[bool, ...]

    def array(self, stored: NDArray[Any]) -> NDArray[Any]:
        """A view of ``(..., *stored axes)`` with its last axes turned."""
        lead = stored.ndim - len(self.order)
        turned = stored.transpose(*range(lead), *(lead + axis for axis in self.order))
        flipped: NDArray[Any] = turned[self._flips]
        return flipped

    def back(self, turned: NDArray[Any]) -> NDArray[Any]:
        """The inverse of ``array``."""
        lead = turned.ndim - len(self.order)
        flipped: NDArray[Any] = turned[self._flips]
        return flipped.transpose(*range(lead), *(lead + int(axis) for axis in np.argsort(self.order)))

    @property
    def _flips(self) -> tuple[Any, ...]:
        return (..., *(slice(None, None, -1 if flip else 1) for flip in self.flipped))

    def shape(self, stored: Sequence[int]) -> tuple[int, ...]:
        return tuple(stored[axis] for axis in self.order)

    def shape_back(self, turned: Sequence[int]) -> tuple[int, ...]:
        """The inverse of ``shape``."""
        return tuple(turned[self.order.index(axis)] for axis in range(len(self.order)))

    def matrix(self, stored: Sequence[int]) -> NDArray[np.float64]:
        """Matrix ``(4, 4)`` from an index of the turned array, and 1, to one of the stored array of shape ``stored``."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1
        for axis, (there, flip) in enumerate(zip(self.order, self.flipped, strict=True)):
            matrix[there, axis] = -1 if flip else 1
            matrix[there, 3] = stored[there] - 1 if flip else 0
        return matrix

    def window_back(self, window: Window, shape: Sequence[int]) -> Window:
        """The box of the stored array that corresponds to a box of the turned array, whose shape is ``shape``."""
        start, stop = [0] * len(self.order), [0] * len(self.order)
        for axis, flip, a, b, size in zip(self.order, self.flipped, window.start, window.stop, shape, strict=True):
            start[axis], stop[axis] = (size - b, size - a) if flip else (a, b)
        return Window(tuple(start), tuple(stop))


AS_STORED = Turned((0, 1, 2), (False, False, False))


@dataclass(frozen=True, slots=True)
class VoxelGrid:
    """The grid of a volume: axes are slowest first; x, y, z increase to the right, anterior and superior."""

    shape: tuple[int, ...]
    """Voxels per axis, after turning."""
    rows: Rows
    """Affine from an index ``(k, j, i)`` of the turned axes, and 1, to x, y, z in mm."""
    turned: Turned = AS_STORED
    """The permutation and flips that were applied to the file's axes."""

    @property
    def affine(self) -> NDArray[np.float64]:
        """The affine as a matrix ``(4, 4)``."""
        return np.vstack([np.array(self.rows, np.float64), [0, 0, 0, 1]])

    @property
    def unit(self) -> str:
        return "mm"

    @property
    def spacing_unknown(self) -> str:
        return ""

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbours along each axis, in mm."""
        return tuple(map(float, np.linalg.norm(self.affine[:3, :3], axis=0)))

    @property
    def cell(self) -> float:
        """Volume of a voxel in mm3."""
        return spanned_volume(self.affine[:3, :3])

    @property
    def measure(self) -> UniformMeasure:
        return UniformMeasure(len(self.shape), self.cell, "mm3")

    def world(self, index: NDArray[np.float64]) -> NDArray[np.float64]:
        """x, y, z in mm, ``(..., 3)``, of indices ``(..., 3)``; an integer index is the centre of its voxel."""
        affine = self.affine
        return np.asarray(np.asarray(index, np.float64) @ affine[:3, :3].T + affine[:3, 3])

    def turn(self, turned: Turned) -> "VoxelGrid":
        """Turn the axes of this grid, which must have the file's axes; the position of every voxel stays the same."""
        return VoxelGrid(turned.shape(self.shape), matrix_rows(self.affine @ turned.matrix(self.shape)), turned)

    @property
    def stored(self) -> "VoxelGrid":
        """The grid of the file's own axes."""
        shape = self.turned.shape_back(self.shape)
        return VoxelGrid(shape, matrix_rows(self.affine @ np.linalg.inv(self.turned.matrix(shape))))

    def as_json(self) -> dict[str, Any]:
        """The grid as JSON, with axes slowest first; ``affine`` leads from an index of these axes to x, y, z."""
        return {
            "affine": [[round(number, 9) for number in row] for row in self.rows],
            "spacing": [round(size, 9) for size in self.spacing],
            "unit": self.unit,
            "orientation": self.directions,
        }

    def __str__(self) -> str:
        return f"{' x '.join(f'{n:.4g}' for n in self.spacing)} mm, {self.directions}"

    @property
    def directions(self) -> str:
        """Three letters, such as ``RAS``: the direction of the body that is nearest to the direction of each axis."""
        return "".join(
            "LPI"[axis] if flip else "RAS"[axis] for axis, flip in zip(*closest_axes(self.affine[:3, :3]), strict=True)
        )


def matrix_rows(matrix: NDArray[np.float64]) -> Rows:
    """The upper three rows as tuples, which can be compared and pickled."""
    first, second, third = (tuple(map(float, row)) for row in matrix[:3])
    return first, second, third  # type: ignore[return-value]


def spanned_volume(matrix: NDArray[np.float64]) -> float:
    """Volume of the parallelepiped that the columns of a matrix ``(3, 3)`` span, in the cube of their unit.

    The triple product in Python's floats: the last digit of ``numpy.linalg.det`` depends on the processor.
    """
    (a, b, c), (d, e, f), (g, h, i) = matrix.tolist()
    return float(abs(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)))


def closest_axes(matrix: NDArray[np.float64]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """For each column, the nearest world axis, each used once, and whether the column points in the opposite direction.

    The rule is that of ``nibabel.io_orientation``, which other programs share: in the rotation nearest to the matrix, the
    column with the largest cosine takes its axis first, then the column with the next largest takes one of the others.
    """
    left, _, right = np.linalg.svd(matrix / np.linalg.norm(matrix, axis=0))
    turn = left @ right
    axes, against = [0, 0, 0], [False, False, False]
    for column in np.argsort(-(turn**2).max(axis=0), kind="stable"):
        axis = int(np.abs(turn[:, column]).argmax())
        axes[column], against[column] = axis, bool(turn[axis, column] < 0)
        turn[axis] = 0
    return tuple(axes), tuple(against)


def turned_to(grid: VoxelGrid, letters: str) -> Turned:
    """The permutation and flips that turn the axes of a grid towards the directions ``letters``.

    >>> grid = VoxelGrid((4, 5, 6), ((0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0)))
    >>> grid.directions, turned_to(grid, "LAS")
    ('SAR', Turned(order=(2, 1, 0), flipped=(True, False, False)))
    """
    axes, against = closest_axes(grid.affine[:3, :3])
    wanted = [("RL".find(c), "AP".find(c), "SI".find(c)) for c in letters]
    order, flipped = [], []
    for places in wanted:
        world = next(axis for axis, place in enumerate(places) if place >= 0)
        stored = axes.index(world)
        order.append(stored)
        flipped.append(against[stored] != bool(places[world]))
    return Turned(tuple(order), tuple(flipped))


def shear(grid: VoxelGrid) -> float:
    """Largest distance, in voxels, between the end of an axis and its position if all axes were at right angles."""
    steps = grid.affine[:3, :3]
    lengths = np.linalg.norm(steps, axis=0)
    cosines = np.abs((steps / lengths).T @ (steps / lengths))
    np.fill_diagonal(cosines, 0)
    extents = lengths * np.array(grid.shape)
    return float((cosines * extents[:, None] / lengths[None, :]).max())


def furthest_apart(one: NDArray[np.float64], other: NDArray[np.float64], shape: Sequence[int]) -> float:
    """Largest distance in mm between the positions of a corner of a volume under two affines."""
    corners = np.array([[*((n - 1) * bit for n, bit in zip(shape, bits, strict=True)), 1] for bits in np.ndindex(2, 2, 2)])
    apart = (one - other)[:3] @ corners.T
    return math.sqrt(float((apart**2).sum(axis=0).max()))
