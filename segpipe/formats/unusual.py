"""Check a sample of a case's pixels against what the contract's scaling expects.

A network labels whatever it is given, so that a wrong scale raises no error. Quantiles of the sample are therefore compared
with the contract's mean and deviation, or its clip, and with the pixel type. Scenes differ by night, snow, water and clouds,
units by powers of ten; the limits lie between the two (docs/decisions/unusual-pixels.md).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.network.scaling import Scaling

FEWEST = 64
"""Fewest valid pixels that are judged."""

DARK, DARKEST = 0.04, 0.005
"""Shares of the contract's mean: if the brightest pixels (99 %) of every channel lie below, units are doubted or refused."""

BRIGHT, BRIGHTEST = 2.0, 10.0
"""Limits of the median, where 1 is full reflectance or full scale."""

DEVIATIONS, MOST_DEVIATIONS = 100.0, 1000.0
"""Limits of the median in the contract's standard deviations, for neither reflectance nor intensity."""

NARROW_DEVIATIONS, MOST_NARROW_DEVIATIONS = 20.0, 200.0
"""The same where the deviation is below a tenth of the mean, as for temperatures in kelvin: no weather explains more."""

NEGATIVE = 10.0
"""Deviations below the mean from which negative pixels count as another quantity than the contract's positive ones:
temperatures and indices change their sign with less."""

NARROW = 0.1
"""Share of the mean: a smaller deviation belongs to values that are never close to 0."""

SMALL = 1 / 200
"""Largest scale that turns stored pixels into reflectance or intensity, unless the offset suggests another quantity."""

MANY = 40.0
"""Multiple of the mean beyond which a bright median has other units: for heights and other lengths 30 may be true."""

FIT, MISFIT = 2.5, 3.0
"""Deviations within which all medians lie after a shift is undone, and beyond which one lies before."""

ORDINARY = 2.0
"""Deviations within which the median of a common scene lies."""

SQUEEZED = 0.02
"""Share of a case's range within which 98 % of its pixels are squeezed by outliers."""

SENTINELS, NO_DATA, HUGE = (-9999.0, -99999.0, -32767.0, -32768.0), -9999.0, -1e30
"""Values that products use for nodata; the largest of them; and the limit below which any value is nodata."""

NO_TAGS = 'the contract\'s pixel = "physical" applies the scale and offset tags of the file, and it has none'

LEAST_STORED = 20.0
"""Least mean of stored pixels for which values of 0 to 1 have another unit: a mean of 0.1 proves nothing."""

FEWEST_DECIBELS = -3.0
"""Mean below which negative values are decibels of two or more polarisations rather than indices."""

COLOURS = 3, 4
"""Numbers of channels of a picture: near infrared may be the fourth."""

BYTE = 255.0

NODATA_OF_RASTER = "declare it with gdal_edit.py -a_nodata"
NODATA_OF_VOLUME = "say so with --nodata"

HOW_MADE = "see how the file was made"

Channel = NDArray[np.float64]
"""One number per channel."""

Tags = tuple[Channel, Channel]
"""Scale and offset of the bands of a file."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something unusual about the pixels of a case."""

    text: str
    """The observation, the expectation of the contract, and the mend."""
    far: bool = False
    """Whether labels would be meaningless."""


@dataclass(frozen=True, eq=False, slots=True)
class Values:
    """Quantiles of the sampled valid pixels of each channel, as stored."""

    dtype: np.dtype[Any]
    least: Channel
    low: Channel
    """The 1 % quantile."""
    mid: Channel
    high: Channel
    """The 99 % quantile."""
    most: Channel
    whole: bool
    """Whether all are whole numbers."""


@dataclass(frozen=True, eq=False, slots=True)
class Expected:
    """The scaling of a contract in stored pixels: its mean, deviation and clip refer to ``x = pixel * gain + bias``."""

    contract: Contract
    tagged: bool
    """Whether gain and bias include the file's own scale and offset tags."""
    gain: Channel
    bias: Channel
    mean: Channel | None
    """None where the contract has none, or uses mean and std as a plain shift and factor."""
    std: Channel
    unit: NDArray[np.bool_]
    """Mask of channels in which x is reflectance or intensity, at most 1."""
    byte: bool
    """Whether pixels should be those of an 8-bit picture."""

    def scaled(self, stored: Channel) -> Channel:
        return stored * self.gain + self.bias

    def deviations(self, stored: Channel) -> Channel:
        """Distance of values from the mean in standard deviations; requires a mean."""
        assert self.mean is not None
        return (self.scaled(stored) - self.mean) / self.std

    @property
    def stored_mean(self) -> Channel:
        assert self.mean is not None
        return (self.mean - self.bias) / self.gain

    def name(self, channel: int) -> str:
        return _channel_name(self.contract, channel)


Rule = Callable[[Values, Expected], Finding | None]
"""Detects one kind of mistake."""


def values_of(pixels: NDArray[Any]) -> Values | None:
    """Quantiles of valid pixels of shape ``(channels, count)``; None for too few."""
    count = pixels.shape[1]
    if count < FEWEST:
        return None
    # float32 represents them exactly, and sorts three times as fast
    ordered = pixels.astype(np.float32) if pixels.dtype.kind in "iu" and pixels.dtype.itemsize <= 2 else pixels.copy()
    ordered.sort(axis=1)
    places = [0, (count - 1) // 100, (count - 1) // 2, -1 - (count - 1) // 100, -1]
    least, low, mid, high, most = ordered[:, places].T.astype(np.float64)
    whole = pixels.dtype.kind in "iub" or bool((pixels == np.rint(pixels)).all())
    return Values(pixels.dtype, least, low, mid, high, most, whole)


def expected_of(contract: Contract, tags: Tags | None) -> Expected:
    """The values that a contract expects of a file whose bands have these scale and offset tags."""
    scale, offset = np.array(contract.column("scale")), np.array(contract.column("offset"))
    gain, bias = scale, offset
    tagged = contract.scaling == "host" and contract.pixel == "physical" and tags is not None
    if tagged and tags is not None:
        gain, bias = tags[0] * scale, tags[1] * scale + offset
    mean, std = None, np.ones(len(gain))
    if contract.fixed and set(contract.normalizations) == {"fixed"}:
        mean, std = map(np.array, contract.fixed)
        if not mean.any() or (std == 1).all():  # a plain factor, or a plain shift
            mean = None
    byte = _is_byte(contract, scale)
    unit = (scale <= SMALL) & (np.abs(offset) <= 0.5)
    if mean is not None:
        unit = (mean >= 0) & (mean + std <= 1.1) & ((scale != 1) | (mean >= NARROW * std))
    return Expected(contract, tagged, gain, bias, mean, std, unit, byte)


def _is_byte(contract: Contract, scale: Channel) -> bool:
    """Whether pixels are scaled by 1/255 or 1/256, or colours standardised by figures such as ImageNet's times 255."""
    if (np.abs(scale * BYTE - 1) < 0.005).all():
        return True
    if set(contract.normalizations) != {"fixed"} or (scale != 1).any() or len(scale) not in COLOURS:
        return False  # a single channel with such figures may contain heights
    mean, std = np.array(contract.column("mean")), np.array(contract.column("std"))
    return bool(((mean > 90) & (mean < 150) & ((std == 1) | ((std > 50) & (std < 130)))).all())


class Judge:
    """Finds unusual properties of sampled pixels, for many cases and one contract."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._expected: dict[bytes, Expected] = {}
        """Expectations by the tags of the file, which are the same for most files of a run."""

    def __call__(self, pixels: NDArray[Any], scaling: Scaling | None, tags: Tags | None, *, axes: int) -> list[Finding]:
        """Unusual properties of the pixels of a case, the most serious first.

        Args:
            pixels: valid pixels as stored, shape ``(channels, count)``, in any order.
            scaling: scaling of the case, with its own statistics if the contract uses them; None if these are not known.
            tags: scale and offset of the file's bands; None if stored values are physical values, as in most volumes.
            axes: number of axes of the case: 3 for a volume, even if the model takes images.
        """
        values = values_of(pixels)
        if values is None:
            return []
        key = b"" if tags is None else tags[0].tobytes() + tags[1].tobytes()
        expected = self._expected.get(key) or self._expected.setdefault(key, expected_of(self._contract, tags))
        rules, mend = (_VOLUME_RULES, NODATA_OF_VOLUME) if axes > 2 else (_RULES, NODATA_OF_RASTER)
        if self._contract.is_measured:
            return list(_of_own(values, expected, scaling, mend))
        if _is_ordinary(values, expected):
            return []
        if (expected.gain < 0).any():  # the quantiles would swap
            return list(_constant(values, expected))
        found = _first(rules, values, expected)
        more = [*_constant(values, expected), *_sentinel(values, self._contract, mend)]
        return [found, *more] if found else more


def _is_ordinary(values: Values, expected: Expected) -> bool:
    """Whether quick tests rule out every finding: a small picture is read in less than 1 ms."""
    if not (values.low < values.high).all() or values.least.min() <= NO_DATA:
        return False
    eight = values.dtype.itemsize == 1
    if expected.byte or eight:
        return expected.byte and eight
    if expected.mean is None or values.most.max() == BYTE:
        return False
    off = (np.stack([values.low, values.mid, values.high]) * expected.gain + (expected.bias - expected.mean)) / expected.std
    return bool((np.abs(off[1]) < ORDINARY).all() and (off[2] - off[0] > 1).all() and (off[2] > 0).all())


def _of_own(values: Values, expected: Expected, scaling: Scaling | None, mend: str) -> Iterator[Finding]:
    """Findings for a case that is scaled by its own statistics: only what precedes the statistics can be wrong."""
    if (expected.gain > 0).all() and (found := _first(_OWN_RULES, values, expected)):
        yield found
    if scaling is None:
        yield from _constant(values, expected)
    else:
        yield from _of_own_statistics(values, expected.contract, scaling)
    yield from _sentinel(values, expected.contract, mend)


def _first(rules: Iterable[Rule], values: Values, expected: Expected) -> Finding | None:
    return next(filter(None, (rule(values, expected) for rule in rules)), None)


def _of_own_statistics(values: Values, contract: Contract, scaling: Scaling) -> Iterator[Finding]:
    """Yield useless statistics of a case: of a channel without spread, or dominated by a few outliers."""
    if contract.scaling == "graph":
        return
    name = partial(_channel_name, contract)
    flat = _where(scaling.gain == 0)
    if flat:
        yield Finding(
            f"all valid pixels of {', '.join(map(name, flat))} are equal, and {contract.normalizations[flat[0]]} makes them "
            "0: is that band empty?"
        )
    if contract.clip_percentiles is None and contract.range_percentiles is None:
        spread = (values.high - values.low) * scaling.gain
        squeezed = np.array([one == "minmax" for one in contract.normalizations]) & (spread < SQUEEZED) & (spread > 0)
        for i in _where(squeezed):
            ends = [f"{(end - scaling.bias[i]) / scaling.gain[i] + 0:.6g}" for end in (0, 1)]
            yield Finding(
                f"98 % of the sampled pixels of {name(i)} lie within {spread[i]:.1%} of the case's range, "
                f"{' to '.join(ends)}: a few outliers stretch minmax, mark them as nodata"
            )


def _constant(values: Values, expected: Expected) -> Iterator[Finding]:
    same = values.least == values.most
    if same.any():
        equal = ", ".join(f"{expected.name(i)} ({values.least[i]:g})" for i in _where(same))
        yield Finding(f"all sampled pixels are equal in {equal}: is that band empty?")


def _sentinel(values: Values, contract: Contract, mend: str) -> Iterator[Finding]:
    """Yield a value that many products use for nodata, and that the file does not declare."""
    for i in _where((values.low == values.least) & (values.low < values.mid)):
        if (value := values.least[i]) in SENTINELS or value <= HUGE:
            yield Finding(
                f"1 % or more of the sampled pixels of {_channel_name(contract, i)} hold {value:.9g}, which looks like "
                f"nodata that the file does not declare: {mend}"
            )
            return


def _where(true: NDArray[np.bool_]) -> list[int]:
    return [int(i) for i in np.flatnonzero(true)]


def _channel_name(contract: Contract, channel: int) -> str:
    names = contract.channel_names
    return names[channel] if names else f"channel {channel + 1}"


# --- rules: each detects one kind of error ---------------------------------------------------------------------------------


def _linear_or_decibels(values: Values, expected: Expected) -> Finding | None:
    """Radar backscatter as power where decibels are expected, or the reverse."""
    mean, std = expected.mean, expected.std
    if mean is None:
        return None
    low, mid, high = (expected.scaled(v) for v in (values.low, values.mid, values.high))
    several = len(mean) > 1  # polarisations; one channel may hold depths, or degrees
    decibels = (mean < FEWEST_DECIBELS).all() and (mean + std < 0).all()
    if decibels and (low >= 0).all() and (mid < 1).all() and (high - low < std / 2).all() and not values.whole:
        return Finding(
            f"pixels look like linear power where the contract expects decibels: {_holds(values, expected)}: "
            "convert them with 10 * log10",
            far=several,
        )
    below = (high < 0) & (mid < mean - NEGATIVE * std)
    if (mean > 0).all() and (std > NARROW * mean).all() and below.any():
        far = several and bool(below.all() and (mean < 1).all() and (mid < -1).all())
        what, mend = ("look like decibels", "convert them with 10 ** (pixel / 10)") if far else ("are negative", HOW_MADE)
        return Finding(f"pixels {what} where the contract expects positive values: {_holds(values, expected)}: {mend}", far)
    return None


def _too_small(values: Values, expected: Expected) -> Finding | None:
    """Reflectance 0 to 1 or 0 to 100 for 0 to 10,000; intensities 0 to 1 for 0 to 255; or a scale applied twice."""
    if (values.high <= 0).all() or (expected.byte and values.dtype.kind in "iub"):
        return None  # a black picture is valid
    if expected.mean is None:
        return _below_clip(values, expected)
    wide = (expected.mean > 0) & (expected.std >= NARROW * expected.mean)
    if not wide.any():
        return None
    share = float((values.high / expected.stored_mean)[wide].max())
    optical = _is_optical(expected)
    if share >= (DARK if optical else DARKEST):
        return None
    optical = optical and float(expected.stored_mean.min()) > LEAST_STORED
    fractions = optical and _are_fractions(values)
    return _small(values, expected, fractions, far=fractions or (optical and len(wide) >= COLOURS[0] and share < DARKEST))


def _below_clip(values: Values, expected: Expected) -> Finding | None:
    """Values of 0 to 1 where there is no mean, but a clip or a scale implies far larger ones."""
    own, limits = expected.contract.is_measured, expected.contract.limits
    if own and limits is None:
        return None  # the scale does not matter
    top = _full(expected)
    if top is None or not _are_fractions(values) or (values.high <= 0).all() or (top < 100).any():
        return None
    clipped = len(top) >= COLOURS[0] and limits is not None and bool((top >= 1000).all())
    far = not own and (clipped or (_is_optical(expected) and "fixed" in expected.contract.normalizations))
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
    holds, scaled = _holds(values, expected), _has_scale(expected)
    if scaled and (np.array(expected.contract.column("scale")) != 1).any():
        mend = 'pixel = "physical" applies the scale tag of the file, and the contract\'s scale comes on top: set scale = 1'
    elif not fractions:
        mend = "set scale to that of the file's units"
    else:
        full = 255 if expected.byte else 10_000
        new = _scale_words(np.array(expected.contract.column("scale")) * full)
        kind = "intensities" if expected.byte else "reflectance"
        text = f"pixels look like {kind} 0 to 1 where the contract expects 0 to {full:,}: {holds}: "
        return Finding(f"{text}multiply the file's pixels by {full:,}, or set scale = {new} in the contract", far)
    return Finding(f"pixels are far smaller than the contract expects: {holds}: {mend} in the contract", far)


def _has_scale(expected: Expected) -> bool:
    return expected.tagged and bool((expected.gain != np.array(expected.contract.column("scale"))).any())


def _has_tags(expected: Expected) -> bool:
    offset = np.array(expected.contract.column("offset"))
    return _has_scale(expected) or (expected.tagged and bool((expected.bias != offset).any()))


def _scale_words(scale: Channel) -> str:
    """A scale as TOML."""
    numbers = [f"{value:.6g}" for value in scale]
    return numbers[0] if len(set(numbers)) == 1 else f"[{', '.join(numbers)}]"


def _type_too_small(values: Values, expected: Expected) -> Finding | None:
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
    wanted = "larger ones" if expected.mean is None else _expected_words(expected, int(expected.stored_mean.argmax()))
    return Finding(
        f"pixels {seen} where the contract expects {wanted}: "
        "give the original values of the scene, not a picture made of them",
        far=eight and expected.mean is not None and _is_optical(expected) and bool(beyond.mean() >= 0.5),
    )


def _too_large(values: Values, expected: Expected) -> Finding | None:
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
    far = bright and _is_optical(expected)
    return Finding(f"pixels are {_large_words(values, expected)}: {_scale_mend(values, expected)}", far)


def _is_no_byte(values: Values, expected: Expected) -> bool:
    """Whether pixels are certainly not 8-bit: three channels of heights may have the means of a picture."""
    by_scale = bool((np.array(expected.contract.column("scale")) != 1).any())
    return (by_scale or values.whole) and bool((values.mid > (2 if by_scale else 4) * BYTE).any())


def _large_words(values: Values, expected: Expected) -> str:
    if expected.mean is None:
        full = "full reflectance" if expected.contract.layout.ndim == 2 else "full scale"
        return f"scaled to {expected.scaled(values.mid).max():.4g} where the contract's scale makes 1 of {full}"
    worst = int(np.abs(expected.deviations(values.mid)).argmax())
    distance = expected.deviations(values.mid)[worst]
    return (
        f"{distance:,.0f} standard deviations from the contract's mean in {expected.name(worst)}, {_holds(values, expected)}"
    )


def _scale_mend(values: Values, expected: Expected) -> str:
    contract = expected.contract
    if expected.tagged and not _has_tags(expected):
        return f"{NO_TAGS}: set them, as with gdal_translate -a_scale 0.0001, or scl_slope of a NIfTI volume"
    factor = _fitting_factor(values, expected)
    if factor is None:
        return "set the contract's scale to the one of the file's units"
    scale = np.array(contract.column("scale")) * factor
    return f"scale seems to be missing: set scale = {_scale_words(scale)} in the contract"


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


def _shifted(values: Values, expected: Expected) -> Finding | None:
    """Reflectance whose zero is stored as another pixel value."""
    mean = expected.mean
    if mean is None or expected.byte or not _is_reflectance(expected):
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
            return Finding(shift.text.format(_holds(values, expected), _scale_words(offset)))
    return None


def _fits(mid: Channel, mean: Channel, std: Channel) -> bool:
    """Whether medians are near the means, and differ between channels as these do: those of snow are all alike."""
    if mid.min() <= 0 or (np.abs(mid - mean) >= FIT * std).any():
        return False
    return bool(mid.max() / mid.min() - 1 >= (mean.max() / mean.min() - 1) / 2)


def _is_reflectance(expected: Expected) -> bool:
    """Whether pixels should be reflectance times 10,000."""
    if expected.mean is None or len(expected.mean) < 3:
        return False
    gain = np.where(expected.unit, expected.gain * 10_000, 1)
    return bool(
        (np.abs(gain - 1) < 0.01).all() and (expected.stored_mean > 50).all() and (expected.stored_mean < 8000).all()
    )


def _is_optical(expected: Expected) -> bool:
    """Whether the contract clearly expects reflectance or pictures; not heights, rain or backscatter."""
    if expected.byte or _is_reflectance(expected):
        return True
    scaled = bool((np.array(expected.contract.column("scale")) <= SMALL).all())
    return bool(expected.unit.all()) and (scaled or len(expected.unit) >= COLOURS[0])


def _negative(values: Values, expected: Expected) -> Finding | None:
    """An offset subtracted from a file that does not have it."""
    offset = np.array(expected.contract.column("offset"))
    level = expected.scaled(values.mid)
    if expected.tagged or not ((offset < 0) & (level < -0.02) & expected.unit).any():
        return None
    return Finding(
        f"half of the pixels are below 0 after the contract's offset of {_scale_words(offset)}, and reflectance is not: "
        f"{_holds(values, expected)}: set offset = 0 in the contract for files without one"
    )


def _far_off(values: Values, expected: Expected) -> Finding | None:
    """Any other distance from the mean that scenes do not explain."""
    mean = expected.mean
    if mean is None:
        return _outside_clip(values, expected)
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
        f"pixels are {_large_words(values, expected)}: {mend}", far=bool((off > most).any()) and _is_optical(expected)
    )


def _outside_clip(values: Values, expected: Expected) -> Finding | None:
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
        far=bool((over > 200).any()) and (_is_optical(expected) or len(over) >= COLOURS[0]),
    )


def _without_tags(values: Values, expected: Expected) -> Finding | None:
    """Integers that should have been converted to physical values, where no mean can show it."""
    if not expected.tagged or _has_tags(expected) or values.dtype.kind not in "iu":
        return None
    if set(expected.contract.normalizations) != {"none"}:
        return None
    return Finding(
        f"{NO_TAGS}: its integers are taken as they are; set the tags, as with gdal_translate -a_scale 0.0001, or use "
        'pixel = "stored"'
    )


def _holds(values: Values, expected: Expected) -> str:
    """Values of the worst channel, and what they should be."""
    worst = 0 if expected.mean is None else int(np.abs(expected.deviations(values.mid)).argmax())
    seen = f"{expected.name(worst)} holds {values.low[worst]:.4g} to {values.high[worst]:.4g}"
    return seen if expected.mean is None else f"{seen}, its mean should be {_mean_words(expected, worst)}"


def _expected_words(expected: Expected, channel: int) -> str:
    return f"a mean of {_mean_words(expected, channel)} in {expected.name(channel)}"


def _mean_words(expected: Expected, channel: int) -> str:
    spread = expected.std[channel] / abs(expected.gain[channel])
    return f"{expected.stored_mean[channel]:.4g} ± {spread:.3g}"


_RULES: tuple[Rule, ...] = (
    _negative,
    _linear_or_decibels,
    _type_too_small,
    _too_small,
    _too_large,
    _shifted,
    _far_off,
    _without_tags,
)

_VOLUME_RULES: tuple[Rule, ...] = (_type_too_small, _too_small, _too_large, _far_off)
"""Rules for volumes, which contain neither reflectance nor backscatter: air is -1,000 in CT, whatever a model's window."""

_OWN_RULES: tuple[Rule, ...] = (_type_too_small, _below_clip, _outside_clip)
"""Rules for cases scaled by their own statistics, which undo any other scale."""
