"""A case of which only some pixels are valid: those that its mask marks, and sampled in the area of interest."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.errors import SourceError
from segpipe.formats.case import Case
from segpipe.formats.scene_masks import mask_of
from segpipe.formats.scope import bounds_of
from segpipe.formats.source import Begun, Invalid, Pixels, Scene, Source
from segpipe.geometry.raster_grid import RasterGrid
from segpipe.geometry.windows import Window
from segpipe.overrides import Overrides
from segpipe.validity import ValidityMask


class Limit(Protocol):
    """A rule that makes pixels of a case invalid, whatever they hold."""

    files: tuple[str, ...]
    """The files that it comes from, besides those of the case."""
    notes: tuple[str, ...]
    """Notes for the record."""
    bounds: Window
    """A window outside of which every pixel is invalid."""

    def invalid(self, window: Window) -> Invalid | None:
        """Mask of the pixels of a window that do not count; None if all count."""
        ...

    def memory(self, shape: tuple[int, ...]) -> int:
        """As ``Source.memory``."""
        ...

    def close(self) -> None:
        """Close what was opened for it."""
        ...


def restricted(source: Source, case: Case, contract: Contract, overrides: Overrides) -> Source:
    """The source, of which only the pixels that its mask marks are valid, and which is sampled in the area of interest.

    Raises:
        OutsideError: no pixel lies in the area of interest.
        SourceError: with an area, the case has no place on the Earth; or it has no mask.
    """
    bounds = None if overrides.aoi is None else bounds_of(overrides.aoi, source.grid, case)
    limits = []
    if overrides.validity is not None:
        limits.append(_mask_limit(source, case, overrides.validity, remote=overrides.remote))
    return Restricted(source, limits, contract.channel_count, bounds) if limits or bounds else source


def _mask_limit(source: Source, case: Case, mask: ValidityMask, *, remote: bool) -> Limit:
    from segpipe.formats.raster.scene_mask import MaskLimit

    if not isinstance(source.grid, RasterGrid):
        raise SourceError(f"{case.path}: --validity needs rasters, and this is a volume: run it without --validity")
    return MaskLimit(mask_of(case, mask), source.grid, mask.conditions, remote=remote)


class Restricted:
    """An opened case in which limits make pixels invalid; what they exclude is not decoded where a whole window is.

    Args:
        source: the opened case.
        limits: rules that make pixels invalid; they may be none.
        channels: number of channels of ``source``.
        area: the window in which samples are taken; None: anywhere.
    """

    def __init__(self, source: Source, limits: Sequence[Limit], channels: int, area: Window | None = None) -> None:
        whole = Window.whole(source.grid.shape)
        self._sampled = (whole if area is None else area, *(limit.bounds for limit in limits))
        self._source, self._limits, self._channels = source, limits, channels
        self._held: tuple[Window, Invalid | None] | None = None
        self.grid = source.grid
        self.dtype: np.dtype[Any] = source.dtype
        self.files = (*source.files, *(file for limit in limits for file in limit.files))
        self.scene: Scene = source.scene
        self.separable = source.separable
        self.template = source.template

    @property
    def unpacked(self) -> int:
        return self._source.unpacked

    @property
    def block(self) -> int:
        return self._source.block

    @property
    def notes(self) -> Sequence[str]:
        return (*self._source.notes, *(note for limit in self._limits for note in limit.notes))

    def memory(self, shape: tuple[int, ...]) -> int:
        return self._source.memory(shape) + sum(limit.memory(shape) for limit in self._limits)

    def empty(self, window: Window) -> bool:
        return self._source.empty(window) or _is_all(self._excluded(window))

    def read(self, window: Window) -> tuple[Pixels, Invalid | None]:
        return self.begin(window)()

    def begin(self, window: Window, threads: int | None = None) -> Begun:
        excluded = self._excluded(window)
        if _is_all(excluded):
            return lambda: (np.zeros((self._channels, *window.shape), self.dtype), excluded)
        end = self._source.begin(window, threads)

        def both() -> tuple[Pixels, Invalid | None]:
            pixels, invalid = end()
            return pixels, _either(invalid, excluded)

        return both

    def _excluded(self, window: Window) -> Invalid | None:
        """Mask of the pixels that a limit excludes; the last is kept, since ``empty`` comes before ``begin``."""
        held = self._held
        if held is None or held[0] != window:
            found: Invalid | None = None
            for limit in self._limits:
                if not _is_all(found):
                    found = _either(found, limit.invalid(window))
            held = self._held = window, found
        return held[1]

    def near(self, place: tuple[float, ...], most: int) -> Window:
        """As ``Source.near``, for a place as a share of what area and limits leave: samples would miss a small one."""
        start = tuple(max(axis) for axis in zip(*(one.start for one in self._sampled), strict=True))
        stop = tuple(min(axis) for axis in zip(*(one.stop for one in self._sampled), strict=True))
        axes = zip(place, start, stop, self.grid.shape, strict=True)
        return self._source.near(tuple((a + share * max(0, b - a)) / size for share, a, b, size in axes), most)

    def tags(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        return self._source.tags()

    def close(self) -> None:
        """Close the source, and what limits it."""
        self._source.close()
        for limit in self._limits:
            limit.close()


def _is_all(invalid: Invalid | None) -> bool:
    return invalid is not None and bool(invalid.all())


def _either(one: Invalid | None, other: Invalid | None) -> Invalid | None:
    if one is None or other is None:
        return other if one is None else one
    return one | other
