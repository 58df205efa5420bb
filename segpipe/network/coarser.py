"""Outputs on a grid that is coarser than the tile: where their pixels lie on it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Centres = Literal["half_pixel", "align_corners"]


@dataclass(frozen=True, slots=True)
class CoarserGrid:
    """How a coarser grid lies on a tile."""

    sizes: tuple[int, ...]
    """Sizes of the tile."""
    centres: Centres
    """``half_pixel``: pixels divide the tile evenly; ``align_corners``: the outermost centres are those of the tile."""
    factor: int | None = None
    """Pixels of the tile per pixel of the output along each axis, for ``half_pixel``; None where it is no whole number."""


def placed_on(tile: tuple[int, ...], sizes: tuple[int, ...], centres: Centres | None) -> CoarserGrid | None:
    """How an output of these sizes, smaller than the tile, lies on it; None if no stride of a network explains them.

    Args:
        tile: sizes of the tile.
        sizes: sizes of the output.
        centres: as the contract says; None: by the sizes.
    """
    if stride_between(tile, sizes) is None:
        return None
    factors = {t / s for t, s in zip(tile, sizes, strict=True)}
    whole = next(iter(factors)) if len(factors) == 1 and all(n.is_integer() for n in factors) else None
    likely: Centres = "half_pixel" if align_corners_stride(tile, sizes) is None else "align_corners"
    centres = centres or likely
    return CoarserGrid(tile, centres, int(whole) if whole and centres == "half_pixel" else None)


def align_corners_stride(tile: Sequence[int], sizes: Sequence[int | None]) -> int | None:
    """The stride ``s`` of a grid of ``(n - 1) / s + 1`` pixels along each axis, where it does not divide a tile of ``n``.

    DeepLab and PSPNet are trained on such crops, of 513 or 769 pixels, to align corners. None for other sizes.

    >>> align_corners_stride((513, 513), (129, 129)), align_corners_stride((512, 512), (128, 128))
    (4, None)
    """
    axes = [(t - 1, s - 1) for t, s in zip(tile, sizes, strict=True) if s is not None and 1 < s < t]
    strides = {t / s for t, s in axes}
    stride = strides.pop() if len(strides) == 1 and len(axes) == len(tile) else 0.0
    whole = stride > 1 and stride.is_integer() and any((t + 1) % stride for t, _ in axes)
    return int(stride) if whole else None


def stride_between(tile: Sequence[int], sizes: Sequence[int]) -> int | None:
    """The stride of a network that makes these sizes of a tile: ``n / s``, rounded up or down alike along all axes.

    None if there is none. Padded convolutions of stride 2 halve a size and round up, pools and patches round down; the
    result of several such layers is ``n / s`` rounded up, or down. All axes have one stride.

    >>> stride_between((512, 512), (128, 128)), stride_between((513, 513), (129, 129)), stride_between((300, 300), (38, 38))
    (4, 4, 8)
    >>> stride_between((513, 513), (128, 128)), stride_between((300, 300), (37, 37))
    (4, 8)
    >>> stride_between((64, 64), (60, 60)) is None
    True
    """
    return _stride(tile, sizes, _rounded_up) or _stride(tile, sizes, _rounded_down)


def _stride(tile: Sequence[int], sizes: Sequence[int], rounded: Callable[[int, int], int]) -> int | None:
    strides = [{s for s in _near(t, size) if rounded(t, s) == size} for t, size in zip(tile, sizes, strict=True)]
    common = set.intersection(*strides) if strides else set()
    exact = [s for s in common if all(t % s == 0 for t in tile)]
    return min(exact or common, default=None)


def _near(tile: int, size: int) -> Sequence[int]:
    return range(max(1, math.floor(tile / size) - 1), math.ceil(tile / max(1, size - 1)) + 2) if size else ()


def _rounded_up(tile: int, stride: int) -> int:
    return -(-tile // stride)


def _rounded_down(tile: int, stride: int) -> int:
    return tile // stride
