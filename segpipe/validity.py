"""``--validity``: the mask that comes with a scene, and which of its values mark a pixel as valid.

>>> str(parse_validity("qa-pixel"))
'qa-pixel:bits:0-4'
>>> str(parse_validity("{case}_SCL.tif:4-7,11"))
'{case}_SCL.tif:4-7,11'
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

CASE = "{case}"
"""Stands in a pattern for the name of the case's file without suffix."""

MOST_BITS = 63

Kind = Literal["", "not", "bits"]
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on one band of a mask, which every valid pixel meets."""

    ranges: Ranges
    """First and last value, or bit, of each range."""
    kind: Kind = ""
    """Ranges are valid values, invalid ones (``not``), or bits none of which a valid pixel has (``bits``)."""
    band: int = 1

    def valid(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether pixels with these values of the mask are valid; NaN never is."""
        if self.kind == "bits":
            flags = sum(1 << bit for first, last in self.ranges for bit in range(first, last + 1))
            return np.asarray((values.astype(np.int64, copy=False) & flags) == 0)
        inside = np.zeros(values.shape, np.bool_)
        for first, last in self.ranges:
            inside |= (values >= first) & (values <= last)
        return ~inside & (values == values) if self.kind == "not" else inside  # noqa: PLR0124 - NaN

    def __str__(self) -> str:
        ranges = ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in self.ranges)
        band = f"band{self.band}:" if self.band != 1 else ""
        return band + (f"{self.kind}:" if self.kind else "") + ranges


@dataclass(frozen=True, slots=True)
class Preset:
    """A product's mask."""

    token: str
    """What names of its files have behind the name of the scene; also the name of the band in a product."""
    conditions: tuple[Condition, ...]


PRESETS: Mapping[str, Preset] = {
    # Sentinel-2 L2A scene classification: neither nodata (0), saturated (1), cloud shadow (3), cloud (8, 9) nor cirrus (10)
    "scl": Preset("SCL", (Condition(((2, 2), (4, 7), (11, 11))),)),
    # Planet UDM2: clear in band 1, and no flag of missing or bad data in band 8
    "udm2": Preset("udm2", (Condition(((1, 1),)), Condition(((0, 7),), "bits", 8))),
    # Landsat Collection 2: neither fill (0), dilated cloud (1), cirrus (2), cloud (3) nor cloud shadow (4)
    "qa-pixel": Preset("QA_PIXEL", (Condition(((0, 4),), "bits"),)),
    # HLS 2.0: neither cloud (1), next to cloud or shadow (2) nor cloud shadow (3); its fill value 255 has all bits
    "fmask": Preset("Fmask", (Condition(((1, 3),), "bits"),)),
}
"""Presets by name; snow counts as seen in all of them."""

NONZERO = (Condition(((0, 0),), "not"),)


@dataclass(frozen=True, slots=True)
class ValidityMask:
    """Which mask comes with each scene, and the conditions that its valid pixels meet."""

    pattern: str
    """Path relative to the folder of the case, with ``{case}`` and wildcards; or the name of a preset that finds it."""
    conditions: tuple[Condition, ...]

    @property
    def preset(self) -> Preset | None:
        """The preset that finds the file; None if a pattern does."""
        return PRESETS.get(self.pattern)

    def __str__(self) -> str:
        return f"{self.pattern}:{'+'.join(map(str, self.conditions))}"


RULE = "must be scl, udm2, qa-pixel, fmask or a pattern such as {case}_SCL.tif:4-7,11"


def parse_validity(text: str) -> ValidityMask:
    """Parse the value of ``--validity``: ``PRESET[:VALUES]`` or ``PATTERN[:VALUES]``.

    ``VALUES`` are conditions joined by ``+``, each ``[bandN:][not:|bits:]RANGES``, or the name of a preset.

    Raises:
        ValueError: it is neither.
    """
    pattern, colon, values = text.strip().partition(":")
    if not pattern or values.startswith("//") or (colon and not values):
        raise ValueError(f"{RULE}, relative to the folder of a scene")
    if values in PRESETS:
        return ValidityMask(pattern, PRESETS[values].conditions)
    if values:
        return ValidityMask(pattern, tuple(_condition(part) for part in values.split("+")))
    if pattern in PRESETS:
        return ValidityMask(pattern, PRESETS[pattern].conditions)
    if CASE not in pattern and not re.search(r"[.*?/]", pattern):
        raise ValueError(RULE)
    return ValidityMask(pattern, NONZERO)


_CONDITION = re.compile(r"(?:band([1-9]\d{0,4}):)?(?:(not|bits):)?(\d{1,9}(?:-\d{1,9})?(?:,\d{1,9}(?:-\d{1,9})?)*)")


def _condition(text: str) -> Condition:
    match = _CONDITION.fullmatch(text.replace(" ", ""))
    if match is None:
        raise ValueError(
            "values must be like 4-7,11 (valid), not:0-3,8-10 (invalid) or bits:1,3,4 (invalid if set), each after band8: "
            "if not of band 1, and joined by +"
        )
    band, kind, listed = match.groups()
    ends = [[int(end) for end in part.split("-")] for part in listed.split(",")]
    ranges = tuple((each[0], each[-1]) for each in ends)
    if any(first > last for first, last in ranges):
        raise ValueError("ranges of values must go up, as in 4-7")
    if kind == "bits" and max(last for _, last in ranges) >= MOST_BITS:
        raise ValueError(f"bits must be 0 to {MOST_BITS - 1}")
    return Condition(ranges, _kind(kind), int(band or 1))


def _kind(text: str | None) -> Kind:
    return "not" if text == "not" else "bits" if text == "bits" else ""
