"""A number for each pixel of a grid, in blocks that are computed on first use, in an unnamed file in TMPDIR."""

import math
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import OutputError
from segpipe.geometry.windows import Window
from segpipe.storage.offsets import read_at, write_at

SIDE = 2048
"""Side of the blocks."""
TYPE = np.dtype(np.uint32)

Keys = NDArray[np.uint32]
Fill = Callable[[Window], Keys]
"""Finds the numbers of a block."""


class Decisions:
    """Each block is found once; the file lasts as long as this object, which refers to nothing that refers to it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        with self._errors(), tempfile.TemporaryFile(buffering=0) as file:
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)
        self._kept = set[tuple[int, int]]()

    def read(self, window: Window, fill: Fill) -> Keys:
        """The numbers of a window; ``fill`` computes blocks on first use.

        Raises:
            OutputError: TMPDIR has no space for them, and those of finding them.
        """
        found = np.empty(window.shape, TYPE)
        (top, left), (bottom, right) = window.start, window.stop
        for row, col in product(range(top // SIDE, -(-bottom // SIDE)), range(left // SIDE, -(-right // SIDE))):
            start = row * SIDE, col * SIDE
            a, b = max(top, start[0]), max(left, start[1])
            part = self._block(row, col, fill)[a - start[0] : bottom - start[0], b - start[1] : right - start[1]]
            found[a - top : a - top + part.shape[0], b - left : b - left + part.shape[1]] = part
        return found

    def _block(self, row: int, col: int, fill: Fill) -> Keys:
        start = row * SIDE, col * SIDE
        stop = tuple(min(a + SIDE, size) for a, size in zip(start, self._shape, strict=True))
        window, at = Window(start, stop), (row * -(-self._shape[1] // SIDE) + col) * SIDE * SIDE * TYPE.itemsize
        if (row, col) in self._kept:
            keys = np.empty(window.shape, TYPE)
            with self._errors():
                read_at(self._file, keys.data.cast("B"), at)
            return keys
        keys = np.ascontiguousarray(fill(window), TYPE)
        with self._errors():
            write_at(self._file, keys.data.cast("B"), at)
        self._kept.add((row, col))
        return keys

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            size = math.prod(self._shape) * TYPE.itemsize
            raise OutputError(
                f"--overlap-rule confidence keeps which case counts, up to {size:,} bytes in {tempfile.gettempdir()}, "
                f"and cannot: {error.strerror or error}: free space there, or set TMPDIR to another folder"
            ) from error
