"""Values far larger than the contract expects: a forgotten scale, missing tags, or 16 bits for 8."""

import numpy as np

from segpipe.formats.unusual.finding import Finding
from segpipe.formats.unusual.tags import NO_TAGS, has_tags
from segpipe.formats.unusual.values import BYTE, Expected, Values, is_optical
from segpipe.formats.unusual.words import large_words, scale_words

BRIGHT, BRIGHTEST = 2.0, 10.0
"""Limits of the median, where 1 is full reflectance or full scale."""

MANY = 40.0
"""Multiple of the mean beyond which a bright median has other units: for heights and other lengths 30 may be true."""


def too_large(values: Values, expected: Expected) -> Finding | None:
    """A forgotten scale, missing tags, or 16 bits for 8."""
    if expected.byte and not (values.dtype.kind in "iub" and values.dtype.itemsize == 1):
        reach = float(expected.scaled(values.high).max()) * (1 if expected.unit.any() else 1 / BYTE)
        if (values.high > BYTE + 5).any() and reach > 1:
            far = expected.mean is not None and _is_no_byte(values, expected)
            return Finding(
                f"pixels reach {values.high.max():,.6g} where the contract expects 0 to 255: "
                f"make 8-bit ones with gdal_translate -ot Byte -scale {values.least.min():g} {values.high.max():g} 0 255",
                far,
            )
    level = np.where(expected.unit, expected.scaled(values.mid), 0)
    if expected.byte or not (level > BRIGHT).any():
        return None
    bright = expected.mean is not None and bool(((level > BRIGHTEST) & (level > MANY * expected.mean)).any())
    far = bright and is_optical(expected)
    return Finding(f"pixels are {large_words(values, expected)}: {_scale_mend(values, expected)}", far)


def _is_no_byte(values: Values, expected: Expected) -> bool:
    """Whether pixels are certainly not 8-bit: three channels of heights may have the means of a picture."""
    by_scale = bool((np.array(expected.contract.column("scale")) != 1).any())
    return (by_scale or values.whole) and bool((values.mid > (2 if by_scale else 4) * BYTE).any())


def _scale_mend(values: Values, expected: Expected) -> str:
    contract = expected.contract
    if expected.tagged and not has_tags(expected):
        return f"{NO_TAGS}: set them, as with gdal_translate -a_scale 0.0001, or scl_slope of a NIfTI volume"
    factor = _fitting_factor(values, expected)
    if factor is None:
        return "set the contract's scale to the one of the file's units"
    scale = np.array(contract.column("scale")) * factor
    return f"scale seems to be missing: set scale = {scale_words(scale)} in the contract"


def _fitting_factor(values: Values, expected: Expected) -> float | None:
    """The usual factor that brings the medians nearest to the mean, if that is near."""
    if expected.mean is None:
        return None
    factors = (1 / 255, 1e-4, 1 / 65535, 1e-2, 1e-3)
    fits = [
        float(np.abs((values.mid * expected.gain * f + expected.bias - expected.mean) / expected.std).mean())
        for f in factors
    ]
    best = int(np.argmin(fits))
    return factors[best] if fits[best] < 5 else None
