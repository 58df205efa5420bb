"""Pixels and areas of each class over all cases of a run, in which ground that several cases share counts once."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from segpipe.geometry.grid import MM3_PER_ML
from segpipe.results.areas import rounded
from segpipe.results.schema import Record

ADDED_UP = 10_000
"""Maximum number of cases whose records a run reads again at its end, to add them up; it takes about a second."""


@dataclass(frozen=True, slots=True)
class DisplayUnit:
    """How sums in one unit of ``areas.csv`` are displayed."""

    heading: str
    symbol: str
    per_shown: float
    """Number of units per displayed unit, such as 1000 mm3 per ml."""
    digits: int

    def text(self, area: float) -> str:
        """An area as text, in the displayed unit, without its symbol."""
        return f"{area / self.per_shown:,.{self.digits}f}"


UNITS = {"ha": DisplayUnit("hectares", "ha", 1, 1), "mm3": DisplayUnit("millilitres", "ml", MM3_PER_ML, 3)}
"""Display units, by the unit in records."""


@dataclass(frozen=True, slots=True)
class Sum:
    """Pixels and area of a class, summed over cases."""

    pixels: int = 0
    area: float = 0.0
    """Area in the unit of the totals; cases in other units add pixels only."""

    def plus(self, pixels: int, area: float | None) -> "Sum":
        """With the pixels and area of another case."""
        return Sum(self.pixels + pixels, self.area + (area or 0))

    def less(self, other: "Sum") -> "Sum":
        """Without what counts in other cases; unchanged if that is nothing."""
        if not other.pixels:
            return self
        left = self.pixels - other.pixels
        return Sum(left, rounded(max(0.0, self.area - other.area)) if left else 0.0)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums for each class and for all valid pixels."""

    classes: dict[str, Sum]
    valid: Sum
    unit: DisplayUnit
    measured: bool
    """Whether every case has an area in the unit; shares refer to areas if so, else to pixels."""
    doubled: Sum = Sum()
    """What several cases saw, and the sums have once: each time but the first; zero if it has not been measured."""

    @classmethod
    def over(cls, records: Iterable[Record]) -> Self:
        """Sum records, read one at a time; the unit is that of the first case with an area."""
        classes: dict[str, Sum] = {}
        valid, unit, measured = Sum(), None, True
        for record in records:
            unit = unit or (record.valid.unit if record.valid.unit in UNITS else None)
            measured = measured and record.valid.unit == unit
            valid = valid.plus(record.valid.pixels, record.valid.area if record.valid.unit == unit else None)
            for row in record.areas:
                name, area = row["class_name"], row["area"] if row["unit"] == unit else None
                classes[name] = classes.get(name, Sum()).plus(row["pixels"], area)
        return cls(classes, valid, UNITS[unit or "ha"], measured and (unit is not None or not classes))

    def less(self, classes: Mapping[str, Sum], seen: Sum) -> "Totals":
        """Without what counts in other cases: of each class and nodata, and of all valid pixels; areas in hectares.

        Sums without shared ground stay those of ``areas.csv`` to the last digit.
        """
        if self.unit is not UNITS["ha"]:  # the areas are not in the sums
            classes, seen = {name: Sum(one.pixels) for name, one in classes.items()}, Sum(seen.pixels)
        left = {name: one.less(classes.get(name, Sum())) for name, one in self.classes.items()}
        doubled = Sum(seen.pixels, rounded(seen.area))
        return replace(self, classes=left, valid=self.valid.less(seen), doubled=doubled)

    def share(self, name: str) -> float | None:
        """Share of the valid pixels or their area; None for nodata, and if no pixel is valid."""
        one = self.classes[name]
        part, whole = (one.area, self.valid.area) if self.measured else (one.pixels, self.valid.pixels)
        return part / whole if whole and name != "nodata" else None

    def text(self, name: str) -> str:
        """Area and share as text, such as ``12.3 ha (40.1%)``."""
        one, share = self.classes[name], self.share(name)
        return self.amount(one) + ("" if share is None else f" ({share:.1%})")

    def amount(self, one: Sum) -> str:
        """An area as text, or pixels if not every case has one."""
        return f"{self.unit.text(one.area)} {self.unit.symbol}" if self.measured else f"{one.pixels:,} px"


class StatedSum(BaseModel):
    """A sum in ``run.json``."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    pixels: Annotated[int, Field(ge=0)]
    area: float | None
    """None if no case has an area."""


class StatedTotals(BaseModel):
    """The totals in ``run.json``."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    overlap_rule: str
    """Rule by which one case counts where several share ground."""
    unit: str
    """Of the areas: ``ha`` or ``mm3``; ``px`` if no case has one."""
    measured: bool
    """Whether every case has an area in this unit; cases without one are in the pixels only."""
    doubled: StatedSum
    """What several cases saw, and ``classes`` and ``valid`` have once."""
    valid: StatedSum
    classes: dict[str, StatedSum]
    acquired: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Time of each case that shares ground, and how it is known; of the rule ``newest``."""

    @classmethod
    def of(cls, totals: Totals, rule: str, acquired: Mapping[str, Mapping[str, str]]) -> Self:
        """The totals of a run by an overlap rule, with the time of each case that shares ground."""
        has_areas = totals.measured or any(one.area for one in totals.classes.values())
        unit = next(name for name, unit in UNITS.items() if unit is totals.unit) if has_areas else "px"

        def stated(one: Sum) -> StatedSum:
            return StatedSum(pixels=one.pixels, area=one.area if has_areas else None)

        return cls(
            overlap_rule=rule,
            unit=unit,
            measured=totals.measured,
            doubled=stated(totals.doubled),
            valid=stated(totals.valid),
            classes={name: stated(one) for name, one in totals.classes.items()},
            acquired={case: dict(how) for case, how in acquired.items()},
        )

    def as_json(self) -> dict[str, Any]:
        absent = set() if self.acquired else {"acquired"}
        return self.model_dump(mode="json", exclude=absent)

    def totals(self) -> Totals:
        """The totals as sums."""
        classes = {name: _sum(one) for name, one in self.classes.items()}
        return Totals(
            classes, _sum(self.valid), UNITS.get(self.unit, UNITS["ha"]), self.measured, doubled=_sum(self.doubled)
        )


def _sum(stated: StatedSum) -> Sum:
    return Sum(stated.pixels, stated.area or 0.0)
