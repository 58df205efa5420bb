"""Masks in memory and files of polygons, for tests of zones."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from affine import Affine
from later import Later
from rasterio.crs import CRS

from segpipe.geometry.raster_grid import RasterGrid
from segpipe.geometry.windows import Window
from segpipe.results.zones.polygons import Zones, read_zones
from segpipe.vectors.file import Selection

geopandas: Any = Later("geopandas")

UTM = Affine(10, 0, 500_000, 0, -10, 5_400_000)
"""North-up pixels of 10 m in EPSG:32633."""


class ArrayMask:
    """A mask that is an array ``(rows, cols)`` or ``(bands, rows, cols)``."""

    def __init__(self, array: Any, transform: Affine = UTM, crs: Any = "EPSG:32633") -> None:
        self._array = np.atleast_3d(np.asarray(array, np.uint8).T).T
        self.grid = RasterGrid(self._array.shape[1:], CRS.from_user_input(crs), transform)

    @property
    def bands(self) -> int:
        return len(self._array)

    def read(self, window: Window, band: int = 0) -> Any:
        (top, left), (bottom, right) = window.start, window.stop
        return self._array[band, top:bottom, left:right]


def write_fields(path: Path, shapes: Any, crs: Any = "EPSG:32633", **columns: Any) -> Path:
    """A file of polygons; of which kind, its suffix says."""
    frame = geopandas.GeoDataFrame(columns, geometry=list(shapes), crs=crs)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'crs' was not provided")
            frame.to_file(path)
    return path


def fields(path: Path, shapes: Any, crs: Any = "EPSG:32633") -> Zones:
    """Polygons as they are read from a file."""
    return read_zones(Selection(write_fields(path / "fields.gpkg", shapes, crs)))


def on_map(transform: Affine, *corners: tuple[float, float]) -> Any:
    """A polygon from its corners in (column, row) of a grid."""
    return shapely.Polygon([transform * corner for corner in corners])


def square(transform: Affine, left: float, top: float, right: float, bottom: float) -> Any:
    """A rectangle of a grid's pixels."""
    return on_map(transform, (left, top), (right, top), (right, bottom), (left, bottom))
