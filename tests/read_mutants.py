"""Read rasters as a run does, tile by tile; run in a process of its own, which damaged files may take down.

Takes lines of path and number of bands on stdin, and appends pickled pairs of path and result to the file that it is given.
"""

import pickle
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
from networks import contract

from segpipe.contract import parse_contract
from segpipe.errors import SegpipeError, SourceError
from segpipe.formats.identity import identities
from segpipe.formats.raster.gdal import gdal_options
from segpipe.formats.raster.source import RasterSource
from segpipe.formats.raster.tiff import verify_files
from segpipe.geometry.windows import Window

TILE, MOST_PIXELS, SECONDS = 64, 10**7, 30


def read(path: str, bands: int) -> dict[str, Any]:
    source = RasterSource(path, parse_contract(contract(bands), "here"))
    try:
        height, width = source.grid.shape
        if height * width > MOST_PIXELS:
            raise SourceError("larger than any file here")
        verify_files(str(file["path"]) for file in identities(path, source.files))
        pixels, invalid = np.zeros((bands, height, width), source.dtype), np.zeros((height, width), bool)
        for row in range(0, height, TILE):
            for col in range(0, width, TILE):
                box = Window((row, col), (min(row + TILE, height), min(col + TILE, width)))
                where = box.start[0], box.start[1]
                part, bad = source.read(box)
                area = (slice(where[0], where[0] + part.shape[1]), slice(where[1], where[1] + part.shape[2]))
                pixels[(slice(None), *area)] = part
                invalid[area] = False if bad is None else bad
        grid = source.grid
        place = None if grid.transform is None else tuple(grid.transform)[:6]
        crs = grid.crs or grid.gcps_crs
        return {"pixels": pixels, "invalid": invalid, "transform": place, "epsg": crs.to_epsg() if crs else None}
    finally:
        source.close()


def main(results: Path) -> None:
    with results.open("ab") as stream:
        for line in sys.stdin:
            path, bands = line.rstrip("\n").split("\t")
            signal.alarm(SECONDS)  # ends the process
            try:
                with gdal_options():
                    result = read(path, int(bands))
            except SegpipeError as error:
                result = {"refused": str(error)}
            signal.alarm(0)
            pickle.dump((path, result), stream)
            stream.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
