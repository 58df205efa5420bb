"""Decide whether an output smaller than its input covers the whole tile more coarsely, or only its middle (a crop)."""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import ModelError
from segpipe.network.activation import Raw, by_class
from segpipe.network.coarser import stride_between
from segpipe.network.noise import loud_tiles, noise_tiles
from segpipe.network.spec import ModelSpec, by

Tiles = NDArray[Any]

OUT = 0.8
"""Position of the changed patches, as a share of the distance from the centre of a crop to its edge."""

NEAR = 0.2
"""Half the side of the boxes that are searched for a response, as a share of that distance."""

CLEARLY = 2.0
"""Ratio between the two hypotheses (change where a crop would show it, difference after its shift) that proves a crop."""


def check_not_cropped(spec: ModelSpec, sizes: Sequence[int], raw: Raw) -> None:
    """Check how scores of noise respond to changes of the tile.

    With `f` the ratio of tile to output, a shift of the tile by `s` pixels moves a coarser grid by `s / f` and a crop by
    `s`; and what lies at distance `d` from the tile's centre appears at `d / f` or at `d` from the output's centre. Shifts
    are conclusive where the receptive field is wide, patches where scores depend on the position in the tile.

    Args:
        spec: the model.
        sizes: sizes of its output, the tile divided by a stride.
        raw: the model.

    Raises:
        ModelError: the output is a crop.
    """
    factor = stride_between(spec.tiling.tile, sizes) or 1
    calm = noise_tiles(spec, 1, seed=2)
    scores = _scores(spec, raw, calm)
    if _moves_as_crop(spec, raw, calm, scores, factor) or _shows_as_crop(spec, raw, calm, scores, factor):
        raise ModelError(
            f"{spec.path}: the output must show the whole tile, and it is the middle of it: a change of the tile of "
            f"{by(spec.tiling.tile)} shows unscaled in the output of {by(sizes)}; models that crop are not supported yet: "
            "export it with padded convolutions, so that sizes are kept"
        )


def _scores(spec: ModelSpec, raw: Raw, tile: Tiles) -> NDArray[np.float32]:
    scores = by_class(raw(np.repeat(tile, spec.batch, axis=0)), spec)[0]
    return np.asarray(np.nan_to_num(scores), np.float32)


def _moves_as_crop(spec: ModelSpec, raw: Raw, calm: Tiles, scores: NDArray[np.float32], factor: int) -> bool:
    """Whether scores move by as many pixels as the tile is shifted."""
    least, unit = min(scores.shape[1:]), math.lcm(factor, *spec.tiling.align)
    unit = unit if unit <= least // 3 else factor
    shift = least // 3 // unit * unit
    if not shift:
        return False
    shifted = np.roll(calm, (shift,) * len(spec.tiling.tile), tuple(range(2, calm.ndim)))
    moved = _scores(spec, raw, shifted)
    grid, crop = (_unlike(scores, moved, by_pixels, least // 8) for by_pixels in (shift // factor, shift))
    return CLEARLY * crop < grid


def _unlike(before: NDArray[np.float32], after: NDArray[np.float32], shift: int, border: int) -> float:
    """Mean square difference after a shift along all axes is undone, without borders."""
    inner = slice(border, -border or None)
    a, b = (x[(slice(None),) + (inner,) * (x.ndim - 1)] for x in (before, after))
    cut = (slice(None),) + (slice(shift, None),) * (a.ndim - 1)
    kept = (slice(None),) + (slice(None, -shift or None),) * (a.ndim - 1)
    return float(np.square(b[cut] - a[kept]).mean())


def _shows_as_crop(spec: ModelSpec, raw: Raw, calm: Tiles, scores: NDArray[np.float32], factor: int) -> bool:
    """Whether four changed patches appear at full scale in the output."""
    sizes, changed, loud = scores.shape[1:], calm.copy(), loud_tiles(spec, 1, seed=3)
    for corner in _corners(sizes, spec.tiling.tile, 1.0):
        where = (slice(None), slice(None), *corner)
        changed[where] = loud[where]
    change = np.square(_scores(spec, raw, changed) - scores).sum(axis=0)
    grid, crop = (_mean_in(change, _corners(sizes, sizes, f)) for f in (float(factor), 1.0))
    return crop > CLEARLY * grid


def _corners(sizes: Sequence[int], within: Sequence[int], factor: float) -> list[tuple[slice, ...]]:
    """Boxes towards the corners of an array, ``OUT`` times half the output size over ``factor`` from its centre."""
    boxes = []
    for signs in product((-1, 1), repeat=len(sizes)):
        box = []
        for sign, size, whole in zip(signs, sizes, within, strict=True):
            centre, half = whole / 2 + sign * OUT * size / 2 / factor, max(1.0, NEAR * size / 2)
            box.append(slice(max(0, round(centre - half)), max(1, round(centre + half))))
        boxes.append(tuple(box))
    return boxes


def _mean_in(change: NDArray[np.float32], boxes: Sequence[tuple[slice, ...]]) -> float:
    """Mean change inside the boxes."""
    mask = np.zeros(change.shape, bool)
    for box in boxes:
        mask[box] = True
    return float(change[mask].sum(dtype=np.float64) / mask.sum())
