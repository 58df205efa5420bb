"""Interpolate score boxes from the network's grid to the case's own grid, if the two differ."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

import numpy as np

from segpipe.geometry.regridding import AT_ONCE, Between, Regridding, Valid, grown
from segpipe.geometry.windows import Window
from segpipe.network.arrays import HOST, Array, Arrays
from segpipe.pipeline.blend import Finished
from segpipe.timing.spans import span

FLOAT = np.dtype(np.float32)

HALF = 0.5
"""Share of disagreeing pixels around an own pixel from which it counts as one."""


def regrid(boxes: Iterable[Finished], arrays: Arrays = HOST, *, nearest: bool = False) -> Iterator[Finished]:
    """Yield the scores of every own pixel exactly once; boxes of cases that are not resampled pass unchanged.

    Mean scores are interpolated linearly between the centres of pixels; beyond the outermost centres the outermost score is
    used. Invalid pixels of the network's grid have no weight. The mask has the same invalid pixels as the file: their
    validity was read with the window, since interpolated validity would move the edges of nodata.

    With ``nearest``, an own pixel has the value of the nearest valid pixel of those that it lies between, as labels need.
    """
    for box in boxes:
        if box.sheet.regridding is None:
            yield box
        else:
            yield from _own(box, arrays, nearest)


def _own(box: Finished, arrays: Arrays, nearest: bool) -> Iterator[Finished]:
    """Boxes of the own grid for one box of the network's grid; a single empty box if it owns no own pixel."""
    sheet, grids = box.sheet, box.sheet.regridding
    assert grids is not None
    owned = grids.owned(box.window)
    if box.sums is None or not owned.size:
        yield Finished(sheet, owned, None, None, box.inferred)
        return
    haloed, low = grown(box.window), grids.needed_by_box(box.window).start
    seen = None if box.invalid is None else arrays.put(grids.seen(box.invalid, haloed))
    mean = _mean(box, seen, arrays)
    inferred = box.inferred
    for part in split(owned, AT_ONCE // len(mean)):
        with span("regrid"):
            between = grids.between(part)
            if nearest:
                scores = nearest_of(mean, seen, between, haloed.start, arrays)
            else:
                scores = _linear(mean, seen, between, haloed.start, arrays)
        _fill_outside(scores, grids, part, arrays)
        invalid = None if box.invalid is None else _own_invalid(box.invalid, low, part)
        invalid = None if invalid is None or not invalid.any() else arrays.put(invalid)
        differ = None
        if box.differ is not None:
            differ = interpolated(arrays.cast(box.differ, FLOAT)[None], between, haloed.start, arrays)[0] >= HALF
        yield Finished(sheet, part, scores, invalid, inferred, mean=True, differ=differ, number=box.number)
        inferred = 0


def _linear(mean: Array, seen: Array | None, between: Sequence[Between], low: tuple[int, ...], arrays: Arrays) -> Array:
    """Interpolated scores; pixels that are not seen have no weight."""
    scores = interpolated(mean, between, low, arrays)
    if seen is not None:
        weight = interpolated(arrays.cast(seen, FLOAT)[None], between, low, arrays)
        scores /= arrays.xp.where(weight > 0, weight, 1)
    return scores


def nearest_of(
    values: Array, seen: Array | None, between: Sequence[Between], low: tuple[int, ...], arrays: Arrays = HOST
) -> Array:
    """Values ``(classes, *box)`` of a box that begins at ``low``: each that of the seen pixel with the largest weight.

    Weights are those of linear interpolation; of equal ones, the first in row-major order counts.
    """
    xp = arrays.xp
    mask = xp.ones_like(values[:1]) if seen is None else arrays.cast(seen, FLOAT)[None]
    best = most = None
    for corner in product((False, True), repeat=len(between)):
        there, weight = values, mask
        for axis, (points, first, upper) in enumerate(zip(between, low, corner, strict=True), 1):
            index = arrays.put((points.upper if upper else points.lower) - first)
            share = (points.share if upper else 1 - points.share).astype(FLOAT)
            there, weight = (arrays.pick(one, index, axis) for one in (there, weight))
            weight = weight * arrays.put(share.reshape([-1 if k == axis else 1 for k in range(values.ndim)]))
        nearer = weight > (0 if most is None else most)
        best = there if best is None else xp.where(nearer, there, best)
        most = weight if most is None else xp.where(nearer, weight, most)
    return best


def _fill_outside(scores: Array, grids: Regridding, part: Window, arrays: Arrays) -> None:
    """Give pixels that the network does not see the scores of background."""
    if (outside := grids.outside(part)) is not None:
        for channel, value in zip(scores, grids.outside_scores, strict=True):
            arrays.fill(channel, arrays.put(outside), value)


def _own_invalid(invalid: Valid, low: tuple[int, ...], part: Window) -> Valid:
    """The mask over a box of own pixels, of one that begins at ``low``; pixels that the network does not see are valid."""
    high = tuple(a + n for a, n in zip(low, invalid.shape, strict=True))
    start = tuple(max(a, first) for a, first in zip(part.start, low, strict=True))
    shared = Window(start, tuple(max(a, min(b, end)) for a, b, end in zip(start, part.stop, high, strict=True)))
    if shared == part:
        return invalid[_inside(part, low)]
    mask = np.zeros(part.shape, np.bool_)
    mask[_inside(shared, part.start)] = invalid[_inside(shared, low)]
    return mask


def _mean(box: Finished, seen: Array | None, arrays: Arrays) -> Array:
    """Score sums divided by the summed weights; 0 at invalid pixels of the network's grid, whose sums have no meaning."""
    total = arrays.weights(box.sheet.weights).total(_inside(grown(box.window), (0,) * len(box.window.start)))
    mean = box.sums / total
    return mean if seen is None else arrays.xp.where(seen, mean, arrays.xp.zeros_like(mean))


def interpolated(values: Array, between: Iterable[Between], low: tuple[int, ...], arrays: Arrays = HOST) -> Array:
    """Interpolate values ``(classes, *box)`` of a box that begins at ``low``, at points between its pixels."""
    for axis, (points, first) in enumerate(zip(between, low, strict=True), 1):
        shape = [-1 if k == axis else 1 for k in range(values.ndim)]
        upper = arrays.pick(values, arrays.put(points.upper - first), axis)
        if (points.share < 1).any():
            upper *= arrays.put(points.share.astype(FLOAT).reshape(shape))
            lower = arrays.pick(values, arrays.put(points.lower - first), axis)
            lower *= arrays.put((1 - points.share).astype(FLOAT).reshape(shape))
            upper += lower
        values = upper
    return values


def split(window: Window, most: int) -> Iterator[Window]:
    """Split a window, in order, into boxes of at most ``most`` pixels: slabs along the first axis longer than 1."""
    axis = next((k for k, n in enumerate(window.shape) if n > 1), 0)
    length, start, stop = window.shape[axis], window.start[axis], window.stop[axis]
    thick = max(1, most // max(1, math.prod(window.shape[axis + 1 :])))
    if window.size <= max(1, most):
        yield window
        return
    for low in range(start, stop, min(thick, length)):
        slab = Window(_replaced(window.start, axis, low), _replaced(window.stop, axis, min(low + thick, stop)))
        yield from split(slab, most)


def _replaced(values: tuple[int, ...], axis: int, value: int) -> tuple[int, ...]:
    return (*values[:axis], value, *values[axis + 1 :])


def _inside(window: Window, low: tuple[int, ...]) -> tuple[slice, ...]:
    """Slices that select a window from an array whose first element is at ``low``."""
    return tuple(slice(a - first, b - first) for a, b, first in zip(window.start, window.stop, low, strict=True))
