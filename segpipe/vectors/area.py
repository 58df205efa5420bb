"""The area of interest of a run: polygons that every process of the run knows, and the pixels of a grid inside them."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS

from segpipe.errors import WorkerError
from segpipe.geometry.ground import Ground
from segpipe.geometry.scanlines import Scanlines
from segpipe.vectors.file import Selection, read_surfaces
from segpipe.vectors.placing import place
from segpipe.vectors.surfaces import Shapes, bounds_of, digest_of


@dataclass(frozen=True, slots=True)
class Area:
    """An area of interest by its digest; small, so that it can travel with every task."""

    path: str
    """The file that it was read from, for messages."""
    digest: str
    """Hash of the polygons and their CRS."""


@dataclass(frozen=True, eq=False)
class AreaPolygons:
    """The polygons of an area."""

    shapes: Shapes
    """Valid polygons in ``crs``, not empty."""
    crs: CRS

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Minimum x and y, maximum x and y, over all polygons."""
        return bounds_of(self.shapes)

    def packed(self) -> bytes:
        """Polygons and CRS as bytes, for other processes."""
        import shapely

        text = self.crs.to_wkt().encode()
        return zlib.compress(len(text).to_bytes(4) + text + shapely.to_wkb(shapely.GeometryCollection(list(self.shapes))))

    @classmethod
    def unpacked(cls, data: bytes) -> "AreaPolygons":
        import shapely

        data = zlib.decompress(data)
        end = 4 + int.from_bytes(data[:4])
        return cls(np.asarray(shapely.get_parts(shapely.from_wkb(data[end:]))), CRS.from_wkt(data[4:end].decode()))


_known: dict[str, AreaPolygons] = {}
"""Polygons of the last areas of this process, by digest."""

KEPT = 8
"""Areas that are kept: runs in several threads, or several runs on one worker, may have an area each."""


def read_area(selection: Selection) -> tuple[Area, list[str]]:
    """Read the polygons of a file, repair them and remember them; also return a warning for each kind of problem.

    Raises:
        ZonesError: no such file or layer, no CRS, or no polygon.
        InstallationError: an optional dependency is missing.
    """
    read = read_surfaces(selection)  # which says so where a dependency is missing

    import shapely

    shapes = read.shapes[~shapely.is_empty(read.shapes)]
    area = Area(str(selection.path), digest_of(shapes, read.crs))
    remember_area(area, AreaPolygons(shapes, read.crs))
    return area, list(_warnings(read.problems))


def _warnings(problems: list[list[str]]) -> Iterator[str]:
    numbered = [(text, k) for k, each in enumerate(problems, 1) for text in each]
    kinds = dict.fromkeys(text.partition(":")[0] for text, _ in numbered)
    for kind in kinds:
        own = [(text, k) for text, k in numbered if text.partition(":")[0] == kind]
        yield f"{len(own):,} of {len(problems):,} polygons: {own[0][0]}, first in polygon {own[0][1]}"


def remember_area(area: Area, polygons: AreaPolygons) -> None:
    """Make an area known to this process; a few are kept."""
    _known.pop(area.digest, None)
    _known[area.digest] = polygons
    for digest in list(_known)[:-KEPT]:
        _known.pop(digest, None)  # another thread may do the same


def polygons_of(area: Area) -> AreaPolygons:
    """The polygons of an area.

    Raises:
        WorkerError: this process does not know them.
    """
    polygons = _known.get(area.digest)
    if polygons is None:
        raise WorkerError(f"a worker must be told the polygons of {area.path}, and was not: run the same command again")
    return polygons


@dataclass(frozen=True, eq=False)
class Inside:
    """The pixels of a grid inside an area."""

    lines: Scanlines
    lost: int
    """Number of polygons near the grid that its projection cannot represent."""


@lru_cache(maxsize=4)
def inside(area: Area, ground: Ground, shape: tuple[int, ...]) -> Inside:
    """The pixels of a grid whose centre lies in an area; the last grids are kept, since a case is opened several times."""
    polygons = polygons_of(area)
    placed = place(polygons.shapes, polygons.crs, ground, shape)
    return Inside(Scanlines(edges_of(placed.shapes, shape[0]), shape), len(placed.lost))


def edges_of(shapes: Shapes, rows: int) -> NDArray[np.float64]:
    """Edges for ``Scanlines`` of polygons in which x is the column, and y the number of rows above the bottom edge."""
    import shapely

    rings = shapely.get_rings(shapely.orient_polygons(shapely.get_parts(shapes), exterior_cw=False))
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    places = np.column_stack([rows - xy[:, 1], xy[:, 0]])
    return np.asarray(np.hstack([places[:-1], places[1:]])[ring[:-1] == ring[1:]])
