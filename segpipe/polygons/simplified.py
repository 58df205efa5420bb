"""Polygons with fewer vertices, whose shared borders stay shared."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from segpipe.array_types import Float, Integers
from segpipe.errors import InputError
from segpipe.polygons.placement import Placement
from segpipe.polygons.regions import RegionTable
from segpipe.vectors.surfaces import Shapes

MOST_VERTICES = 5_000_000
"""Vertices of a case that are simplified together: GEOS holds about 150 bytes for each."""

FINE = 1024
"""Steps of a stretch of 1."""


@dataclass(frozen=True)
class Coverage:
    """All polygons of a case, which GEOS simplifies as one coverage (Visvalingam-Whyatt between nodes)."""

    path: str
    placement: Placement
    tolerance: float
    """In m; without ground in pixels."""

    def flat(self, row: Integers, col: Integers) -> Float:
        """Points of the lattice, stretched so that x and y are equally long on the ground; exact in floating point."""
        return np.stack([col * self._stretch, row], axis=1)

    @property
    def _stretch(self) -> float:
        """Width of the pixel in the middle by its height: so round that points on a line stay on it."""
        tall, wide = self.placement.pixel
        return max(1, round(wide / tall * FINE)) / FINE

    def simplified(self, batches: Iterable[tuple[RegionTable, Shapes]]) -> Iterator[tuple[RegionTable, Shapes]]:
        """Simplify polygons whose points come from ``flat``, and place them.

        Raises:
            InputError: there are too many vertices.
        """
        import shapely

        tables, shapes, vertices = list[RegionTable](), list[Shapes](), 0
        for table, own in batches:
            tables.append(table)
            shapes.append(own)
            vertices += int(shapely.get_num_coordinates(own).sum())
            if vertices > MOST_VERTICES:
                raise InputError(
                    f"--simplify takes at most {MOST_VERTICES:,} vertices of a case, and {self.path} has more: "
                    "leave out small polygons with --min-area, take fewer --classes, or leave --simplify out"
                )
        if tables:
            found = np.asarray(shapely.coverage_simplify(np.concatenate(shapes), self.tolerance / self.placement.pixel[0]))
            yield RegionTable.joined(tables), self._placed(found)

    def _placed(self, shapes: Shapes) -> Shapes:
        import shapely

        def placed(xy: Float) -> Float:
            return self.placement.points(xy[:, 1], np.rint(xy[:, 0] / self._stretch))

        return np.asarray(shapely.transform(shapes, placed))
