"""A number of elements, an area or a volume, as a user writes it."""

import re
from dataclasses import dataclass

UNITS = {
    "px": ("px", 1.0),
    "m2": ("m2", 1.0),
    "ha": ("m2", 1e4),
    "km2": ("m2", 1e6),
    "mm3": ("mm3", 1.0),
    "ml": ("mm3", 1e3),
}
"""Units, each with the one that it is counted in, and its size in that."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A size with its unit."""

    size: float
    unit: str
    """``px``, ``m2`` or ``mm3``."""

    @classmethod
    def parse(cls, text: str) -> "Quantity":
        """
        >>> Quantity.parse("0.5ha"), str(Quantity.parse("12"))
        (Quantity(size=5000.0, unit='m2'), '12px')

        Raises:
            ValueError: the text is neither a number nor a number with a unit.
        """
        found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([a-z0-9]*)", text.strip().lower())
        if found is None or (found[2] or "px") not in UNITS:
            raise ValueError(f"must be a number of pixels, or a number with one of {', '.join(UNITS)}, such as 12 or 0.5ha")
        unit, factor = UNITS[found[2] or "px"]
        size = float(found[1]) * factor
        if size <= 0 or (unit == "px" and size % 1):
            raise ValueError("must be a whole number of pixels above 0, or an area or a volume above 0")
        return cls(size, unit)

    def __str__(self) -> str:
        return f"{self.size:.15g}{self.unit}"
