"""True labels from polygons with a class: each pixel whose centre lies in a polygon has its class."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS

from segpipe.accuracy.points import label_text, read_frame
from segpipe.errors import InputError, SourceError
from segpipe.geometry.grid import Grid
from segpipe.geometry.raster_grid import NoGroundError, ground_of
from segpipe.geometry.reference import NowhereError, horizontal
from segpipe.geometry.windows import Window
from segpipe.messages.names import Names
from segpipe.messages.printable import printable
from segpipe.vectors.placing import place
from segpipe.vectors.surfaces import Shapes, repaired

SURFACES = ("Polygon", "MultiPolygon")
OUTSIDE = -(2**31)
"""Value of pixels in no polygon."""
SHOWN = 5


@dataclass(frozen=True, eq=False)
class ReferencePolygons:
    """Polygons of a file, with the value of each: an id of a class, or what a file of classes maps to one."""

    path: Path
    shapes: Shapes
    """Valid polygons in ``crs``; empty where a repair left no surface."""
    crs: CRS
    values: NDArray[np.int32]
    problems: tuple[str, ...] = ()
    """What was repaired, or cannot count, polygon by polygon."""

    @contextmanager
    def on(self, grid: Grid) -> Iterator["RasterizedPolygons"]:
        """Labels on the grid of a mask.

        Raises:
            SourceError: it lies nowhere on the Earth, or its projection cannot represent a polygon there.
        """
        try:
            ground = ground_of(grid)
        except NoGroundError as error:
            raise SourceError(f"{self.path} has polygons on the Earth, and the mask has no place there: {error}") from None
        placed = place(self.shapes, self.crs, ground, grid.shape)
        if len(placed.lost):
            few = ", ".join(str(k + 1) for k in placed.lost[:SHOWN])
            raise SourceError(f"{self.path}: polygons {few} cannot be drawn in {grid}: cut them to the scene")
        order = np.argsort(placed.index, kind="stable")
        yield RasterizedPolygons(placed.shapes[order], self.values[placed.index[order]], grid.shape[0])


@dataclass(frozen=True, eq=False)
class RasterizedPolygons:
    """Labels of polygons in the pixels of a grid; where polygons overlap, the last of the file counts."""

    shapes: Shapes
    """x is the column, y the number of rows above the bottom edge."""
    values: NDArray[np.int32]
    rows: int
    """Of the grid."""
    moved: bool = False

    @cached_property
    def _tree(self) -> Any:
        import shapely

        return shapely.STRtree(self.shapes)

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[Any]]:
        """Values of a window, and where there are any."""
        import shapely
        from rasterio.features import rasterize

        (top, left), (bottom, right) = window.start, window.stop
        near = np.sort(self._tree.query(shapely.box(left, self.rows - bottom, right, self.rows - top)))
        pairs = [(self.shapes[k], int(self.values[k])) for k in near]
        if not pairs:
            return np.zeros(window.shape, np.int32), np.zeros(window.shape, bool)
        place = Affine(1, 0, left, 0, -1, self.rows - top)
        found = rasterize(pairs, (bottom - top, right - left), fill=OUTSIDE, transform=place, dtype="int32")
        return found, found != OUTSIDE


def read_polygons(path: Path, column: str, classes: Mapping[int, str], *, mapped: bool) -> ReferencePolygons:
    """Polygons of a vector file with the class of each.

    Args:
        path: of the file.
        column: with names or ids of classes, or other whole numbers that a file of classes maps.
        classes: name of each class, by its id.
        mapped: whether there is such a file.

    Raises:
        InputError: it cannot be read, or has no such column, no CRS, no polygons, or labels that are no class.
        InstallationError: an optional dependency is missing.
    """
    frame = read_frame(path, column)
    if frame.crs is None:
        raise InputError(f"{path} must have a CRS, and has none: add it with ogr2ogr -a_srs")
    there = ~np.asarray(frame.geometry.is_empty | frame.geometry.isna())
    frame = frame[there]
    kinds = sorted({*frame.geometry.geom_type} - {*SURFACES})
    if kinds or not len(frame):
        raise InputError(f"{path} must hold polygons, and holds {', '.join(kinds) or 'none'}")
    try:
        crs = horizontal(frame.crs)
    except NowhereError as error:
        raise InputError(f"{path} must lie on the Earth, and does not: {error}") from None
    shapes, problems = repaired(np.asarray(frame.geometry.array), crs)
    names = Names.of({} if mapped else {name: number for number, name in classes.items()})
    values = [_value(path, value, classes, names) for value in frame[column]]
    number = np.flatnonzero(there) + 1
    notes = tuple(f"polygon {k}: {text}" for k, each in zip(number, problems, strict=True) for text in each)
    return ReferencePolygons(path, shapes, crs, np.array(values, np.int32), notes)


def _value(path: Path, value: Any, classes: Mapping[int, str], names: Names) -> int:
    text = label_text(value)
    if (named := names.find(text)) is not None:
        return named
    try:
        number = float(text)
    except ValueError:
        number = 0.5
    if not number.is_integer() or abs(number) >= -OUTSIDE:
        few = ", ".join(map(printable, list(classes.values())[:8]))
        raise InputError(f"{path}: labels of polygons must be classes, {few}, or whole numbers, got {printable(text)!r}")
    return int(number)
