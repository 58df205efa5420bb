"""Regions of a mask that comes in strips: a region is returned with its corners when no later strip can add to it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Float, Integers
from segpipe.polygons.corners import Corners, Nodes, corners_of


@dataclass(frozen=True, eq=False)
class RegionTable:
    """Sums over the pixels of features, one element each."""

    kind: Integers
    """Class, from 1."""
    first: Integers
    """Least index of its pixels, row by row."""
    last: Integers
    """Its last row."""
    pixels: Integers
    area: Float
    """In the unit of the weights."""
    confidence: Float
    """Sum of the stored values."""

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, which: Any) -> "RegionTable":
        return RegionTable(*(getattr(self, one.name)[which] for one in fields(self)))

    @classmethod
    def joined(cls, tables: "Sequence[RegionTable]") -> "RegionTable":
        """The rows of several tables, in order."""
        return cls(*(np.concatenate([getattr(table, one.name) for table in tables]) for one in fields(cls)))

    @classmethod
    def none(cls) -> "RegionTable":
        """A table without rows."""
        none = np.zeros(0, np.int64)
        return cls(kind=none, first=none, last=none, pixels=none, area=np.zeros(0), confidence=np.zeros(0))

    def merged(self, root: Integers) -> "RegionTable":
        """A copy in which each row is added to that of its root, of which it is a part."""
        moved = np.flatnonzero(root != np.arange(len(root)))
        to, table = root[moved], RegionTable(*(getattr(self, one.name).copy() for one in fields(self)))
        np.minimum.at(table.first, to, table.first[moved])
        np.maximum.at(table.last, to, table.last[moved])
        for column in (table.pixels, table.area, table.confidence):
            np.add.at(column, to, column[moved])
        return table


@dataclass(frozen=True, eq=False)
class FinishedRegions:
    """Features that are complete, by last row, then by first pixel: an order that does not depend on strips."""

    table: RegionTable
    feature: Integers
    """Feature of each region, ascending; of one feature, regions are sorted by first pixel."""
    corners: Corners
    """Corners of the regions, which are counted from 0; in any order."""

    def __len__(self) -> int:
        return len(self.table)

    def where(self, which: NDArray[np.bool_]) -> "FinishedRegions":
        """The features that a mask ``(features,)`` selects, renumbered, with their regions and corners."""
        regions = which[self.feature]
        feature, number = (np.cumsum(each) - 1 for each in (which, regions))
        corners = self.corners[regions[self.corners.region]]
        moved = Corners(number[corners.region].astype(np.int32), corners.point, corners.kind)
        return FinishedRegions(self.table[which], feature[self.feature[regions]], moved)


@dataclass(frozen=True, eq=False)
class MaskRows:
    """Some rows of a mask."""

    values: NDArray[Any]
    """Class of each pixel from 1, 0 for none; shape ``(rows, cols)``; unsigned integers."""
    weights: Float
    """Area of each pixel, of the same shape."""
    confidence: NDArray[Any] | None = None


class MaskRegions:
    """Connected regions of one class each, of a mask whose strips come from top to bottom.

    Args:
        shape: of the whole mask.
        corners_connect: whether pixels of one class that touch at a corner belong to one feature (8 neighbours), of
            several regions; else features are regions of 4 neighbours.
        nodes: vertices that are wanted on straight borders.
    """

    def __init__(self, shape: tuple[int, ...], *, corners_connect: bool = False, nodes: Nodes | None = None) -> None:
        self._shape, self._eight, self._nodes = shape, corners_connect, nodes
        self._row = 0
        width = shape[1] + 2
        self._above = np.zeros((1, width), np.uint8), np.zeros((1, width), np.int32)
        self._table, self._feature = RegionTable.none(), np.zeros(0, np.int64)
        self._first = np.zeros(0, np.int64)
        self._corners: list[Corners] = []

    def add(self, strip: MaskRows) -> FinishedRegions:
        """Add the next rows, and return the features that are complete now."""
        local, features, own = _labelled(strip.values, self._eight)
        regions = _framed(local + np.int32(len(self._feature) - 1), 0)
        values = _framed(strip.values, 0)
        self._feature = np.concatenate([self._feature, own + len(self._table)])
        self._first = np.concatenate([self._first, _firsts(local, len(own)) + self._row * self._shape[1]])
        self._table = RegionTable.joined([self._table, self._sums(strip, features)])
        self._trace(values, regions)
        root = self._join(values, regions)
        self._row += len(strip.values)
        self._above = values[-1:], regions[-1:]
        return self._split(root)

    @property
    def _ended(self) -> bool:
        return self._row == self._shape[0]

    def _sums(self, strip: MaskRows, features: NDArray[Any]) -> RegionTable:
        label, count = features.ravel(), int(features.max(initial=0)) + 1
        kind, last = np.zeros(count, np.int64), np.zeros(count, np.int64)
        kind[label] = strip.values.ravel()
        last[label] = np.repeat(np.arange(len(features)) + self._row, features.shape[1])
        first = _firsts(features, count - 1) + self._row * self._shape[1]
        pixels = np.bincount(label, minlength=count)
        area, sure = (
            np.zeros(count) if one is None else np.bincount(label, one.ravel(), minlength=count).astype(np.float64)
            for one in (strip.weights, strip.confidence)
        )
        return RegionTable(kind[1:], first, last[1:], pixels[1:], area[1:], sure[1:])

    def _trace(self, values: NDArray[Any], regions: NDArray[np.int32]) -> None:
        below = self._row + len(values) == self._shape[0]
        end = [np.zeros_like(values[:1])] * below
        stack = np.concatenate([self._above[0].astype(values.dtype), values, *end])
        owners = np.concatenate([self._above[1], regions, *[regions[:1]] * below])
        self._corners.append(corners_of(stack, owners, self._row, self._nodes))

    def _join(self, values: NDArray[Any], regions: NDArray[np.int32]) -> Integers:
        """Join regions, and features, that go on from the row above; return the root of each region."""
        above, owner = self._above
        upper, lower = above[0].astype(values.dtype), values[0]
        same = (upper == lower) & (lower != 0)
        pairs = _pairs(owner[0][same], regions[0][same])
        if self._eight:
            touching = [
                _pairs(owner[0][1:][fall], regions[0][:-1][fall])
                if back
                else _pairs(owner[0][:-1][fall], regions[0][1:][fall])
                for back, fall in (
                    (False, (upper[:-1] == lower[1:]) & (lower[1:] != 0)),
                    (True, (upper[1:] == lower[:-1]) & (lower[:-1] != 0)),
                )
            ]
            features = self._feature[np.concatenate([pairs, *touching])]
            root = roots(len(self._table), features)
            self._table, self._feature = self._table.merged(root), root[self._feature]
        root = roots(len(self._feature), pairs)
        moved = np.flatnonzero(root != np.arange(len(root)))
        np.minimum.at(self._first, root[moved], self._first[moved])
        if not self._eight:
            self._table, self._feature = self._table.merged(root), root
        return root

    def _split(self, root: Integers) -> FinishedRegions:
        """Remove and return the features that do not reach the last row; renumber the others."""
        open_ = np.zeros(len(self._table), np.bool_)
        if not self._ended:
            values, regions = self._above
            open_[self._feature[root[regions[0][values[0] != 0]]]] = True
        whole = self._feature_roots()
        corners = Corners.joined(self._corners)
        corners = replace(corners, region=root[corners.region].astype(np.int32))
        stays = open_[self._feature[corners.region]]
        finished, _ = self._taken(whole & ~open_, root, corners[~stays])
        left, number = self._taken(whole & open_, root, corners[stays])
        first = np.zeros(len(left.feature), np.int64)
        first[number[number >= 0]] = self._first[number >= 0]
        self._first = first
        self._table, self._feature, self._corners = left.table, left.feature, [left.corners]
        values, regions = self._above
        there = values != 0
        moved = np.zeros(regions.shape, np.int32)
        moved[there] = number[root[regions[there]]]
        self._above = values, moved
        return finished

    def _feature_roots(self) -> NDArray[np.bool_]:
        whole = np.zeros(len(self._table), np.bool_)
        whole[self._feature] = True
        return whole

    def _taken(self, which: NDArray[np.bool_], root: Integers, corners: Corners) -> tuple[FinishedRegions, Integers]:
        """Some features with their regions and corners, numbered from 0, and the new number of each region, or -1."""
        chosen = np.flatnonzero(which)
        chosen = chosen[np.lexsort((self._table.first[chosen], self._table.last[chosen]))]
        place = np.full(len(which), -1, np.int64)
        place[chosen] = np.arange(len(chosen))
        regions = np.flatnonzero((root == np.arange(len(root))) & (place[self._feature] >= 0))
        regions = regions[np.lexsort((self._first[regions], place[self._feature[regions]]))]
        number = np.full(len(root), -1, np.int64)
        number[regions] = np.arange(len(regions))
        moved = replace(corners, region=number[corners.region].astype(np.int32))
        return FinishedRegions(self._table[chosen], place[self._feature[regions]], moved), number


def _labelled(values: NDArray[Any], corners_connect: bool) -> tuple[NDArray[Any], NDArray[Any], Integers]:
    """Regions and features of each pixel, numbered from 1, 0 for none, and the feature of each region, from 0."""
    import cc3d

    regions, count = cc3d.connected_components(values, connectivity=4, return_N=True)
    regions = regions.astype(np.int32, copy=False)
    if not corners_connect:
        return regions, regions, np.arange(count, dtype=np.int64)
    features = cc3d.connected_components(values, connectivity=8)
    own = np.zeros(count + 1, np.int64)
    own[regions.ravel()] = features.ravel()
    return regions, features, own[1:] - 1


def _framed(array: NDArray[Any], value: int) -> NDArray[Any]:
    return np.pad(array, ((0, 0), (1, 1)), constant_values=value)


def _firsts(labels: NDArray[Any], count: int) -> Integers:
    """Index of the first pixel of each label from 1."""
    first = np.zeros(count + 1, np.int64)
    flat = labels.ravel()
    first[flat[::-1]] = np.arange(len(flat) - 1, -1, -1)
    return first[1:]


def _pairs(one: NDArray[np.int32], other: NDArray[np.int32]) -> Integers:
    """Pairs that differ from the one before; shape ``(pairs, 2)``."""
    pairs = np.stack([one, other], axis=1).astype(np.int64)
    new = np.ones(len(pairs), np.bool_)
    new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs[new]


def roots(count: int, pairs: Integers) -> Integers:
    """The least element of the set of each element, where pairs belong to one set.

    Each round joins every set that has a neighbour with a lower root to it, which at least halves their number.
    """
    root = np.arange(count, dtype=np.int64)
    while True:
        one, other = root[pairs[:, 0]], root[pairs[:, 1]]
        apart = one != other
        if not apart.any():
            return root
        low, high = np.minimum(one, other)[apart], np.maximum(one, other)[apart]
        np.minimum.at(root, high, low)
        while not np.array_equal(nearer := root[root], root):
            root = nearer
