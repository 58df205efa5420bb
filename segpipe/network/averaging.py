"""Averaging: the mean of the scores that several models give for a tile and its flips, summed in a fixed order."""

from collections.abc import Callable, Sequence
from itertools import chain, combinations, product
from typing import Any

import numpy as np

from segpipe.network.arrays import Array

Axes = tuple[int, ...]
"""Spatial axes that a flip reverses, first axis 0."""

AS_IT_IS: tuple[Axes, ...] = ((),)
"""The flips of a tile that is scored once."""


def flips_over(axes: Sequence[int]) -> tuple[Axes, ...]:
    """Every flip over some axes, the tile as it is first: 4 over two axes, 8 over three.

    >>> flips_over((0, 1))
    ((), (0,), (1,), (0, 1))
    """
    return tuple(chain.from_iterable(combinations(axes, count) for count in range(len(axes) + 1)))


def mean_scores(networks: Sequence[Callable[[Array], Array]], tiles: Array, flips: Sequence[Axes], xp: Any) -> Array:
    """Mean over all networks and flips of the scores of tiles; a score is flipped back before it is added.

    Sums are float32 and run over networks, and for each over flips, so that every tile is added up in one order, whatever
    batch it is in. One network and no flip give the scores as they are.

    Args:
        networks: each gives scores ``(tiles, classes, *tile)`` in float32, in memory of their own.
        tiles: shape ``(tiles, channels, *tile)``.
        flips: the first is none.
        xp: the library of the arrays.
    """
    passes = list(product(networks, flips))
    scores = (_flipped(network(_flipped(tiles, axes, xp)), axes, xp) for network, axes in passes)
    total = next(scores)
    for more in scores:
        total += more
    if len(passes) > 1:
        total *= float(np.float32(1 / len(passes)))  # a division of CUDA is this product, too
    return total


def _flipped(arrays: Array, axes: Axes, xp: Any) -> Array:
    """Arrays ``(tiles, layers, *tile)`` reversed along spatial axes."""
    return xp.flip(arrays, tuple(axis + 2 for axis in axes)) if axes else arrays
