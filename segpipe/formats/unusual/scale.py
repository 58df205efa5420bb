"""Values of another scale than the contract expects.

Far larger ones lack a scale, or the tags of their file, or have 16 bits for 8. Far smaller ones are fractions, or 8-bit
pictures of 16-bit scenes, or had their scale applied twice.
"""

import numpy as np

from segpipe.formats.unusual.values import (
    BYTE,
    COLOURS,
    NARROW,
    Channel,
    Expected,
    Finding,
    Values,
    expected_words,
    holds,
    is_optical,
    large_words,
    scale_words,
)

BRIGHT, BRIGHTEST = 2.0, 10.0
"""Limits of the median, where 1 is full reflectance or full scale."""

MANY = 40.0
"""Multiple of the mean beyond which a bright median has other units: for heights and other lengths 30 may be true."""

DARK, DARKEST = 0.04, 0.005
"""Shares of the contract's mean: if the brightest pixels (99 %) of every channel lie below, units are doubted or refused."""

LEAST_STORED = 20.0
"""Least mean of stored pixels for which values of 0 to 1 have another unit: a mean of 0.1 proves nothing."""

NO_TAGS = 'the contract\'s pixel = "physical" applies the scale and offset tags of the file, and it has none'


def too_large(values: Values, expected: Expected) -> Finding | None:
    """A forgotten scale, missing tags, or 16 bits for 8."""
    mend = f"make 8-bit ones with gdal_translate -ot Byte -scale {values.least.min():g} {values.high.max():g} 0 255"
    return _no_bytes(values, expected, mend) or _too_bright(values, expected)


def too_large_in_volume(values: Values, expected: Expected) -> Finding | None:
    """A forgotten scale, missing tags, or 16 bits for 8, in a format that GDAL does not write."""
    least, most = float(values.least.min()), float(values.high.max())
    scale = expected.gain * BYTE / max(most - least, 1)
    mend = (
        f"set scale and offset in the contract to those that made 0 to 255 of such values in training; for {least:g} to "
        f"{most:g} that is scale = {scale_words(scale)}, offset = {scale_words(expected.bias - least * scale)}"
    )
    return _no_bytes(values, expected, mend) or _too_bright(values, expected)


def _no_bytes(values: Values, expected: Expected, mend: str) -> Finding | None:
    """Other pixels than those of an 8-bit picture, where such are expected."""
    if not expected.byte or (values.dtype.kind in "iub" and values.dtype.itemsize == 1):
        return None
    reach = float(expected.scaled(values.high).max()) * (1 if expected.unit.any() else 1 / BYTE)
    if not (values.high > BYTE + 5).any() or reach <= 1:
        return None
    far = expected.mean is not None and _is_no_byte(values, expected)
    return Finding(f"pixels reach {values.high.max():,.6g} where the contract expects 0 to 255: {mend}", far)


def _too_bright(values: Values, expected: Expected) -> Finding | None:
    """Reflectances or intensities beyond full scale."""
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


def too_small(values: Values, expected: Expected) -> Finding | None:
    """Reflectance 0 to 1 or 0 to 100 for 0 to 10,000; intensities 0 to 1 for 0 to 255; or a scale applied twice."""
    if (values.high <= 0).all() or (expected.byte and values.dtype.kind in "iub"):
        return None  # a black picture is valid
    if expected.mean is None:
        return below_clip(values, expected)
    wide = (expected.mean > 0) & (expected.std >= NARROW * expected.mean)
    if not wide.any():
        return None
    share = float((values.high / expected.stored_mean)[wide].max())
    optical = is_optical(expected)
    if share >= (DARK if optical else DARKEST):
        return None
    optical = optical and float(expected.stored_mean.min()) > LEAST_STORED
    fractions = optical and _are_fractions(values)
    return _small(values, expected, fractions, far=fractions or (optical and len(wide) >= COLOURS[0] and share < DARKEST))


def below_clip(values: Values, expected: Expected) -> Finding | None:
    """Values of 0 to 1 where there is no mean, but a clip or a scale implies far larger ones."""
    own, limits = expected.contract.is_measured, expected.contract.limits
    if own and limits is None:
        return None  # the scale does not matter
    top = _full(expected)
    if top is None or not _are_fractions(values) or (values.high <= 0).all() or (top < 100).any():
        return None
    clipped = len(top) >= COLOURS[0] and limits is not None and bool((top >= 1000).all())
    far = not own and (clipped or (is_optical(expected) and "fixed" in expected.contract.normalizations))
    return _small(values, expected, fractions=True, far=far)


def _are_fractions(values: Values) -> bool:
    return not values.whole and bool((values.most <= 2).all() and (values.least >= -1).all())


def _full(expected: Expected) -> Channel | None:
    """Stored pixel that is scaled to 1, or to the upper end of the clip; None where neither is known."""
    if expected.byte:
        return np.full(len(expected.gain), BYTE)
    if expected.contract.limits is not None:
        return np.abs((np.array(expected.contract.limits[1]) - expected.bias) / expected.gain)
    return np.abs((1 - expected.bias) / expected.gain) if expected.unit.all() else None


def _small(values: Values, expected: Expected, fractions: bool, *, far: bool) -> Finding:
    held, scaled = holds(values, expected), has_scale(expected)
    if scaled and (np.array(expected.contract.column("scale")) != 1).any():
        mend = 'pixel = "physical" applies the scale tag of the file, and the contract\'s scale comes on top: set scale = 1'
    elif not fractions:
        mend = "set scale to that of the file's units"
    else:
        full = 255 if expected.byte else 10_000
        new = scale_words(np.array(expected.contract.column("scale")) * full)
        kind = "intensities" if expected.byte else "reflectance"
        text = f"pixels look like {kind} 0 to 1 where the contract expects 0 to {full:,}: {held}: "
        return Finding(f"{text}multiply the file's pixels by {full:,}, or set scale = {new} in the contract", far)
    return Finding(f"pixels are far smaller than the contract expects: {held}: {mend} in the contract", far)


def type_too_small(values: Values, expected: Expected) -> Finding | None:
    """An 8-bit picture of a scene where its 16-bit values are expected."""
    eight = values.dtype.kind in "iu" and values.dtype.itemsize == 1
    converted = not eight and values.whole and bool((values.least >= 0).all()) and float(values.most.max()) == BYTE
    if expected.byte or not (eight or converted):
        return None
    if expected.mean is None:
        full = _full(expected)
        beyond = np.zeros(1, np.bool_) if full is None or not eight else full > 20 * BYTE
    else:
        beyond = expected.stored_mean > BYTE
    if not beyond.any():
        return None
    seen = f"are {values.dtype}, at most 255," if eight else "end at 255, as in an 8-bit picture,"
    wanted = "larger ones" if expected.mean is None else expected_words(expected, int(expected.stored_mean.argmax()))
    return Finding(
        f"pixels {seen} where the contract expects {wanted}: "
        "give the original values of the scene, not a picture made of them",
        far=eight and expected.mean is not None and is_optical(expected) and bool(beyond.mean() >= 0.5),
    )


def has_scale(expected: Expected) -> bool:
    """Whether the file's tags change the gain of any band."""
    return expected.tagged and bool((expected.gain != np.array(expected.contract.column("scale"))).any())


def has_tags(expected: Expected) -> bool:
    """Whether the file's tags change the gain or the bias of any band."""
    offset = np.array(expected.contract.column("offset"))
    return has_scale(expected) or (expected.tagged and bool((expected.bias != offset).any()))


def without_tags(values: Values, expected: Expected) -> Finding | None:
    """Integers that should have been converted to physical values, where no mean can show it."""
    if not expected.tagged or has_tags(expected) or values.dtype.kind not in "iu":
        return None
    if set(expected.contract.normalizations) != {"none"}:
        return None
    return Finding(
        f"{NO_TAGS}: its integers are taken as they are; set the tags, as with gdal_translate -a_scale 0.0001, or use "
        'pixel = "stored"'
    )
