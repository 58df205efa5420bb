"""Which grids on the Earth may share ground, whatever their CRSs."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Float
from segpipe.geometry.ground import Ground

SAMPLES, FEW_SAMPLES = 65, 9
"""Points along each axis of a grid that are transformed to find its extent; few for grids up to ``SMALL_METRES``."""
SMALL_METRES = 500e3
"""Between nine points along 500 km the surface of the Earth rises by less than 100 m, a hundredth of the margin."""
TOUCHING = 1e-3
"""Share of a pixel by which rectangles may overlap and still share no pixel's centre: rounding of their coordinates."""
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


def are_apart(one: Ground, shape: tuple[int, ...], other: Ground, other_shape: tuple[int, ...]) -> bool:
    """Whether two grids of one CRS surely share no pixel: their rectangles are disjoint, or touch.

    False where that does not show: in two CRSs, on rotated grids, and on maps whose coordinates go beyond a turn around the
    Earth, where one place has two coordinates.
    """
    if one.reference.crs is not other.reference.crs and one.reference.crs != other.reference.crs:
        return False
    first, second = _rectangle(one, shape), _rectangle(other, other_shape)
    if first is None or second is None:
        return False
    shared = np.minimum(first[1], second[1]) - np.maximum(first[0], second[0])
    return bool((shared < TOUCHING * min(one.pixel_extent + other.pixel_extent)).any())


def _rectangle(ground: Ground, shape: tuple[int, ...]) -> Float | None:
    """Least and largest coordinates, ``(2, 2)``; None if they are no rectangle, or are not unique on the map."""
    t = ground.transform
    if t.b or t.d:
        return None
    x, y = ground.coordinates(np.array([0.0, shape[0]]), np.array([0.0, shape[1]]))
    reference = ground.reference
    half = math.pi / reference.radians if reference.crs.is_geographic else reference.turn / 2
    if half and np.abs(x).max() > half * (1 + 1e-9):
        return None
    return np.array([[x.min(), y.min()], [x.max(), y.max()]])


def meeting(extents: Float) -> Iterator[NDArray[np.intp]]:
    """For each of some grids, ``(grids, 2, 3)``, the others that may share ground with it, in order.

    Grids are sorted along one axis, so that 100,000 scenes are compared with their surroundings only.
    """
    if not len(extents) or np.isnan(extents).all():
        yield from (np.empty(0, np.intp) for _ in extents)
        return
    axis = int(np.nanargmax(np.nanmax(extents[:, 0], axis=0) - np.nanmin(extents[:, 0], axis=0)))
    order = np.argsort(extents[:, 0, axis])  # NaN last
    starts = extents[order, 0, axis]
    widest = float(np.nanmax(extents[:, 1, axis] - extents[:, 0, axis]))
    for k, (least, most) in enumerate(extents):
        first, last = np.searchsorted(starts, least[axis] - widest), np.searchsorted(starts, most[axis], "right")
        near = order[first:last]
        both = (extents[near, 0] <= most).all(axis=1) & (extents[near, 1] >= least).all(axis=1) & (near != k)
        yield np.sort(near[both])
