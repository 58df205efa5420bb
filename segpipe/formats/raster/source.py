"""Read rasters and pictures through GDAL."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Interleaving
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterWindow

from segpipe.contract import Contract
from segpipe.errors import SourceError, on_failure
from segpipe.formats.raster.bands import alpha_bands, bands_of, match_bands
from segpipe.formats.raster.confine import confined
from segpipe.formats.raster.dataset_files import files_of
from segpipe.formats.raster.gdal import (
    MOST_CACHE_MB,
    at_one_go,
    decode_with,
    decoders,
    most_decoders,
    open_raster,
    source_errors,
    stays_here,
)
from segpipe.formats.raster.gdal_readers import pinned
from segpipe.formats.raster.georeference import place_notes
from segpipe.formats.raster.kinds import explained, refuse_pages, refuse_slides
from segpipe.formats.raster.orientation import Turn, take_exif, turn_of
from segpipe.formats.raster.scene import read_scene
from segpipe.formats.raster.sidecars import Checks, check_opened, check_same, facts
from segpipe.formats.raster.validity import (
    LOOKS_LIKE_DATA,
    SAMPLE,
    SAMPLES,
    Validity,
    looks_like_data,
    resolve_rules,
    sample_windows,
)
from segpipe.formats.source import Begun, Invalid, Pixels, Scene
from segpipe.geometry.raster_grid import crs_notes, location_of, read_grid
from segpipe.geometry.windows import Window
from segpipe.overrides import AS_STORED, Overrides
from segpipe.storage.existence import is_file
from segpipe.storage.paths import is_remote

VRT_BLOCK = 1024
"""Assumed block side of a VRT's sources, which GDAL does not report."""

PNG_SIGNATURE = 8
"""Bytes before the first chunk."""

FEW_ROWS = 16
"""Fewest rows of a sampled box, where strips have fewer."""

STRIP_BYTES = 2**24
"""Bytes per read of a picture that is decoded top to bottom before it is read in another order."""

PICTURE_DRIVERS = frozenset({"PNG", "JPEG", "WEBP", "BMP"})


@dataclass(frozen=True, slots=True)
class RasterTemplate:
    """Properties that a mask copies from its raster, besides the grid."""

    picture: bool
    """Whether the raster is a plain picture without georeferencing; its mask is then a picture, too."""


class RasterSource:
    """A raster opened by rasterio; one handle, for one thread."""

    unpacked = 0

    def __init__(self, path: str, contract: Contract, overrides: Overrides = AS_STORED) -> None:
        self._path, self._remote = path, overrides.remote
        self._here = stays_here(path, remote=overrides.remote)
        pinned(lambda: self._begin(contract, overrides))

    def _begin(self, contract: Contract, overrides: Overrides) -> None:
        self.files: tuple[str, ...] = (self._path,)
        self._facts = ""
        self._dataset = self._opened()
        opening = source_errors(f"{self._path} cannot be opened", self.files)
        with on_failure(self._dataset.close), confined(self._here), opening:
            self._describe(contract, overrides)

    @property
    def numbers(self) -> Sequence[int]:
        """Numbers of the bands, as ``segpipe inspect`` counts them, in the order of the model's channels."""
        return self.bands

    @cached_property
    def notes(self) -> tuple[str, ...]:
        alpha = pinned(lambda: tuple(self._alpha_notes()), self._alpha_notes_reopened)
        return (*self._notes, *alpha, *self._place_notes())

    def _place_notes(self) -> tuple[str, ...]:
        """Notes on why the case has no areas; none for a plain picture."""
        return () if self.template.picture and self.grid.defect is None else location_of(self.grid).notes

    def _alpha_notes_reopened(self) -> tuple[str, ...]:
        self._reopen()
        return tuple(self._alpha_notes())

    def _alpha_notes(self) -> Iterator[str]:
        """Notes on alpha bands that look like data: sampled in the first rows of pictures, which are decoded first anyway,
        and with one request for a remote file."""
        shape = self._dataset.shape
        if self._dataset.driver in PICTURE_DRIVERS:
            windows = [Window((0, 0), (min(SAMPLE, shape[0]), shape[1]))]
        else:
            windows = list(sample_windows(shape, 1 if is_remote(self._path) else SAMPLES))
        for band in self._validity.rules.alpha:
            values = []
            for window in windows:
                with self._unreadable(window):
                    values.append(self._dataset.read(band, window=raster_window(window)).ravel())
            if looks_like_data(np.concatenate(values)):
                yield LOOKS_LIKE_DATA.format(band)

    def _opened(self) -> DatasetReader:
        with self._explained(), source_errors(f"{self._path} cannot be opened", self.files):
            dataset = self._open()
            self._threads = decoders()  # drivers read this setting when they open a file
            take_exif(dataset)
            return dataset

    def _open(self) -> DatasetReader:
        """Open the file; scenes of many files override this to open a VRT."""
        return open_raster(self._path, remote=self._remote)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Explain why a file cannot be opened or read."""
        with explained(self._path):
            yield

    def _files_of(self, dataset: DatasetReader) -> tuple[str, ...]:
        """All files that the pixels come from, after checks of those that GDAL would use damaged."""
        checks = Checks(self._path)
        files = tuple(files_of(dataset, checks.look)) or (self._path,)
        self._facts = check_opened(self._path, dataset, files, self._open)
        checks.end(dataset, files)
        return files

    def _own_notes(self, contract: Contract) -> Sequence[str]:
        """Notes on tags that the contract leaves alone."""
        return _notes(self._dataset, self.bands, contract)

    def _describe(self, contract: Contract, overrides: Overrides) -> None:
        dataset = self._dataset
        refuse_slides(dataset, self._path)
        refuse_pages(dataset, self._path)
        described = bands_of(dataset)
        with naming(self._path):
            matched = match_bands(described, contract, overrides)
        self.bands = matched.bands
        self.dtype = _pixel_type(dataset, self.bands, self._path)
        with naming(self._path):
            alpha = [band for band in alpha_bands(described, contract) if band not in self.bands]
            rules = resolve_rules(dataset, self.bands, alpha, overrides)
        self._validity = Validity(rules)
        _refuse_palette(dataset, self.bands, overrides.bands, self._path)
        grid = read_grid(dataset, overrides.crs)
        with naming(self._path):
            self._turn, said = turn_of(dataset, self._path, place=grid.georeferenced)
        self._against = self._turn.against_the_file and dataset.driver in PICTURE_DRIVERS
        self.grid = replace(grid, shape=self._turn.shape)
        self.separable = dataset.driver != "VRT"  # GDAL resamples the sources of a VRT for each request
        _refuse_short_blocks(dataset, self.bands, self._path)
        self._whole = _is_whole_png(dataset, self._path)
        self.scene: Scene = read_scene(dataset)
        picture = dataset.driver in PICTURE_DRIVERS and not self.grid.georeferenced
        self.template = RasterTemplate(picture)
        self.files = self._files_of(dataset)
        self._notes = (
            *said,
            *crs_notes(dataset, grid, overrides.crs),
            *place_notes(dataset, self._path),
            *self._own_notes(contract),
            *matched.notes,
            *rules.notes,
        )

    def read(self, window: Window) -> tuple[Pixels, Invalid | None]:
        return self.begin(window)()

    def begin(self, window: Window, threads: int | None = None) -> Begun:
        if threads is not None and most_decoders(threads) != self._threads:
            decode_with(threads)
            pinned(self._reopen)
        turn, window = self._turn, self._turn.stored(window)
        pixels, masks = pinned(lambda: self._stored(window), lambda: self._stored_reopened(window))
        return lambda: turned(turn, pixels, self._invalid(pixels, masks))

    def _stored(self, window: Window) -> tuple[Pixels, Sequence[Invalid]]:
        where = raster_window(window)
        with self._unreadable(window), at_one_go() if self._whole else nullcontext():
            self._decode_ahead()
            return self._pixels(where), self._validity.read(self._dataset, where)

    def _stored_reopened(self, window: Window) -> tuple[Pixels, Sequence[Invalid]]:
        self._reopen()
        return self._stored(window)

    def _decode_ahead(self) -> None:
        """Decode a whole picture once in its stored order, if its blocks fit in the cache.

        JPEG and PNG restart at the first row for every row of windows that lies above the one before.
        """
        if self._against and (size := self._stored_size) <= MOST_CACHE_MB * 2**20:
            rows, cols = self._turn.stored_shape
            step = max(1, STRIP_BYTES * rows // size)
            for row in range(0, rows, step):
                self._dataset.read(window=RasterWindow(0, row, cols, min(step, rows - row)))
        self._against = False

    @property
    def _stored_size(self) -> int:
        return int(math.prod(self._turn.stored_shape) * self._dataset.count * self.dtype.itemsize)

    def _pixels(self, where: RasterWindow) -> Pixels:
        """Pixels ``(channels, rows, cols)``; rasterio reads several bands at once only if all have one type."""
        if len({self._dataset.dtypes[band - 1] for band in self.bands}) == 1:
            pixels: Pixels = self._dataset.read(self.bands, window=where, out_dtype=self.dtype)
            return pixels
        return np.stack([self._dataset.read(band, window=where, out_dtype=self.dtype) for band in self.bands])

    def _invalid(self, pixels: Pixels, masks: Sequence[Invalid]) -> Invalid | None:
        return self._validity.invalid(pixels, masks)

    @contextmanager
    def _unreadable(self, window: Window) -> Iterator[None]:
        (row, col), (height, width) = window.start, window.shape
        columns = f"column {col}" if width <= height else f"columns {col} to {col + width - 1}"
        unreadable = source_errors(f"{self._path} cannot be read at row {row}, {columns}", self.files)
        with self._explained(), confined(self._here), unreadable:
            yield

    def empty(self, window: Window) -> bool:
        """Return False: GDAL does not report empty windows."""
        del window
        return False

    def _reopen(self) -> None:
        self._dataset.close()
        self._dataset = self._opened()
        if self._facts:
            check_same(self._path, self._facts, facts(self._dataset))

    @property
    def block(self) -> int:
        dataset = self._dataset
        rows, cols = dataset.block_shapes[self.bands[0] - 1]
        bands = dataset.count if dataset.driver == "GTiff" and dataset.interleaving is Interleaving.pixel else 1
        return int(rows * cols * bands * self.dtype.itemsize)

    def memory(self, shape: tuple[int, ...]) -> int:
        dataset = self._dataset
        if self._against:
            return self._stored_size
        shape = shape[::-1] if self._turn.transposed else shape
        blocks = [max(n, VRT_BLOCK) if dataset.driver == "VRT" else n for n in dataset.block_shapes[self.bands[0] - 1]]
        sides = zip(shape, blocks, dataset.shape, strict=True)
        rows, cols = (min((-(-n // block) + 1) * block, -(-size // block) * block) for n, block, size in sides)
        alone = dataset.driver == "VRT" or (dataset.driver == "GTiff" and dataset.interleaving is not Interleaving.pixel)
        bands = len({*self.bands, *self._validity.rules.alpha, *self._validity.rules.masked}) if alone else dataset.count
        return int(rows * cols * bands * self.dtype.itemsize)

    def near(self, place: tuple[float, ...], most: int) -> Window:
        dataset = self._dataset
        shape, block = dataset.shape, dataset.block_shapes[self.bands[0] - 1]
        least = FEW_ROWS
        if dataset.driver in PICTURE_DRIVERS:  # rows are decoded in order, and the first ones anyway
            place, least = (0.0, *place[1:]), most
        axes = zip(place, shape, block, (least, 1), strict=True)
        spans = [_span_near(share, n, size, min(most, max(size, few))) for share, n, size, few in axes]
        return self._turn.upright(Window.spanning(spans))

    def tags(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        index = [band - 1 for band in self.bands]
        return np.array(self._dataset.scales)[index], np.array(self._dataset.offsets)[index]

    def close(self) -> None:
        self._dataset.close()


def _span_near(share: float, length: int, block: int, most: int) -> tuple[int, int]:
    """Start and stop of a span near a share of an axis: within one block, unless that is shorter than ``most``."""
    side, at = min(most, length), int(share * length)
    start = at // block * block
    if block > side:
        start = min(at, start + block - side)
    start = max(0, min(start, length - side))
    return start, start + side


def turned(turn: Turn, pixels: Pixels, invalid: Invalid | None) -> tuple[Pixels, Invalid | None]:
    """Turn stored pixels and their invalid mask upright."""
    return turn(pixels), None if invalid is None else turn(invalid)


def raster_window(window: Window) -> RasterWindow:
    """A window as rasterio takes it."""
    (row, col), (rows, cols) = window.start, window.shape
    return RasterWindow(col, row, cols, rows)


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Prefix a ``SourceError`` with the path."""
    try:
        yield
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from None


def _pixel_type(dataset: DatasetReader, bands: Sequence[int], path: str) -> np.dtype[Any]:
    names = {dataset.dtypes[band - 1] for band in bands}
    if any("complex" in name for name in names):
        raise SourceError(f"{path}: pixels must be integers or floats, got {', '.join(sorted(names))}")
    return np.result_type(*names)


def _refuse_palette(dataset: DatasetReader, bands: Sequence[int], chosen: Sequence[int] | None, path: str) -> None:
    palette = [band for band in bands if dataset.colorinterp[band - 1] is ColorInterp.palette]
    if palette and chosen is None:
        raise SourceError(
            f"{path}: band {palette[0]} holds palette indices, not intensities: "
            f"expand it with gdal_translate -expand rgb, or take the indices as they are with --bands {palette[0]}"
        )


def _refuse_short_blocks(dataset: DatasetReader, bands: Sequence[int], path: str) -> None:
    """Refuse an uncompressed TIFF whose blocks are shorter than its header says: GDAL would read on into the next band."""
    converted = "SOURCE_COLOR_SPACE" in dataset.tags(ns="IMAGE_STRUCTURE")  # to bands that the file does not have
    if dataset.driver != "GTiff" or dataset.compression is not None or converted:
        return
    bits = int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8 * np.dtype(dataset.dtypes[0]).itemsize))
    samples = dataset.count if dataset.interleaving is Interleaving.pixel else 1
    for band in bands:
        stored = int(dataset.get_tag_item("BLOCK_SIZE_0_0", "TIFF", bidx=band) or 0)
        rows, cols = dataset.block_shapes[band - 1]
        if 0 < stored < rows * (cols * samples * bits // 8):
            raise SourceError(
                f"{path} is damaged: the first block of band {band} holds {stored} bytes, too few for {rows} x {cols}"
            )


def _is_whole_png(dataset: DatasetReader, path: str) -> bool:
    """Whether a case is a local PNG that may be read whole.

    GDAL's shortcut takes half the time. It detects all damage except in the chain of chunks.

    Raises:
        SourceError: the chain is broken.
    """
    if dataset.driver != "PNG" or is_remote(path) or not is_file(path):
        return False
    if not _has_end(path):
        raise SourceError(f"{path} is damaged: its chunks do not lead to the last one, IEND")
    return True


def _has_end(path: str) -> bool:
    """Whether the chunks of a PNG form a chain up to IEND (ISO/IEC 15948, clause 5); data behind it is ignored."""
    with Path(path).open("rb") as file:
        file.seek(PNG_SIGNATURE)
        while len(head := file.read(8)) == 8:
            if head[4:] == b"IEND":
                return len(file.read(4)) == 4
            file.seek(int.from_bytes(head[:4]) + 4, os.SEEK_CUR)
    return False


def _notes(dataset: DatasetReader, bands: Sequence[int], contract: Contract) -> list[str]:
    tagged = [b for b in bands if (dataset.scales[b - 1], dataset.offsets[b - 1]) != (1.0, 0.0)]
    if tagged and contract.pixel == "stored":
        return ['the file has scale and offset tags, which the contract\'s pixel = "stored" leaves alone']
    return []
