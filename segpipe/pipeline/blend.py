"""From weighted scores of overlapping windows to their sums, with no more state than later windows can still change."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from types import EllipsisType
from typing import Protocol

from segpipe.geometry.windows import Cover, Part, Window
from segpipe.network.arrays import HOST, Array, Arrays
from segpipe.pipeline.opening import Sheet
from segpipe.pipeline.read import Failed
from segpipe.pipeline.tiles import Scored
from segpipe.timing.spans import span

Scores = Array
Index = tuple[int, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Finished:
    """A box of a case whose scores no later window changes."""

    sheet: Sheet
    window: Window
    """The box in the network's grid; after ``regrid``, in the case's own grid."""
    sums: Scores | None
    """Weighted score sums ``(classes, *box)``; None if no pixel is valid. For a case that is resampled, the sums also cover
    the halo before the box, as far as the case reaches."""
    invalid: Array | None
    """Mask of invalid pixels, shape ``box``; None if all pixels are valid, or none. For a case that is resampled: a mask of
    own pixels over ``Regridding.needed_by_box``, on the host."""
    inferred: int = 1
    """Number of windows with a valid pixel that this box finishes."""
    mean: bool = False
    """Whether the sums have been divided by the weights."""
    differ: Array | None = None
    """With an audit: where overlapping tiles give different labels, shape ``box``; with the halo for a case that is
    resampled, until ``regrid``."""
    number: int = 0
    """With an audit: the number of the window that finishes the box, in order."""


class Voting(Protocol):
    """The votes of tiles for labels, as in ``votes``."""

    def of(self, scores: Scores, weights: Array) -> Array:
        """Votes of a tile, which can be added up."""
        ...

    def differ(self, sums: Array) -> Array:
        """Where votes differ, from their sums."""
        ...


def blend(tiles: Iterable[Scored | Failed], arrays: Arrays = HOST, votes: Voting | None = None) -> Iterator[Finished]:
    """Sum the scored windows of one case, or of a part of it; its boxes come in order and hold every pixel once.

    With ``votes``, boxes say where overlapping tiles differ.

    Raises:
        SegpipeError: the case could not be read or inferred to its end.
    """
    strip: Strip | None = None
    counted: Strip | None = None
    for tile in tiles:
        if isinstance(tile, Failed):
            raise tile.error
        sheet = tile.sheet
        strip = strip or Strip(sheet.cover, sheet.windows, arrays)
        cast: Scores | None = None
        if votes is not None:
            counted = counted or Strip(sheet.cover, sheet.windows, arrays)
            with span("audit", tile.case.name, tile.index):
                own = None if tile.scores is None else votes.of(tile.scores, arrays.weights(sheet.weights).of(tile.index))
                cast = counted.add(tile.index, own)
        with span("blend", tile.case.name, tile.index):
            sums = strip.add(tile.index, tile.scores)
        if tile.index not in sheet.part:
            continue  # it only contributes to the part's borders: another job finishes it
        box = _finished(tile, sheet, sums)
        yield box if votes is None or cast is None else _audited(box, tile.index, cast, votes)


def _finished(tile: Scored, sheet: Sheet, sums: Scores | None) -> Finished:
    """The finished box of a strip, without pixels outside the case."""
    window, halo = sheet.cover.finished(tile.index), sheet.cover.halo
    if halo:
        invalid = tile.own_invalid
    else:
        invalid = None if tile.invalid is None else tile.invalid[tuple(slice(0, n) for n in window.shape)]
    if tile.scores is None or sums is None:
        return Finished(sheet, window, None, None, inferred=0)
    return Finished(sheet, window, sums[_inside(window, halo)], invalid)


def _inside(window: Window, halo: int) -> tuple[slice, ...]:
    """Slices of the finished sums of a box, without pixels outside the case."""
    return (slice(None), *(slice(max(0, halo - a), halo + n) for a, n in zip(window.start, window.shape, strict=True)))


def _audited(box: Finished, index: Index, cast: Scores, votes: Voting) -> Finished:
    """A box with its window, and where its tiles differ."""
    if box.sums is None:
        return box
    cover = box.sheet.cover
    number = 0
    for i, count in zip(index, cover.counts, strict=True):
        number = number * count + i
    return replace(box, differ=votes.differ(cast[_inside(box.window, cover.halo)]), number=number)


class Strip:
    """Score sums that later windows can still change.

    For each axis it keeps what a window shares with the next window along this axis: for two axes, the shared columns of one
    tile, and the shared rows over the full width. Sums are float32. At every pixel they are added in window order, so that
    they do not depend on which windows elsewhere were inferred, or in which process.

    With a halo, every window begins ``halo`` pixels earlier, with zeros, which change no sum. A finished box then includes
    the final sums of the pixels before it.

    Args:
        cover: cover of the case.
        windows: the windows that will be added; None for all.
        arrays: library of the score arrays.
    """

    def __init__(self, cover: Cover, windows: Part | None = None, arrays: Arrays = HOST) -> None:
        windows = windows or cover.whole
        self._arrays, self._halo = arrays, cover.halo
        self._tile = tuple(tile + cover.halo for tile in cover.tiling.tile)
        self._first = windows.first
        cut = [axis[a:b] for axis, a, b in zip(cover.starts, windows.first, windows.stop, strict=True)]
        self._starts = [tuple(start - axis[0] for start in axis) for axis in cut]
        shared = [[a + tile - b for a, b in pairwise(starts)] for starts, tile in zip(cut, self._tile, strict=True)]
        self._before = [[0, *axis] for axis in shared]
        self._after = [[*axis, 0] for axis in shared]
        self._kept: list[Scores] = []

    def add(self, index: Index, scores: Scores | None) -> Scores | None:
        """Add a window's weighted scores ``(classes, *tile)``; return the finished sums ``(classes, *finished)``.

        ``scores`` is changed, and the result is a view of it; with a halo, the result is a view of a new, larger array.
        None stands for a window without a valid pixel, whose sums are not used.
        """
        index = tuple(i - first for i, first in zip(index, self._first, strict=True))
        if self._halo:
            scores = self._haloed(scores)
        if scores is not None:
            self._fetch_all(index, scores)
        for axis, kept in enumerate(self._kept):
            if shared := self._after[axis][index[axis]]:
                self._keep(kept, axis, shared, index, scores)
        return None if scores is None else scores[(slice(None), *(slice(0, n + self._halo) for n in self._fresh(index)))]

    def _haloed(self, scores: Scores | None) -> Scores | None:
        """Put zeros before the scores. A window without a valid pixel gets zeros, too, since later boxes use it as halo."""
        if scores is None and not self._kept:
            return None
        haloed = self._arrays.zeros((len(self._kept[0] if scores is None else scores), *self._tile))
        if scores is not None:
            haloed[(slice(None), *(slice(self._halo, None),) * len(self._tile))] = scores
        return haloed

    def _fetch_all(self, index: Index, scores: Scores) -> None:
        if not self._kept:
            self._kept = [self._strip(axis, len(scores)) for axis in range(len(index))]
        for axis in reversed(range(len(index))):
            if shared := self._before[axis][index[axis]]:
                self._fetch(axis, shared, index, scores)

    def _strip(self, axis: int, classes: int) -> Scores:
        behind = [starts[-1] + tile for starts, tile in zip(self._starts, self._tile, strict=True)][axis + 1 :]
        return self._arrays.zeros((classes, *self._tile[:axis], max(self._after[axis]), *behind))

    def _start(self, index: Index) -> list[int]:
        """Start of a window, counted from the first."""
        return [axis[i] for axis, i in zip(self._starts, index, strict=True)]

    def _fetch(self, axis: int, shared: int, index: Index, scores: Scores) -> None:
        """Add what earlier windows along an axis left, unless a window of a later axis has passed it on already."""
        start = self._start(index)[axis + 1 :]
        old = [before[i] for before, i in zip(self._before, index, strict=True)][axis + 1 :]
        ends = zip(start, self._tile[axis + 1 :], old, strict=True)
        kept = self._kept[axis][_tail([slice(0, shared), *(slice(a + n, a + tile) for a, tile, n in ends)])]
        scores[_tail([slice(0, shared), *(slice(n, None) for n in old)])] += kept

    def _keep(self, kept: Scores, axis: int, shared: int, index: Index, scores: Scores | None) -> None:
        fresh = self._fresh(index)
        done = fresh[axis + 1 :]
        starts = self._start(index)[axis + 1 :]
        into = _tail([slice(0, shared), *(slice(a, a + n) for a, n in zip(starts, done, strict=True))])
        kept[into] = 0 if scores is None else scores[_tail([slice(fresh[axis], None), *(slice(0, n) for n in done)])]

    def _fresh(self, index: Index) -> tuple[int, ...]:
        """Pixels per axis that no later window along that axis shares."""
        return tuple(tile - after[i] for tile, after, i in zip(self._tile, self._after, index, strict=True))


def _tail(slices: list[slice]) -> tuple[EllipsisType | slice, ...]:
    """An index for the last axes of an array."""
    return (..., *slices)
