"""The array operations of blending and deciding: NumPy on the host here, torch on a device in ``device_arrays``.

Everything else is written once: slicing, in-place sums, comparisons and functions that both libraries share.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segpipe.geometry.weighting import Weights

LAG_BATCHES = 2
"""Batches whose labels may be in transfer from a device: fewer make it wait for the host, more only take memory."""

FLOAT = np.dtype(np.float32)
"""Type of scores, of their weights and of the pixels that a network takes."""

Array = Any
"""A NumPy array or a device tensor."""


class Arrays(Protocol):
    """An array library and the memory that its arrays live in."""

    xp: Any
    """The module: ``exp``, ``where``, ``clip``, ``round``, ``amax``, ``isfinite`` and ``stack``, as in NumPy."""
    lag: int
    """Number of results that may be in transfer to the host at once."""
    at_once: int
    """Bytes of a tile's scores to blend at once, at least those of one class."""

    def here(self) -> AbstractContextManager[Any]:
        """Context that a thread enters while it works on these arrays."""

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Zeros, float32."""

    def within(self, values: Array, shape: tuple[int, ...]) -> Array | None:
        """An array of another shape in the memory of ``values``, whose first axis it keeps; None if that is too small."""

    def put(self, values: NDArray[Any]) -> Array:
        """Copy a small array from the host to the device of the scores."""

    def weights(self, weights: Weights) -> Weights:
        """The same weights, in the memory of the scores."""

    def pick(self, values: Array, index: Array, axis: int) -> Array:
        """Copy the values at positions ``index`` along an axis."""

    def most_likely(self, sums: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        """Position of the largest score along the first axis (the first of equal ones), and that score; NaN stays NaN."""

    def take(self, values: NDArray[Any], index: Array) -> Array:
        """``values[index]`` for a small host array."""

    def fill(self, values: Array, where: Array, value: float) -> None:
        """Set the last axes of an array in place where a mask of their shape is true."""

    def cast(self, values: Array, dtype: np.dtype[Any]) -> Array:
        """Convert values to another type."""

    def fetch(self, *arrays: Array | None) -> Callable[[], list[Any]]:
        """Start copying arrays to the host; the returned function waits for the copies."""


class HostArrays:
    """NumPy arrays on the host."""

    xp: Any = np
    lag = 0
    at_once = 2**23  # fits into the cache of a processor

    def here(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def zeros(self, shape: tuple[int, ...]) -> Array:
        return np.zeros(shape, np.float32)

    def within(self, values: Array, shape: tuple[int, ...]) -> Array | None:
        size = math.prod(shape[1:])
        if not values.flags.c_contiguous or size > values[0].size:
            return None
        return values.reshape(len(values), -1)[:, :size].reshape(shape)  # views

    def put(self, values: NDArray[Any]) -> Array:
        return values

    def weights(self, weights: Weights) -> Weights:
        return weights

    def pick(self, values: Array, index: Array, axis: int) -> Array:
        return np.take(values, index, axis)

    def most_likely(self, sums: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        """Use a running maximum: 4 times as fast as ``numpy.argmax`` over the first axis, whose memory access is strided."""
        best = sums[0].copy()
        winner = np.zeros(best.shape, dtype)
        for k in range(1, len(sums)):
            own = np.ascontiguousarray(sums[k])  # else NumPy copies its rows piece by piece, in each of two passes
            better = own > best
            # k increases, so the larger position is the newer winner: no masked copy is needed
            np.maximum(winner, np.multiply(better, dtype.type(k)), out=winner)
            np.maximum(best, own, out=best)
        return winner, best

    def take(self, values: NDArray[Any], index: Array) -> Array:
        return values[index]

    def fill(self, values: Array, where: Array, value: float) -> None:
        values[..., where] = value

    def cast(self, values: Array, dtype: np.dtype[Any]) -> Array:
        return values.astype(dtype, copy=False)

    def fetch(self, *arrays: Array | None) -> Callable[[], list[Any]]:
        return lambda: list(arrays)


HOST = HostArrays()
