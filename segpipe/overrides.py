"""Statements of the user about the input files, used where their own metadata is missing or wrong."""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from segpipe.validity import ValidityMask

if TYPE_CHECKING:
    from segpipe.vectors.area import Area

Nodata = int | float | Literal["none", "nan"]
"""A nodata value, integers exactly; ``none``: no value stands for nodata."""


BandResampling = Literal["nearest", "bilinear"]
"""How bands of coarser pixels are read on the grid of the finest."""

Patterns = tuple[tuple[str, str], ...]
"""Name of a channel, and the pattern of its files."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """Statements that replace a file's own metadata in every case of a run; None: use the file's."""

    bands: tuple[int, ...] | None = None
    """1-based bands in the order of the contract's channels."""
    nodata: Nodata | None = None
    """Nodata value of every used band; a stored mask and alpha still count as well."""
    ignore_alpha: bool = False
    """Treat bands tagged alpha as ordinary bands: they make no pixel invalid."""
    crs: str | None = None
    """A code or WKT for the files' geotransforms or control points."""
    remote: bool = False
    """Whether a local file may refer to servers, and a VRT on a server to any place."""
    resample: bool = False
    """Whether images whose pixel size differs from the model's are resampled."""
    band_resampling: BandResampling = "bilinear"
    """For scenes whose bands have several pixel sizes."""
    validity: ValidityMask | None = None
    """The mask that comes with each scene, and its valid values."""
    aoi: "Area | None" = None
    """The area of interest: pixels outside are invalid."""


def parse_nodata(value: Any) -> Nodata:
    """Parse a nodata value of a flag or a configuration.

    >>> parse_nodata("-9999.0"), parse_nodata("18446744073709551615"), parse_nodata("None")
    (-9999, 18446744073709551615, 'none')

    Raises:
        ValueError: it is neither a finite number, ``nan`` nor ``none``.
    """
    text = str(value).strip().lower()
    if text in ("none", "nan"):
        return "none" if text == "none" else "nan"
    if re.fullmatch(r"[+-]?\d{1,20}", text):
        return int(text)
    try:
        number = float(text)
    except ValueError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError("must be a finite number, nan or none; infinite pixels are never valid")
    return int(number) if number == int(number) else number


def parse_patterns(text: str) -> Patterns:
    """
    >>> parse_patterns("t1=*_t1.nii.gz, flair=*_flair.nii.gz")
    (('t1', '*_t1.nii.gz'), ('flair', '*_flair.nii.gz'))

    Raises:
        ValueError: a part has no name or no pattern.
    """
    parts = [part.partition("=") for part in text.split(",")]
    return tuple((name.strip(), pattern.strip()) for name, _, pattern in parts)


def check_patterns(patterns: Patterns) -> Patterns:
    """Check that all patterns identify cases in the same way.

    Raises:
        ValueError: a name or a pattern is missing, or patterns differ in their number of ``*``.
    """
    if not patterns or not all(name and pattern for name, pattern in patterns):
        raise ValueError("must be NAME=PATTERN for each channel, such as t1=*_t1.nii.gz,flair=*_flair.nii.gz")
    if len({pattern.count("*") for _, pattern in patterns}) > 1 or "*" not in patterns[0][1]:
        raise ValueError("each pattern must have a * for the name of the case, as many as the others")
    return patterns


def check_bands_from(pattern: str) -> str:
    """Check that a pattern of files says where the name of the case stands, and that of the band, the date or the input.

    >>> check_bands_from("{case}_{band}.tif"), check_bands_from("{date:before,after}/{case}.png")
    ('{case}_{band}.tif', '{date:before,after}/{case}.png')

    Raises:
        ValueError: it does not, or has other braces.
    """
    words = re.findall(r"\{(case|band|(?:date|input)(?::[^{}:/*]+)?)\}", pattern)
    parts = [word for word in words if word != "case"]
    rest = re.sub(r"\{[^{}]*\}", "", pattern)
    known = len(words) == pattern.count("{") == pattern.count("}") and not set(rest) & set("{}")
    if not known or "case" not in words or len(parts) != 1 or ".." in pattern or not _is_list(parts[0]):
        raise ValueError(
            "must have {case}, and {band}, {date} or {input} once, such as {case}_{band}.tif or "
            "{date:before,after}/{case}.png; * stands for other text"
        )
    return pattern


def _is_list(word: str) -> bool:
    """Whether the texts that a word lists are there, and differ."""
    _, colon, listed = word.partition(":")
    texts = [text.strip() for text in listed.split(",")]
    return not colon or (all(texts) and len(set(texts)) == len(texts))


AS_STORED = Overrides()
"""No statements: files are read by their own metadata."""
