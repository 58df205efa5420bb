"""Move polygons into the pixels of a grid: select, clip, add vertices so that edges stay straight on the ground, transform.

A grid in pixels has no rotation, whatever its transform, so that one path serves all grids.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.enums import TransformDirection

from segpipe.array_types import Float
from segpipe.geometry.extents import SAMPLES
from segpipe.geometry.ground import Ground
from segpipe.geometry.lookup import PixelsOf, wrap_length
from segpipe.geometry.reference import EARTH_RADIUS, CrsFacts, transformer
from segpipe.vectors.surfaces import SURFACES, Shapes, surfaces

MARGIN = 0.02
"""Margin around the extent of these points in another CRS, as a share of its width and height."""
MOST_DEVIATION = 0.01
"""Largest distance in pixels between an edge that is straight in one CRS and its curve in the other. An edge of L m along a
circle of radius R deviates from its chord by L²/8R; a parallel at 76 degrees of latitude has R = EARTH_RADIUS / 4."""

LONG = 4
"""An edge in pixels may run across the map if it is longer than this many times the longest edge on the ground."""
MANY = 1000
"""Vertices of a polygon, such as a country, of which an index is worth its time."""
LARGE = 64
"""Smallest polygon, in pixels, that is checked for being inside out: the orientation of slivers is uncertain."""


@dataclass(frozen=True, eq=False)
class PlacedPolygons:
    """Polygons in the pixels of a grid: x is the column, y the number of rows above the bottom edge, both from 0."""

    index: NDArray[np.intp]
    """Index of each shape's zone; a zone that crosses the antimeridian may have several shapes."""
    shapes: Shapes
    share: Float
    """Share of the zone's area, in its own CRS, that each of ``shapes`` covers; the rest is far from the grid."""
    lost: NDArray[np.intp]
    """Zones that the projection of the grid cannot represent."""


def place(shapes: Shapes, crs: CRS, ground: Ground, shape: tuple[int, ...]) -> PlacedPolygons:
    """The polygons in ``crs`` that may touch a grid, in its pixels."""
    import shapely

    own = CrsFacts(crs, crs.name)
    between = None if own.crs.equals(ground.reference.crs) else _between(own, ground.reference)
    pieces = list(_near(shapes, _footprint(ground, shape, own, between), wrap_length(own)))
    index = np.concatenate([np.zeros(0, np.intp), *(which for which, _ in pieces)])
    near = np.concatenate([np.zeros(0, object), *(found for _, found in pieces)])
    share = shapely.area(near) / shapely.area(shapes)[index]
    if between is not None:
        near = np.asarray(shapely.segmentize(near, longest_edge(ground) / own.metres))
    coordinates, owner = shapely.get_coordinates(near, return_index=True)
    to_pixels = PixelsOf(ground, shape, between)
    moved = to_pixels(coordinates)
    fit = np.ones(len(near), np.bool_)
    fit[owner[~np.isfinite(moved).all(axis=1)]] = False  # GEOS takes no ring with such a vertex
    if between is not None:
        long = LONG * longest_edge(ground) / min(ground.nominal)
        fit[owner[_torn(near, coordinates, moved, to_pixels=to_pixels, long=long)]] = False
    placed = np.asarray(shapely.set_coordinates(near[fit], moved[fit[owner]]))
    if between is not None and (outward := _inverted(near[fit], placed, to_pixels)).any():
        fit[np.flatnonzero(fit)[outward]], placed = False, placed[~outward]
    return PlacedPolygons(index[fit], placed, share[fit], np.unique(index[~fit]))


def _torn(shapes: Shapes, points: Float, moved: Float, *, to_pixels: PixelsOf, long: float) -> NDArray[np.intp]:
    """Find edges that the projection tears: they run across the whole map, although their ends are close on the Earth.

    The midpoint of such an edge on the ground is projected far from the midpoint of its projected ends.

    Args:
        shapes: polygons, with short edges.
        points: coordinates of all their vertices.
        moved: the same vertices in pixels.
        to_pixels: transforms coordinates to pixels.
        long: length in pixels; shorter edges are not torn.

    Returns:
        Indices of the first vertices of these edges.
    """
    import shapely

    with np.errstate(invalid="ignore"):
        length = np.hypot(*np.diff(moved, axis=0).T)
    if not (length > long).any():
        return np.zeros(0, np.intp)
    # the steps between rings are not edges
    length[np.cumsum(shapely.get_num_coordinates(shapely.get_rings(shapely.get_parts(shapes))))[:-1] - 1] = 0
    found = np.flatnonzero(length > long)
    middle, between = to_pixels((points[found] + points[found + 1]) / 2), (moved[found] + moved[found + 1]) / 2
    return np.asarray(found[~(2 * np.hypot(*(middle - between).T) <= length[found])])


def _inverted(shapes: Shapes, placed: Shapes, to_pixels: PixelsOf) -> NDArray[np.bool_]:
    """Whether the projection turns each polygon inside out, as a map of one pole does with a polygon around the other.

    The orientation of its outer ring then changes, but not that of a small triangle at its first vertex, or the reverse.
    """
    import shapely

    parts, owner = shapely.get_parts(shapes, return_index=True)
    rings, moved = (shapely.get_exterior_ring(one) for one in (parts, shapely.get_parts(placed)))
    large = shapely.area(shapely.polygons(moved)) > LARGE
    rings, moved, owner = rings[large], moved[large], owner[large]
    start = shapely.get_coordinates(shapely.get_point(rings, 0))
    side = (shapely.get_coordinates(shapely.get_point(rings, 1)) - start) / 2
    (a, b), (c, d) = (to_pixels(start + one).T - to_pixels(start).T for one in (side, side[:, ::-1] * (-1, 1)))
    mirrored = shapely.is_ccw(rings) != shapely.is_ccw(moved)
    found = np.zeros(len(shapes), np.bool_)
    with np.errstate(invalid="ignore"):
        found[owner[np.where(mirrored, a * d > b * c, a * d < b * c)]] = True
    return found


def touches(shapes: Shapes, crs: CRS, ground: Ground, shape: tuple[int, ...]) -> bool:
    """Whether any polygon may lie on a grid."""
    own = CrsFacts(crs, crs.name)
    between = None if own.crs.equals(ground.reference.crs) else _between(own, ground.reference)
    return any(len(index) for index, _ in _near(shapes, _footprint(ground, shape, own, between), wrap_length(own)))


def _between(zones: CrsFacts, grid: CrsFacts) -> Transformer:
    return transformer(zones.crs, grid.crs)


def longest_edge(ground: Ground) -> float:
    """Length in metres of the longest edge that needs no more vertices."""
    return math.sqrt(8 * EARTH_RADIUS / 4 * MOST_DEVIATION * min(ground.nominal))


@dataclass(frozen=True)
class _Bounds:
    """Extent of a grid in the CRS of the zones; x of a grid across the antimeridian exceeds the usual range."""

    west: float
    south: float
    east: float
    north: float


def _footprint(ground: Ground, shape: tuple[int, ...], own: CrsFacts, between: Transformer | None) -> _Bounds | None:
    """Extent of a grid in another CRS; None if no point of it exists there."""
    axes = [np.linspace(0, size, SAMPLES) for size in shape]
    x, y = (values.ravel() for values in ground.coordinates(*np.meshgrid(*axes, indexing="ij")))
    if between is not None:
        x, y = between.transform(x, y, direction=TransformDirection.INVERSE)
    there = np.isfinite(x) & np.isfinite(y)
    if not there.any():
        return None
    x, y = x[there], y[there]
    if turn := wrap_length(own):
        x = x - turn * np.rint((x - x[len(x) // 2]) / turn)
    return _with_margin(x, y, turn, _poles(ground, shape, own, between))


def _poles(ground: Ground, shape: tuple[int, ...], own: CrsFacts, between: Transformer | None) -> list[float]:
    """Latitudes of the poles that lie on a grid, in the unit of the zones."""
    if between is None or not own.is_plain:
        return []
    quarter = math.pi / 2 / own.radians
    inverse = ~ground.transform
    found = []
    for pole in (-quarter, quarter):
        x, y = between.transform(0.0, pole)
        if math.isfinite(x) and math.isfinite(y):
            col, row = inverse * (x, y)
            found += [pole] if 0 <= row <= shape[0] and 0 <= col <= shape[1] else []
    return found


def _with_margin(x: Float, y: Float, turn: float, poles: list[float]) -> _Bounds:
    wide, tall = MARGIN * np.ptp(x), MARGIN * np.ptp(y)
    west, east, south, north = x.min() - wide, x.max() + wide, y.min() - tall, y.max() + tall
    if poles or (turn and east - west > turn):
        middle = (west + east) / 2
        west, east = middle - turn / 2, middle + turn / 2
    return _Bounds(float(west), float(min([south, *poles])), float(east), float(max([north, *poles])))


def _near(shapes: Shapes, box: _Bounds | None, turn: float) -> Iterator[tuple[NDArray[np.intp], Shapes]]:
    """The polygons that touch a box, or the box shifted by a full turn, clipped to it."""
    import shapely

    if box is None:
        return
    bounds = shapely.bounds(shapes)
    for shift in (0.0, -turn, turn) if turn else (0.0,):
        edges = np.array([box.west + shift, box.south, box.east + shift, box.north])
        with np.errstate(invalid="ignore"):
            touching = (bounds[:, :2] < edges[2:]).all(axis=1) & (bounds[:, 2:] > edges[:2]).all(axis=1)
            within = touching & (bounds[:, :2] >= edges[:2]).all(axis=1) & (bounds[:, 2:] <= edges[2:]).all(axis=1)
        index = np.flatnonzero(touching)
        found = shapes[index].copy()
        cut = ~within[index]
        found[cut] = _clipped(found[cut], edges)
        kept = shapely.area(found) > 0
        yield index[kept], _moved(found[kept], -shift)


def _clipped(shapes: Shapes, edges: Float) -> Shapes:
    """The parts of polygons within a box; an edge along its border leaves a line, which is dropped."""
    import shapely

    box = shapely.box(*edges)
    found, cut = np.full(len(shapes), box, object), ~_surely_around(shapes, box)
    found[cut] = shapely.intersection(shapes[cut], box)
    mixed = ~np.isin(shapely.get_type_id(found), SURFACES)
    found[mixed] = surfaces(found[mixed])
    return found


def _surely_around(shapes: Shapes, box: object) -> NDArray[np.bool_]:
    """Which polygons of many vertices hold a box: GEOS indexes each once, and intersections take time for each vertex."""
    import shapely

    many = shapely.get_num_coordinates(shapes) > MANY
    shapely.prepare(shapes[many])
    many[many] = shapely.contains_properly(shapes[many], box)
    return np.asarray(many)


def _moved(shapes: Shapes, shift: float) -> Shapes:
    import shapely

    return np.asarray(shapely.transform(shapes, lambda xy: xy + np.array([shift, 0.0]))) if shift else shapes
