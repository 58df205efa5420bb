"""Draw a stratified random sample of the pixels of a map, reading its masks once, a strip at a time.

Pixels of a stratum are numbered along the rows of the cases in the order of their names. The records say how many there are,
so the numbers are drawn first, each with the same probability and none twice; then the masks are searched for them. Neither
blocks nor the order of cases matter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segpipe.accuracy.population import BLOCK_ROWS, Population, strips
from segpipe.array_types import Float, Integers
from segpipe.errors import OutputError
from segpipe.formats.registry import OpenMask
from segpipe.geometry.cells import Cells
from segpipe.messages.printable import printable
from segpipe.results.schema import Record

Places = NDArray[np.int64]
"""Row and column of pixels, shape ``(pixels, 2)``."""


@dataclass(frozen=True, slots=True)
class DrawnPixel:
    """A pixel of the sample."""

    case: str
    row: int
    col: int
    stratum: int
    """Position in the list of classes."""
    area: float
    """In the unit of the population."""
    x: float
    y: float
    """Centre in ``crs``."""
    crs: str


def draw(population: Population, sizes: Integers, seed: int, rows: int = BLOCK_ROWS) -> list[DrawnPixel]:
    """A simple random sample of each stratum, in an order that says nothing about the strata.

    Args:
        population: the map.
        sizes: of the sample in each class.
        seed: of everything that is drawn.
        rows: that are read at once.

    Raises:
        OutputError: a mask is not as its record says.
    """
    numbers = [
        _ranks(int(total), int(n), seed, k) for k, (total, n) in enumerate(zip(population.pixels.sum(0), sizes, strict=True))
    ]
    before = np.cumsum(population.pixels, axis=0) - population.pixels
    units = list[DrawnPixel]()
    for case, record in enumerate(population.cases):
        own = [
            _within(each, first, n) for each, first, n in zip(numbers, before[case], population.pixels[case], strict=True)
        ]
        if any(len(each) for each in own):
            units.extend(_of_case(population, record, own, rows))
    return [units[k] for k in np.random.default_rng([seed, len(sizes)]).permutation(len(units))]


def _ranks(total: int, n: int, seed: int, stratum: int) -> Integers:
    """Numbers of the pixels that are drawn, in ascending order."""
    return np.sort(np.random.default_rng([seed, stratum]).choice(total, n, replace=False))


def _within(numbers: Integers, first: int, count: int) -> Integers:
    """Those of one case, counted from its own first pixel."""
    low, high = np.searchsorted(numbers, [first, first + count])
    return np.asarray(numbers[low:high] - first)


def _of_case(population: Population, record: Record, numbers: list[Integers], rows: int) -> Iterator[DrawnPixel]:
    with population.open(record) as mask:
        found = _find(mask, population.ids, numbers, rows)
        if sum(map(len, found)) < sum(map(len, numbers)):
            name = printable(record.case)
            raise OutputError(f"the mask of {name} must have the pixels of its record, and has fewer: run it again")
        for stratum, places in enumerate(found):
            yield from units_at(mask, record, np.full(len(places), stratum), places)


def _find(mask: OpenMask, ids: Sequence[int], numbers: list[Integers], rows: int) -> list[Places]:
    """Row and column of the pixels of each class with these numbers."""
    found: list[list[Places]] = [[np.empty((0, 2), np.int64)] for _ in ids]
    seen, wanted = [0] * len(ids), [len(own) for own in numbers]
    for top, labels in strips(mask, rows):
        for k in (k for k, number in enumerate(wanted) if number):
            there = np.flatnonzero(labels == ids[k])
            low, high = np.searchsorted(numbers[k], [seen[k], seen[k] + len(there)])
            row, col = np.divmod(there[numbers[k][low:high] - seen[k]], labels.shape[1])
            found[k].append(np.stack([row + top, col], axis=1))
            seen[k] += len(there)
            wanted[k] -= int(high - low)
        if not any(wanted):
            break
    return [np.concatenate(each) for each in found]


def units_at(mask: OpenMask, record: Record, strata: Integers, places: Places) -> Iterator[DrawnPixel]:
    """The units at pixels of a case, with their areas and their centres."""
    grid = mask.grid
    world, crs = grid.world(places.astype(np.float64)), str(grid)
    assert world is not None
    areas = pixel_areas(mask, places)
    for stratum, (row, col), area, (x, y) in zip(strata, places, areas, world, strict=True):
        yield DrawnPixel(
            case=record.case,
            row=int(row),
            col=int(col),
            stratum=int(stratum),
            area=float(area),
            x=float(x),
            y=float(y),
            crs=crs,
        )


def pixel_areas(mask: OpenMask, places: Places) -> Float:
    """Area of pixels in hectares, as the area tables count them."""
    measure = mask.grid.measure
    assert measure is not None
    cells = Cells.of(measure, mask.grid.shape, 1)
    at = [places[:, axis] // side if cells.sizes.shape[axis] > 1 else 0 for axis, side in enumerate(cells.side)]
    return np.asarray(np.broadcast_to(cells.sizes[tuple(at)], len(places)) / measure.per_unit)
