"""The sieve against GDAL's, against brute force with areas and in volumes, and by hand; regions.py, too."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rasterio.features import sieve as gdal_sieve
from scipy import ndimage

from segpipe.results.cleaning.regions import Regions, connected
from segpipe.results.cleaning.sieve import Sieve, follow

NODATA = 255


def sieved(labels: NDArray[Any], least: int, rows: int, weights: NDArray[Any] | None = None) -> NDArray[Any]:
    starts = (*range(0, len(labels), rows), len(labels))

    def weigh(start: int, stop: int) -> NDArray[Any] | None:
        return None if weights is None else weights[start:stop]

    return np.concatenate(list(Sieve(lambda a, b: labels[a:b], weigh, least, NODATA, starts).slabs()))


def brute(labels: NDArray[Any], least: int, weights: NDArray[Any]) -> NDArray[Any]:
    """Regions, sizes and neighbours of a whole array, element by element."""
    region, count = np.zeros(labels.shape, int), 0
    for value in np.unique(labels[labels != NODATA]):
        found, n = ndimage.label(labels == value)
        region[found > 0] = found[found > 0] + count
        count += n
    size = np.bincount(region.ravel(), np.broadcast_to(weights, labels.shape).ravel(), count + 1)
    best: dict[int, int] = {}
    for place in np.ndindex(labels.shape):
        for axis in range(labels.ndim):
            before = tuple(p - (k == axis) for k, p in enumerate(place))
            if min(before) < 0 or 0 in (one := region[place], other := region[before]) or one == other:
                continue
            for a, b in ((one, other), (other, one)):
                if a not in best or size[b] > size[best[a]]:
                    best[a] = b
    result = labels.copy()
    for one in range(1, count + 1):
        seen, last = {one}, one
        while size[last] < least and best.get(last, one) not in seen:
            last = best[last]
            seen.add(last)
        if size[last] >= least:
            result[region == one] = labels[region == last].flat[0]
    return result


def patches(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    labels = rng.integers(0, 4, shape).astype(np.uint8)
    if rng.random() < 0.5:
        labels = np.repeat(np.repeat(labels, 2, 0), 3, 1)
    labels[rng.random(labels.shape) < 0.1 * rng.integers(2)] = NODATA
    return labels


def test_by_hand():
    labels = np.array([[1, 1, 2], [1, 3, 2], [1, 4, 4]], np.uint8)
    assert np.array_equal(sieved(labels, 2, 1), [[1, 1, 2], [1, 1, 2], [1, 4, 4]])
    # 2 and 4 have two pixels each: 2 takes 1, its largest; 4 takes 1, too; 3 goes to 1
    assert (sieved(labels, 3, 2) == 1).all()
    # none is large enough: all stay
    assert np.array_equal(sieved(labels, 5, 2), labels)
    # a region in nodata stays, and nodata neither grows nor shrinks
    lone = np.array([[1, NODATA, 2], [NODATA, NODATA, 2], [3, 3, 3]], np.uint8)
    assert np.array_equal(sieved(lone, 3, 3), [[1, NODATA, 3], [NODATA, NODATA, 3], [3, 3, 3]])


def test_of_equal_neighbours_the_first_by_rows_counts():
    assert sieved(np.array([[1, 1, 3, 2, 2]], np.uint8), 2, 1).tolist() == [[1, 1, 1, 2, 2]]
    assert sieved(np.array([[2], [2], [3], [1], [1]], np.uint8), 2, 1).ravel().tolist() == [2, 2, 2, 1, 1]
    both = np.array([[5, 5, 5], [7, 3, 9], [7, 7, 9]], np.uint8)  # 5 is above, 7 is left, and both have three pixels
    assert sieved(both, 2, 1)[1, 1] == gdal_sieve(both, 2)[1, 1] == 5


@pytest.mark.parametrize("seed", range(300))
def test_slabs_of_any_height_give_the_labels_of_gdal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = patches(rng, tuple(rng.integers(2, 25, 2)))
    least, rows = int(rng.integers(1, min(12, labels.size))), int(rng.integers(1, 9))
    expected = gdal_sieve(labels, least, mask=labels != NODATA, connectivity=4)
    assert np.array_equal(sieved(labels, least, rows), expected)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("axes", [2, 3])
def test_sizes_of_elements_count_and_volumes_have_planes(seed: int, axes: int) -> None:
    rng = np.random.default_rng(seed)
    labels = patches(rng, tuple(rng.integers(2, 9, axes)))
    weights = rng.integers(1, 9, (len(labels), *(1,) * (axes - 1)))
    least = int(rng.integers(1, 40))
    expected = brute(labels, least, weights)
    for rows in (1, 3, 99):
        assert np.array_equal(sieved(labels, least, rows, weights), expected)


def test_chains_end_or_return_to_themselves():
    # 0 -> 1 -> code, 2 <-> 3, 4 -> 2, 5 stays
    assert follow(np.array([1, -7, 3, 2, 2, -1])).tolist() == [-7, -7, -1, -1, -1, -1]


def test_regions_are_numbered_by_their_first_element():
    found = Regions.of(np.array([[1, 2, 1], [1, 1, 1], [2, 2, 1]]))
    assert found.numbers.tolist() == [[0, 1, 0], [0, 0, 0], [2, 2, 0]]
    assert found.values.tolist() == [1, 2, 2]
    assert connected(5, (np.array([4, 3]), np.array([2, 4]))).tolist() == [0, 1, 2, 2, 2]
