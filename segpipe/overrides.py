"""Statements of the user about the input files, used where their own metadata is missing or wrong."""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

Nodata = int | float | Literal["none", "nan"]
"""A nodata value, integers exactly; ``none``: no value stands for nodata."""


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


AS_STORED = Overrides()
"""No statements: files are read by their own metadata."""
