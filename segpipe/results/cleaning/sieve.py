"""A minimum mapping unit: regions smaller than a size take the label of their largest neighbour, as GDAL's sieve does.

The rule is that of ``GDALSieveFilter`` with 4 neighbours, whose result it reproduces: regions are those before any change; a
region is small if its size is below the least; its largest neighbour is the one with the greatest size, and of equal ones
the one that it touches first in the order of rows, above before left. If that neighbour is small itself, its own largest
neighbour follows, and so on, until one is large enough. A region whose chain returns to itself, or that only touches nodata
or the border, stays.

The array is read three times in slabs. Only regions that touch the first or last row of a slab are kept between slabs: all
neighbours of others are in their slab.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Integers
from segpipe.results.cleaning.regions import Regions, beside, connected

STAYS = -1
"""Code of a region that keeps its label. Others: -2 minus the label that it takes, or ``AT`` minus a kept region."""

AT = -2 - 2**16

Read = Callable[[int, int], NDArray[Any]]
"""Labels from one row to another, shape ``(rows, ...)``."""

Weigh = Callable[[int, int], NDArray[Any] | None]
"""Whole-number size of each element between two rows; None: each counts 1."""


@dataclass(frozen=True, eq=False)
class Sieve:
    """The sieve of one band, in slabs of rows (or planes, for volumes)."""

    read: Read
    weigh: Weigh
    least: int
    """Least size of a region that stays, in the unit of ``weigh``."""
    nodata: int
    rows: tuple[int, ...]
    """Start of each slab, and the end of the last one."""

    def slabs(self) -> Iterator[NDArray[Any]]:
        """Yield the labels after the sieve, slab by slab."""
        kept = self._kept()
        final = follow(self._chosen(kept))
        for slab in self._with_nodes(kept):
            yield slab.taken(slab.choices()[0], final)

    def _each(self) -> Iterator["_Slab"]:
        for start, stop in pairwise(self.rows):
            yield _Slab(self.read(start, stop), self.weigh(start, stop), self, start)

    def _kept(self) -> "_KeptRegions":
        """Join the regions that touch the border of a slab across slabs, and add up their sizes."""
        offsets, pairs, sizes = [0], [(np.zeros(0, np.int64),) * 2], [np.zeros(0, np.int64)]
        last: tuple[NDArray[Any], Integers] | None = None
        for slab in self._each():
            numbers = offsets[-1] + np.searchsorted(slab.border, slab.regions.numbers[[0, -1]])
            if last is not None:
                same = last[0] == slab.labels[0]
                pairs.append(_unique(last[1][same], numbers[0][same]))
            last = slab.labels[-1], numbers[1]
            sizes.append(slab.sizes[slab.border])
            offsets.append(offsets[-1] + len(slab.border))
        one, other = (np.concatenate(side) for side in zip(*pairs, strict=True))
        root, total = connected(offsets[-1], (one, other)), np.zeros(offsets[-1], np.int64)
        np.add.at(total, root, np.concatenate(sizes))
        return _KeptRegions(tuple(offsets), root, total)

    def _with_nodes(self, kept: "_KeptRegions") -> Iterator["_Slab"]:
        """Yield the slabs again, each with the kept regions and the last row of the slab before."""
        above: _Row | None = None
        for slab, offset in zip(self._each(), kept.offsets, strict=False):
            slab.place(kept, offset, above)
            above = slab.row(-1)
            yield slab

    def _chosen(self, kept: "_KeptRegions") -> Integers:
        """Where each kept region goes: the kept region that follows it, or a code."""
        goal, largest = np.full(len(kept.root), STAYS), np.full(len(kept.root), -1)
        for slab in self._with_nodes(kept):
            inner, outer = slab.choices()
            # of equal neighbours the first counts, and slabs come in order
            better = outer.size > largest[outer.node]
            node = outer.node[better]
            largest[node] = outer.size[better]
            goal[node] = _codes(outer.goal[better], inner, len(kept.root))
        return np.where(goal <= AT, AT - goal, goal)


def follow(goal: Integers) -> Integers:
    """The code at the end of each chain; a chain that returns to itself stays.

    Args:
        goal: the next one in the chain, from 0, or a code below 0.
    """
    points, there = goal >= 0, np.where(goal >= 0, goal, np.arange(len(goal)))
    for _ in range(len(goal).bit_length()):
        there = there[there]
    return np.where(points[there], STAYS, goal[there])


def _codes(goal: Integers, inner: Integers, kept: int) -> Integers:
    """Codes of neighbours: those of regions inside the slab are known by now."""
    inside = goal >= kept
    found = np.where((goal >= 0) & ~inside, AT - goal, goal)
    found[inside] = inner[goal[inside] - kept]
    return found


def _unique(one: Integers, other: Integers) -> tuple[Integers, Integers]:
    found = np.unique(np.stack([one, other]), axis=1)
    return found[0], found[1]


@dataclass(frozen=True, eq=False)
class _KeptRegions:
    """Regions that touch the border of a slab, slab after slab."""

    offsets: tuple[int, ...]
    """Number of the first one of each slab."""
    root: Integers
    """The first of those that are one region."""
    total: Integers
    """Size of each region, at its root."""


@dataclass(frozen=True, eq=False)
class _Row:
    """A row of elements, each with its region's node, size and label."""

    node: Integers
    size: Integers
    label: NDArray[Any]


@dataclass(frozen=True, eq=False)
class _Chosen:
    """For small regions: node, size of the largest neighbour, and its code if it is large enough, else its node."""

    node: Integers
    size: Integers
    goal: Integers


class _Slab:
    """The regions of a slab. Nodes are kept regions by their roots, then the slab's own regions."""

    def __init__(self, labels: NDArray[Any], weights: NDArray[Any] | None, sieve: Sieve, start: int) -> None:
        self.labels, self._sieve, self._start = labels, sieve, start
        self.regions = Regions.of(labels)
        of_each = None if weights is None else np.broadcast_to(weights, labels.shape).ravel()
        counts = np.bincount(self.regions.numbers.ravel(), of_each, minlength=len(self.regions))
        self.sizes = counts.astype(np.int64)  # exact: sums of whole numbers below 2**53

    @cached_property
    def border(self) -> Integers:
        """Regions that touch the first or the last row."""
        return np.unique(self.regions.numbers[[0, -1]])

    def place(self, kept: _KeptRegions, offset: int, above: _Row | None) -> None:
        """Give each region its node and, if it is kept, its whole size."""
        self._own, self._above = len(kept.root), above
        self._node = self._own + np.arange(len(self.regions))
        self._node[self.border] = kept.root[offset : offset + len(self.border)]
        self.sizes[self.border] = kept.total[self._node[self.border]]

    def row(self, k: int) -> _Row:
        numbers = self.regions.numbers[k]
        return _Row(self._node[numbers], self.sizes[numbers], self.labels[k])

    def choices(self) -> tuple[Integers, _Chosen]:
        """The codes of the slab's own regions, and the neighbours that this slab offers to kept ones."""
        found = self._largest_neighbours()
        own = found.node >= self._own
        goal = np.full(len(self.regions), STAYS)
        own_goal = found.goal[own]
        kept = (own_goal >= 0) & (own_goal < self._own)
        goal[found.node[own] - self._own] = np.where(
            kept, AT - own_goal, np.where(own_goal < 0, own_goal, own_goal - self._own)
        )
        return follow(goal), _Chosen(found.node[~own], found.size[~own], found.goal[~own])

    def taken(self, inner: Integers, final: Integers) -> NDArray[Any]:
        """The labels after the sieve, given the codes of the slab's own regions and those of kept ones."""
        code = inner.copy()
        code[self.border] = final[self._node[self.border]]
        at = code <= AT
        code[at] = final[AT - code[at]]
        own = self.regions.values
        moves = (code < STAYS) & (self.sizes < self._sieve.least) & (own != self._sieve.nodata)
        return np.where(moves, -2 - code, own).astype(own.dtype)[self.regions.numbers]

    def _largest_neighbours(self) -> _Chosen:
        """The largest neighbour of each small region, as far as this slab and the row above it show."""
        node, other, size, label, key = (np.concatenate(column) for column in zip(*self._sides(), strict=True))
        order = np.lexsort((key, -size, node))
        first = np.ones(len(order), np.bool_)
        first[1:] = node[order][1:] != node[order][:-1]
        best = order[first]
        goal = np.where(size[best] >= self._sieve.least, -2 - label[best].astype(np.int64), other[best])
        return _Chosen(node[best], size[best], goal)

    def _sides(self) -> Iterator[tuple[NDArray[Any], ...]]:
        """Yield, for both sides of each pair of neighbours, if small: its node; node, size and label of the other; a key.

        The key orders pairs as GDAL meets them: by the later element, row by row, and above before left.
        """
        axes = self.labels.ndim
        whole = _Row(self._node[self.regions.numbers], self.sizes[self.regions.numbers], self.labels)
        place = (self._start * self.labels[0].size + np.arange(self.labels.size)).reshape(self.labels.shape) * axes
        if self._above is not None:
            yield from self._pairs(self._above, self.row(0), place[0])
        for axis in range(axes):
            both = (beside(values, axis) for values in (whole.node, whole.size, whole.label))
            earlier, later = (_Row(*side) for side in zip(*both, strict=True))
            yield from self._pairs(earlier, later, beside(place, axis)[1] + axis)

    def _pairs(self, earlier: _Row, later: _Row, key: Integers) -> Iterator[tuple[NDArray[Any], ...]]:
        nodata, least = self._sieve.nodata, self._sieve.least
        differ = (earlier.label != later.label) & (earlier.label != nodata) & (later.label != nodata)
        for one, other in ((earlier, later), (later, earlier)):
            small = differ & (one.size < least)
            yield one.node[small], other.node[small], other.size[small], other.label[small], key[small]
