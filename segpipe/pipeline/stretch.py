"""Stretches: neighbouring windows of a row that are read in one request."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from segpipe.formats.neighbouring import Neighbouring
from segpipe.formats.resampled import ReadWindow, Resampled
from segpipe.formats.source import Invalid, Pixels, Source
from segpipe.geometry.reflection import reflected
from segpipe.geometry.windows import Cover, Part, Window

ASKED_FOR = 12
"""Windows per request if pixels come over a network: 9 Mpx/s instead of 5 at 50 ms a request (measured, COG of 4 bands)."""

STRETCH_BYTES = 2**26
"""Most bytes of stored pixels per request if threads decode for a GPU, except for a single larger window. The threads share
the blocks of a request, and a window has too few: 90 Mpx/s instead of 28 with two (measured, DEFLATE, 4 bands of uint16)."""

Index = tuple[int, ...]


def stretches(windows: Part, first: int, most: int) -> Iterator[list[Index]]:
    """Yield windows in order, neighbours together: twice as many each time up to ``most``, so that the first comes early."""
    size = first
    for row in product(*map(range, windows.first[:-1], windows.stop[:-1])):
        col = windows.first[-1]
        while col < windows.stop[-1]:
            stop = min(col + size, windows.stop[-1])
            yield [(*row, i) for i in range(col, stop)]
            col, size = stop, min(2 * size, most)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Pixels of neighbouring windows, and their invalid mask; None if all are valid."""

    start: Index
    """Position in the case."""
    pixels: Pixels
    invalid: Invalid | None
    own_invalid: Invalid | None = None
    """Invalid own pixels of the window of a case that is resampled, as in ``ReadWindow``."""

    def read(self, window: Window) -> tuple[Pixels, Invalid | None]:
        """As ``Source.read``, for a window inside it, without a copy."""
        box = window.slices_from(self.start)
        invalid = None if self.invalid is None else self.invalid[box]
        return self.pixels[(slice(None), *box)], invalid if invalid is not None and invalid.any() else None


def are_empty(source: Source | Neighbouring | Resampled, cover: Cover, windows: Sequence[Index]) -> bool:
    """Whether windows are known, without decoding them, to have no valid pixel."""
    return all(source.empty(reflected(cover.window(index), cover.shape)[0]) for index in windows)


def begin_stretch(
    source: Source | Neighbouring | Resampled, cover: Cover, windows: Sequence[Index], threads: int | None = None
) -> Callable[[], Stretch]:
    """Start to decode neighbours; the returned function finishes and finds invalid pixels, as that of ``Source.begin``.

    For a case that is resampled, windows are read one by one, each with the validity of the own pixels of its box.
    """
    read = [reflected(cover.seen(index), cover.shape)[0] for index in windows]
    window = Window(_each(min, [one.start for one in read]), _each(max, [one.stop for one in read]))
    if isinstance(source, Resampled):
        return _stretch_of(source.take(window, cover.finished(windows[0]), threads), window)
    begun = source.begin(window, threads)
    return lambda: Stretch(window.start, *begun())


def _each(chosen: Callable[[Sequence[int]], int], places: Sequence[Index]) -> Index:
    """The least or the largest number along each axis."""
    return tuple(map(chosen, zip(*places, strict=True)))


def _stretch_of(begun: Callable[[], ReadWindow], window: Window) -> Callable[[], Stretch]:
    def end() -> Stretch:
        taken = begun()
        return Stretch(window.start, taken.pixels, taken.invalid, taken.own_invalid)

    return end
