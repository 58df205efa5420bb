"""Meaning of a mask's pixels: type, nodata, colours and names."""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Color = tuple[int, int, int, int]

PALE: Color = (225, 225, 225, 255)
"""Colour of a background; opaque, since the palette of a GeoTIFF has no opacity."""

UNUSED: dict[int, Color] = dict.fromkeys(range(256), (0, 0, 0, 255))
"""Colours of values that no pixel has."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A class that a mask shows, other than the background."""

    name: str
    value: int
    """Value of its pixels."""
    band: int = 0
    """Position of the band that contains them."""
    color: Color = UNUSED[0]
    snomed: tuple[str, ...] = ()
    """SNOMED CT codes: the type, or the category and the type."""


@dataclass(frozen=True)
class Style:
    """Meaning of a mask's pixels."""

    dtype: str
    nodata: int
    bands: Sequence[str]
    """Description of each band."""
    colors: dict[int, Color] | None = None
    """Colour table of a mask with one band of at most 256 values."""
    names: dict[int, str] | None = None
    """Class names by id, for a mask with one band."""
    tags: dict[str, str] | None = None
    scale: float = 1.0
    """Factor from a stored value to the quantity."""
    legend: Mapping[int, Color] = field(default_factory=dict)
    """Colour of each class of a mask with one band, whatever its type."""
    segments: Sequence[Segment] = ()
    """The classes of a mask other than its background, for formats that store each by itself."""
    scene: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """The input's metadata that describe the scene, by domain."""


def parse_color(text: str) -> Color:
    """``#rrggbb`` as red, green, blue and full opacity."""
    red, green, blue = bytes.fromhex(text.removeprefix("#"))
    return red, green, blue, 255


def palette(position: int) -> Color:
    """A colour for a class without one, different for any number of classes.

    Hues step by the golden ratio, so that neighbouring classes are far apart; lightness takes three steps.
    """
    hue = (position * 0.618033988749895 + 0.08) % 1
    lightness, saturation = ((0.45, 0.65), (0.62, 0.6), (0.32, 0.7))[position // 8 % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return round(red * 255), round(green * 255), round(blue * 255), 255
