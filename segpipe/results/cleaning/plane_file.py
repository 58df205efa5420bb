"""An array on disk that is written in boxes and read in slabs, until the mask of a case is complete."""

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.geometry.windows import Window
from segpipe.storage import Store
from segpipe.storage.draft import Draft
from segpipe.storage.files import output_errors
from segpipe.storage.offsets import read_at, write_at


class PlaneFile:
    """An array ``(bands, *shape)`` in a draft of the output, which never gets a name."""

    def __init__(self, output: Store, name: str, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        self.path = output.path(name)
        self.shape, self._dtype = tuple(shape), dtype
        self._strides = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        with output_errors(self.path):
            self._draft = Draft(output.draft(name))
            os.ftruncate(self._draft.file, math.prod(self.shape) * dtype.itemsize)

    def write(self, window: Window, values: NDArray[Any]) -> None:
        """Write values of shape ``(bands, *window.shape)``."""
        start = (0, *window.start)
        with output_errors(self.path):
            for index in np.ndindex(values.shape[:-1]):
                place = (*(a + i for a, i in zip(start, index, strict=False)), start[-1])
                self._put(np.ascontiguousarray(values[index], self._dtype), self._at(place))

    def put_rows(self, band: int, start: int, values: NDArray[Any]) -> None:
        """Write rows, or planes, of a band at full width."""
        with output_errors(self.path):
            self._put(np.ascontiguousarray(values, self._dtype), self._at((band, start)))

    def read(self, band: int, start: int, stop: int) -> NDArray[Any]:
        """Read rows, or planes, of a band: shape ``(stop - start, *shape[2:])``."""
        found = np.empty((stop - start, *self.shape[2:]), self._dtype)
        with output_errors(self.path):
            read_at(self._draft.file, found.data.cast("B"), self._at((band, start)))
        return found

    def discard(self) -> None:
        """Remove the file; safe to call twice."""
        self._draft.discard()

    def _at(self, place: Sequence[int]) -> int:
        return sum(i * stride for i, stride in zip(place, self._strides, strict=False)) * self._dtype.itemsize

    def _put(self, row: NDArray[Any], at: int) -> None:
        write_at(self._draft.file, row.data.cast("B"), at)
