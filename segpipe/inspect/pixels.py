"""Facts that require the pixels of a raster: the share of valid pixels, and the windows without any."""

import math
from contextlib import closing

from rasterio.io import DatasetReader

from segpipe.contract import Contract
from segpipe.errors import SourceError
from segpipe.formats.case import RASTER, Case
from segpipe.formats.raster.source import RasterSource
from segpipe.formats.scenes.source import SceneSource
from segpipe.geometry.windows import Cover, Window, reflected
from segpipe.inspect.facts import Valid
from segpipe.overrides import Overrides

CHEAP_PIXELS = 2**24
"""Largest raster that is read window by window: about a second."""

SAMPLES, FEW_SAMPLES = 1024, 16
"""Longest side of the decimated read; the smaller one is for a large file without overviews, where each sample decodes a
block (measured: 1,024 blocks of 512 px, 4 bands of uint16 noise, 20 s). 256 samples give a share to within 3 %."""


def source_of(case: Case, contract: Contract, overrides: Overrides) -> RasterSource:
    """Open a raster or a scene of many files."""
    return RasterSource(case.path, contract, overrides) if case.format == RASTER else SceneSource(case, contract, overrides)


def valid_share(case: Case, dataset: DatasetReader, contract: Contract, overrides: Overrides) -> Valid | None:
    """Share of valid pixels, from GDAL's reduced view of the file, so that the validity rules of a run apply."""
    source_of(case, contract, overrides).close()
    if case.format == RASTER and ("?" in dataset.name or "://" in dataset.name):  # vrt:// cannot quote these characters
        return None
    cheap = math.prod(dataset.shape) <= CHEAP_PIXELS or dataset.overviews(1)
    rows, cols = (min(n, SAMPLES if cheap else FEW_SAMPLES) for n in dataset.shape)
    if case.format != RASTER:
        with closing(SceneSource(case, contract, overrides, (rows, cols))) as source:
            return _share(source, rows, cols)
    view = f"vrt://{dataset.name}?outsize={cols},{rows}"
    try:
        with closing(RasterSource(view, contract, overrides)) as source:
            return _share(source, rows, cols)
    except SourceError as error:
        raise SourceError(str(error).replace(view, dataset.name)) from None


def _share(source: RasterSource, rows: int, cols: int) -> Valid:
    _, invalid = source.read(Window((0, 0), (rows, cols)))
    return Valid(1.0 if invalid is None else 1 - float(invalid.mean()), rows * cols)


def empty_windows(source: RasterSource, cover: Cover) -> int | None:
    """Number of windows without a valid pixel; None where counting would take long."""
    if math.prod(cover.shape) > CHEAP_PIXELS:
        return None
    masks = (source.read(reflected(cover.window(index), cover.shape)[0])[1] for index in cover)
    return sum(mask is not None and bool(mask.all()) for mask in masks)
