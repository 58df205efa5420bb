"""What becomes a polygon: which classes, how large, how connected, how simple."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import SettingsError
from segpipe.geometry.grid import M2_PER_HA
from segpipe.messages.names import Names
from segpipe.messages.printable import printable
from segpipe.polygons.regions import RegionTable
from segpipe.results.overlap.finished import Classes

UNITS = {"ha": M2_PER_HA, "m2": 1.0, "px": None}
"""Square metres per unit of ``--min-area``; None: pixels."""


@dataclass(frozen=True)
class Minimum:
    """The minimum mapping unit."""

    amount: float
    unit: str

    @classmethod
    def of(cls, text: str) -> "Minimum":
        """Parse an area such as ``0.5ha``.

        Raises:
            SettingsError: it is none.
        """
        found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(ha|m2|m²|px)\s*", text)
        if found is None:
            raise SettingsError(
                f"--min-area must be an area with its unit, such as 0.5ha, 400m2 or 9px, got {printable(text)}"
            )
        return cls(float(found[1]), found[2].replace("²", "2"))

    def reached(self, table: RegionTable) -> NDArray[np.bool_]:
        """Which features are large enough."""
        metres = UNITS[self.unit]
        return np.asarray(table.pixels >= self.amount if metres is None else table.area >= self.amount * metres)

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}"


@dataclass(frozen=True)
class Rule:
    """What becomes a polygon."""

    classes: frozenset[int] | None = None
    """Ids; None: all."""
    minimum: Minimum | None = None
    corners_connect: bool = False
    """Whether pixels that touch at a corner belong together."""
    simplify: float | None = None
    """Tolerance in m; of pictures without a place in pixels."""


def chosen(text: str | None, classes: Classes) -> frozenset[int] | None:
    """Ids of the classes that a list of names and ids names; None for all.

    Raises:
        SettingsError: there is no such class.
    """
    if text is None:
        return None
    named = Names.of({name: number for number, name in classes}, {number: number for number, _ in classes})
    words = [word.strip() for word in text.split(",") if word.strip()]
    whole = named.find(text)  # a name may hold a comma
    if whole is not None:
        return frozenset({whole})
    found = [named.find(word) for word in words]
    _check(words, found, classes)
    return frozenset(one for one in found if one is not None)


def _check(words: Sequence[str], found: Sequence[int | None], classes: Classes) -> None:
    wrong = [word for word, one in zip(words, found, strict=True) if one is None]
    if wrong or not words:
        known = ", ".join(printable(name) for _, name in classes[:20])
        got = printable(wrong[0]) if wrong else "none"
        raise SettingsError(f"--classes must name classes of the masks, {known}, or their ids, got {got}")
