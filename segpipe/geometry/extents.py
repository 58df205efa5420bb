"""Which grids on the Earth may share ground, whatever their CRSs."""

import numpy as np

from segpipe.geometry.grid import Float
from segpipe.geometry.ground import Ground

SAMPLES, FEW_SAMPLES = 65, 9
"""Points along each axis of a grid that are transformed to find its extent; few for grids up to ``SMALL_METRES``."""
SMALL_METRES = 500e3
"""Between nine points along 500 km the surface of the Earth rises by less than 100 m, a hundredth of the margin."""
MARGIN = 0.02
"""Margin around the points that are transformed to find the extent of a grid, as a share of that extent."""


def extent(ground: Ground, shape: tuple[int, ...]) -> Float:
    """Least and largest geocentric coordinates of a grid in m, ``(2, 3)``, with a margin; NaN off the Earth."""
    sides = (n * size for n, size in zip(shape, ground.nominal, strict=True))
    samples = FEW_SAMPLES if max(sides) < SMALL_METRES else SAMPLES
    axes = [np.linspace(0, size, samples) for size in shape]
    points = ground.points(*np.meshgrid(*axes, indexing="ij")).reshape(-1, 3)
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        return np.full((2, 3), np.nan)
    least, most = points.min(axis=0), points.max(axis=0)
    margin = MARGIN * float((most - least).max())
    return np.stack([least - margin, most + margin])


def meeting(extents: Float) -> list[list[int]]:
    """For each of some grids, ``(grids, 2, 3)``, the others that may share ground with it, in order.

    Grids are sorted along one axis, so that 100,000 scenes are compared with their surroundings only.
    """
    if not len(extents) or np.isnan(extents).all():
        return [[] for _ in extents]
    axis = int(np.nanargmax(np.nanmax(extents[:, 0], axis=0) - np.nanmin(extents[:, 0], axis=0)))
    order = np.argsort(extents[:, 0, axis])  # NaN last
    starts = extents[order, 0, axis]
    widest = float(np.nanmax(extents[:, 1, axis] - extents[:, 0, axis]))
    found = []
    for k, (least, most) in enumerate(extents):
        first, last = np.searchsorted(starts, least[axis] - widest), np.searchsorted(starts, most[axis], "right")
        near = order[first:last]
        both = (extents[near, 0] <= most).all(axis=1) & (extents[near, 1] >= least).all(axis=1) & (near != k)
        found.append(np.sort(near[both]).tolist())
    return found
