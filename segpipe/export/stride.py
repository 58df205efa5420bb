"""Measure by how many pixels a tile may be shifted without a change of its scores; at least the stride of the layers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import DEFAULT_ALIGN
from segpipe.errors import ExportError
from segpipe.export.tiles import noise

Score = Callable[[NDArray[np.float32]], NDArray[np.float32]]

EXACT = 1e-5
"""Difference, relative to the spread of the scores, up to which two scores count as equal but for rounding.

The deepest level of a U-Net with fresh weights contributes 2e-5 of its scores, and rounding 1e-6.
"""

CLEAR = 4.0
"""Factor by which the change at the stride must be smaller than at all smaller shifts."""

EQUIVARIANT = 1e-2
"""Change below which scores count as independent of a tile's position."""

LONGEST = 64


SEED = 0
"""Seed of the noise that is shifted."""


@dataclass(frozen=True)
class Stride:
    """The measured stride in pixels on both axes, and the remaining change of scores under a shift by it."""

    align: int
    equivariant: bool
    error: float
    """Root mean square change of scores in the middle of a tile, over their standard deviation."""


def measure_stride(score: Score, channels: int, tile: tuple[int, int], visible: int) -> Stride:
    """Shift noise under a network, and find the shifts that leave its scores unchanged.

    The stride is the smallest divisor of the tile at which scores in the middle of the tile move with the image. Noise may
    not activate a deep path that real images do, so the result is a multiple of the layers' stride; where attention or
    global pooling changes scores at every shift, it is the layers' stride, or `DEFAULT_ALIGN` where the layers show none.

    Args:
        score: maps images ``(batch, channels, rows, cols)`` to scores.
        channels: channels of the image.
        tile: rows and columns of a tile.
        visible: stride by the layers; 1 if they show none.
    """
    longest = max(1, min(LONGEST, min(tile) // 2))
    shifts = [s for s in range(1, longest + 1) if all(t % s == 0 for t in tile)]
    canvas = noise((channels, *(t + max(shifts) for t in tile)), SEED)
    here = score(canvas[None, :, : tile[0], : tile[1]])[0]
    if here.shape[1:] != tile:
        return _within_margin(score, channels, tile, visible)
    errors = {s: _change(score, here, canvas, s) for s in shifts}
    found = _smallest(errors)
    align = gcd(_combined(found, visible), *tile)  # reduced to a divisor of the tile, at which windows can start
    reach = _reach(score, channels, tile, align)
    error = max(reach, errors.get(align, 0.0))
    whole = found is not None and align % lcm(found, visible) == 0
    return Stride(align, whole and error < EQUIVARIANT, error)


def _within_margin(score: Score, channels: int, tile: tuple[int, int], visible: int) -> Stride:
    """The stride of a network that scores only the middle of a tile.

    The tile need not be a multiple of it. All scores are compared: they see no border, or a border changes them, and then
    they depend on where a tile starts.
    """
    here = score(noise((channels, *tile), SEED)[None])[0]
    powers = (2**k for k in range(LONGEST.bit_length()))
    shifts = sorted(s for s in {*powers, visible} if s < min(here.shape[1:]) and s <= LONGEST)
    if not shifts:
        return Stride(_combined(None, visible), False, 1.0)
    canvas = noise((channels, *(t + max(shifts) for t in tile)), SEED)
    here = score(canvas[None, :, : tile[0], : tile[1]])[0]
    errors = {s: _moved(score, here, canvas, s, tile) for s in shifts}
    found = _smallest(errors)
    align = _combined(found, visible)
    error = errors.get(align, 1.0 if found is None else errors[found])
    return Stride(align, found is not None and error < EQUIVARIANT, error)


def _moved(score: Score, here: NDArray[np.float32], canvas: NDArray[np.float32], shift: int, tile: tuple[int, int]) -> float:
    """Change of all scores that a tile has in common with one that starts ``shift`` pixels further on both axes."""
    there = score(canvas[None, :, shift : shift + tile[0], shift : shift + tile[1]])[0]
    return _relative(here[:, shift:, shift:], there[:, :-shift, :-shift])


def named_stride(measured: Stride, named: tuple[int, ...] | None, visible: int) -> Stride:
    """The user's stride if there is one, which must be a multiple of the known one.

    Raises:
        ExportError: it is not: windows would start at positions that change the scores.
    """
    if named is None:
        return measured
    known = measured.equivariant or visible > 1  # otherwise it is a guess, and the user's value is better
    if known and any(n % measured.align for n in named):
        raise ExportError(
            f"align must be a multiple of the network's stride, measured as {measured.align}, got {list(named)}: "
            "leave it out"
        )
    return Stride(max(named), measured.equivariant, measured.error)


def _combined(found: int | None, visible: int) -> int:
    if found is None:
        return visible if visible > 1 else DEFAULT_ALIGN
    return lcm(found, visible)


def _smallest(errors: dict[int, float]) -> int | None:
    """The smallest shift that is as good as the best, and clearly better than all smaller ones; None if there is none."""
    best = min(errors.values())
    for shift, error in errors.items():
        before = [e for s, e in errors.items() if s < shift]
        if error <= EXACT or (error <= 2 * best and (not before or min(before) > CLEAR * error) and shift > 1):
            return shift
    return None


def _change(score: Score, here: NDArray[np.float32], canvas: NDArray[np.float32], shift: int) -> float:
    """Change of the scores in the middle of a tile that starts ``shift`` pixels further on both axes."""
    rows, cols = here.shape[1:]
    there = score(canvas[None, :, shift : shift + rows, shift : shift + cols])[0]
    middle = tuple(slice(shift + (t - shift) * 3 // 8, shift + (t - shift) * 5 // 8) for t in (rows, cols))
    moved = tuple(slice(m.start - shift, m.stop - shift) for m in middle)
    return _relative(here[(slice(None), *middle)], there[(slice(None), *moved)])


def _reach(score: Score, channels: int, tile: tuple[int, int], align: int) -> float:
    """Change of the middle of a tile when its rim changes, as it would under a long shift."""
    here = noise((channels, *tile), SEED)
    there = here.copy()
    rim = [min(max(align, t // 16), t // 4) for t in tile]  # ends before the middle
    for axis, width in enumerate(rim, 1):
        for side in (slice(None, width), slice(-width, None)):
            there[(slice(None),) * axis + (side,)] += 3
    middle = (slice(None), *(slice(t * 3 // 8, t * 5 // 8) for t in tile))
    return _relative(score(here[None])[0][middle], score(there[None])[0][middle])


def _relative(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Relative change of the class that changes most; 1 where scores are constant and prove nothing."""
    spread = float(a.std(axis=(1, 2), dtype=np.float64).mean()) if a.size else 0.0
    if spread <= 1e-6 * float(np.abs(a).max(initial=0)):  # only rounding of a constant
        return 1.0
    return float(np.sqrt(np.square(np.subtract(a, b, dtype=np.float64)).mean(axis=(1, 2)).max()) / spread)


Size = tuple[int, int]


def is_strided(operator: str, before: Size, after: Size) -> bool:
    """Whether an operator's maps are a regular subsampling of the image.

    Maps of adaptive pooling divide the whole image, and maps resized by a fraction derive from such maps.
    """
    name = operator.lower()
    if any(part in name for part in ("adaptive", "global")):
        return False
    if any(part in name for part in ("upsample", "resize")):
        return all(b % a == 0 for b, a in zip(before, after, strict=True))
    return any(part in name for part in ("conv", "pool", "unshuffle", "spacetodepth"))


def total_stride(sizes: Iterable[tuple[Size, Size]], image: Size) -> int:
    """The largest product of the reductions of maps.

    Args:
        sizes: rows and columns before and after each operator, in order.
        image: rows and columns of the image.
    """
    strides = {image: 1}
    for before, after in sizes:
        step = max(round(b / a) for b, a in zip(before, after, strict=True))
        if step > 1 and not (max(after) == 1 and step > 2):  # the latter is global pooling
            known = strides.get(before) or max(1, round(image[0] / before[0]))
            strides[after] = max(known * step, strides.get(after, 1))
    return max(strides.values())
