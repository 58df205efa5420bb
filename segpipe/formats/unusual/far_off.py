"""Values of another quantity: decibels, degrees Celsius, and any distance that scenes do not explain."""

import numpy as np

from segpipe.formats.unusual.values import COLOURS, NARROW, Expected, Finding, Values, holds, is_optical, large_words

DEVIATIONS, MOST_DEVIATIONS = 100.0, 1000.0
"""Limits of the median in the contract's standard deviations, for neither reflectance nor intensity."""

NARROW_DEVIATIONS, MOST_NARROW_DEVIATIONS = 20.0, 200.0
"""The same where the deviation is below a tenth of the mean, as for temperatures in kelvin: no weather explains more."""

NEGATIVE = 10.0
"""Deviations below the mean from which negative pixels count as another quantity than the contract's positive ones:
temperatures and indices change their sign with less."""

FEWEST_DECIBELS = -3.0
"""Mean below which negative values are decibels of two or more polarisations rather than indices."""

HOW_MADE = "see how the file was made"


def linear_or_decibels(values: Values, expected: Expected) -> Finding | None:
    """Radar backscatter as power where decibels are expected, or the reverse."""
    mean, std = expected.mean, expected.std
    if mean is None:
        return None
    low, mid, high = (expected.scaled(v) for v in (values.low, values.mid, values.high))
    several = len(mean) > 1  # polarisations; one channel may hold depths, or degrees
    decibels = (mean < FEWEST_DECIBELS).all() and (mean + std < 0).all()
    if decibels and (low >= 0).all() and (mid < 1).all() and (high - low < std / 2).all() and not values.whole:
        return Finding(
            f"pixels look like linear power where the contract expects decibels: {holds(values, expected)}: "
            "convert them with 10 * log10",
            far=several,
        )
    below = (high < 0) & (mid < mean - NEGATIVE * std)
    if (mean > 0).all() and (std > NARROW * mean).all() and below.any():
        far = several and bool(below.all() and (mean < 1).all() and (mid < -1).all())
        what, mend = ("look like decibels", "convert them with 10 ** (pixel / 10)") if far else ("are negative", HOW_MADE)
        return Finding(f"pixels {what} where the contract expects positive values: {holds(values, expected)}: {mend}", far)
    return None


def far_off(values: Values, expected: Expected) -> Finding | None:
    """Any other distance from the mean that scenes do not explain."""
    mean = expected.mean
    if mean is None:
        return outside_clip(values, expected)
    if expected.byte:
        return None
    off = np.abs(expected.deviations(values.mid))
    narrow = expected.std < NARROW * np.abs(mean)
    off = np.where(expected.unit & ~narrow, 0, off)  # these have their own limits
    limit, most = np.where(narrow, NARROW_DEVIATIONS, DEVIATIONS), np.where(narrow, MOST_NARROW_DEVIATIONS, MOST_DEVIATIONS)
    if not (off > limit).any():
        return None
    celsius = bool((narrow & (mean > 240) & (mean < 340) & (np.abs(expected.scaled(values.mid)) < 60)).any())
    mend = "pixels look like degrees Celsius where the contract expects kelvin" if celsius else "see scale, mean and std"
    return Finding(
        f"pixels are {large_words(values, expected)}: {mend}", far=bool((off > most).any()) and is_optical(expected)
    )


def outside_clip(values: Values, expected: Expected) -> Finding | None:
    """Values far above the upper end of the contract's clip."""
    if expected.contract.limits is None:
        return None
    low, high = map(np.array, expected.contract.limits)
    over = (expected.scaled(values.mid) - high) / (high - low)
    if not (over > 20).any():
        return None
    worst = int(over.argmax())
    return Finding(
        f"half of the pixels of {expected.name(worst)} are above {values.mid[worst]:,.6g}, scaled to "
        f"{expected.scaled(values.mid)[worst]:,.4g}, and the contract's clip ends at {high[worst]:g}: see the "
        "contract's scale",
        far=bool((over > 200).any()) and (is_optical(expected) or len(over) >= COLOURS[0]),
    )
