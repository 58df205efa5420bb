"""Where the pixels of a raster are valid."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rasterio.enums import MaskFlags
from rasterio.io import DatasetReader
from rasterio.windows import Window

from segpipe.pipeline.sources import Invalid, Pixels


class Validity:
    """Which pixels of some bands are invalid: by a mask stored beside them, their nodata values, alpha, NaN or infinity."""

    def __init__(self, dataset: DatasetReader, bands: Sequence[int], alpha: Sequence[int], dtype: np.dtype[Any]) -> None:
        self.alpha = [i for i in alpha if i not in bands]
        self.masked = masked_bands(dataset, bands)
        self._nodata = [resolve_nodata(dataset.nodatavals[i - 1], dtype) for i in bands]
        if self.masked and MaskFlags.nodata in dataset.mask_flag_enums[self.masked[0] - 1]:
            self._nodata = [None] * len(bands)  # nodata of all bands together, which the mask knows
        self._scratch = np.empty((2, 0), np.bool_)

    def read(self, dataset: DatasetReader, window: Window) -> list[Invalid]:
        """Masks that are stored, as far as they say that pixels are invalid."""
        masks = [dataset.read_masks(band, window=window) == 0 for band in self.masked]
        return masks + [dataset.read(band, window=window) == 0 for band in self.alpha]

    def invalid(self, pixels: Pixels, masks: Sequence[Invalid]) -> Invalid | None:
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


def resolve_nodata(value: float | None, dtype: np.dtype[Any]) -> Any:
    """The nodata value as a pixel can hold it; None where no pixel can equal it."""
    if value is None or np.isnan(value):
        return None
    if dtype.kind == "f":
        return dtype.type(value)
    limits = np.iinfo(dtype)
    return dtype.type(value) if value == int(value) and limits.min <= value <= limits.max else None


def masked_bands(dataset: DatasetReader, bands: Sequence[int]) -> list[int]:
    """Bands whose mask is stored beside them: one where all share it."""
    flags = [(band, dataset.mask_flag_enums[band - 1]) for band in bands]
    computed = ({MaskFlags.all_valid}, {MaskFlags.nodata}, {MaskFlags.alpha, MaskFlags.per_dataset})
    stored = [band for band, f in flags if set(f) not in computed]
    shared = [band for band, f in flags if band in stored and MaskFlags.per_dataset in f]
    return shared[:1] if shared else stored
