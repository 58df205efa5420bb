"""Which cases of a map share ground, so that a sample may find the same place twice."""

from collections.abc import Iterator, Sequence

import numpy as np

from segpipe.accuracy.population import Population
from segpipe.geometry.extents import extent, meeting
from segpipe.geometry.grid import Grid
from segpipe.geometry.ground import Ground
from segpipe.geometry.lookup import common, to_pixels
from segpipe.geometry.raster_grid import ground_of
from segpipe.results.overlap.shared import grid_key

POINTS = 200
"""Along each axis of the part of a case in which another one may lie."""
LEAST = 1e-4
"""Share of the smaller case that two must have in common: edges of neighbours differ a little from CRS to CRS."""

Placed = tuple[Ground, tuple[int, ...]]
"""Ground and shape of a grid."""


def overlapping(population: Population) -> Iterator[tuple[str, str]]:
    """Names of each two cases whose grids share ground."""
    for a, b in sharing(list(_grids(population))):
        yield population.cases[a].case, population.cases[b].case


def _grids(population: Population) -> Iterator[Grid]:
    for record in population.cases:
        with population.open(record) as mask:
            yield mask.grid


def sharing(grids: Sequence[Grid]) -> Iterator[tuple[int, int]]:
    """Yield each pair of grids that share ground, in order. Lazily: 5,000 scenes of one place have 12 million pairs."""
    placed = [(ground_of(grid), grid.shape) for grid in grids]
    extents = np.array([extent(*one) for one in placed])
    keys = [grid_key(*one) for one in placed]
    known: dict[tuple[object, object], bool] = {}  # scenes of a time series are all on one grid, or on few

    def are_sharing(a: int, b: int) -> bool:
        pair = keys[a], keys[b]
        if pair not in known:
            known[pair] = max(_share(placed[a], placed[b]), _share(placed[b], placed[a])) > LEAST
        return known[pair]

    for a, others in enumerate(meeting(extents)):
        yield from ((a, int(b)) for b in others if a < b and are_sharing(a, int(b)))


def _share(one: Placed, other: Placed) -> float:
    """Share of a grid that another one covers, from points spread over the part in which it may lie."""
    (ground, shape), (theirs, their_shape) = one, other
    part = common(theirs, their_shape, ground, shape)
    if part is None:
        return 0.0
    rows, cols = (
        np.linspace(start, stop, POINTS, endpoint=False) + (stop - start) / POINTS / 2
        for start, stop in zip(part.start, part.stop, strict=True)
    )
    x, y = ground.coordinates(*np.meshgrid(rows, cols, indexing="ij"))
    place = to_pixels(ground, theirs, their_shape)(np.column_stack([x.ravel(), y.ravel()]))
    with np.errstate(invalid="ignore"):
        inside = ((place > 0) & (place < their_shape[::-1])).all(axis=1)
    return float(inside.mean() * np.prod(part.shape) / np.prod(shape))
