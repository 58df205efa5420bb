"""The rows of ``zones.csv``: every polygon once, over all cases of a run."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Float
from segpipe.geometry.grid import M2_PER_HA
from segpipe.results.areas import rounded
from segpipe.results.overlap.finished import Classes
from segpipe.results.statistics import Row
from segpipe.results.zones.case import CaseZones
from segpipe.results.zones.polygons import Zones
from segpipe.storage import Store
from segpipe.storage.ownership import ZONES, write_table

FIRST = ("zone", "seen_ha", "unseen_ha", "pixels", "cases", "majority", "majority_share")
LAST = "problems"
WHOLE, ALMOST_WHOLE = 1e-6, 1e-2
"""Share of a polygon that may be missing from one case, or from several, at whose seams pixels of two grids meet."""


@dataclass(eq=False)
class ZoneTotals:
    """Sums over cases, for every polygon of a file; sizes are in m²."""

    zones: Zones
    classes: Classes
    sizes: Float
    seen: Float
    unseen: Float
    pixels: Float
    within: Float
    cases: NDArray[np.int64]
    lost: NDArray[np.bool_]

    @classmethod
    def empty(cls, zones: Zones, classes: Classes) -> "ZoneTotals":
        count = len(zones)
        sizes, seen, unseen, pixels, within = (np.zeros(shape) for shape in ((count, len(classes)), *[(count,)] * 4))
        cases, lost = np.zeros(count, np.int64), np.zeros(count, np.bool_)
        return cls(
            zones=zones,
            classes=classes,
            sizes=sizes,
            seen=seen,
            unseen=unseen,
            pixels=pixels,
            within=within,
            cases=cases,
            lost=lost,
        )

    def add(self, case: CaseZones) -> None:
        """Add the sizes over one case; the order of cases must be fixed for identical bytes."""
        self.sizes[case.index] += case.classes
        self.seen[case.index] += case.seen
        self.unseen[case.index] += case.unseen
        self.pixels[case.index] += case.pixels
        self.within[case.index] += case.within
        self.cases[case.index] += case.pixels > 0
        self.lost[case.lost] = True

    def misplaced(self) -> Iterator[str]:
        """Problems with the positions of all polygons."""
        for k in range(len(self.zones)):
            yield from self._misplaced(k)

    def columns(self) -> tuple[str, ...]:
        """Columns of the table, the same for every polygon."""
        return (*FIRST, *(column for pair in self._pairs for column in pair), LAST)

    @cached_property
    def _pairs(self) -> list[tuple[str, str]]:
        return columns_of(self.classes)

    def rows(self) -> Iterator[Row]:
        """A row per polygon, in the order of the file."""
        for k in range(len(self.zones)):
            yield self._row(k)

    def _row(self, k: int) -> Row:
        seen = float(self.seen[k])
        shares = [_share(size, seen) for size in self.sizes[k].tolist()]
        most = int(np.argmax(self.sizes[k])) if seen else None
        row = {
            "zone": self.zones.names[k],
            "seen_ha": rounded(seen / M2_PER_HA),
            "unseen_ha": rounded(float(self.unseen[k]) / M2_PER_HA),
            "pixels": float(f"{self.pixels[k]:.6f}"),
            "cases": int(self.cases[k]),
            "majority": None if most is None else self.classes[most][1],
            "majority_share": None if most is None else shares[most],
        }
        for (hectares, part), size, share in zip(self._pairs, self.sizes[k].tolist(), shares, strict=True):
            row |= {hectares: rounded(size / M2_PER_HA), part: share}
        return row | {LAST: "; ".join(self.problems(k))}

    def problems(self, k: int) -> list[str]:
        """Problems of one polygon."""
        return [*self.zones.problems[k], *self._misplaced(k)]

    def _misplaced(self, k: int) -> Iterator[str]:
        if self.zones.shapes[k].is_empty:
            return
        if self.lost[k]:
            yield "beyond the projection of a case"
        if not self.cases[k]:
            yield "outside"
        elif self.within[k] < 1 - (ALMOST_WHOLE if self.cases[k] > 1 else WHOLE):
            yield "partly outside"
        if self.cases[k] and self.pixels[k] < 1 - WHOLE:
            yield "smaller than a pixel"


def columns_of(classes: Classes) -> list[tuple[str, str]]:
    """Columns for hectares and share of each class; the id is added where the plain names are columns already.

    >>> columns_of(((3, "maize"), (1, "seen"), (2, "seen_1")))
    [('maize_ha', 'maize_share'), ('seen_1_1_ha', 'seen_1_1_share'), ('seen_1_ha', 'seen_1_share')]
    """
    names = Counter(name for _, name in classes)
    plain = {name for name, count in names.items() if count == 1 and not _is_taken(name)}
    taken, stems = {*plain}, list[str]()
    for number, name in classes:
        stem = name if name in plain else f"{name}_{number}"
        while name not in plain and stem in taken:
            stem = f"{stem}_{number}"
        taken.add(stem)
        stems.append(stem)
    return [(f"{stem}_ha", f"{stem}_share") for stem in stems]


def _is_taken(stem: str) -> bool:
    """Whether the columns of every table would have these names."""
    return f"{stem}_ha" in FIRST or f"{stem}_share" in FIRST


def _share(size: float, seen: float) -> float | None:
    return float(f"{size / seen:.6f}") if seen else None


def write_zones(output: Store, totals: ZoneTotals) -> None:
    """Write ``zones.csv``; a field without a value is empty."""
    columns = totals.columns()
    write_table(output, ZONES, columns, (list(map(row.get, columns)) for row in totals.rows()))
