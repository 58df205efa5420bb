"""Values far smaller than the contract expects: fractions, 8-bit pictures of 16-bit scenes, a scale applied twice."""

import numpy as np

from segpipe.formats.unusual.finding import Finding
from segpipe.formats.unusual.tags import has_scale
from segpipe.formats.unusual.values import BYTE, COLOURS, NARROW, Channel, Expected, Values, is_optical
from segpipe.formats.unusual.words import expected_words, holds, scale_words

DARK, DARKEST = 0.04, 0.005
"""Shares of the contract's mean: if the brightest pixels (99 %) of every channel lie below, units are doubted or refused."""

LEAST_STORED = 20.0
"""Least mean of stored pixels for which values of 0 to 1 have another unit: a mean of 0.1 proves nothing."""


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
