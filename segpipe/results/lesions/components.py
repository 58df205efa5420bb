"""Count the connected components of a volume that arrives in boxes, in any order, and join them across faces.

Every box is labelled separately. Later boxes can only join the labels on faces whose other side has not been seen; these
are kept until it has. No result depends on how the volume was cut: integers are added, minima and maxima taken, and convex
outlines merged.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Integers
from segpipe.errors import SourceError
from segpipe.results.lesions import exact
from segpipe.results.lesions.faces import OpenFaces
from segpipe.results.lesions.outlines import outline
from segpipe.results.lesions.row_runs import Runs

Table = dict[str, NDArray[Any]]
"""Columns by name, one row per component."""

Stored = Callable[[], NDArray[Any]]
"""Reads the stored pixels of a box, ``(channels, slices, rows, columns)``."""

MOST_LISTED = 10_000
"""Most components of a case that are kept after no box can join them any more: the largest."""
MOST_PIECES = 2**25
"""Most pieces of components in single boxes whose component is remembered, for a volume of instances: 128 MB."""
PENDING_ROWS, PENDING_POINTS = 2**14, 2**17
"""Rows and points that are collected before they are merged."""
INSIDE: Final = 26
"""Connectivity: voxels that share a corner are connected. An image is a volume of one slice, with 8 neighbours."""

MERGED: Mapping[str, np.ufunc] = {
    "first": np.minimum,
    "kind": np.minimum,
    "voxels": np.add,
    "sums": np.add,
    "low": np.minimum,
    "high": np.maximum,
    "confidence": np.add,
    "surest": np.maximum,
    "intensity": np.add,
    "darkest": np.minimum,
    "brightest": np.maximum,
}
"""Function that merges a column of two pieces of a component."""


@dataclass(frozen=True, eq=False)
class LabelLayer:
    """Labels of a box in which no two components overlap."""

    kinds: NDArray[Any]
    """Class of each voxel from 1, 0 for none; shape ``(slices, rows, columns)``."""
    confidence: NDArray[np.uint8] | None = None
    """Confidence of each voxel, of the same shape."""


@dataclass
class Unlisted:
    """Components that are not listed, by class from 1: number and voxels."""

    small: Integers
    excess: Integers

    @classmethod
    def none(cls, kinds: int) -> "Unlisted":
        """Nothing left out, for this number of classes."""
        return cls(*(np.zeros((kinds + 1, 2), np.int64) for _ in range(2)))


def counted(into: Integers, table: Table, rows: NDArray[np.bool_]) -> None:
    """Add the number and voxels of some rows of a table, by class."""
    np.add.at(into, table["kind"][rows], np.stack([np.ones(int(rows.sum()), np.int64), table["voxels"][rows]], axis=1))


@dataclass
class _Pending:
    """Pieces that have not been merged: tables, and points with the numbers of their pieces."""

    tables: list[Table] = field(default_factory=list)
    owners: list[Integers] = field(default_factory=list)
    points: list[Integers] = field(default_factory=list)
    rows: int = 0
    held: int = 0

    def add(self, table: Table, owner: Integers, point: Integers) -> None:
        self.tables.append(table)
        self.owners.append(owner)
        self.points.append(point)
        self.rows += len(table["first"])
        self.held += len(point)


class Components:
    """Components of the classes of a volume; boxes come in any order, each voxel once.

    Args:
        shape: slices, rows, columns of the volume.
        kinds: number of classes.
        least: components with fewer voxels are counted, but not listed.
        named: whether to remember to which component each piece of a box belongs.
    """

    def __init__(self, shape: tuple[int, int, int], kinds: int, *, least: int = 1, named: bool = False) -> None:
        self._shape, self._least = shape, least
        self._faces = OpenFaces(shape)
        self._parents: list[int] = []
        self._kinds = np.zeros(0, np.int64)
        self._pending = _Pending()
        self._merged = 0, 0
        self.left = Unlisted.none(kinds)
        self._names: list[NDArray[np.int32]] | None = [] if named else None
        self._named_pieces = 0

    def add(
        self, start: tuple[int, ...], layers: Sequence[LabelLayer], pixels: Stored | None = None
    ) -> NDArray[np.int32] | None:
        """Count a box.

        Args:
            start: index of its first voxel.
            layers: its labels.
            pixels: reads its stored pixels ``(channels, *box)``; None: intensities are not counted.

        Returns:
            The name of the piece that each voxel belongs to, or -1, shape ``(layers, *box)``, if the components are named.
        """
        found = [self._add_layer(start, layer, pixels) for layer in layers]
        numbers = np.stack([numbers for numbers, _ in found])
        self._join(self._faces.add(start, numbers, self._kinds))
        if self._pending.rows > max(PENDING_ROWS, self._merged[0]) or self._pending.held > max(
            PENDING_POINTS, self._merged[1]
        ):
            self._merge()
        return None if self._names is None else np.stack([names for _, names in found])

    def _add_layer(
        self, start: tuple[int, ...], layer: LabelLayer, pixels: Stored | None
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Label and count one layer; return the number and the name of the component of each voxel, -1 for none."""
        if not layer.kinds.any():
            nothing = np.full(layer.kinds.shape, -1, np.int32)
            return nothing, nothing
        labels, count = labelled(layer.kinds)
        runs = Runs.of(labels, count)
        table = self._table(start, runs, layer, None if pixels is None else pixels())
        small = self._closed(table, start, layer.kinds.shape) & (table["voxels"] < self._least)
        counted(self.left.small, table, small)
        owner, point = self._outline(start, runs)
        numbers = np.full(count + 1, -1, np.int32)
        numbers[1:][~small] = len(self._parents) + np.arange(count - int(small.sum()))
        names = numbers if self._names is None else self._named(numbers)
        kept = ~small[owner]
        self._append(
            {key: column[~small] for key, column in table.items()}, numbers[1:][owner[kept]].astype(np.int64), point[kept]
        )
        return numbers[labels], names[labels]

    def _named(self, numbers: NDArray[np.int32]) -> NDArray[np.int32]:
        """Names that remain valid when components are merged, in place of numbers that do not."""
        assert self._names is not None
        own = numbers[numbers >= 0]
        begin = self._named_pieces
        self._keep_names(own)
        names = numbers.copy()
        names[numbers >= 0] = begin + np.arange(len(own))
        return names

    def _keep_names(self, names: NDArray[np.int32]) -> None:
        assert self._names is not None
        self._named_pieces += len(names)
        if self._named_pieces > MOST_PIECES:
            raise SourceError(
                f"--instances takes at most {MOST_PIECES:,} pieces of components, and this case has more: "
                "raise --min-size, or leave out --instances"
            )
        self._names.append(names)

    def _append(self, table: Table, owner: Integers, point: Integers) -> None:
        self._kinds = np.concatenate([self._kinds, table["kind"]])
        self._parents += range(len(self._parents), len(self._parents) + len(table["kind"]))
        self._pending.add(table, owner, point)

    def _table(self, start: tuple[int, ...], runs: Runs, layer: LabelLayer, pixels: NDArray[Any] | None) -> Table:
        first = runs.place + np.array(start)[:, None]
        length = runs.length
        along = length * first[2] + length * (length - 1) // 2
        low = np.stack([runs.least(axis) for axis in first], axis=1)
        high = np.stack([runs.most(first[0]) + 1, runs.most(first[1]) + 1, runs.most(first[2] + length)], axis=1)
        table: Table = {
            "first": runs.least(np.ravel_multi_index(tuple(first), self._shape)),
            "kind": runs.least(layer.kinds.ravel()[runs.flat]).astype(np.int64),
            "voxels": runs.add(length),
            "sums": np.stack([runs.add(length * first[0]), runs.add(length * first[1]), runs.add(along)], axis=1),
            "low": low,
            "high": high,
        }
        if layer.confidence is not None:
            table |= {"confidence": runs.total(layer.confidence), "surest": runs.range(layer.confidence)[1]}
        return table if pixels is None else table | _intensities(pixels, runs)

    def _closed(self, table: Table, start: tuple[int, ...], shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Whether each component of a box is complete: no other box can contain a part of it."""
        first, stop = np.array(start), np.add(start, shape)
        low, high = (table["low"] > first) | (first == 0), (table["high"] < stop) | (stop == np.array(self._shape))
        return np.asarray((low & high).all(axis=1))

    def _outline(self, start: tuple[int, ...], runs: Runs) -> tuple[Integers, Integers]:
        first = runs.place + np.array(start)[:, None]
        point = np.ravel_multi_index(tuple(first), self._shape)
        return outline(np.tile(runs.component, 2), np.concatenate([point, point + runs.length - 1]), self._shape)

    def _join(self, pairs: Sequence[tuple[int, int]]) -> None:
        for one, other in pairs:
            a, b = self._root(one), self._root(other)
            self._parents[max(a, b)] = min(a, b)

    def _root(self, number: int) -> int:
        parents = self._parents
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    def _merge(self) -> None:
        """Merge joined pieces, and drop complete components that are too small, or too many."""
        pending, roots = self._pending, _roots(self._parents)
        if not len(roots):
            return
        new, component = np.unique(roots, return_inverse=True)
        table = merged(pending.tables, component, len(new))
        open_ones = np.zeros(len(new), np.bool_)
        open_ones[component[self._faces.numbers()]] = True
        keep = self._kept(table, open_ones)
        moved = np.where(keep, np.cumsum(keep) - 1, -1)[component]
        owner = moved[np.concatenate(pending.owners)]
        owner, point = outline(owner[owner >= 0], np.concatenate(pending.points)[owner >= 0], self._shape)
        self._faces.renumber(moved)
        if self._names is not None:
            self._names = [np.where(names >= 0, moved[names], -1).astype(np.int32) for names in self._names]
        table = {key: column[keep] for key, column in table.items()}
        self._parents, self._kinds, self._pending = list(range(int(keep.sum()))), table["kind"], _Pending()
        self._pending.add(table, owner, point)
        self._merged = 2 * self._pending.rows, 2 * self._pending.held

    def _kept(self, table: Table, open_ones: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The open components, and of the others the largest; the rest is counted."""
        small = ~open_ones & (table["voxels"] < self._least)
        counted(self.left.small, table, small)
        rest = np.flatnonzero(~open_ones & ~small)
        excess = np.zeros(len(small), np.bool_)
        excess[rest[by_size({key: table[key][rest] for key in ("first", "kind", "voxels")})[MOST_LISTED:]]] = True
        counted(self.left.excess, table, excess)
        return ~small & ~excess

    @property
    def state(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays, for ``merge``."""
        table, owner, point = self.finished()
        names = {} if self._names is None else {"names": np.concatenate([np.zeros(0, np.int32), *self._names])}
        return {
            **{f"table.{key}": column for key, column in table.items()},
            **{f"faces.{key}": column for key, column in self._faces.state.items()},
            **{"owner": owner, "point": point, "small": self.left.small, "excess": self.left.excess},
            **names,
        }

    def merge(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Add the components of another part of the volume."""
        base = len(self._parents)
        table = {key.removeprefix("table."): column for key, column in state.items() if key.startswith("table.")}
        faces = {key.removeprefix("faces."): column for key, column in state.items() if key.startswith("faces.")}
        if table:
            self._append(table, state["owner"] + base, state["point"])
        if self._names is not None:
            self._keep_names(np.where(state["names"] >= 0, state["names"] + base, -1).astype(np.int32))
        self._join(self._faces.merge(faces, base, self._kinds))
        self.left.small += state["small"]
        self.left.excess += state["excess"]
        self._merge()

    def finished(self) -> tuple[Table, Integers, Integers]:
        """The table of components so far, and the owners and points of their outlines."""
        self._merge()
        if not self._pending.tables:
            return {}, np.zeros(0, np.int64), np.zeros(0, np.int64)
        return self._pending.tables[0], self._pending.owners[0], self._pending.points[0]

    def names(self) -> list[NDArray[np.int32]]:
        """Row of ``finished`` for each name, or -1; one array per merged part, else per box."""
        self._merge()
        return self._names or []


def labelled(kinds: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Components of equal values, numbered from 1, and their number; 0 where the value is 0."""
    import cc3d

    labels, count = cc3d.connected_components(np.ascontiguousarray(kinds), connectivity=INSIDE, return_N=True)
    return np.ascontiguousarray(labels), int(count)


def _intensities(pixels: NDArray[Any], runs: Runs) -> Table:
    ranges = [runs.range(channel) for channel in pixels]
    return {
        "intensity": np.stack([exact.sums(channel, runs) for channel in pixels], axis=1),
        "darkest": np.stack([low for low, _ in ranges], axis=1).astype(np.float64),
        "brightest": np.stack([high for _, high in ranges], axis=1).astype(np.float64),
    }


def merged(tables: Sequence[Table], component: Integers, count: int) -> Table:
    """One row per component of rows that belong to ``component``."""
    order = np.argsort(component, kind="stable")
    edges = np.searchsorted(component[order], np.arange(count))
    whole = {key: np.concatenate([table[key] for table in tables]) for key in tables[0]}
    table = {key: MERGED[key].reduceat(column[order], edges, axis=0) for key, column in whole.items()}
    return table | ({"intensity": exact.carried(table["intensity"])} if "intensity" in table else {})


def by_size(table: Table) -> Integers:
    """Rows of a table by size, the largest first, then by class and first voxel."""
    return np.lexsort((table["first"], table["kind"], -table["voxels"]))


def _roots(parents: Sequence[int]) -> Integers:
    roots = np.array(parents, np.int64)
    while not np.array_equal(nearer := roots[roots], roots):
        roots = nearer
    return roots


def slabs(shape: tuple[int, ...], most: int) -> Iterator[tuple[int, int]]:
    """Cut an array into slabs along its first axis of about ``most`` elements each."""
    thick = max(1, most // max(1, int(np.prod(shape[1:]))))
    return ((low, min(low + thick, shape[0])) for low in range(0, shape[0], thick))
