"""Read a case on the network's grid, which has the spacing that the model was trained on."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from segpipe.formats.neighbouring import Neighbouring
from segpipe.formats.source import Begun, Invalid, Pixels, Source
from segpipe.geometry.regridding import AT_ONCE, Regridding, grown, resample
from segpipe.geometry.windows import Window
from segpipe.network.scaling import Scaling


@dataclass(frozen=True, eq=False, slots=True)
class ReadWindow:
    """A window of the network's grid, after it was read."""

    pixels: Pixels
    """Pixels of the network's grid, shape ``(channels, *window)``."""
    invalid: Invalid | None
    own_invalid: Invalid | None
    """Mask of invalid pixels of the case's own grid, over ``Regridding.needed_by_box`` of the box; None if all are valid, or
    if there is no box."""


class Resampled:
    """An opened case on the network's grid. A pixel has the same bytes in whatever window it is read.

    Pixels are float32 if that type holds every stored value exactly, else float64.

    Args:
        source: the opened case.
        regridding: from the case's own grid to the network's.
        whole: whether pixels are rounded to their stored type, for a model that takes integers.
        blank: scaling whose blank pixels become 0 before the case is resampled, not after.
    """

    def __init__(
        self,
        source: Source | Neighbouring,
        regridding: Regridding,
        *,
        whole: bool = False,
        blank: Scaling | None = None,
    ) -> None:
        self._source, self._regridding, self._blank = source, regridding, blank
        self._floats = np.dtype(np.float32 if np.can_cast(source.dtype, np.float32) else np.float64)
        self.dtype: np.dtype[Any] = source.dtype if whole else self._floats

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the network's grid."""
        return self._regridding.shape

    def read(self, window: Window) -> tuple[Pixels, Invalid | None]:
        """As ``Source.read``, of the network's grid."""
        return self.begin(window)()

    def begin(self, window: Window, threads: int | None = None) -> Begun:
        """As ``Source.begin``, of the network's grid."""
        end = self.take(window, threads=threads)

        def pixels() -> tuple[Pixels, Invalid | None]:
            taken = end()
            return taken.pixels, taken.invalid

        return pixels

    def take(self, window: Window, box: Window | None = None, threads: int | None = None) -> Callable[[], ReadWindow]:
        """Start to decode the own pixels that a window needs; call the returned function to finish.

        Args:
            window: window of the network's grid.
            box: box whose validity on the case's own grid is read as well; it ends with the window, or before.
            threads: as in ``Source.begin``.
        """
        all_of_it = window if box is None else Window(tuple(map(min, window.start, grown(box).start)), window.stop)
        slabs = list(self._slabs(all_of_it))
        if len(slabs) == 1:
            begun = self._source.begin(self._regridding.needed(all_of_it), threads)
            return lambda: self._taken([(all_of_it, *begun())], window, box)
        taken = self._taken(self._read(slabs, threads), window, box)
        return lambda: taken

    def _slabs(self, window: Window) -> Iterator[Window]:
        """Split a window into slabs of rows or planes, each small enough to be read at once."""
        needed, rows = self._regridding.needed(window), window.shape[0]
        thick = max(1, AT_ONCE * rows // needed.size)
        for low in range(window.start[0], window.stop[0], thick):
            high = min(low + thick, window.stop[0])
            yield Window((low, *window.start[1:]), (high, *window.stop[1:]))

    def _read(self, slabs: Iterable[Window], threads: int | None) -> Iterator[tuple[Window, Pixels, Invalid | None]]:
        """Read slabs one by one: all of them together could be too large."""
        for slab in slabs:
            yield slab, *self._source.begin(self._regridding.needed(slab), threads)()

    def _taken(
        self, slabs: Iterable[tuple[Window, Pixels, Invalid | None]], window: Window, box: Window | None
    ) -> ReadWindow:
        made: list[Pixels] = []
        lost: list[Invalid] = []
        own = None if box is None else self._regridding.needed_by_box(box)
        own_invalid = None if own is None else np.zeros(own.shape, np.bool_)
        for slab, stored, invalid in slabs:
            pixels, missing = resample(self._regridding, slab, self._as_floats(stored), invalid)
            inside = window.intersection(slab)
            made.append(pixels[(slice(None), *inside.slices_from(slab.start))])
            lost.append(_mask(missing, slab)[inside.slices_from(slab.start)])
            if own is not None and own_invalid is not None and invalid is not None:
                needed = self._regridding.needed(slab)
                both = own.intersection(needed)
                own_invalid[both.slices_from(own.start)] = invalid[both.slices_from(needed.start)]
        return ReadWindow(self._stored(_joined(made, 1)), _some(_joined(lost, 0)), _some(own_invalid))

    def _as_floats(self, stored: Pixels) -> Pixels:
        """Stored pixels as floats; blank ones have the value that is scaled to 0, so that no edge lies around them."""
        pixels = stored.astype(self._floats, copy=False)
        return pixels if self._blank is None else self._blank.without_blank(stored, pixels)

    def _stored(self, pixels: Pixels) -> Pixels:
        return pixels if self.dtype == self._floats else np.rint(pixels).astype(self.dtype)

    def empty(self, window: Window) -> bool:
        """As ``Source.empty``, for the network's grid; True also means that own pixels next to the window are invalid."""
        return self._source.empty(self._regridding.needed(window))

    def memory(self, shape: tuple[int, ...]) -> int:
        """As ``Source.memory``, of the network's grid."""
        return self._source.memory(self._regridding.extent(shape))


def _mask(invalid: Invalid | None, window: Window) -> Invalid:
    return np.zeros(window.shape, np.bool_) if invalid is None else invalid


def _some(invalid: Invalid | None) -> Invalid | None:
    """The mask itself if any pixel is invalid, else None."""
    return invalid if invalid is not None and invalid.any() else None


def _joined(arrays: list[Any], axis: int) -> Any:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis)
