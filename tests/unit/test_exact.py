"""Exact sums of pixels against Python's fractions."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from segpipe.results.lesions import exact
from segpipe.results.lesions.row_runs import Runs

KINDS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


def values(kind: str, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind[0] == "f":
        found = (rng.standard_normal(count) * 10.0 ** rng.uniform(-42, 37, count)).astype(kind)
        found[:4] = [0, -0.0, np.float32(1e-45), np.finfo("f4").max]  # the least subnormal, and the largest
        return found
    ends = np.iinfo(kind)
    found = rng.integers(ends.min, ends.max, count, dtype=kind, endpoint=True)
    found[:2] = ends.min, ends.max
    return found


def exactly(found: np.ndarray) -> Fraction:
    rounded = found.astype("f4") if found.dtype.kind == "f" else found
    return sum((Fraction(x) for x in rounded.tolist()), Fraction(0))


@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_of_each_component_is_exact(kind):
    labels = np.random.default_rng(1).integers(0, 3, (7, 8, 9))
    labels[0, 0, :3] = 0, 1, 2
    found = values(kind, labels.size, 2).reshape(labels.shape)
    limbs = exact.sums(found, Runs.of(labels, 2))
    for k in (1, 2):
        count = int((labels == k).sum())
        assert exact.mean(limbs[k - 1], count) == float(exactly(found[labels == k]) / count)


@pytest.mark.parametrize("kind", ["i2", "f4"])
def test_sums_of_parts_add_up_to_the_sum_of_the_whole(kind):
    found = values(kind, 4000, 3)
    one = np.ones((1, 1, 4000), np.uint8)
    whole = exact.sums(found, Runs.of(one, 1))
    cuts = [0, 7, 1000, 1001, 4000]
    pieces = [exact.sums(found[a:b], Runs.of(one[..., a:b], 1)) for a, b in pairwise(cuts)]
    assert (exact.carried(sum(pieces)) == whole).all()
