"""Convex outlines of components, slice by slice, and the diameters that they determine.

Points are indices ``(slice, row, column)`` of voxels. The convex hull of a union is the hull of the hulls' vertices, so
outlines of boxes and parts can be merged in any order. The vertices are exact, since all arithmetic is on integers.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from segpipe.array_types import Float, Integers

PAIRS = 2**20
"""Most distances that are computed at once."""
FEW = 64
"""Most points, or pairs, that are not worth filtering."""
HALF = np.concatenate([0.5 * np.eye(3), -0.5 * np.eye(3)])
"""Offsets from the centre of a voxel to the centres of its faces."""
IN_PLANE = HALF[[1, 2, 4, 5]]


def outline(owner: Integers, point: Integers, shape: tuple[int, ...]) -> tuple[Integers, Integers]:
    """Reduce each owner's points to the vertices of the convex hull of each slice.

    Args:
        owner: component of each point.
        point: flat index of each point in a volume of this shape.
        shape: slices, rows, columns.

    Returns:
        Owners and points, sorted, each once.
    """
    order = np.lexsort((point, owner))
    owner, point = owner[order], point[order]
    row = point // shape[2]
    ends = (owner[1:] != owner[:-1]) | (row[1:] != row[:-1])
    first, last = np.append(True, ends), np.append(ends, True)
    if not len(owner):
        return owner, point
    left = _chain(owner[first], point[first], shape, side=1)
    right = _chain(owner[last], point[last], shape, side=-1)
    owner, point = (np.concatenate(pair) for pair in zip(left, right, strict=True))
    order = np.lexsort((point, owner))
    owner, point = owner[order], point[order]
    new = np.append(True, (owner[1:] != owner[:-1]) | (point[1:] != point[:-1]))
    return owner[new], point[new]


def _chain(owner: Integers, point: Integers, shape: tuple[int, ...], side: int) -> tuple[Integers, Integers]:
    """Remove, from chains of one point per row, points on or inside the line between their neighbours, until none is left.

    A vertex of the hull never lies there, so all such points can be removed at once.
    """
    while len(owner) > 2:
        line, column = point // shape[2], side * (point % shape[2])
        plane = line // shape[1]
        same = (owner[2:] == owner[:-2]) & (plane[2:] == plane[:-2])
        # compare the middle point with the line from the previous to the next one
        (down, along), (down_all, along_all) = _from_first(line, column, 1), _from_first(line, column, 2)
        kept = np.append(np.append(True, ~same | (along * down_all < along_all * down)), True)
        if kept.all():
            break
        owner, point = owner[kept], point[kept]
    return owner, point


def _from_first(line: Integers, column: Integers, steps: int) -> tuple[Integers, Integers]:
    """Differences from the first of each three consecutive points to the one ``steps`` further."""
    end = len(line) - 2
    return line[steps : steps + end] - line[:end], column[steps : steps + end] - column[:end]


def places(point: Integers, shape: tuple[int, ...]) -> Integers:
    """Indices ``(points, 3)`` of flat indices."""
    return np.stack(np.unravel_index(point, shape), axis=-1).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Diameters:
    """Lengths of a component, in the unit of its grid's steps."""

    longest: float
    """Longest distance in space."""
    in_plane: float
    """Longest distance within a slice."""
    perpendicular: float
    """Extent perpendicular to it in the same slice."""
    plane: int
    """The slice, counted from the slice of the first point."""


class Ruler:
    """Measures components of one grid; small ones of equal shape, of which noise has thousands, only once.

    Args:
        steps: matrix ``(3, 3)`` whose columns are the steps along slices, rows and columns.
    """

    def __init__(self, steps: Float) -> None:
        self._steps = steps
        self._of_small = lru_cache(2**12)(lambda data: self._measure(np.frombuffer(data, np.int64).reshape(-1, 3)))

    def __call__(self, points: Integers) -> Diameters:
        """The diameters of the vertices ``(points, 3)`` of a component's outlines, sorted."""
        form = np.ascontiguousarray(points - points[0])
        return self._of_small(form.tobytes()) if len(form) <= FEW else self._measure(form)

    def _measure(self, form: Integers) -> Diameters:
        return Diameters(space_diameter(form, self._steps), *plane_diameters(form, self._steps))


def space_diameter(points: Integers, steps: Float) -> float:
    """The longest distance between two faces' centres of voxels ``(points, 3)``, in the unit of ``steps``.

    Args:
        points: vertices of the outlines of a component.
        steps: matrix ``(3, 3)`` whose columns are the steps along slices, rows and columns.
    """
    return float(_farthest(_corners(points), steps, HALF)[0])


def _corners(points: Integers) -> Integers:
    """The vertices of the outlines along all three axes, which include the vertices of the convex hull: the ends of the
    longest distance."""
    if len(points) <= FEW:
        return points
    for turn in ((1, 0, 2), (2, 0, 1)):
        low = points.min(axis=0)
        turned = (points - low)[:, turn]
        shape = tuple(turned.max(axis=0) + 1)
        _, flat = outline(np.zeros(len(turned), np.int64), np.ravel_multi_index(tuple(turned.T), shape), shape)
        points = places(flat, shape)[:, np.argsort(turn)] + low
    return points


def plane_diameters(points: Integers, steps: Float) -> tuple[float, float, int]:
    """The longest distance within a slice, the extent perpendicular to it in the same slice, and the slice.

    Of several slices with the same longest distance, the first one is taken.
    """
    edges = np.flatnonzero(np.append(True, points[1:, 0] != points[:-1, 0]))
    bounds = _reach(points, edges, steps)
    best, vector, taken = -1.0, np.zeros(3), 0
    for k in np.argsort(-bounds, kind="stable").tolist():
        if bounds[k] < best:
            break
        section = points[edges[k] : edges[k + 1] if k + 1 < len(edges) else None]
        length, along = _farthest(section, steps, IN_PLANE)
        if length > best or (length == best and edges[k] < edges[taken]):
            best, vector, taken = length, along, k
    section = points[edges[taken] : edges[taken + 1] if taken + 1 < len(edges) else None]
    return best, _across(section, steps, vector), int(points[edges[taken], 0])


def _reach(points: Integers, edges: Integers, steps: Float) -> Float:
    """Upper bound of the longest distance within each slice: the longer diagonal of its bounding box."""
    low, high = (function.reduceat(points[:, 1:], edges) for function in (np.minimum, np.maximum))
    rows, columns = (high - low + 1).T
    down, right = rows[:, None] * steps[:, 1], columns[:, None] * steps[:, 2]
    longer = np.maximum(_lengths(down + right), _lengths(down - right))
    return np.asarray(longer * (1 + 1e-12))


def _lengths(vectors: Float) -> Float:
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    return np.asarray(np.sqrt(x * x + y * y + z * z))


def _farthest(points: Integers, steps: Float, faces: Float) -> tuple[float, Float]:
    """The longest distance between face centres of any two of the voxels, and its vector."""
    apart = (faces[:, None] - faces[None]).reshape(-1, 3)
    slack = 2 * float(_lengths(faces @ steps.T).max())
    best, vector = -1.0, np.zeros(3)
    points = _far_out(points, steps, slack)
    each = max(1, PAIRS // len(points))
    for a in range(0, len(points), each):
        between = points[a : a + each, None] - points[None]
        distance = _lengths(between @ steps.T)
        near = between[distance >= max(best, float(distance.max())) - slack]
        near = np.unique(near, axis=0) if len(near) > FEW else near
        for piece in np.array_split(near, len(near) // 2**15 + 1):
            vectors = ((piece[:, None] + apart[None]) @ steps.T).reshape(-1, 3)
            lengths = _lengths(vectors)
            if len(lengths) and lengths.max() > best:
                best, vector = float(lengths.max()), vectors[int(lengths.argmax())]
    return best, vector


def _far_out(points: Integers, steps: Float, slack: float) -> Integers:
    """Drop points that cannot be an end of the longest distance: even the farthest corner of the box is too near."""
    if len(points) <= FEW:
        return points
    world = points @ steps.T
    found = 0.0
    end = world[0]
    for _ in range(4):
        away = _lengths(world - end)
        found, end = max(found, float(away.max())), world[int(away.argmax())]
    low, high = world.min(axis=0), world.max(axis=0)
    reach = _lengths(np.maximum(np.abs(world - low), np.abs(world - high)))
    return points[reach * (1 + 1e-9) + slack >= found]


def _across(points: Integers, steps: Float, vector: Float) -> float:
    """Extent of a section perpendicular to a vector in its plane, between face centres."""
    across = _cross(_cross(steps[:, 1], steps[:, 2]), vector)
    across = across / _lengths(across)
    at = ((points[:, None] + IN_PLANE[None]) @ steps.T).reshape(-1, 3) @ across
    return float(at.max() - at.min())


def _cross(one: Float, other: Float) -> Float:
    (a, b, c), (d, e, f) = one.tolist(), other.tolist()
    return np.array([b * f - c * e, c * d - a * f, a * e - b * d])


def world_box(points: Integers, steps: Float, origin: Float) -> tuple[Float, Float]:
    """The box in world coordinates around whole voxels, whose corners reach half a step beyond their centres."""
    world = points @ steps.T + origin
    half = np.abs(steps).sum(axis=1) / 2
    return world.min(axis=0) - half, world.max(axis=0) + half


def at(index: Any, steps: Float, origin: Float) -> list[float]:
    """World coordinates of a fractional index, added in a fixed order, since library sums depend on the processor."""
    rows = zip(steps.tolist(), origin.tolist(), strict=True)
    return [sum((step * i for step, i in zip(row, index, strict=True)), start) for row, start in rows]
