"""Notes on georeferences that contradict each other: GDAL takes one of them without a word."""

from collections.abc import Iterator
from pathlib import Path

import rasterio
from affine import Affine
from rasterio.io import DatasetReader

from segpipe.formats.identity import world_files
from segpipe.formats.raster.gdal import any_name
from segpipe.storage.existence import is_file
from segpipe.storage.paths import is_remote

APART = 0.1
"""Pixels by which a corner may lie elsewhere before a note says so: world files have few digits."""

BYTES = 4096

WORLD = "{} gives another place than the file itself, up to {:.3g} pixels away, and is ignored, as by GDAL: {}"
OVER = "{}.aux.xml gives another {} than the file itself, and counts, as for GDAL: take it away if the file is right"
RIGHT = "take it away, or write it into the file, as gdal_edit.py -a_ullr does, if it is right"


def place_notes(dataset: DatasetReader, path: str) -> list[str]:
    """Notes on a world file or an ``.aux.xml`` that contradicts the georeference of a local GeoTIFF."""
    if dataset.driver != "GTiff" or is_remote(path) or not is_file(path):
        return []
    return [*_world_notes(dataset, path), *_metadata_notes(dataset, path)]


def _world_notes(dataset: DatasetReader, path: str) -> Iterator[str]:
    if dataset.transform.is_identity:
        return
    for file in world_files(path):
        if is_file(file) and (given := _world(file)) is not None:
            off = _pixels_apart(given, dataset.transform, dataset.shape)
            if off > APART:
                yield WORLD.format(file, off, RIGHT)
                return


def _world(file: str) -> Affine | None:
    """The transform of a world file, which gives the centre of the first pixel; None if it has no six numbers."""
    with Path(file).open(errors="replace") as stream:
        lines = [line.split()[0] for line in stream.read(BYTES).split("\n") if line.strip()]
    try:
        a, d, b, e, c, f = (float(word.replace(",", ".")) for word in lines[:6])
    except ValueError:
        return None
    return Affine(a, b, c, d, e, f) * Affine.translation(-0.5, -0.5)


def _pixels_apart(given: Affine, taken: Affine, shape: tuple[int, int]) -> float:
    """How far the corners of a raster lie apart by two transforms, in pixels of the second."""
    if taken.is_degenerate:
        return 0.0
    corners = [(x, y) for x in (0, shape[1]) for y in (0, shape[0])]
    there = [~taken * (given * corner) for corner in corners]
    return max(
        float(abs(a - b)) for found, corner in zip(there, corners, strict=True) for a, b in zip(found, corner, strict=True)
    )


def _metadata_notes(dataset: DatasetReader, path: str) -> Iterator[str]:
    """Notes on what an ``.aux.xml`` replaces, by what GDAL reads without it."""
    if not is_file(f"{path}.aux.xml"):
        return
    with rasterio.open(any_name(path), GEOREF_SOURCES="INTERNAL") as own:
        if not own.transform.is_identity and _pixels_apart(dataset.transform, own.transform, own.shape) > APART:
            yield OVER.format(path, "place")
        if own.crs and own.crs != dataset.crs:
            yield OVER.format(path, "CRS")
