"""Read and write an array in a file along its fastest axis, for networks whose first axis is that one.

A box that is thin along the fastest axis takes bytes from every row of the file, and all of these rows are read for it. So
many columns are read or written at once, and kept for the boxes that follow.
"""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.formats.volume.voxels import Voxels
from segpipe.geometry.windows import Window

SLAB = 2**27
"""Most bytes of a slab. A CT of 512 x 512 x 1,200 voxels is read in 5 passes; without slabs, slices take 512."""


MASK_SLAB = 2**25
"""Most bytes of a slab of a mask, all bands together."""


def slab_width(shape: tuple[int, ...], itemsize: int, most: int) -> int:
    """Columns of a slab of an array ``(planes, rows, columns)``; 0 if not even one fits into ``most`` bytes.

    >>> slab_width((1200, 512, 512), 2, SLAB), slab_width((40000, 40000, 8), 2, SLAB)
    (109, 0)
    """
    return min(shape[2], most // (shape[0] * shape[1] * itemsize))


def _first_column(box: Window, width: int, columns: int, *, backwards: bool) -> int:
    """First column of a slab that begins, in the order of the boxes, with the columns of a box."""
    return max(0, min(box.stop[2] - width if backwards else box.start[2], columns - width))


class Slabs:
    """Reads boxes of an array; the columns of the last slab are kept.

    A slab is read once a box has the columns of the box before it, or neighbouring ones, so that boxes here and there, as of
    a sample, do not read the whole file.

    Args:
        voxels: the array.
        width: columns of a slab.
        backwards: whether boxes come in order of falling columns.
    """

    def __init__(self, voxels: Voxels, width: int, *, backwards: bool) -> None:
        self._voxels, self._width, self._backwards = voxels, width, backwards
        self._lock = threading.Lock()
        self._first, self._slab = 0, np.empty((*voxels.shape[:2], 0), voxels.dtype)
        self._before: Window | None = None

    @property
    def file(self) -> int:
        """File descriptor."""
        return self._voxels.file

    def read(self, box: Window) -> NDArray[Any]:
        """As ``Voxels.read``; a box that is wider than a slab is read by itself."""
        start, stop = box.start, box.stop
        with self._lock:
            before, self._before = self._before, box
            if not self._holds(box):
                if before is None or not _touches(before, box) or box.shape[2] > self._width:
                    return self._voxels.read(box)
                self._fetch(box)
            slab, first = self._slab, self._first
        return slab[start[0] : stop[0], start[1] : stop[1], start[2] - first : stop[2] - first].copy()

    def _holds(self, box: Window) -> bool:
        return self._first <= box.start[2] and box.stop[2] <= self._first + self._slab.shape[2]

    def _fetch(self, box: Window) -> None:
        """Read a slab that begins, in the order of the boxes, with the columns of this box."""
        planes, rows, columns = self._voxels.shape
        self._slab = self._slab[..., :0].copy()  # frees the last slab before the next one is read
        self._first = _first_column(box, self._width, columns, backwards=self._backwards)
        self._slab = self._voxels.read(Window((0, 0, self._first), (planes, rows, self._first + self._width)))


def _touches(one: Window, other: Window) -> bool:
    """Whether columns of two boxes overlap or are neighbours."""
    return one.start[2] <= other.stop[2] and other.start[2] <= one.stop[2]


class SlabWriter:
    """Writes boxes of an array; those with columns of one slab are written together, at the latest by ``flush``.

    Args: as of ``Slabs``.
    """

    def __init__(self, voxels: Voxels, width: int, *, backwards: bool) -> None:
        self._voxels, self._width, self._backwards = voxels, width, backwards
        self._first, self._slab = 0, np.empty((*voxels.shape[:2], 0), voxels.dtype)

    def write(self, box: Window, values: NDArray[Any]) -> None:
        """As ``Voxels.write``; a box that is wider than a slab is written by itself."""
        if box.shape[2] > self._width:
            self.flush()
            self._voxels.write(box, values)
            return
        if not (self._first <= box.start[2] and box.stop[2] <= self._first + self._slab.shape[2]):
            self.flush()
            first = _first_column(box, self._width, self._voxels.shape[2], backwards=self._backwards)
            self._first, self._slab = first, self._voxels.read(self._window(first, self._width))
        start, stop = (box.start[2] - self._first, box.stop[2] - self._first)
        self._slab[box.start[0] : box.stop[0], box.start[1] : box.stop[1], start:stop] = values

    def flush(self) -> None:
        """Write the slab, and free it."""
        if width := self._slab.shape[2]:
            self._voxels.write(self._window(self._first, width), self._slab)
        self._slab = np.empty((*self._voxels.shape[:2], 0), self._voxels.dtype)

    def _window(self, first: int, width: int) -> Window:
        planes, rows, _ = self._voxels.shape
        return Window((0, 0, first), (planes, rows, first + width))
