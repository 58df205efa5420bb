"""What blending and deciding need of an array library: NumPy on the host here, torch on a device in ``device_arrays``.

Everything else is written once: slices, sums in place, comparisons and the functions that both libraries call alike.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segpipe.geometry.weighting import Weights

LAG_BATCHES = 2
"""Batches whose labels may be in transfer from a device: with fewer it waits for the host; more only use memory."""

Array = Any
"""A NumPy array, or a tensor of a device."""


class Arrays(Protocol):
    """An array library, and the place where its arrays lie."""

    xp: Any
    """The library: ``exp``, ``where``, ``clip``, ``round``, ``amax``, ``isfinite`` and ``stack``, as NumPy has them."""
    lag: int
    """Results that are on their way to the host at once."""

    def here(self) -> AbstractContextManager[Any]:
        """What a thread enters while it works on these arrays."""

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """float32."""

    def put(self, values: NDArray[Any]) -> Array:
        """Copy a small array from the host to the device of the scores."""

    def weights(self, weights: Weights) -> Weights:
        """The same weights, where the scores are."""

    def pick(self, values: Array, index: Array, axis: int) -> Array:
        """Copy the values at positions ``index`` along an axis."""

    def most_likely(self, sums: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        """Position of the largest score along the first axis, the first of equal ones, and that score; NaN stays NaN."""

    def take(self, values: NDArray[Any], index: Array) -> Array:
        """``values[index]`` for a few values of the host."""

    def fill(self, values: Array, where: Array, value: int) -> None:
        """Set the last axes of an array, in place, where a mask of their shape is true."""

    def cast(self, values: Array, dtype: np.dtype[Any]) -> Array:
        """The same values as another type."""

    def fetch(self, *arrays: Array | None) -> Callable[[], list[Any]]:
        """Begin to bring arrays to the host; what is returned waits for them."""


class HostArrays:
    """NumPy."""

    xp: Any = np
    lag = 0

    def here(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def zeros(self, shape: tuple[int, ...]) -> Array:
        return np.zeros(shape, np.float32)

    def put(self, values: NDArray[Any]) -> Array:
        return values

    def weights(self, weights: Weights) -> Weights:
        return weights

    def pick(self, values: Array, index: Array, axis: int) -> Array:
        return np.take(values, index, axis)

    def most_likely(self, sums: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        """A running maximum: 4 times as fast as ``numpy.argmax`` over the first axis, which walks memory the wrong way."""
        best = sums[0].copy()
        winner = np.zeros(best.shape, dtype)
        for k in range(1, len(sums)):
            better = sums[k] > best
            # k rises, so the larger position is the newer winner: no masked copy
            np.maximum(winner, np.multiply(better, dtype.type(k)), out=winner)
            np.maximum(best, sums[k], out=best)
        return winner, best

    def take(self, values: NDArray[Any], index: Array) -> Array:
        return values[index]

    def fill(self, values: Array, where: Array, value: int) -> None:
        values[..., where] = value

    def cast(self, values: Array, dtype: np.dtype[Any]) -> Array:
        return values.astype(dtype, copy=False)

    def fetch(self, *arrays: Array | None) -> Callable[[], list[Any]]:
        return lambda: list(arrays)


HOST = HostArrays()
