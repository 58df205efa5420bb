"""A majority filter: each element takes the label that occurs most often around it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def majority(labels: NDArray[Any], side: int, nodata: int) -> NDArray[Any]:
    """The most frequent label in the window around each element: ``side`` elements along each axis, fewer at the border.

    Nodata is neither counted nor changed. Where several labels are equally frequent, an element keeps its own.

    >>> majority(np.array([[1, 1, 1], [1, 2, 2], [3, 3, 2]]), 3, 255)
    array([[1, 1, 1],
           [1, 1, 2],
           [3, 2, 2]])
    """
    most, found = np.zeros(labels.shape, np.int32), labels.copy()
    tied = np.zeros(labels.shape, np.bool_)
    for label in np.unique(labels[labels != nodata]):
        count = _around(labels == label, side)
        more = count > most
        tied = np.where(more, False, tied | (count == most))
        np.copyto(most, count, where=more)
        np.copyto(found, label, where=more)
    return np.where(tied | (labels == nodata), labels, found)


def _around(present: NDArray[np.bool_], side: int) -> NDArray[np.int32]:
    """Number of true elements in the window around each element."""
    count = present.astype(np.int32)
    for axis, size in enumerate(present.shape):
        ends = np.arange(size)
        upto = np.insert(np.cumsum(count, axis=axis, dtype=np.int32), 0, 0, axis=axis)
        first, last = np.maximum(ends - side // 2, 0), np.minimum(ends + side // 2 + 1, size)
        count = np.take(upto, last, axis=axis) - np.take(upto, first, axis=axis)
    return count
