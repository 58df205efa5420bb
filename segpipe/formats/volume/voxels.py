"""An array in a file, read and written in boxes; damage and a full disk raise errors, not signals as in a mapped file."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.geometry.windows import Window
from segpipe.storage.offsets import read_at, write_at


@dataclass(frozen=True, slots=True)
class Voxels:
    """A C-ordered array ``(k, j, i)`` that begins at an offset in an open file; several threads may read at once."""

    file: int
    """File descriptor."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    """Data type with byte order."""
    offset: int = 0

    def read(self, box: Window) -> NDArray[Any]:
        """The voxels of a box, shape ``box.shape``, in native byte order.

        Raises:
            OSError: the file is shorter than the array, or cannot be read.
        """
        if 0 in box.shape:
            return np.empty(box.shape, self.dtype.newbyteorder("="))
        columns = slice(box.start[2], box.stop[2])
        found = np.empty(box.shape, self.dtype.newbyteorder("="))
        for plane, into in zip(range(box.start[0], box.stop[0]), found, strict=True):
            into[...] = self._rows(plane, box)[:, columns]  # copied, so that one plane at full width is in memory
        return found

    def write(self, box: Window, values: NDArray[Any]) -> None:
        """Write values of shape ``box.shape`` to a box; only one thread may write at a time."""
        if 0 in box.shape:
            return
        whole = box.shape[2] == self.shape[2]
        for plane, part in zip(range(box.start[0], box.stop[0]), values, strict=True):
            rows = part if whole else self._rows(plane, box)
            if not whole:
                rows[:, box.start[2] : box.stop[2]] = part
            whole_rows = np.ascontiguousarray(rows, self.dtype)
            write_at(self.file, whole_rows.data.cast("B"), self._place(plane, box.start[1]))

    def _rows(self, plane: int, box: Window) -> NDArray[Any]:
        """The rows of a plane that a box touches, at full width."""
        rows, width = box.shape[1], self.shape[2]
        found = np.empty((rows, width), self.dtype)
        read_at(self.file, found.data.cast("B"), self._place(plane, box.start[1]))
        return found

    def _place(self, plane: int, row: int) -> int:
        return self.offset + (plane * self.shape[1] + row) * self.shape[2] * self.dtype.itemsize

    @property
    def end(self) -> int:
        """Offset of the end of the array in the file, in bytes."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize
