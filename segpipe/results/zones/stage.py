"""Zones of a run: checked before the first case, measured over the finished masks at its end, or afterwards."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from segpipe.array_types import Float
from segpipe.choices import OverlapRule
from segpipe.contract import Contract
from segpipe.errors import SegpipeError, ZonesError, case_errors
from segpipe.formats.case import Case
from segpipe.formats.registry import FORMATS, environment, open_case
from segpipe.geometry.ground import Ground
from segpipe.geometry.raster_grid import NoGroundError, ground_of
from segpipe.messages.printable import counted, printable
from segpipe.messages.steps import stepping
from segpipe.overrides import Overrides
from segpipe.results.overlap.finished import Classes, FinishedCase, extent_of
from segpipe.results.overlap.mask_stack import MOST_CACHED
from segpipe.results.overlap.order import Neighbourhood
from segpipe.results.records import records
from segpipe.results.zones.case import CaseZones
from segpipe.results.zones.finished import zones_of_case
from segpipe.results.zones.polygons import Zones, read_zones
from segpipe.results.zones.table import ZoneTotals, write_zones
from segpipe.results.zones.writing import check_zones_out, write_polygons
from segpipe.settings import Settings
from segpipe.storage import Store
from segpipe.storage.ownership import ZONES, refuse_foreign
from segpipe.vectors.file import Selection, listed
from segpipe.vectors.placing import touches

LOG = logging.getLogger("segpipe")

MOST_OPENED = 200
"""Maximum number of cases opened before a run to see whether any polygon lies on them; usually the first one suffices."""


@dataclass(frozen=True)
class ZonesTask:
    """The zones to measure, and where to write them."""

    selection: Selection
    output: Path | None = None
    """File to which the polygons are written with their columns."""
    rule: OverlapRule = "first"
    """Which case counts where several share ground."""

    @classmethod
    def of(cls, settings: Settings) -> "ZonesTask | None":
        """The task from the settings of a run; None if they name no zones."""
        if settings.zones is None:
            return None
        return cls(
            Selection(settings.zones, settings.zones_layer, settings.zone_id), settings.zones_out, settings.overlap_rule
        )


def read_and_check(task: ZonesTask, store: Store) -> Zones:
    """Read the polygons and check that results can be written; each kind of problem gives a warning.

    Raises:
        ZonesError: the file cannot be used.
        InstallationError: an optional dependency is missing.
        OutputError: a table that segpipe did not write is in the way.
    """
    zones = read_zones(task.selection)
    if task.output is not None:
        check_zones_out(task.output, zones)
    refuse_foreign(store, ZONES)
    _warn(task, [problem for each in zones.problems for problem in each], len(zones))
    return zones


def _warn(task: ZonesTask, problems: Iterable[str], count: int) -> None:
    """Log one line for each kind of problem."""
    for kind, number in Counter(problem.partition(":")[0] for problem in problems).items():
        path = printable(str(task.selection.path))
        LOG.warning('%s: %s of %s: %s: see "problems" in %s', path, number, counted(count, "polygon"), kind, ZONES)


def check_place(zones: Zones, cases: Sequence[Case], contract: Contract, overrides: Overrides) -> None:
    """Check that a polygon lies on one of the first cases.

    Raises:
        ZonesError: none does.
    """
    rasters = [case for case in cases if FORMATS[case.format].open_mask is not None]
    if cases and not rasters:
        raise ZonesError("--zones needs rasters with a place on the Earth, and all cases are volumes: leave --zones out")
    opened = 0
    with environment():
        for case in rasters[:MOST_OPENED]:
            try:
                with_ground = _grounded(case, contract, overrides)
            except (SegpipeError, NoGroundError):
                continue
            opened += 1
            if touches(zones.shapes, zones.crs, *with_ground):
                return
    if opened and len(rasters) <= MOST_OPENED:
        raise ZonesError(_nowhere(zones, [case.name for case in rasters]))
    if rasters:
        _warn_of_place(zones, opened, min(len(rasters), MOST_OPENED))


def _grounded(case: Case, contract: Contract, overrides: Overrides) -> tuple[Ground, tuple[int, ...]]:
    source = open_case(case, contract, overrides)
    try:
        return ground_of(source.grid), source.grid.shape
    finally:
        source.close()


def _nowhere(zones: Zones, names: Sequence[str]) -> str:
    west, south, east, north = zones.bounds
    return (
        f"--zones must lie on the cases, and no polygon of {zones.selection.path} does: its coordinates are "
        f"{west:.7g} to {east:.7g}, {south:.7g} to {north:.7g} in {zones.crs.name}, and the cases are {listed(names)}: "
        "name another file, or correct its CRS"
    )


def _warn_of_place(zones: Zones, opened: int, count: int) -> None:
    path = printable(str(zones.selection.path))
    first = counted(count, "case")
    LOG.warning("%s: no polygon lies on the first %s, %s of them with a place on the Earth", path, first, opened)


Checkpoint = Callable[[], None]
"""Called before each case; what it raises ends the measurement."""


def make_tables(
    task: ZonesTask, zones: Zones, output: Store, cases: Sequence[Case], *, checkpoint: Checkpoint = lambda: None
) -> ZoneTotals:
    """Measure zones over all finished cases, and write ``zones.csv`` and the polygons with its columns.

    Raises:
        ZonesError: no polygon lies on a case, cases have different classes, or the polygons cannot be written.
        OutputError: a mask cannot be read, or a table cannot be written.
    """
    totals = _add_up(task, zones, output, cases, checkpoint)
    if not (totals.cases > 0).any():
        raise ZonesError(_nowhere(zones, [case.name for case in cases]))
    write_zones(output, totals)
    if task.output is not None:
        write_polygons(task.output, task.selection, totals)
    _warn(task, totals.misplaced(), len(zones))
    return totals


def _add_up(task: ZonesTask, zones: Zones, output: Store, cases: Iterable[Case], checkpoint: Checkpoint) -> ZoneTotals:
    """Add up the cases in the order of their names, independent of the order in which they were processed."""
    finished = [FinishedCase.of(output, record) for record in records(output, sorted(cases, key=attrgetter("name")))]
    totals = ZoneTotals.empty(zones, _common_classes(finished))
    placed = list(_on_earth(output, finished))
    together = Neighbourhood.of(output, [case for case, _ in placed], [where for _, where in placed], task.rule)
    if len(together.stacks) > MOST_CACHED:
        for k in together.by_stack:
            checkpoint()
            _zones_of(output, together, k, zones)  # which are kept
    for k in stepping(range(len(together.cases)), "measuring polygons on cases"):
        checkpoint()
        totals.add(_zones_of(output, together, k, zones))
    return totals


def _zones_of(output: Store, together: Neighbourhood, k: int, zones: Zones) -> CaseZones:
    """Sizes in the zones over a case; an error names it."""
    case = together.cases[k]
    with case_errors(output.path(case.case)) as caught:
        return zones_of_case(output, case, zones, together.around(k))
    assert caught.error is not None  # otherwise it has returned
    raise caught.error


def _common_classes(cases: Sequence[FinishedCase]) -> Classes:
    """The classes of all cases."""
    for case in cases:
        if case.classes != cases[0].classes:
            raise ZonesError(
                f"zones need cases with the same classes, and those of {printable(cases[0].case)} and "
                f"{printable(case.case)} differ: keep the runs of each model in an output of their own"
            )
    return cases[0].classes if cases else ()


def _on_earth(output: Store, cases: Iterable[FinishedCase]) -> Iterator[tuple[FinishedCase, Float]]:
    """The cases with a position on the Earth, and their extents; a warning names each of the others."""
    for case in cases:
        try:
            yield case, extent_of(output, case)
        except NoGroundError as error:
            LOG.warning("%s: no zones: %s", printable(case.case), error)
