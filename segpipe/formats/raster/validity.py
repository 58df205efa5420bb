"""Find the invalid pixels of a raster by GDAL's rules, and by rules of our own where GDAL has none.

GDAL's flags say which rule it follows for a band. A stored mask takes precedence; NODATA_VALUES overrides the nodata values
of single bands. This module departs from GDAL's masks of bands in three points:

- NaN and infinity are invalid: no network can take them.
- An alpha band makes pixels invalid whatever its position and type, in addition to nodata values. GDAL uses it only as
  the last of two or four bands of 8 or 16 bits without nodata; ``rasterio.dataset_mask`` uses it instead of nodata.
- An alpha band that is a channel of the model is not a mask.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterWindow

from segpipe.formats.nodata import checked_nodata
from segpipe.formats.source import Invalid, Pixels
from segpipe.geometry.windows import Window
from segpipe.messages.printable import first_few
from segpipe.overrides import Nodata, Overrides

Interval = tuple[Any, Any]
"""Lowest and highest value, both included."""

Flags = Sequence[MaskFlags]

EXACT, LARGEST = 2**53, 2**65
"""From the first on, 64-bit integers are not exact as floats; beyond the second there are none."""

WIDE = ("int64", "uint64")
"""Types whose nodata values rasterio returns as floats, and so not exactly."""

_TOGETHER = {MaskFlags.per_dataset, MaskFlags.nodata}
_NO_MASK: tuple[set[MaskFlags], ...] = (
    {MaskFlags.all_valid},
    {MaskFlags.nodata},
    {MaskFlags.alpha, MaskFlags.per_dataset},
    _TOGETHER,
)


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules that make pixels of some bands invalid, besides NaN and infinity."""

    nodata: tuple[Interval | None, ...]
    """Nodata values of each band; None where it has none, or ``masked`` covers them."""
    masked: tuple[int, ...] = ()
    """1-based bands whose mask is read from GDAL."""
    alpha: tuple[int, ...] = ()
    """1-based bands whose zeros are transparent."""
    notes: tuple[str, ...] = ()
    """Which rule was applied where the file has two."""


def resolve_rules(dataset: DatasetReader, bands: Sequence[int], alpha: Sequence[int], overrides: Overrides) -> Rules:
    """The rules for the used bands of a file.

    Args:
        dataset: the file.
        bands: 1-based bands that the model takes.
        alpha: 1-based bands that are alpha and no channel.
        overrides: the user's settings; a nodata value given there applies in addition to a stored mask.

    Raises:
        SourceError: ``overrides`` names a nodata value that no pixel can hold.
    """
    flags = {band: dataset.mask_flag_enums[band - 1] for band in bands}
    stored = [band for band in bands if set(flags[band]) not in _NO_MASK]
    heeded = () if overrides.ignore_alpha or len(stored) == len(bands) else tuple(alpha)
    shadowed = () if overrides.ignore_alpha else tuple(band for band in alpha if band not in heeded)
    if overrides.nodata is not None:
        chosen = tuple(chosen_interval(overrides.nodata, _dtype(dataset, band)) for band in bands)
        return Rules(chosen, _shared(stored, flags), heeded, tuple(_mask_notes([], shadowed)))
    found = {band: _interval(dataset, band) for band in bands if set(flags[band]) == {MaskFlags.nodata}}
    asked = [band for band in bands if band in stored or found.get(band, ()) is None or set(flags[band]) == _TOGETHER]
    notes = [
        *_mask_notes([dataset.nodatavals[band - 1] for band in stored], shadowed),
        *_nodata_notes(dataset, bands, flags, heeded),
        *_palette_notes(dataset, bands, flags),
    ]
    return Rules(tuple(found.get(band) for band in bands), _shared(asked, flags), heeded, tuple(notes))


def _dtype(dataset: DatasetReader, band: int) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(dataset.dtypes[band - 1])
    return dtype


def _shared(asked: Sequence[int], flags: dict[int, Flags]) -> tuple[int, ...]:
    """Bands whose masks are read; one band stands for all that share a mask."""
    shared = [band for band in asked if MaskFlags.per_dataset in flags[band]]
    return (*shared[:1], *(band for band in asked if band not in shared))


def _interval(dataset: DatasetReader, band: int) -> Interval | None:
    """The values that GDAL treats as a band's nodata value; None where only GDAL knows them."""
    value, dtype = dataset.nodatavals[band - 1], _dtype(dataset, band)
    if value is None or dtype.name in WIDE or is_odd(value, dtype):
        return None
    return nodata_interval(value, dtype)


def nodata_interval(value: float, dtype: np.dtype[Any]) -> Interval:
    """The pixels of a type that GDAL treats as a nodata value: floats with a tolerance, integers after truncation.

    For floats, ``abs(a - b) < 2 * eps * abs(a + b)`` in their own arithmetic, with the ``eps`` of float32 even for float64
    (``ARE_REAL_EQUAL`` in gdal_priv.h).
    """
    if dtype.kind != "f":
        return dtype.type(int(value)), dtype.type(int(value))
    centre = dtype.type(value)
    if centre == 0 or not np.isfinite(centre):
        return centre, centre
    inner, outer = _furthest(abs(centre), down=True), _furthest(abs(centre), down=False)
    return (inner, outer) if centre > 0 else (-outer, -inner)


def _furthest(centre: Any, *, down: bool) -> Any:
    """Find, by bisection, the furthest positive float below or above another one that GDAL considers equal to it.

    Positive floats are ordered like the integers of the same bits.
    """
    bits = np.dtype(f"i{centre.itemsize}")
    near = int(centre.view(bits))
    far = 0 if down else int(np.finfo(centre.dtype).max.view(bits)) + 1
    while abs(far - near) > 1:
        middle = (near + far) // 2
        if _equal_to_gdal(bits.type(middle).view(centre.dtype), centre):
            near = middle
        else:
            far = middle
    return bits.type(near).view(centre.dtype)


def _equal_to_gdal(one: Any, other: Any) -> bool:
    with np.errstate(over="ignore", under="ignore"):
        tolerance = one.dtype.type(np.finfo(np.float32).eps) * abs(one + other) * one.dtype.type(2)
        return bool(one == other or abs(one - other) < tolerance)


def is_odd(value: float, dtype: np.dtype[Any]) -> bool:
    """Whether the sum of a nodata value and the largest pixels overflows, so that GDAL considers them equal."""
    if dtype.kind != "f" or not np.isfinite(value):
        return False
    with np.errstate(over="ignore"):
        centre, largest = abs(dtype.type(value)), np.finfo(dtype).max
        return bool(np.isinf(centre + largest) and not np.isinf(centre + centre))


def chosen_interval(chosen: Nodata, dtype: np.dtype[Any]) -> Interval | None:
    """The nodata values of a band by ``--nodata``.

    Raises:
        SourceError: no pixel of that type can hold the value.
    """
    value = checked_nodata(chosen, dtype)
    return None if value is None or math.isnan(value) else nodata_interval(value, dtype)


def _mask_notes(nodata: Sequence[float | None], alpha: Sequence[int]) -> Iterator[str]:
    """Notes where only a stored mask is applied."""
    values = {repr(float(value)).removesuffix(".0") for value in nodata if value is not None}
    if values:
        exact = len(values) == 1 and not EXACT <= abs(float(next(iter(values)))) < LARGEST
        mend = f"; --nodata {next(iter(values))} heeds both" if exact else ""
        yield f"the file has a mask and nodata values: the mask alone decides, as in GDAL{mend}"
    if alpha:
        yield f"the file has a mask and alpha in band {alpha[0]}: the mask alone decides, as in GDAL"


def _nodata_notes(
    dataset: DatasetReader, bands: Sequence[int], flags: dict[int, Flags], alpha: Sequence[int]
) -> Iterator[str]:
    by_value = [band for band in bands if MaskFlags.nodata in flags[band]]
    if by_value and alpha:
        yield (
            f"the file has nodata values and alpha in band {alpha[0]}: pixels that either excludes are invalid; "
            "--nodata none or --ignore-alpha drops one of them"
        )
    for band in by_value:
        value, dtype = dataset.nodatavals[band - 1], _dtype(dataset, band)
        if value is not None and dtype.kind != "f" and value != int(value):
            yield f"the nodata value {value:.10g} is taken for {int(value)}, as GDAL does: the pixels are {dtype}"
            return


def _palette_notes(dataset: DatasetReader, bands: Sequence[int], flags: dict[int, Flags]) -> Iterator[str]:
    """Notes on transparent entries of palettes: GDAL makes a nodata value of one, and nothing of several."""
    for band in (band for band in bands if MaskFlags.all_valid in flags[band]):
        if clear := _transparent(dataset, band):
            yield (
                f"{len(clear)} entries of the palette of band {band} are transparent, {first_few(clear)}, and their pixels "
                "are taken for data: gdal_translate -expand rgba makes an alpha band of them"
            )


def _transparent(dataset: DatasetReader, band: int) -> list[int]:
    """The entries of a band's palette that are wholly transparent; none if it has no palette."""
    if dataset.colorinterp[band - 1] is ColorInterp.palette:
        with suppress(ValueError):  # a band may be tagged so without a palette
            return [value for value, color in dataset.colormap(band).items() if color[3] == 0]
    return []


SAMPLE, SAMPLES = 128, 3
"""Side of the windows in which alpha is sampled, and number of windows along an axis."""

LEAST_VALUES, LEAST_BETWEEN = 16, 0.25
"""Limits beyond which alpha looks like data: different values, and share of pixels neither transparent nor opaque. In public
test suites that share is at most 0.07 for alpha; near infrared has nearly all of its pixels there."""

LOOKS_LIKE_DATA = (
    "band {} is tagged alpha but has values as an image has: pixels where it is 0 are taken for invalid; "
    "if it holds data, give --ignore-alpha"
)


def sample_windows(shape: tuple[int, ...], samples: int = SAMPLES) -> Iterator[Window]:
    """Yield a window over all of a small raster; over a large one, a lattice from corner to corner, or one in its middle."""
    rows, cols = (_spans(size, samples) for size in shape)
    yield from (Window((top, left), (bottom, right)) for top, bottom in rows for left, right in cols)


def _spans(size: int, samples: int) -> list[tuple[int, int]]:
    """Start and stop of each window along an axis."""
    if size <= SAMPLE * samples:
        return [(0, size)]
    starts = [i * (size - SAMPLE) // (samples - 1) for i in range(samples)] if samples > 1 else [(size - SAMPLE) // 2]
    return [(start, start + SAMPLE) for start in starts]


def looks_like_data(alpha: Pixels) -> bool:
    """Whether an alpha band looks like an image: many values, most of them neither transparent nor opaque."""
    values, counts = np.unique(alpha, return_counts=True)
    between = (values > 0.02 * values[-1]) & (values < 0.98 * values[-1])
    return len(values) >= LEAST_VALUES and bool(counts[between].sum() > LEAST_BETWEEN * alpha.size)


class Validity:
    """Finds the invalid pixels of a file's bands, window by window."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._scratch = np.empty((3, 0), np.bool_)

    def read(self, dataset: DatasetReader, window: RasterWindow) -> list[Invalid]:
        """Read the masks that GDAL provides, and alpha; True indicates invalid."""
        masks = [dataset.read_masks(band, window=window) == 0 for band in self.rules.masked]
        return masks + [dataset.read(band, window=window) == 0 for band in self.rules.alpha]

    def invalid(self, pixels: Pixels, masks: Sequence[Invalid]) -> Invalid | None:
        """Mask of pixels where a mask is True, or any band is nodata, NaN or infinite; None if all are valid.

        Works in reused memory: allocating for every band takes five times as long where many threads allocate (measured on
        16 processors).
        """
        shape = pixels.shape[1:]
        if self._scratch.shape[1] < (size := math.prod(shape)):
            self._scratch = np.empty((3, size), np.bool_)
        found, one, two = (flat[:size].reshape(shape) for flat in self._scratch)
        found.fill(False)
        for mask in masks:
            np.logical_or(found, mask, out=found)
        for band, interval in zip(pixels, self.rules.nodata, strict=True):
            if interval is not None:
                np.logical_or(found, _within(band, interval, one, two), out=found)
            if band.dtype.kind == "f":
                np.logical_or(found, np.logical_not(np.isfinite(band, out=one), out=one), out=found)
        return found.copy() if found.any() else None


def _within(band: Pixels, interval: Interval, one: Invalid, two: Invalid) -> Invalid:
    """Mask in ``one`` of where a band lies in an interval."""
    low, high = (band.dtype.type(end) for end in interval)
    if low == high:
        np.equal(band, low, out=one)
        return one
    np.greater_equal(band, low, out=one)
    np.less_equal(band, high, out=two)
    np.logical_and(one, two, out=one)
    return one
