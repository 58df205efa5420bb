"""Interpolate score boxes from the network's grid to the case's own grid, if the two differ."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from segpipe.geometry.regridding import AT_ONCE, Between, Regridding, Valid, grown
from segpipe.geometry.windows import Window
from segpipe.network.arrays import FLOAT, HOST, Array, Arrays
from segpipe.pipeline.blend import FinishedBox
from segpipe.timing.spans import span

HALF = 0.5
"""Share of disagreeing pixels around an own pixel from which it counts as one."""


MANY = 16
"""Classes from which it pays to look for those that can win in a block."""

ROUNDING = 2.0**-18
"""Largest relative rounding error of interpolated scores, with a wide margin: three axes round 12 times at 2**-24."""


TINY = float(np.finfo(np.float32).tiny)
"""Below it, rounding errors are not relative."""


def regrid(
    boxes: Iterable[FinishedBox], arrays: Arrays = HOST, *, nearest: bool = False, winners: bool = False
) -> Iterator[FinishedBox]:
    """Yield the scores of every own pixel exactly once; boxes of cases that are not resampled pass unchanged.

    Mean scores are interpolated linearly between the centres of pixels; beyond the outermost centres the outermost score is
    used. Invalid pixels of the network's grid have no weight. The mask has the same invalid pixels as the file: their
    validity was read with the window, since interpolated validity would move the edges of nodata.

    With ``nearest``, an own pixel has the value of the nearest valid pixel of those that it lies between, as labels need.
    With ``winners``, boxes may leave out classes that are nowhere the most likely ones.
    """
    for box in boxes:
        if box.info.regridding is None:
            yield box
        elif winners and _is_many(box, arrays):
            yield from _winners(box, box.info.regridding, arrays)
        else:
            yield from _own(box, arrays, nearest)
        del box  # before the next one is blended


def _own(box: FinishedBox, arrays: Arrays, nearest: bool) -> Iterator[FinishedBox]:
    """Boxes of the own grid for one box of the network's grid; a single empty box if it owns no own pixel."""
    info, grids = box.info, box.info.regridding
    assert grids is not None
    owned = grids.owned(box.window)
    if box.sums is None or not owned.size:
        yield FinishedBox(info, owned, None, None, box.inferred)
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
        yield FinishedBox(info, part, scores, invalid, inferred, mean=True, differ=differ, number=box.number)
        inferred = 0


def _is_many(box: FinishedBox, arrays: Arrays) -> bool:
    """Whether it pays to look for the classes that can win; on a device, each look would wait for it."""
    if box.sums is None or len(box.sums) < MANY or arrays.lag or box.invalid is not None:
        return False
    grids = box.info.regridding
    assert grids is not None
    return grids.outside(grids.owned(box.window)) is None


def _winners(box: FinishedBox, grids: Regridding, arrays: Arrays) -> Iterator[FinishedBox]:
    """As ``_own``, for boxes whose pixels are all valid, and in each small block only the classes that can win there.

    An interpolated score lies between the least and the largest of the scores that it is made of. So a class whose largest
    is below the least of another class wins nowhere in the block.
    """
    owned = grids.owned(box.window)
    if not owned.size:
        yield FinishedBox(box.info, owned, None, None, box.inferred)
        return
    low, mean = grown(box.window).start, _mean(box, None, arrays)
    inferred = box.inferred
    for block in blocks(owned, AT_ONCE // len(mean)):
        with span("regrid"):
            between = grids.between(block)
            first = tuple(int(axis.lower[0]) for axis in between)
            near = Window(first, tuple(int(axis.upper[-1]) + 1 for axis in between))
            values = mean[(slice(None), *near.slices_from(low))]
            channels = can_win(values)
            scores = interpolated(values[channels], between, first, arrays)
        yield FinishedBox(box.info, block, scores, None, inferred, mean=True, number=box.number, channels=channels)
        inferred = 0


def can_win(values: NDArray[np.float32]) -> NDArray[np.intp]:
    """Positions of the classes that can have the largest score at a point between pixels of values ``(classes, *box)``.

    Where a class has NaN or infinity, all are kept: whether scores are finite is seen where labels are decided.
    """
    flat = values.reshape(len(values), -1)
    least, most = flat.min(1), flat.max(1)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        error = ROUNDING * np.maximum(np.abs(least), np.abs(most)) + TINY
        beaten = most + error < (least - error).max()
    return np.flatnonzero(~beaten)


def blocks(window: Window, most: int) -> Iterator[Window]:
    """Split a window, in order, into blocks of at most ``most`` pixels that are about as long along each axis."""
    sides, left = [1] * len(window.shape), most
    for done, axis in enumerate(sorted(range(len(sides)), key=window.shape.__getitem__)):
        sides[axis] = max(1, min(window.shape[axis], int(left ** (1 / (len(sides) - done)) + 1e-9)))
        left //= sides[axis]
    return window.blocks(sides)


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
    shared = part.intersection(Window(low, high))
    if shared == part:
        return invalid[part.slices_from(low)]
    mask = np.zeros(part.shape, np.bool_)
    mask[shared.slices_from(part.start)] = invalid[shared.slices_from(low)]
    return mask


def _mean(box: FinishedBox, seen: Array | None, arrays: Arrays) -> Array:
    """Score sums divided by the summed weights, in place; 0 at pixels of the network's grid that are invalid."""
    total = arrays.weights(box.info.weights).total(grown(box.window).slices)
    mean = box.sums
    mean /= total
    if seen is not None:
        arrays.fill(mean, ~seen, 0)
    return mean


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
