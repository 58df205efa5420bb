"""Values whose zero is stored as another pixel: offsets of products, subtracted or not."""

from dataclasses import dataclass

import numpy as np

from segpipe.formats.unusual.values import Channel, Expected, Finding, Values, holds, is_reflectance, scale_words

FIT, MISFIT = 2.5, 3.0
"""Deviations within which all medians lie after a shift is undone, and beyond which one lies before."""


@dataclass(frozen=True, slots=True)
class _Shift:
    """A known difference between reflectance products: ``pixel * gain + bias`` is what the contract was made for."""

    gain: float
    bias: float
    floor: float
    """Darkest pixel of such a product, except for noise."""
    text: str


_SHIFTS = (
    _Shift(
        1,
        -1000,
        900,
        "pixels look as if 1,000 were added, as in Sentinel-2 products since baseline 04.00, where the contract expects "
        "reflectance times 10,000 alone: {}: set offset = {} in the contract",
    ),
    _Shift(
        0.275,
        -2000,
        6900,
        "pixels look like those of Landsat Collection 2, whose reflectance is pixel * 0.0000275 - 0.2, where the contract "
        "expects reflectance times 10,000: {}: convert the file",
    ),
    _Shift(
        1,
        1000,
        0,
        "pixels look like reflectance times 10,000 where the contract expects 1,000 more, as in Sentinel-2 products since "
        "baseline 04.00: {}: set offset = {} in the contract",
    ),
)


def shifted(values: Values, expected: Expected) -> Finding | None:
    """Reflectance whose zero is stored as another pixel value."""
    mean = expected.mean
    if mean is None or expected.byte or not is_reflectance(expected):
        return None  # few channels are not conclusive
    if np.abs(expected.deviations(values.mid)).max() < MISFIT:
        return None
    low, mid = (expected.scaled(v) * np.where(expected.unit, 10_000, 1) for v in (values.low, values.mid))
    wanted = mean * np.where(expected.unit, 10_000, 1)
    for shift in _SHIFTS:
        if (low < shift.floor).any() or (shift.bias > 0 and (mid > shift.bias).all()):
            continue
        if _fits(mid * shift.gain + shift.bias, wanted, expected.std / mean * wanted):
            offset = np.array(expected.contract.column("offset")) + shift.bias * np.where(expected.unit, 1e-4, 1)
            return Finding(shift.text.format(holds(values, expected), scale_words(offset)))
    return None


def _fits(mid: Channel, mean: Channel, std: Channel) -> bool:
    """Whether medians are near the means, and differ between channels as these do: those of snow are all alike."""
    if mid.min() <= 0 or (np.abs(mid - mean) >= FIT * std).any():
        return False
    return bool(mid.max() / mid.min() - 1 >= (mean.max() / mean.min() - 1) / 2)


def negative(values: Values, expected: Expected) -> Finding | None:
    """An offset subtracted from a file that does not have it."""
    offset = np.array(expected.contract.column("offset"))
    level = expected.scaled(values.mid)
    if expected.tagged or not ((offset < 0) & (level < -0.02) & expected.unit).any():
        return None
    return Finding(
        f"half of the pixels are below 0 after the contract's offset of {scale_words(offset)}, and reflectance is not: "
        f"{holds(values, expected)}: set offset = 0 in the contract for files without one"
    )
