"""Rings of regions, from their corners."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Integers
from segpipe.polygons.corners import COL, ROW, UP, Corners


@dataclass(frozen=True, eq=False)
class Rings:
    """Closed rings, with the region on their left if rows are drawn downwards; of each region, the outer one is first."""

    row: Integers
    """Row of each vertex in the lattice; the first vertex of a ring is repeated at its end."""
    col: Integers
    start: Integers
    """Index of the first vertex of each ring, and the number of vertices: one more than rings."""
    region: Integers
    """Region of each ring, ascending."""


def rings_of(corners: Corners, shape: tuple[int, ...]) -> Rings:
    """The borders of regions all of whose corners are given; regions are counted from 0.

    A ring begins in its first row. Holes come in the order of their first points, row by row.
    """
    corners = corners[np.argsort(_keys(corners, shape), kind="stable")]
    partner = _partners(corners, shape)
    up = (corners.kind[::2] & UP) != 0
    head = 2 * np.arange(len(up), dtype=np.int64) + up
    ring, rank = ranked(partner[head] >> 1)
    del partner
    size = np.bincount(ring, minlength=len(ring))
    begin = np.cumsum(size) - size
    order = np.empty(len(ring), np.int64)
    order[begin[ring] + rank] = np.arange(len(ring))
    first = np.flatnonzero(size)
    head = head[order]
    point = np.stack([corners.point[head ^ 1], corners.point[head]], axis=1).ravel()
    point, start = _closed(point, np.append(2 * begin[first], len(point)))
    row, col = np.divmod(point, shape[1] + 1)
    return Rings(row, col, start, corners.region[2 * first].astype(np.int64))


def _keys(corners: Corners, shape: tuple[int, ...]) -> Integers:
    """Keys that sort corners by region, then row by row."""
    points = (shape[0] + 1) * (shape[1] + 1)
    return (corners.region * np.int64(points) + corners.point) * 2 + (corners.kind & ROW)


def _partners(corners: Corners, shape: tuple[int, ...]) -> Integers:
    """The other end of the vertical edge of each corner."""
    row, col = np.divmod(corners.point, shape[1] + 1)
    col += corners.region * np.int64(shape[1] + 1)
    order = np.argsort((col * (shape[0] + 1) + row) * 2 + ((corners.kind & COL) != 0), kind="stable")
    partner = np.empty(len(order), np.int64)
    partner[order[::2]], partner[order[1::2]] = order[1::2], order[::2]
    return partner


def ranked(after: NDArray[Any]) -> tuple[Integers, Integers]:
    """For each element of a permutation, the least one of its cycle, and the number of steps from there to it.

    By doubling of steps: the time grows with the logarithm of the longest cycle.
    """
    least = np.arange(len(after), dtype=np.int64)
    ahead = after
    while not np.array_equal(lower := np.minimum(least, least[ahead]), least):
        least, ahead = lower, ahead[ahead]
    itself = np.arange(len(after), dtype=np.int64)
    left = (itself != least).astype(np.int64)
    ahead = np.where(left, after, itself)
    while (more := left[ahead]).any():
        left, ahead = left + more, ahead[ahead]
    return least, (-left) % np.bincount(least, minlength=len(after))[least]


def _closed(point: Integers, start: Integers) -> tuple[Integers, Integers]:
    """Rings without edges of no length, each closed with its first vertex."""
    following = np.append(point[1:], 0)
    following[start[1:] - 1] = point[start[:-1]]
    kept = point != following
    size = np.add.reduceat(kept, start[:-1], dtype=np.int64)
    begin = np.append(0, np.cumsum(size + 1))
    closed = np.empty(begin[-1], np.int64)
    inner = np.ones(len(closed), np.bool_)
    inner[begin[1:] - 1] = False
    closed[inner] = point[kept]
    closed[begin[1:] - 1] = closed[begin[:-1]]
    return closed, begin
