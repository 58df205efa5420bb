"""From weighted scores of overlapping windows to their sums, with no more state than later windows can still change."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from types import EllipsisType

from segpipe.geometry.windows import Cover, Part, Window
from segpipe.network.arrays import FLOAT, HOST, Array, Arrays
from segpipe.pipeline.opening import CaseInfo
from segpipe.pipeline.read import Failed
from segpipe.pipeline.tiles import Scored
from segpipe.pipeline.votes import Votes
from segpipe.timing.spans import span

Scores = Array
Index = tuple[int, ...]


@dataclass(frozen=True, eq=False, slots=True)
class FinishedBox:
    """A box of a case whose scores no later window changes."""

    info: CaseInfo
    window: Window
    """The box in the network's grid; after ``regrid``, in the case's own grid."""
    sums: Scores | None
    """Weighted score sums ``(classes, *box)``; None if no pixel is valid. For a case that is resampled, the sums also cover
    the halo before the box, as far as the case reaches; ``regrid`` changes them."""
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
    channels: Array | None = None
    """Positions of the sums among the scores, in order, if ``regrid`` left out classes that cannot win; None: all."""


def blend(tiles: Iterable[Scored | Failed], arrays: Arrays = HOST, votes: Votes | None = None) -> Iterator[FinishedBox]:
    """Sum the scored windows of one case, or of a part of it; its boxes come in order and hold every pixel once.

    With ``votes``, boxes say where overlapping tiles differ.

    Raises:
        SegpipeError: the case could not be read or inferred to its end.
    """
    strips: _Strips | None = None
    for tile in tiles:
        if isinstance(tile, Failed):
            raise tile.error
        strips = strips or _Strips(tile.info, arrays, votes)
        box = strips.add(tile)
        del tile  # a volume's scores may be a gigabyte: they are gone before the next arrive
        if box is not None:
            yield box
        del box


class _Strips:
    """The score sums of a case and, with an audit, the votes of its tiles."""

    def __init__(self, info: CaseInfo, arrays: Arrays, votes: Votes | None) -> None:
        self._info, self._arrays, self._votes = info, arrays, votes
        self._sums = Strip(info.cover, info.windows, arrays)
        self._cast = None if votes is None else Strip(info.cover, info.windows, arrays)

    def add(self, tile: Scored) -> FinishedBox | None:
        """Add a window; return the box that it finishes, or None if it is another job's."""
        cast = self._count(tile)
        with span("blend", tile.case.name, tile.index):
            sums = self._sums.add(tile.index, tile.scores)
        if tile.index not in self._info.part:
            return None  # it only contributes to the part's borders: another job finishes it
        box = _finished(tile, self._info, sums)
        return box if self._votes is None or cast is None else _audited(box, tile.index, cast, self._votes)

    def _count(self, tile: Scored) -> Scores | None:
        if self._votes is None or self._cast is None:
            return None
        with span("audit", tile.case.name, tile.index):
            weights = self._arrays.weights(self._info.weights)
            own = None if tile.scores is None else self._votes.of(tile.scores, weights.of(tile.index))
            return self._cast.add(tile.index, own)


def _finished(tile: Scored, info: CaseInfo, sums: Scores | None) -> FinishedBox:
    """The finished box of a strip, without pixels outside the case."""
    window, halo = info.cover.finished(tile.index), info.cover.halo
    if halo:
        invalid = tile.own_invalid
    else:
        invalid = None if tile.invalid is None else tile.invalid[tuple(slice(0, n) for n in window.shape)]
    if tile.scores is None or sums is None:
        return FinishedBox(info, window, None, None, inferred=0)
    return FinishedBox(info, window, sums[_inside(window, halo)], invalid)


def _inside(window: Window, halo: int) -> tuple[slice, ...]:
    """Slices of the finished sums of a box, without pixels outside the case."""
    return (slice(None), *(slice(max(0, halo - a), halo + n) for a, n in zip(window.start, window.shape, strict=True)))


def _audited(box: FinishedBox, index: Index, cast: Scores, votes: Votes) -> FinishedBox:
    """A box with its window, and where its tiles differ."""
    if box.sums is None:
        return box
    cover = box.info.cover
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

        ``scores`` is changed, and the result is a view of it, or of the strip for the last window. None stands for a window
        without a valid pixel, whose sums are not used.
        """
        index = tuple(i - first for i, first in zip(index, self._first, strict=True))
        if not self._kept:
            if scores is None:
                return None
            self._kept = [self._strip(axis, len(scores)) for axis in range(len(index))]
        return self._add_haloed(index, scores) if self._halo else self._add(index, scores)

    def _add(self, index: Index, scores: Scores | None) -> Scores | None:
        for some in self._some_classes():
            self._sum(index, None if scores is None else scores[some], some)
        return None if scores is None else scores[(slice(None), *map(slice, self._fresh(index)))]

    def _add_haloed(self, index: Index, scores: Scores | None) -> Scores | None:
        """Put zeros before the scores. A window without a valid pixel gets zeros, too, since later boxes use it as halo."""
        inner = (slice(self._halo, None),) * len(self._tile)
        box = [min(n + self._halo, tile) for n, tile in zip(self._fresh(index), self._tile, strict=True)]
        finished = None if scores is None else self._place(index, scores, box)
        for some in self._some_classes():
            haloed = self._arrays.zeros((len(range(*some.indices(len(self._kept[0])))), *self._tile))
            if scores is not None:
                haloed[(slice(None), *inner)] = scores[some]
            self._sum(index, haloed, some)
            if finished is not None:
                finished[some] = haloed[(slice(None), *map(slice, box))]
        return finished

    def _place(self, index: Index, scores: Scores, box: list[int]) -> Scores:
        """Where finished sums go: over the scores, class by class, or over the strip if no window follows; else new memory.

        Only the box of a last window is larger than its scores.
        """
        shape = (len(scores), *box)
        is_last = not any(after[i] for after, i in zip(self._after, index, strict=True))
        for old in (scores, *self._kept[:1] * is_last):
            if (place := self._arrays.within(old, shape)) is not None:
                return place
        return self._arrays.zeros(shape)

    def _some_classes(self) -> Iterator[slice]:
        """Few classes at a time: a halo takes a copy of these only, and they stay in the processor's cache meanwhile."""
        classes = len(self._kept[0])
        step = max(1, self._arrays.at_once // (FLOAT.itemsize * math.prod(self._tile)))
        return (slice(first, first + step) for first in range(0, classes, step))

    def _sum(self, index: Index, scores: Scores | None, some: slice) -> None:
        """Add what earlier windows left to the scores of some classes, in place, and keep what later windows need."""
        if scores is not None:
            self._fetch_all(index, scores, some)
        for axis, kept in enumerate(self._kept):
            if shared := self._after[axis][index[axis]]:
                self._keep(kept[some], axis, shared, index, scores)

    def _fetch_all(self, index: Index, scores: Scores, some: slice) -> None:
        for axis in reversed(range(len(index))):
            if shared := self._before[axis][index[axis]]:
                self._fetch(axis, shared, index, scores, some)

    def _strip(self, axis: int, classes: int) -> Scores:
        behind = [starts[-1] + tile for starts, tile in zip(self._starts, self._tile, strict=True)][axis + 1 :]
        return self._arrays.zeros((classes, *self._tile[:axis], max(self._after[axis]), *behind))

    def _start(self, index: Index) -> list[int]:
        """Start of a window, counted from the first."""
        return [axis[i] for axis, i in zip(self._starts, index, strict=True)]

    def _fetch(self, axis: int, shared: int, index: Index, scores: Scores, some: slice) -> None:
        """Add what earlier windows along an axis left, unless a window of a later axis has passed it on already."""
        start = self._start(index)[axis + 1 :]
        old = [before[i] for before, i in zip(self._before, index, strict=True)][axis + 1 :]
        ends = zip(start, self._tile[axis + 1 :], old, strict=True)
        kept = self._kept[axis][some][_trailing([slice(0, shared), *(slice(a + n, a + tile) for a, tile, n in ends)])]
        scores[_trailing([slice(0, shared), *(slice(n, None) for n in old)])] += kept

    def _keep(self, kept: Scores, axis: int, shared: int, index: Index, scores: Scores | None) -> None:
        fresh = self._fresh(index)
        done = fresh[axis + 1 :]
        starts = self._start(index)[axis + 1 :]
        into = _trailing([slice(0, shared), *(slice(a, a + n) for a, n in zip(starts, done, strict=True))])
        kept[into] = 0 if scores is None else scores[_trailing([slice(fresh[axis], None), *(slice(0, n) for n in done)])]

    def _fresh(self, index: Index) -> tuple[int, ...]:
        """Pixels per axis that no later window along that axis shares."""
        return tuple(tile - after[i] for tile, after, i in zip(self._tile, self._after, index, strict=True))


def _trailing(slices: list[slice]) -> tuple[EllipsisType | slice, ...]:
    """An index for the last axes of an array."""
    return (..., *slices)
