"""The majority filter against counting each window, and by hand."""

from collections import Counter

import numpy as np
import pytest

from segpipe.results.cleaning.majority import majority


def test_by_hand():
    labels = np.array([[1, 1, 2], [1, 3, 2], [1, 255, 2]], np.uint8)
    # in the middle, 1 occurs four times; in the corner below right 2 twice
    assert majority(labels, 3, 255).tolist() == [[1, 1, 2], [1, 1, 2], [1, 255, 2]]


@pytest.mark.parametrize("seed", range(30))
def test_each_window_is_counted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 9, int(rng.integers(2, 4))))
    labels, reach = rng.choice(np.array([0, 1, 2, 7, 255], np.uint8), shape), int(rng.integers(1, 4))
    expected = labels.copy()
    for place in np.ndindex(shape):
        around = labels[tuple(slice(max(0, p - reach), p + reach + 1) for p in place)]
        ranked = Counter(around[around != 255].tolist()).most_common()
        if labels[place] != 255 and (len(ranked) == 1 or ranked[0][1] > ranked[1][1]):
            expected[place] = ranked[0][0]
    assert np.array_equal(majority(labels, 2 * reach + 1, 255), expected)
