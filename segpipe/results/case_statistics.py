"""All statistics of one case: areas and, if they are requested, lesions and an audit."""

from collections.abc import Callable, Mapping
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.formats.source import Invalid, Pixels, Source
from segpipe.geometry.grid import Grid
from segpipe.geometry.windows import Window
from segpipe.pipeline.decide import Decided
from segpipe.results.areas import Areas
from segpipe.results.audit import Audit
from segpipe.results.lesions.rule import LesionRule
from segpipe.results.lesions.statistic import Lesions
from segpipe.results.statistics import Box, Row, State, Statistic

STATISTICS: dict[str, Callable[[Grid, Contract], Statistic]] = {"areas": Areas}
"""All statistics of a run, by the name of their table in the record."""


class CaseStatistics:
    """All statistics of one case, or of a part of it."""

    def __init__(
        self,
        grid: Grid,
        contract: Contract,
        opened: Callable[[], Source],
        rule: LesionRule | None = None,
        audit: int | None = None,
    ) -> None:
        """Create all statistics; ``opened`` opens the case again if a statistic asks for its pixels.

        ``audit`` is the number of windows that an audit lists; None: there is no audit.
        """
        self._each = {name: make(grid, contract) for name, make in STATISTICS.items()}
        self.lesions = None if rule is None else Lesions(grid, contract, rule)
        self.audit = None if audit is None else Audit(grid, contract, audit)
        self._opened = opened
        self._source: Source | None = None

    @property
    def areas(self) -> Areas:
        """The areas, which every run counts."""
        areas = self._each["areas"]
        assert isinstance(areas, Areas)
        return areas

    @property
    def _all(self) -> dict[str, Statistic]:
        more = {"lesions": self.lesions, "audit": self.audit}
        return {**self._each, **{name: statistic for name, statistic in more.items() if statistic is not None}}

    def add(self, box: Decided) -> NDArray[np.int32] | None:
        """Count a box in all statistics, and return the names of its components for a volume of instances, if there is one.

        The box's pixels are read at most once, and only if a statistic asks for them.
        """
        pixels = cache(partial(self._pixels, box.window))
        seen = Box(
            window=box.window,
            labels=box.labels,
            confidence=box.confidence,
            pixels=pixels,
            tags=self._tags,
            checked=box.checked,
        )
        for statistic in self._each.values():
            statistic.add(seen)
        if self.audit is not None:
            self.audit.add(seen)
        return None if self.lesions is None else self.lesions.name(seen)

    def _pixels(self, window: Window) -> tuple[Pixels, Invalid | None]:
        return self._again().read(window)

    def _tags(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        return self._again().tags()

    def _again(self) -> Source:
        """The case, opened for its pixels."""
        self._source = self._source or self._opened()
        return self._source

    def close(self) -> None:
        """Close the case if it was opened to read pixels."""
        if self._source is not None:
            self._source.close()
        self._source = None

    @property
    def states(self) -> dict[str, State]:
        """The state of each statistic, by name."""
        return {name: statistic.state for name, statistic in self._all.items()}

    def merge(self, states: Mapping[str, State]) -> None:
        """Add the states of a part."""
        for name, statistic in self._all.items():
            statistic.merge(states[name])

    def check(self, box: Decided) -> None:
        """Add a box whose labels are not final to the audit, which does not depend on them."""
        if self.audit is not None:
            self.audit.add(Box(box.window, box.labels, checked=box.checked))

    def merge_checked(self, states: Mapping[str, State]) -> None:
        """Add the audit of a part whose labels were not final."""
        if self.audit is not None:
            self.audit.merge(states["audit"])

    def rows(self) -> dict[str, list[Row]]:
        """Tables by name."""
        return {name: statistic.rows() for name, statistic in self._all.items()}
