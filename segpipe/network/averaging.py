"""Mean of the scores that several models give for a tile and its flips, summed in a fixed order."""

from collections.abc import Callable, Sequence
from itertools import chain, combinations, product
from typing import Any

import numpy as np

from segpipe.network.arrays import Array

Axes = tuple[int, ...]
"""Spatial axes that a flip reverses, counted from 0."""

AS_IT_IS: tuple[Axes, ...] = ((),)
"""The flips of a tile that is scored once."""


def flips_over(axes: Sequence[int]) -> tuple[Axes, ...]:
    """Every combination of flips over some axes, the identity first: 4 over two axes, 8 over three.

    >>> flips_over((0, 1))
    ((), (0,), (1,), (0, 1))
    """
    return tuple(chain.from_iterable(combinations(axes, count) for count in range(len(axes) + 1)))


def mean_scores(networks: Sequence[Callable[[Array], Array]], tiles: Array, flips: Sequence[Axes], xp: Any) -> Array:
    """Mean of the scores of tiles over all networks and flips; each score is flipped back before it is added.

    Sums are float32 and run over networks, and for each network over flips, so that every tile is summed in the same order
    whatever its batch. One network without flips gives its scores unchanged.

    Args:
        networks: each returns scores ``(tiles, classes, *tile)`` in float32, in newly allocated memory.
        tiles: shape ``(tiles, channels, *tile)``.
        flips: the first is the identity.
        xp: the array library.
    """
    passes = list(product(networks, flips))
    scores = (_flipped(network(_flipped(tiles, axes, xp)), axes, xp) for network, axes in passes)
    total = next(scores)
    for more in scores:
        total += more
        del more  # before the next ones are computed
    if len(passes) > 1:
        total *= float(np.float32(1 / len(passes)))  # CUDA divides by multiplying with the reciprocal, too
    return total


def _flipped(arrays: Array, axes: Axes, xp: Any) -> Array:
    """Reverse arrays ``(tiles, layers, *tile)`` along spatial axes."""
    return xp.flip(arrays, tuple(axis + 2 for axis in axes)) if axes else arrays
