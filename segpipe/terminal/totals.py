"""Pixels and areas of each class over all cases of a run, from their records."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from rich.table import Column, Table

from segpipe.messages.console import cells
from segpipe.results.schema import Amount, Record


@dataclass(frozen=True, slots=True)
class Unit:
    """How sums in one unit of ``areas.csv`` are displayed."""

    heading: str
    symbol: str
    per_shown: float
    """Number of units per displayed unit, such as 1000 mm3 per ml."""
    digits: int

    def text(self, area: float) -> str:
        return f"{area / self.per_shown:,.{self.digits}f}"


UNITS = {"ha": Unit("hectares", "ha", 1, 1), "mm3": Unit("millilitres", "ml", 1000, 3)}
"""Display units, by the unit in records."""


@dataclass(frozen=True, slots=True)
class Sum:
    """Pixels and area of a class, summed over cases."""

    pixels: int = 0
    area: float = 0.0
    """Area in the unit of the totals; cases in other units add pixels only."""

    def plus(self, pixels: int, area: float | None) -> "Sum":
        return Sum(self.pixels + pixels, self.area + (area or 0))


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums for each class and for all valid pixels."""

    classes: dict[str, Sum]
    valid: Sum
    unit: Unit
    measured: bool
    """Whether every case has an area in the unit; shares refer to areas if so, else to pixels."""

    @classmethod
    def over(cls, records: Iterable[Record]) -> Self:
        """Sum records, read one at a time; the unit is that of the first case with an area."""
        classes: dict[str, Sum] = {}
        valid, unit, measured = Sum(), None, True
        for record in records:
            unit = unit or (record.valid.unit if record.valid.unit in UNITS else None)
            measured = measured and record.valid.unit == unit
            valid = valid.plus(record.valid.pixels, _area(record.valid, unit))
            for row in record.areas:
                name, area = row["class_name"], row["area"] if row["unit"] == unit else None
                classes[name] = classes.get(name, Sum()).plus(row["pixels"], area)
        return cls(classes, valid, UNITS[unit or "ha"], measured and (unit is not None or not classes))

    def share(self, name: str) -> float | None:
        """Share of the valid pixels or their area; None for nodata, and if no pixel is valid."""
        one = self.classes[name]
        part, whole = (one.area, self.valid.area) if self.measured else (one.pixels, self.valid.pixels)
        return part / whole if whole and name != "nodata" else None

    def text(self, name: str) -> str:
        """Area and share as text, such as ``12.3 ha (40.1%)``."""
        one, share = self.classes[name], self.share(name)
        amount = f"{self.unit.text(one.area)} {self.unit.symbol}" if self.measured else f"{one.pixels:,} px"
        return amount + ("" if share is None else f" ({share:.1%})")


def _area(amount: Amount, unit: str | None) -> float | None:
    return amount.area if amount.unit == unit else None


def areas_table(records: Iterable[Record]) -> Table:
    """Pixels, area and share of each class over all cases; a caption says if some cases count in pixels only."""
    totals = Totals.over(records)
    columns = (Column(name, justify="right") for name in ("pixels", totals.unit.heading, "share"))
    table = Table("class", *columns)
    for name, one in totals.classes.items():
        area = totals.unit.text(one.area) if totals.measured or one.area else "-"
        share = totals.share(name)
        table.add_row(*cells([name, f"{one.pixels:,}", area, "" if share is None else f"{share:.1%}"]))
    if not totals.measured:
        table.caption = f"some cases have no area in {totals.unit.heading}: they count in pixels only"
    return table
