"""What only the pixels of a raster tell: which share of them is valid, and which windows have none that is."""

import math
from contextlib import closing

from rasterio.io import DatasetReader

from segpipe.contract import Contract
from segpipe.errors import SourceError
from segpipe.formats.raster.source import RasterSource
from segpipe.geometry.windows import Cover, Window, reflected
from segpipe.inspect.facts import Valid
from segpipe.overrides import Overrides

CHEAP_PIXELS = 2**24
"""Rasters up to this size are looked at window by window: a second or so."""

SAMPLES, FEW_SAMPLES = 1024, 16
"""Longest side of the decimated read. The few are for a large file without overviews, where each sample decodes a block of
its own (measured: 1,024 blocks of 512 px, 4 bands of uint16 noise, 20 s); 256 samples tell a share to 3 %."""


def valid_share(dataset: DatasetReader, contract: Contract, overrides: Overrides) -> Valid | None:
    """Through GDAL's own view of the file at a smaller size, so that a pixel is valid by the rules of a run."""
    RasterSource(dataset.name, contract, overrides).close()
    if "?" in dataset.name or "://" in dataset.name:  # the view has no way to quote them
        return None
    cheap = math.prod(dataset.shape) <= CHEAP_PIXELS or dataset.overviews(1)
    rows, cols = (min(n, SAMPLES if cheap else FEW_SAMPLES) for n in dataset.shape)
    view = f"vrt://{dataset.name}?outsize={cols},{rows}"
    try:
        with closing(RasterSource(view, contract, overrides)) as source:
            _, invalid = source.read(Window((0, 0), (rows, cols)))
    except SourceError as error:
        raise SourceError(str(error).replace(view, dataset.name)) from None
    return Valid(1.0 if invalid is None else 1 - float(invalid.mean()), rows * cols)


def empty_windows(source: RasterSource, cover: Cover) -> int | None:
    """Windows without a valid pixel; None where counting them would take long."""
    if math.prod(cover.shape) > CHEAP_PIXELS:
        return None
    masks = (source.read(reflected(cover.window(index), cover.shape)[0])[1] for index in cover)
    return sum(mask is not None and bool(mask.all()) for mask in masks)
