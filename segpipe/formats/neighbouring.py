"""Neighbouring slices of a volume as channels, for 2-D networks."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.formats.source import Begun, Invalid, Pixels, Source
from segpipe.geometry.windows import Window


class Neighbouring:
    """An opened volume whose channels are those of each slice from ``count`` before to ``count`` after, slice by slice.

    The first and the last slice repeat beyond the ends. A pixel that is invalid in another slice takes the value of the
    slice itself. A pixel is invalid where it is invalid in the slice itself.
    """

    def __init__(self, source: Source, count: int) -> None:
        self._source, self._count = source, count
        self.dtype: np.dtype[Any] = source.dtype

    def read(self, window: Window) -> tuple[Pixels, Invalid | None]:
        """As ``Source.read``, with ``2 * count + 1`` times the channels."""
        return self.begin(window)()

    def begin(self, window: Window, threads: int | None = None) -> Begun:
        """As ``Source.begin``: slices are read once, with ``count`` more on both sides."""
        first, last = window.start[0], window.stop[0]
        low, high = max(0, first - self._count), min(self._source.grid.shape[0], last + self._count)
        end = self._source.begin(Window((low, *window.start[1:]), (high, *window.stop[1:])), threads)

        def stacked() -> tuple[Pixels, Invalid | None]:
            pixels, invalid = end()
            own = np.arange(first, last)
            shifts = range(-self._count, self._count + 1)
            slices = [np.clip(own + shift, low, high - 1) - low for shift in shifts]
            return _stacked(pixels, invalid, slices), _some(invalid, own - low)

        return stacked

    def empty(self, window: Window) -> bool:
        """As ``Source.empty``: other slices make no pixel valid."""
        return self._source.empty(window)

    def memory(self, shape: tuple[int, ...]) -> int:
        """As ``Source.memory``."""
        return self._source.memory((shape[0] + 2 * self._count, *shape[1:]))


def _stacked(pixels: Pixels, invalid: Invalid | None, slices: list[NDArray[np.intp]]) -> Pixels:
    """Pick slices ``(channels, planes, *slice)`` for each shift, and concatenate them along the channels."""
    own = slices[len(slices) // 2]
    sets = [pixels[:, one] for one in slices]
    if invalid is not None:
        sets = [np.where(invalid[one], pixels[:, own], there) for one, there in zip(slices, sets, strict=True)]
    return np.concatenate(sets)


def _some(invalid: Invalid | None, own: NDArray[np.intp]) -> Invalid | None:
    """Mask of invalid pixels of the slices themselves; None if all are valid."""
    return None if invalid is None or not invalid[own].any() else invalid[own]
