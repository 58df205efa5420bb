"""Connected regions of equal labels; elements are connected if they share a side."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Integers

Pair = tuple[Integers, Integers]


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of an array, numbered from 0 in the order of their first elements."""

    numbers: Integers
    """Region of each element, in the shape of the array."""
    values: NDArray[Any]
    """Label of each region."""

    @classmethod
    def of(cls, labels: NDArray[Any]) -> "Regions":
        """The regions of ``labels``, shape ``(..., columns)``."""
        begins = np.ones(labels.shape, np.bool_)
        np.not_equal(labels[..., 1:], labels[..., :-1], out=begins[..., 1:])
        run = (np.cumsum(begins.ravel()) - 1).reshape(labels.shape)
        first = np.flatnonzero(begins)
        pairs = [_touching(run, labels, axis) for axis in range(labels.ndim - 1)]
        one, other = (np.concatenate([np.zeros(0, np.int64), *side]) for side in zip(*pairs, strict=True))
        root = connected(len(first), (one, other))
        is_root = root == np.arange(len(root))
        number = (np.cumsum(is_root) - 1)[root]
        return cls(number[run], labels.ravel()[first[is_root]])

    def __len__(self) -> int:
        return len(self.values)


def _touching(run: Integers, labels: NDArray[Any], axis: int) -> Pair:
    """Runs with equal labels that touch along an axis; a pair is only repeated if others lie between."""
    earlier, later = beside(run, axis)
    same = np.equal(*beside(labels, axis))
    return _distinct(earlier[same], later[same])


def _distinct(one: Integers, other: Integers) -> Pair:
    """Pairs without those that equal the one before."""
    keep = np.ones(len(one), np.bool_)
    keep[1:] = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
    return one[keep], other[keep]


def beside(values: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Views of all elements that have a next one along an axis, and of these next ones."""
    before = (slice(None),) * axis
    return values[(*before, slice(None, -1))], values[(*before, slice(1, None))]


def connected(count: int, pairs: Pair) -> Integers:
    """The least number in the connected component of each of ``count`` numbers, given pairs that are connected."""
    root = np.arange(count)
    for low, high in _unjoined(root, *pairs):
        np.minimum.at(root, high, low)
        _shorten(root)
    return root


def _unjoined(root: Integers, one: Integers, other: Integers) -> Iterator[Pair]:
    """Yield the roots of pairs that are not joined yet, the lower ones first, until all are."""
    while len(one):
        one, other = root[one], root[other]
        apart = one != other
        one, other = one[apart], other[apart]
        if len(one):
            yield np.minimum(one, other), np.maximum(one, other)


def _shorten(root: Integers) -> None:
    """Let every number point to its root, in place."""
    while not np.array_equal(further := root[root], root):
        root[:] = further
