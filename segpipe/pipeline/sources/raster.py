"""Rasters and pictures, through GDAL."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Interleaving, MaskFlags
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterWindow

from segpipe.pipeline.contract import Contract
from segpipe.pipeline.errors import SourceError
from segpipe.pipeline.gdal import DRIVERS, at_one_go, decode_with, opening, source_errors
from segpipe.pipeline.grid import Grid
from segpipe.pipeline.overrides import AS_STORED, Overrides
from segpipe.pipeline.sources import Begun, Invalid, Pixels
from segpipe.pipeline.windows import Window

VRT_BLOCK = 1024
"""Side of the blocks that the sources of a VRT are taken to have: it does not tell."""

PNG_SIGNATURE = 8
"""Bytes before the first chunk."""

PICTURE_DRIVERS = frozenset({"PNG", "JPEG", "WEBP", "BMP"})


class RasterSource:
    """A raster that rasterio opens; one handle, for one thread."""

    def __init__(self, path: str, contract: Contract, overrides: Overrides = AS_STORED) -> None:
        self._path = path
        self.files: tuple[str, ...] = (path,)
        self._dataset = self._opened()
        self._scratch = np.empty((2, 0), np.bool_)
        try:
            with source_errors(f"{path} cannot be opened", self.files):
                self._describe(contract, overrides)
        except BaseException:
            self._dataset.close()
            raise

    def _opened(self) -> DatasetReader:
        with source_errors(f"{self._path} cannot be opened", self.files), opening(self._path):
            # rasterio.open takes one driver only; what it returns takes several
            return DatasetReader(self._path, driver=list(DRIVERS), sharing=False)

    def _describe(self, contract: Contract, overrides: Overrides) -> None:
        dataset = self._dataset
        _refuse_pages(dataset, self._path)
        alpha = [i for i, c in enumerate(dataset.colorinterp, 1) if c is ColorInterp.alpha]
        with _naming(self._path):
            self.bands = match_bands(dataset.descriptions, alpha, contract, overrides.bands)
        self._alpha = [i for i in alpha if i not in self.bands]
        self.dtype = _pixel_type(dataset, self.bands, self._path)
        self._nodata = [resolve_nodata(dataset.nodatavals[i - 1], self.dtype) for i in self.bands]
        self._masked = _masked_bands(dataset, self.bands)
        if self._masked and MaskFlags.nodata in dataset.mask_flag_enums[self._masked[0] - 1]:
            self._nodata = [None] * len(self.bands)  # nodata of all bands together, which the mask knows
        _refuse_palette(dataset, self.bands, overrides.bands, self._path)
        self.grid = read_grid(dataset)
        self.resampled = dataset.driver == "VRT"  # GDAL resamples its sources request by request
        self.picture = dataset.driver in PICTURE_DRIVERS and not self.grid.georeferenced
        _refuse_short_blocks(dataset, self.bands, self._path)
        self._whole = _is_whole_png(dataset, self._path)
        self.files = tuple(all_files(dataset, set())) or (self._path,)
        self.notes = tuple(_notes(dataset, self.bands, contract))

    def read(self, window: Window) -> tuple[Pixels, Invalid | None]:
        return self.begin(window)()

    def begin(self, window: Window) -> Begun:
        where = _raster_window(window)
        with self._unreadable(window), at_one_go() if self._whole else nullcontext():
            pixels = self._dataset.read(self.bands, window=where, out_dtype=self.dtype)
            masks = [self._dataset.read_masks(band, window=where) == 0 for band in self._masked]
            masks += [self._dataset.read(band, window=where) == 0 for band in self._alpha]
        return lambda: (pixels, self._invalid(pixels, masks))

    def _invalid(self, pixels: Pixels, masks: Sequence[Invalid]) -> Invalid | None:
        """Where a mask is true, or any band is its nodata value, NaN or infinite.

        It is sought in memory that is taken again: fresh memory for every band takes five times as long where many wait for
        it (measured on 16 processors).
        """
        shape = pixels.shape[1:]
        if self._scratch.shape[1] < (size := math.prod(shape)):
            self._scratch = np.empty((2, size), np.bool_)
        found, one = (flat[:size].reshape(shape) for flat in self._scratch)
        found.fill(False)
        for mask in masks:
            np.logical_or(found, mask, out=found)
        for band, value in zip(pixels, self._nodata, strict=True):
            if value is not None:
                np.logical_or(found, np.equal(band, value, out=one), out=found)
            if band.dtype.kind == "f":
                np.logical_or(found, np.logical_not(np.isfinite(band, out=one), out=one), out=found)
        return found.copy() if found.any() else None

    def _unreadable(self, window: Window) -> AbstractContextManager[None]:
        (row, col), (height, width) = window.start, window.shape
        columns = f"column {col}" if width <= height else f"columns {col} to {col + width - 1}"
        return source_errors(f"{self._path} cannot be read at row {row}, {columns}", self.files)

    def decode_with(self, threads: int) -> None:
        decode_with(threads)
        self._dataset.close()
        self._dataset = self._opened()  # drivers look at it when they open a file

    def room(self, shape: tuple[int, ...]) -> int:
        dataset = self._dataset
        blocks = [max(n, VRT_BLOCK) if dataset.driver == "VRT" else n for n in dataset.block_shapes[self.bands[0] - 1]]
        sides = zip(shape, blocks, dataset.shape, strict=True)
        rows, cols = (min((-(-n // block) + 1) * block, -(-size // block) * block) for n, block, size in sides)
        alone = dataset.driver == "VRT" or (dataset.driver == "GTiff" and dataset.interleaving is not Interleaving.pixel)
        bands = len({*self.bands, *self._alpha, *self._masked}) if alone else dataset.count
        return int(rows * cols * bands * self.dtype.itemsize)

    def tags(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        index = [band - 1 for band in self.bands]
        return np.array(self._dataset.scales)[index], np.array(self._dataset.offsets)[index]

    def close(self) -> None:
        self._dataset.close()


def _raster_window(window: Window) -> RasterWindow:
    (row, col), (rows, cols) = window.start, window.shape
    return RasterWindow(col, row, cols, rows)


def match_bands(
    descriptions: Sequence[str | None], alpha: Sequence[int], contract: Contract, bands: Sequence[int] | None
) -> list[int]:
    """Which bands of a file, 1-based, are the contract's channels, in the model's order.

    ``--bands`` beats names; names beat order; order needs equal counts, alpha bands left out.

    Raises:
        SourceError: neither names nor counts agree; both lists are in the message.
    """
    count, names = contract.channel_count, contract.channel_names
    if bands is not None:
        if len(bands) != count or max(bands) > len(descriptions):
            raise SourceError(
                f"--bands must name {count} of the file's bands, 1 to {len(descriptions)}, got {','.join(map(str, bands))}"
            )
        return list(bands)
    colours = [i for i in range(1, len(descriptions) + 1) if i not in alpha]
    found = [descriptions[i - 1] for i in colours]
    if names and all(found):
        return _match_names([str(name) for name in found], colours, names)
    if len(colours) == count:
        return colours
    raise SourceError(_mismatch(found, names or ("unnamed",) * count))


def _match_names(found: Sequence[str], colours: Sequence[int], names: Sequence[str]) -> list[int]:
    folded = [name.strip().casefold() for name in found]
    wanted = [name.strip().casefold() for name in names]
    if any(folded.count(name) != 1 for name in wanted):
        raise SourceError(_mismatch(found, names))
    return [colours[folded.index(name)] for name in wanted]


def _mismatch(found: Sequence[str | None], wanted: Sequence[str]) -> str:
    listed = ", ".join(name or "unnamed" for name in found)
    count = "1 band" if len(found) == 1 else f"{len(found)} bands"
    example = ",".join(str(n) for n in range(len(wanted), 0, -1))
    enough = (
        f"say which with --bands, such as --bands {example}"
        if len(found) >= len(wanted)
        else f"no choice of --bands can give {len(wanted)}"
    )
    return f"the file's bands must be the model's channels, got {count} ({listed}) for {', '.join(wanted)}: {enough}"


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Put the path in front of an error that knows only its rule."""
    try:
        yield
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from None


def resolve_nodata(value: float | None, dtype: np.dtype[Any]) -> Any:
    """The nodata value as a pixel can hold it; None where no pixel can equal it."""
    if value is None or np.isnan(value):
        return None
    if dtype.kind == "f":
        return dtype.type(value)
    limits = np.iinfo(dtype)
    return dtype.type(value) if value == int(value) and limits.min <= value <= limits.max else None


def _masked_bands(dataset: DatasetReader, bands: Sequence[int]) -> list[int]:
    """Bands whose mask is stored beside them: one where all share it."""
    flags = [(band, dataset.mask_flag_enums[band - 1]) for band in bands]
    computed = ({MaskFlags.all_valid}, {MaskFlags.nodata}, {MaskFlags.alpha, MaskFlags.per_dataset})
    stored = [band for band, f in flags if set(f) not in computed]
    shared = [band for band, f in flags if band in stored and MaskFlags.per_dataset in f]
    return shared[:1] if shared else stored


def _pixel_type(dataset: DatasetReader, bands: Sequence[int], path: str) -> np.dtype[Any]:
    names = {dataset.dtypes[band - 1] for band in bands}
    if any("complex" in name for name in names):
        raise SourceError(f"{path}: pixels must be integers or floats, got {', '.join(sorted(names))}")
    return np.result_type(*names)


def _refuse_pages(dataset: DatasetReader, path: str) -> None:
    if dataset.count == 0 or dataset.subdatasets:
        raise SourceError(
            f"{path}: a file must hold one image, got {len(dataset.subdatasets)}: "
            "write each to a file of its own with gdal_translate -sds"
        )


def _refuse_palette(dataset: DatasetReader, bands: Sequence[int], chosen: Sequence[int] | None, path: str) -> None:
    palette = [band for band in bands if dataset.colorinterp[band - 1] is ColorInterp.palette]
    if palette and chosen is None:
        raise SourceError(
            f"{path}: band {palette[0]} holds palette indices, not intensities: "
            f"expand it with gdal_translate -expand rgb, or take the indices as they are with --bands {palette[0]}"
        )


def _refuse_short_blocks(dataset: DatasetReader, bands: Sequence[int], path: str) -> None:
    """An uncompressed TIFF whose blocks are shorter than its header says: GDAL would read on into the next band."""
    if dataset.driver != "GTiff" or dataset.compression is not None:
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
    """Whether a case is a PNG of this machine that may be read at one go.

    GDAL's shortcut takes half the time. It tells of all damage but that of the chain of chunks.

    Raises:
        SourceError: the chain is broken.
    """
    if dataset.driver != "PNG" or not Path(path).is_file():
        return False
    if not _has_end(path):
        raise SourceError(f"{path} is damaged: its chunks do not lead to the last one, IEND")
    return True


def _has_end(path: str) -> bool:
    """Whether the chunks of a PNG follow each other up to the last (ISO/IEC 15948, clause 5), whatever is behind it."""
    with Path(path).open("rb") as file:
        file.seek(PNG_SIGNATURE)
        while len(head := file.read(8)) == 8:
            if head[4:] == b"IEND":
                return len(file.read(4)) == 4
            file.seek(int.from_bytes(head[:4]) + 4, os.SEEK_CUR)
    return False


def all_files(dataset: DatasetReader, seen: set[str]) -> list[str]:
    """What a dataset's pixels come from; GDAL itself lists the sources of a VRT one level deep."""
    files = []
    for file in dataset.files:
        if file in seen:
            continue
        seen.add(file)
        files.append(file)
        if file.lower().endswith(".vrt") and file != dataset.name:
            with DatasetReader(file, driver="VRT", sharing=False) as inner:
                files += all_files(inner, seen)
    return files


def _notes(dataset: DatasetReader, bands: Sequence[int], contract: Contract) -> list[str]:
    tagged = [b for b in bands if (dataset.scales[b - 1], dataset.offsets[b - 1]) != (1.0, 0.0)]
    if tagged and contract.pixel == "stored":
        return ['the file has scale and offset tags, which the contract\'s pixel = "stored" leaves alone']
    return []


def read_grid(dataset: DatasetReader) -> Grid:
    """The georeferencing of a dataset, as it is."""
    gcps, gcps_crs = dataset.gcps
    placed = dataset.crs is not None or not dataset.transform.is_identity
    return Grid(
        shape=dataset.shape,
        crs=dataset.crs,
        transform=dataset.transform if placed and not gcps else None,
        gcps=tuple(gcps),
        gcps_crs=gcps_crs,
        rpcs=dataset.rpcs,
        area_or_point=dataset.tags().get("AREA_OR_POINT"),
    )
