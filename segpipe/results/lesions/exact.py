"""Exact sums of pixels: integers in limbs of 32 bits, so that a sum depends neither on order nor on division.

Integers are summed as they are. Floats are rounded to float32 first: each is an integer times 2**-149, the least float32.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.results.lesions.row_runs import Runs

Limbs = NDArray[np.int64]
"""Shape ``(..., limbs)``, least significant first; after carrying, all but the last are 0 to 2**32 - 1."""

BITS = 32
MASK = (1 << BITS) - 1
INTEGER_LIMBS, FLOAT_LIMBS = 3, 11
LEAST_EXPONENT = 149
"""Exponent of float32's unit: its values are multiples of 2**-149."""
MANTISSA = 24


def sums(values: NDArray[Any], runs: Runs) -> Limbs:
    """Sum of ``values``, one per voxel of the box of ``runs``, over each component; shape ``(components, limbs)``."""
    return carried(_float_sums(values, runs) if values.dtype.kind == "f" else _integer_sums(values, runs))


def _integer_sums(values: NDArray[Any], runs: Runs) -> Limbs:
    if values.itemsize <= BITS // 8:
        return _joined({0: runs.total(values)}, len(runs), INTEGER_LIMBS)
    low, high = values & values.dtype.type(MASK), values >> values.dtype.type(BITS)
    return _joined({0: runs.total(low), 1: runs.total(high)}, len(runs), INTEGER_LIMBS)


def _float_sums(values: NDArray[Any], runs: Runs) -> Limbs:
    fraction, exponent = np.frexp(values.astype(np.float32))
    mantissa = np.ldexp(fraction.astype(np.float64), MANTISSA).astype(np.int64)
    shift = exponent.astype(np.int64) - MANTISSA + LEAST_EXPONENT
    # subnormal floats end with zeros, which the right shift removes
    mantissa, shift = mantissa >> np.maximum(-shift, 0), np.maximum(shift, 0)
    limb, shifted = shift // BITS, mantissa << (shift % BITS)
    totals: dict[int, NDArray[np.int64]] = {}
    for position in np.unique(limb[shifted != 0]).tolist():
        own = np.where(limb == position, shifted, 0)
        for k, part in ((position, own & MASK), (position + 1, own >> BITS)):
            totals[k] = totals.get(k, 0) + runs.total(part)
    return _joined(totals, len(runs), FLOAT_LIMBS)


def _joined(totals: dict[int, NDArray[np.int64]], count: int, limbs: int) -> Limbs:
    joined = np.zeros((count, limbs), np.int64)
    for k, total in totals.items():
        joined[:, k] = total
    return joined


def carried(limbs: Limbs) -> Limbs:
    """The same sums with all limbs but the last below 2**32, so that 2**30 of them can be added."""
    limbs = limbs.copy()
    for k in range(limbs.shape[-1] - 1):
        limbs[..., k + 1] += limbs[..., k] >> BITS
        limbs[..., k] &= MASK
    return limbs


def mean(limbs: Limbs, count: int) -> float:
    """The sum ``(limbs,)`` divided by ``count``, correctly rounded."""
    total = sum(int(limb) << (BITS * k) for k, limb in enumerate(limbs))
    return total / (count << LEAST_EXPONENT if len(limbs) == FLOAT_LIMBS else count)  # of integers, as Python divides them
