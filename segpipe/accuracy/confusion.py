"""Counts of pixels by class of the reference and of the map, from windows of any size."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Integers
from segpipe.errors import SourceError
from segpipe.messages.printable import counted, first_few

Labels = NDArray[Any]
BYTES = 256


@dataclass(frozen=True)
class ClassMap:
    """The meaning of the values of masks and references."""

    ids: tuple[int, ...]
    """Value of each class in masks."""
    names: tuple[str, ...]
    values: Mapping[int, int] = field(default_factory=dict)
    """Position of the class of each value of the reference; empty: values are numbered as in masks."""
    ignored: frozenset[int] = frozenset()
    """Values of the reference whose pixels do not count."""

    def of_reference(self, value: int) -> int:
        """Position of the class of a value, -1 if its pixels do not count.

        Raises:
            KeyError: it is no class.
        """
        if value in self.ignored:
            return -1
        return self.values[value] if self.values else self.ids.index(value) if value in self.ids else _no_class(value)


def _no_class(value: int) -> int:
    raise KeyError(value)


@dataclass(eq=False)
class PairCounts:
    """Numbers of pixels by value of the reference and of the mask."""

    _bytes: Integers = field(default_factory=lambda: np.zeros(BYTES * BYTES, np.int64))
    _others: dict[tuple[int, int], int] = field(default_factory=dict)
    invalid: int = 0
    """Pixels where the reference has no data."""

    def add(self, reference: Labels, labels: Labels, valid: NDArray[np.bool_] | None = None) -> None:
        """Count the pixels of a window; arrays have one shape.

        Raises:
            SourceError: the reference is not of whole numbers.
        """
        if valid is not None:
            self.invalid += int(valid.size - np.count_nonzero(valid))
            reference, labels = reference[valid], labels[valid]
        if reference.dtype.itemsize == labels.dtype.itemsize == 1 and reference.dtype.kind in "ub":
            # one pass over two bytes: values become classes once, at the end
            pairs = (reference.astype(np.uint16).ravel() << 8) | labels.ravel()
            self._bytes += np.bincount(pairs, minlength=BYTES * BYTES)
            return
        self._add_others(_whole(reference).ravel(), labels.ravel())

    def _add_others(self, reference: Labels, labels: Labels) -> None:
        values, at = np.unique(reference, return_inverse=True)
        own, label_at = np.unique(labels, return_inverse=True)
        found = np.bincount(at * len(own) + label_at, minlength=len(values) * len(own)).reshape(len(values), len(own))
        for i, k in zip(*np.nonzero(found), strict=True):
            pair = (int(values[i]), int(own[k]))
            self._others[pair] = self._others.get(pair, 0) + int(found[i, k])

    def pairs(self) -> dict[tuple[int, int], int]:
        """Pixels of each value of the reference and of the mask that occur together."""
        at = np.flatnonzero(self._bytes)
        found = {(int(pair) >> 8, int(pair) & 255): int(self._bytes[pair]) for pair in at}
        for pair, count in self._others.items():
            found[pair] = found.get(pair, 0) + count
        return found


def _whole(reference: Labels) -> Labels:
    if reference.dtype.kind == "f":
        rounded = np.rint(reference)
        if not np.array_equal(rounded, reference):
            raise SourceError("a reference must hold whole numbers, and this one holds fractions")
        return rounded.astype(np.int64)
    return reference


@dataclass(frozen=True, eq=False)
class Confusion:
    """Pixels of one case, or of several."""

    matrix: Integers
    """Shape ``(reference, map)``, in the order of the classes."""
    unseen: int = 0
    """Pixels of a class of the reference where the mask has no data."""
    ignored: int = 0
    """Pixels where the reference has no data, or a value that is ignored."""

    def __add__(self, other: "Confusion") -> "Confusion":
        return Confusion(self.matrix + other.matrix, self.unseen + other.unseen, self.ignored + other.ignored)


def confusion_of(counts: PairCounts, classes: ClassMap) -> Confusion:
    """The confusion matrix of counted pairs of values: what each value is a class of, and what does not count.

    Raises:
        SourceError: the reference has a value that is no class.
    """
    size, unseen, ignored = len(classes.ids), 0, counts.invalid
    matrix = np.zeros((size, size), np.int64)
    mapped = {value: k for k, value in enumerate(classes.ids)}
    unknown = dict[int, int]()
    for (value, label), count in counts.pairs().items():
        try:
            k = classes.of_reference(value)
        except KeyError:
            unknown[value] = unknown.get(value, 0) + count
            continue
        if k < 0:
            ignored += count
        elif label in mapped:
            matrix[k, mapped[label]] += count
        else:
            unseen += count
    if unknown:
        raise SourceError(_unknown(unknown, classes))
    return Confusion(matrix, unseen, ignored)


def of_reference(values: Labels, classes: ClassMap) -> Integers:
    """Position of the class of each value of a reference, -1 where pixels do not count."""
    known, at = np.unique(values, return_inverse=True)
    lookup = np.full(len(known), -1, np.int64)
    for k, value in enumerate(known):
        try:
            lookup[k] = classes.of_reference(int(value))
        except (KeyError, ValueError):  # what is no class counted as an error before, but where it is invalid
            continue
    return lookup[at].reshape(values.shape)


def _unknown(unknown: Mapping[int, int], classes: ClassMap) -> str:
    few = ", ".join(f"{value} ({counted(count, 'pixel')})" for value, count in sorted(unknown.items())[:5])
    known = first_few(classes.values or classes.ids, 10)
    return (
        f"values of a reference must be classes, {known}, and it has {few}: "
        "name them in --map-classes, or leave them out with --ignore"
    )
