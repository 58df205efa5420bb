"""Read a raster mask that segpipe wrote."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from segpipe.errors import OutputError
from segpipe.formats.raster.gdal import gdal_errors, gdal_options, open_raster
from segpipe.geometry.grid import Grid
from segpipe.geometry.raster_grid import read_grid


def read_mask(path: Path) -> tuple[NDArray[Any], Grid]:
    """Bands ``(bands, rows, cols)`` of a mask and its grid.

    Raises:
        OutputError: it cannot be read.
    """
    with gdal_options(), gdal_errors(OutputError, f"{path} cannot be read"), open_raster(str(path)) as dataset:
        return dataset.read(), read_grid(dataset)
