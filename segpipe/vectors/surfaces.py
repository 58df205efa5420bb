"""Repair polygons, with a list of problems for each: nothing is left out silently."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS

SURFACES = (3, 6)
"""GEOS type ids of Polygon and MultiPolygon."""
MOST_DEGREES = 180.0
"""A ring's edge that spans more degrees of longitude than this takes the other way, across the antimeridian."""

Shapes = NDArray[Any]
"""Shapely geometries; ``dtype`` is object."""


def all_empty(shapes: Shapes) -> bool:
    """Whether no shape has an area."""
    import shapely

    return bool(shapely.is_empty(shapes).all())


def repaired(shapes: Shapes, crs: CRS) -> tuple[Shapes, list[list[str]]]:
    """Valid polygons without heights, and the problems of each."""
    import shapely

    problems: list[list[str]] = [[] for _ in shapes]
    shapes = shapely.force_2d(shapes)
    for which, repair in (
        (_absent, _emptied),
        (_endless, _emptied),
        (_not_surfaces, surfaces),
        (_crossing(crs), _unwrapped),
        (_invalid, _made_valid),
        (_flat, _emptied),
    ):
        found, words = which(shapes)
        at = np.flatnonzero(found)
        for k, text in zip(at, words, strict=True):
            problems[k].append(text)
        if at.size:
            shapes[at] = repair(shapes[at])
    return shapes, problems


Found = tuple[NDArray[np.bool_], list[str]]


def _emptied(shapes: Shapes) -> Shapes:
    import shapely

    return np.full(len(shapes), shapely.Polygon(), object)


def _absent(shapes: Shapes) -> Found:
    import shapely

    found = shapely.is_missing(shapes) | shapely.is_empty(shapes)
    return found, ["no geometry" if shape is None else "empty geometry" for shape in shapes[found]]


def _endless(shapes: Shapes) -> Found:
    """Select geometries with coordinates that are not finite."""
    import shapely

    coordinates, index = shapely.get_coordinates(shapes, return_index=True)
    found = np.zeros(len(shapes), np.bool_)
    found[index[~np.isfinite(coordinates).all(axis=1)]] = True
    return found, ["coordinates are not finite"] * int(found.sum())


def _not_surfaces(shapes: Shapes) -> Found:
    import shapely

    found = ~np.isin(shapely.get_type_id(shapes), SURFACES) & ~shapely.is_empty(shapes)
    words = [
        f"{shape.geom_type} instead of a polygon" if shapely.is_empty(own) else f"{shape.geom_type}: only its polygons count"
        for shape, own in zip(shapes[found], surfaces(shapes[found]), strict=True)
    ]
    return found, words


def surfaces(shapes: Shapes) -> Shapes:
    """Reduce each geometry to its polygons, merged into one geometry."""
    import shapely

    return np.array([_polygons_of(shape) for shape in shapes] or [shapely.Polygon()], object)[: len(shapes)]


def _polygons_of(shape: Any) -> Any:
    import shapely

    parts = (
        shapely.get_parts(shapely.get_parts(shape)) if shape.geom_type == "GeometryCollection" else shapely.get_parts(shape)
    )
    kept = [part for part in np.atleast_1d(parts) if part.geom_type == "Polygon"]
    return shapely.union_all(kept) if kept else shapely.Polygon()


def _crossing(crs: CRS) -> Callable[[Shapes], Found]:
    """Select rings with an edge over more than half a turn of longitude: they cross the antimeridian."""

    def found(shapes: Shapes) -> Found:
        import shapely

        crossing = np.zeros(len(shapes), np.bool_)
        if not crs.is_geographic:
            return crossing, []
        width = shapely.bounds(shapes)[:, 2] - shapely.bounds(shapes)[:, 0]
        wide = np.flatnonzero(width > MOST_DEGREES)
        crossing[wide] = [any(_leaps(ring) for ring in _rings(shape)) for shape in shapes[wide]]
        return crossing, ["crosses the antimeridian: long edges taken the short way"] * int(crossing.sum())

    return found


def _rings(shape: Any) -> Iterator[Any]:
    import shapely

    yield from shapely.get_rings(shapely.get_parts(shape))  # a MultiPolygon itself has none


def _leaps(ring: Any) -> bool:
    import shapely

    steps = np.abs(np.diff(shapely.get_coordinates(ring)[:, 0]))
    return bool(((steps > MOST_DEGREES) & (steps < 2 * MOST_DEGREES)).any())


def _unwrapped(shapes: Shapes) -> Shapes:
    """Shift western longitudes of rings that cross the antimeridian east by a turn."""
    import shapely

    def moved(coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([coordinates[:, 0] % (2 * MOST_DEGREES), coordinates[:, 1]])

    return np.asarray(shapely.transform(shapes, moved))


def _invalid(shapes: Shapes) -> Found:
    import shapely

    found = ~shapely.is_valid(shapes)
    return found, [f"repaired: {reason}" for reason in shapely.is_valid_reason(shapes[found])]


def _made_valid(shapes: Shapes) -> Shapes:
    import shapely

    return surfaces(shapely.make_valid(shapes))


def _flat(shapes: Shapes) -> Found:
    import shapely

    found = (shapely.area(shapes) == 0) & ~shapely.is_empty(shapes)
    return found, ["no area"] * int(found.sum())


def digest_of(shapes: Shapes, crs: CRS) -> str:
    """Hash of shapes and CRS."""
    import shapely

    found = hashlib.sha256(crs.to_wkt().encode())
    for one in shapely.to_wkb(shapes):
        found.update(one)
    return found.hexdigest()


def bounds_of(shapes: Shapes) -> tuple[float, float, float, float]:
    """Least x and y, largest x and y, over all polygons."""
    import shapely

    west, south, east, north = shapely.total_bounds(shapes)
    return float(west), float(south), float(east), float(north)
