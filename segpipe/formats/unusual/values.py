"""What a sample of pixels holds, what the contract expects of it, as numbers per channel, and the words of findings."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract

FEWEST = 64
"""Fewest valid pixels that are judged."""

NARROW = 0.1
"""Share of the mean: a smaller deviation belongs to values that are never close to 0."""

SMALL = 1 / 200
"""Largest scale that turns stored pixels into reflectance or intensity, unless the offset suggests another quantity."""

COLOURS = 3, 4
"""Numbers of channels of a picture: near infrared may be the fourth."""

BYTE = 255.0

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
        """Stored values on the contract's scale."""
        return stored * self.gain + self.bias

    def deviations(self, stored: Channel) -> Channel:
        """Distance of values from the mean in standard deviations; requires a mean."""
        assert self.mean is not None
        return (self.scaled(stored) - self.mean) / self.std

    @property
    def stored_mean(self) -> Channel:
        """The contract's mean as stored pixels; requires a mean."""
        assert self.mean is not None
        return (self.mean - self.bias) / self.gain

    def name(self, channel: int) -> str:
        """Name of a channel in messages."""
        return channel_name(self.contract, channel)


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
    return Values(dtype=pixels.dtype, least=least, low=low, mid=mid, high=high, most=most, whole=whole)


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
    return Expected(contract=contract, tagged=tagged, gain=gain, bias=bias, mean=mean, std=std, unit=unit, byte=byte)


def _is_byte(contract: Contract, scale: Channel) -> bool:
    """Whether pixels are scaled by 1/255 or 1/256, or colours standardised by figures such as ImageNet's times 255."""
    if (np.abs(scale * BYTE - 1) < 0.005).all():
        return True
    if set(contract.normalizations) != {"fixed"} or (scale != 1).any() or len(scale) not in COLOURS:
        return False  # a single channel with such figures may contain heights
    mean, std = np.array(contract.column("mean")), np.array(contract.column("std"))
    return bool(((mean > 90) & (mean < 150) & ((std == 1) | ((std > 50) & (std < 130)))).all())


def is_reflectance(expected: Expected) -> bool:
    """Whether pixels should be reflectance times 10,000."""
    if expected.mean is None or len(expected.mean) < 3:
        return False
    gain = np.where(expected.unit, expected.gain * 10_000, 1)
    return bool(
        (np.abs(gain - 1) < 0.01).all() and (expected.stored_mean > 50).all() and (expected.stored_mean < 8000).all()
    )


def is_optical(expected: Expected) -> bool:
    """Whether the contract clearly expects reflectance or pictures; not heights, rain or backscatter."""
    if expected.byte or is_reflectance(expected):
        return True
    scaled = bool((np.array(expected.contract.column("scale")) <= SMALL).all())
    return bool(expected.unit.all()) and (scaled or len(expected.unit) >= COLOURS[0])


def channel_name(contract: Contract, channel: int) -> str:
    """The contract's name of a channel, or else its number from 1."""
    names = contract.channel_names
    return names[channel] if names else f"channel {channel + 1}"


def where(true: NDArray[np.bool_]) -> list[int]:
    """Positions of the true elements."""
    return [int(i) for i in np.flatnonzero(true)]


def holds(values: Values, expected: Expected) -> str:
    """Values of the worst channel, and what they should be."""
    worst = 0 if expected.mean is None else int(np.abs(expected.deviations(values.mid)).argmax())
    seen = f"{expected.name(worst)} holds {values.low[worst]:.4g} to {values.high[worst]:.4g}"
    return seen if expected.mean is None else f"{seen}, its mean should be {_mean_words(expected, worst)}"


def expected_words(expected: Expected, channel: int) -> str:
    """The mean, with its standard deviation, that the contract expects of a channel."""
    return f"a mean of {_mean_words(expected, channel)} in {expected.name(channel)}"


def _mean_words(expected: Expected, channel: int) -> str:
    spread = expected.std[channel] / abs(expected.gain[channel])
    return f"{expected.stored_mean[channel]:.4g} ± {spread:.3g}"


def large_words(values: Values, expected: Expected) -> str:
    """How far the medians lie above what the contract expects."""
    if expected.mean is None:
        full = "full reflectance" if expected.contract.layout.ndim == 2 else "full scale"
        return f"scaled to {expected.scaled(values.mid).max():.4g} where the contract's scale makes 1 of {full}"
    worst = int(np.abs(expected.deviations(values.mid)).argmax())
    distance = expected.deviations(values.mid)[worst]
    return (
        f"{distance:,.0f} standard deviations from the contract's mean in {expected.name(worst)}, {holds(values, expected)}"
    )


def scale_words(scale: Channel) -> str:
    """A scale as TOML."""
    numbers = [f"{value:.6g}" for value in scale]
    return numbers[0] if len(set(numbers)) == 1 else f"[{', '.join(numbers)}]"
