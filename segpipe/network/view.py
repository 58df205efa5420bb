"""What an output smaller than its input shows: the whole tile more coarsely, or its middle; measured with noise."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import ModelError
from segpipe.messages.printable import dims
from segpipe.network.coarser import stride_between
from segpipe.network.shapes import margin_by_size

Tiles = NDArray[Any]
Scores = NDArray[np.float32]

View = Literal["middle", "whole"]

OUT = 0.8
"""Position of the changed patches, as a share of the distance from the centre of a crop to its edge."""

NEAR = 0.2
"""Half the side of the boxes that are searched for a response, as a share of that distance."""

CLEARLY = 2.0
"""Ratio between the two hypotheses (change where a crop would show it, difference after its shift) that is proof."""

FELT = 1e-4
"""Largest change of a score, relative to the spread of the scores, from which a change of the tile counts as seen."""

STRIDES = (2, 3, 4, 8, 16, 32)
"""Strides of a coarser grid over the middle of a tile that are tried."""

LEAST_SKEW = 2
"""Rows that a network must leave out at one end before its middle lies a whole pixel beside that of the tile."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A network and two tiles of noise, which reveal the part of the tile that its output shows."""

    score: Callable[[Tiles], Scores]
    """From a tile ``(1, channels, *tile)`` to scores ``(classes, *sizes)``."""
    calm: Tiles
    """A tile ``(1, channels, *tile)``."""
    loud: Tiles
    """A tile of far larger values."""
    align: tuple[int, ...]
    """Stride of the network, where it is known."""

    @property
    def tile(self) -> tuple[int, ...]:
        """Rows and columns of the tile that was probed."""
        return tuple(self.calm.shape[2:])

    @cached_property
    def scores(self) -> Scores:
        """Scores of the calm tile."""
        return self.score(self.calm)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the output."""
        return tuple(self.scores.shape[1:])

    @property
    def factors(self) -> list[float]:
        """Pixels of the tile per pixel of the output, if it shows the whole tile: the stride, or else the ratio."""
        stride = stride_between(self.tile, self.sizes)
        if stride is not None:
            return [float(stride)] * len(self.tile)
        return [tile / size for tile, size in zip(self.tile, self.sizes, strict=True)]

    def with_loud(self, *boxes: tuple[slice, ...]) -> Scores:
        """Scores of the calm tile with boxes of the loud one."""
        changed = self.calm.copy()
        for box in boxes:
            where = (slice(None), slice(None), *box)
            changed[where] = self.loud[where]
        return self.score(changed)


def measured_margin(probe: Probe, name: str) -> tuple[int, ...] | None:
    """Pixels on each side of the tile without scores, for an output that is smaller; None if it shows the whole tile.

    Raises:
        ModelError: the output is not the middle of the tile, or nothing says what it is.
    """
    if (stride := stride_of_middle(probe, probe.factors)) is not None:
        return coarse_margin(probe.tile, probe.sizes, stride)
    view, margin = view_of(probe), margin_by_size(probe.tile, probe.sizes)
    grid = stride_between(probe.tile, probe.sizes) is not None
    if grid and view != "middle":
        return None
    if view == "whole":
        raise ModelError(
            f"{name}: an output of the whole tile must have its size, or one pixel per stride, got {dims(probe.sizes)} "
            f"for a tile of {dims(probe.tile)}: take a tile that is a multiple of the network's stride"
        )
    if view is None:
        raise ModelError(
            f"{name}: the output of {dims(probe.sizes)} must be the middle of the tile of {dims(probe.tile)} or all of it, "
            "and noise does not show which: set margin in the contract if it is the middle"
        )
    if margin is None:
        raise ModelError(
            f"{name}: the output must lie in the middle of the tile, with as many pixels on both sides, got "
            f"{dims(probe.sizes)} of a tile of {dims(probe.tile)}: take the tile that it was trained on"
        )
    check_centred(probe, name)
    return margin


def coarse_margin(tile: Sequence[int], sizes: Sequence[int], stride: int) -> tuple[int, ...] | None:
    """The margin of an output that is the middle of the tile on a grid of some stride; None if it cannot be.

    >>> coarse_margin((572, 572), (97, 97), 4), coarse_margin((64,), (33,), 2)
    ((92, 92), None)
    """
    return margin_by_size(tile, [stride * size for size in sizes])


def stride_of_middle(probe: Probe, taken: Sequence[float]) -> int | None:
    """The stride of an output that is the middle of the tile on a coarser grid; None if noise does not clearly show one.

    Args:
        probe: the network.
        taken: pixels of the tile per pixel of the output along each axis, as it would be taken otherwise.
    """
    likely = [stride for stride in (1, *STRIDES) if any(coarse_margin(probe.tile, probe.sizes, stride) or ())]
    return next((stride for stride in likely if stride > 1 and _is_best(probe, stride, taken, likely)), None)


def _is_best(probe: Probe, stride: int, taken: Sequence[float], likely: Sequence[int]) -> bool:
    """Whether noise shows a stride rather than what the output is taken for, and rather than any other likely one."""
    others = ([float(other)] * len(taken) for other in likely if other != stride)
    return is_clearly(probe, stride, taken) and all(is_clearly(probe, stride, other) for other in others)


def is_clearly(probe: Probe, stride: int, taken: Sequence[float]) -> bool:
    """Whether scores move by a pixel per ``stride`` pixels of the tile, and not as they are taken."""
    least = min(probe.sizes) // 2
    steps = max(1, int(least * min(1.0, min(taken) / stride)))
    others = [round(steps * stride / factor) for factor in taken]
    if not 0 < max(steps, *others) <= least or others == [steps] * len(others):
        return False
    moved = probe.score(np.roll(probe.calm, (steps * stride,) * len(others), tuple(range(2, probe.calm.ndim))))
    own, other = (_unlike(probe.scores, moved, by_pixels, least // 4) for by_pixels in ([steps] * len(others), others))
    return CLEARLY * own < other


def view_of(probe: Probe) -> View | None:
    """What an output smaller than the tile shows, by how scores of noise respond to changes of the tile; None if unclear.

    With `f` the ratio of tile to output, a shift of the tile by `s` pixels moves a coarser grid by `s / f` and a crop by
    `s`; and what lies at distance `d` from the tile's centre appears at `d / f` or at `d` from the output's centre. Shifts
    are conclusive where the receptive field is wide, patches where scores depend on the position in the tile.
    """
    found = [_by_shift(probe), _by_patches(probe)]
    return "middle" if "middle" in found else "whole" if "whole" in found else None


def _by_shift(probe: Probe) -> View | None:
    """By how many pixels scores move when the tile is shifted."""
    least, factor = min(probe.sizes), max(probe.factors)
    unit = math.lcm(max(1, round(factor)), *probe.align)
    unit = unit if unit <= least // 3 else max(1, round(factor))
    shift = least // 3 // unit * unit
    if not shift:
        return None
    axes = tuple(range(2, probe.calm.ndim))
    moved = probe.score(np.roll(probe.calm, (shift,) * len(axes), axes))
    grid, crop = (
        _unlike(probe.scores, moved, by_pixels, least // 8)
        for by_pixels in ([round(shift / f) for f in probe.factors], [shift] * len(axes))
    )
    return "middle" if CLEARLY * crop < grid else "whole" if CLEARLY * grid < crop else None


def _unlike(before: Scores, after: Scores, shifts: Sequence[int], border: int) -> float:
    """Mean square difference after a shift along all axes is undone, without borders."""
    inner = slice(border, -border or None)
    a, b = (x[(slice(None),) + (inner,) * (x.ndim - 1)] for x in (before, after))
    cut = (slice(None), *(slice(shift, None) for shift in shifts))
    kept = (slice(None), *(slice(None, -shift or None) for shift in shifts))
    return float(np.square(b[cut] - a[kept]).mean())


def _by_patches(probe: Probe) -> View | None:
    """Where four changed patches appear in the output."""
    one = [1.0] * len(probe.tile)
    changed = probe.with_loud(*_corners(probe.sizes, probe.tile, one))
    change = np.square(changed - probe.scores).sum(axis=0)
    grid, crop = (_mean_in(change, _corners(probe.sizes, probe.sizes, factors)) for factors in (probe.factors, one))
    return "middle" if crop > CLEARLY * grid else "whole" if grid > CLEARLY * crop else None


def _corners(sizes: Sequence[int], within: Sequence[int], factors: Sequence[float]) -> list[tuple[slice, ...]]:
    """Boxes towards the corners of an array, ``OUT`` times half the output size over the factor from its centre."""
    boxes = []
    for signs in product((-1, 1), repeat=len(sizes)):
        box = []
        for sign, size, whole, factor in zip(signs, sizes, within, factors, strict=True):
            centre, half = whole / 2 + sign * OUT * size / 2 / factor, max(1.0, NEAR * size / 2)
            box.append(slice(max(0, round(centre - half)), max(1, round(centre + half))))
        boxes.append(tuple(box))
    return boxes


def _mean_in(change: Scores, boxes: Sequence[tuple[slice, ...]]) -> float:
    """Mean change inside the boxes."""
    mask = np.zeros(change.shape, bool)
    for box in boxes:
        mask[box] = True
    return float(change[mask].sum(dtype=np.float64) / mask.sum())


def check_centred(probe: Probe, name: str) -> None:
    """Check that a network that takes away pixels by its convolutions takes as many from both ends of the tile.

    Poolings leave out the last rows of a size that they do not divide; the output is then not in the middle of the tile.

    Raises:
        ModelError: the network does not see the rows at one end; the message has the next smaller tile.
    """
    unseen = [_unseen(probe, axis) for axis in range(len(probe.tile))]
    if any(unseen):
        right = [n - less for n, less in zip(probe.tile, unseen, strict=True)]
        raise ModelError(
            f"{name}: the output must lie in the middle of the tile, and of a tile of {dims(probe.tile)} the network leaves "
            f"out {dims(unseen)} pixels at one end only: take --tile {','.join(map(str, right))}"
        )


def _unseen(probe: Probe, axis: int) -> int:
    """Pixels at one end of an axis without any effect, where those at the other end have one."""
    ends = [_effect(probe, axis, LEAST_SKEW, end) for end in (0, 1)]
    if min(ends) > 0 or max(ends) < FELT:
        return 0
    blind, low, high = ends.index(0.0), LEAST_SKEW, probe.tile[axis] // 2
    while low < high:
        width = (low + high + 1) // 2
        if _effect(probe, axis, width, blind) > 0:
            high = width - 1
        else:
            low = width
    return low


def _effect(probe: Probe, axis: int, width: int, end: int) -> float:
    """Largest change of a score when rows at one end of the tile change, relative to the spread of the scores."""
    rows = slice(-width, None) if end else slice(width)
    box = (*(slice(None),) * axis, rows, *(slice(None),) * (len(probe.tile) - axis - 1))
    spread = float(probe.scores.std(dtype=np.float64)) or 1.0
    return float(np.abs(probe.with_loud(box) - probe.scores).max()) / spread
