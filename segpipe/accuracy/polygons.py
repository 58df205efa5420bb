"""True labels from polygons with a class: each pixel whose centre lies in a polygon has its class."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from segpipe.accuracy.points import read_frame
from segpipe.errors import InputError, SourceError
from segpipe.geometry.grid import Grid
from segpipe.geometry.raster_grid import RasterGrid
from segpipe.geometry.windows import Window
from segpipe.messages.printable import printable

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

SURFACES = ("Polygon", "MultiPolygon")
OUTSIDE = -(2**31)
"""Value of pixels in no polygon."""


@dataclass(frozen=True, eq=False)
class Polygons:
    """Polygons of a file, with the value of each: an id of a class, or what a file of classes maps to one."""

    path: Path
    frame: "GeoDataFrame"
    values: NDArray[np.int32]

    @contextmanager
    def on(self, grid: Grid) -> Iterator["RasterizedPolygons"]:
        """Labels on the grid of a mask.

        Raises:
            SourceError: it lies nowhere on the Earth.
        """
        if not isinstance(grid, RasterGrid) or grid.crs is None or grid.transform is None:
            raise SourceError(f"{self.path} has polygons on the Earth, and the mask has no place there")
        yield RasterizedPolygons(self.frame.geometry.to_crs(grid.crs.to_wkt()), self.values, grid.transform)


@dataclass(frozen=True, eq=False)
class RasterizedPolygons:
    """Labels of polygons in the CRS of a grid; where polygons overlap, the last of the file counts."""

    shapes: Any
    values: NDArray[np.int32]
    transform: Affine
    moved: bool = False

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[Any]]:
        """Values of a window, and where there are any."""
        from rasterio.features import rasterize

        (top, left), (bottom, right) = window.start, window.stop
        place = self.transform * Affine.translation(left, top)
        near = np.sort(self.shapes.sindex.query(_outline(self.transform, window)))
        pairs = [(self.shapes.iloc[k], int(self.values[k])) for k in near]
        if not pairs:
            return np.zeros(window.shape, np.int32), np.zeros(window.shape, bool)
        found = rasterize(pairs, (bottom - top, right - left), fill=OUTSIDE, transform=place, dtype="int32")
        return found, found != OUTSIDE


def _outline(transform: Affine, window: Window) -> Any:
    import shapely

    (top, left), (bottom, right) = window.start, window.stop
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return shapely.Polygon([transform * corner for corner in corners])


def read_polygons(path: Path, column: str, classes: Mapping[int, str], *, mapped: bool) -> Polygons:
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
    repaired = frame.set_geometry(frame.geometry.make_valid())
    values = [_value(path, value, classes, mapped=mapped) for value in frame[column]]
    return Polygons(path, repaired, np.array(values, np.int32))


def _value(path: Path, value: Any, classes: Mapping[int, str], *, mapped: bool) -> int:
    text = "" if value is None or value != value else str(value).strip()  # noqa: PLR0124 - NaN
    named = {name.casefold(): number for number, name in classes.items()}
    if not mapped and text.casefold() in named:
        return named[text.casefold()]
    try:
        number = float(text)
    except ValueError:
        number = 0.5
    if not number.is_integer() or abs(number) >= -OUTSIDE:
        few = ", ".join(map(printable, list(classes.values())[:8]))
        raise InputError(f"{path}: labels of polygons must be classes, {few}, or whole numbers, got {printable(text)!r}")
    return int(number)
