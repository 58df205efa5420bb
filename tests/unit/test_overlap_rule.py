"""The rule for shared ground: exactly one mask counts at each place, in any order, for all that masks can hold there."""

from itertools import permutations

import numpy as np
import pytest

from segpipe.results.overlap.rule import Observation, goes_before


def sights(seed: int, masks: int, *, confidence: bool) -> list[Observation]:
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(masks):
        covered = draw.random(500) < 0.7
        seen = covered & (draw.random(500) < 0.6)
        found.append(Observation(covered, seen, draw.integers(0, 4, 500).astype(np.uint8) if confidence else None))
    return found


@pytest.mark.parametrize("confidence", [False, True])
def test_one_of_several_masks_counts_at_each_place(confidence: bool) -> None:
    """Brute force: the best key of those that cover a place; names decide ties."""
    each = sights(1, 4, confidence=confidence)
    counts = [
        each[k].covered & ~np.any([goes_before(each[n], each[k], earlier=n < k) for n in range(4) if n != k], axis=0)
        for k in range(4)
    ]
    assert (sum(map(np.asarray, counts)) == np.any([one.covered for one in each], axis=0)).all()
    for place in range(500):
        keys = {
            k: (not one.seen[place], -int(one.confidence[place]) if confidence and one.seen[place] else 0, k)  # type: ignore[index]
            for k, one in enumerate(each)
            if one.covered[place]
        }
        if keys:
            assert counts[min(keys, key=lambda k: keys[k])][place]


@pytest.mark.parametrize("confidence", [False, True])
def test_the_best_so_far_is_the_best_of_all(confidence: bool) -> None:
    """As a mosaic joins masks: whatever the order in which they come, if the rule knows theirs."""
    each = sights(2, 3, confidence=confidence)
    results = set()
    for order in permutations(range(3)):
        owner = np.full(500, -1)
        for k in order:
            wins = np.asarray(each[k].covered & (owner < 0))
            for n in order[: order.index(k)]:
                wins |= (owner == n) & goes_before(each[k], each[n], earlier=k < n)
            owner[wins] = k
        results.add(owner.tobytes())
    assert len(results) == 1


def test_nothing_goes_before_nothing() -> None:
    nothing = Observation.nothing((3,), confidence=True)
    seen = Observation(np.ones(3, bool), np.array([True, True, False]), np.zeros(3, np.uint8))
    assert not goes_before(nothing, nothing, earlier=True).any()
    assert not goes_before(nothing, seen, earlier=True).any()
    assert goes_before(seen, nothing, earlier=False).all()
