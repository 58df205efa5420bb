"""``segpipe polygons``: the masks of a run as one vector file."""

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pyproj import CRS

from segpipe.choices import OverlapRule
from segpipe.errors import InputError, OutputError, SettingsError
from segpipe.formats.registry import CONFIDENCE, FORMATS, OpenMask, environment
from segpipe.geometry.raster_grid import NO_PLACE, RasterGrid, location_of, parse_crs
from segpipe.geometry.reference import NowhereError, crs_name, horizontal
from segpipe.jobs.last_run import finished_records, warn_of_missing_masks
from segpipe.messages.printable import printable
from segpipe.messages.steps import stepping
from segpipe.polygons.case import CaseMask, Unwritten, features_of
from segpipe.polygons.file import CaseRows, VectorFile, check_path, write
from segpipe.polygons.placement import Placement
from segpipe.polygons.rule import Minimum, Rule, chosen
from segpipe.results.masks import mask_name
from segpipe.results.overlap.finished import CaseNeighbours, FinishedCase, extent_of, opened, shared_with
from segpipe.results.overlap.order import Neighbourhood
from segpipe.results.schema import Record
from segpipe.storage import Store
from segpipe.storage.files import reading_errors
from segpipe.storage.stores import store_at
from segpipe.vectors.file import LON_LAT

if TYPE_CHECKING:
    import pyarrow

    Batches = Generator[pyarrow.RecordBatch, None, None]

LOG = logging.getLogger("segpipe")
NAMED = 3
"""Cases of a CRS that a message names."""


@dataclass(frozen=True)
class PolygonsTask:
    """What to write, and where."""

    output: str
    """Output folder of a run."""
    path: Path
    crs: str | None = None
    classes: str | None = None
    minimum: Minimum | None = None
    simplify: float | None = None
    corners_connect: bool = False
    overlap_rule: OverlapRule | None = None
    """Which of several cases that share ground has the polygons there; None: each has its own."""

    def __post_init__(self) -> None:
        if self.simplify is not None and not 0 < self.simplify < float("inf"):
            raise SettingsError(f"--simplify must be a distance above 0, got {self.simplify:g}")


@dataclass
class WrittenPolygons:
    """What was written."""

    polygons: int = 0
    cases: int = 0
    left: Unwritten = field(default_factory=Unwritten)


@dataclass(frozen=True)
class _Placed:
    """A case and where its grid lies."""

    record: Record
    finished: FinishedCase
    placement: Placement
    around: CaseNeighbours = field(default_factory=CaseNeighbours)
    """The cases that share ground with it, if that counts once."""


def write_polygons(task: PolygonsTask) -> WrittenPolygons:
    """Write the polygons of all cases of a run.

    Raises:
        SettingsError, OverlapError: the task cannot be done.
        InputError: cases differ in what one file must have in common, or too much is to be simplified.
        OutputError: there is no such run, a mask cannot be read, or the file cannot be written.
        InstallationError: an optional dependency is missing.
    """
    check_path(task.path)
    store, written = store_at(task.output).settled(), WrittenPolygons()
    with environment():
        cases = _placed_cases(store, finished_records(store))
        warn_of_missing_masks(store)
        if task.overlap_rule is not None:
            cases = _with_neighbours(store, cases, task.overlap_rule)
        rule = _rule(task, cases)
        crs = _common_crs(task, cases)
        target = VectorFile(task.path, crs, task.corners_connect)
        with closing(_rows(store, _moved(cases, crs), rule, written)) as rows:  # masks close before their environment does
            write(target, rows)
    return written


def _placed_cases(store: Store, records: Sequence[Record]) -> list[_Placed]:
    """The cases that can be written, by name: those with a place on the Earth, or without one if none has one."""
    images = [record for record in records if FORMATS[record.input.format].open_mask is not None]
    if not images:
        raise InputError("polygons need images, and all cases are volumes: segpipe run --lesions measures their components")
    for record in records:
        if record not in images:
            LOG.warning("%s: no polygons: it is a volume", printable(record.case))
    placed = [_placed(store, record) for record in images]
    on_earth = [case for case, _ in placed if case.placement.ground is not None]
    if not on_earth:
        _tell_pixels(placed)
        return [case for case, _ in placed]
    for case, reason in placed:
        if case.placement.ground is None:
            LOG.warning(
                "%s: no polygons among those of cases with a place on the Earth: %s", printable(case.record.case), reason
            )
    return on_earth


def _tell_pixels(placed: Sequence[tuple[_Placed, str]]) -> None:
    """Warn if coordinates are pixels although a case has some georeferencing; plain pictures need no warning."""
    named = [(case.record.case, reason) for case, reason in placed if reason != NO_PLACE]
    if named:
        case, reason = named[0]
        more = f" and {len(named) - 1:,} more" if len(named) > 1 else ""
        LOG.warning("%s%s: polygons have pixels as coordinates: %s", printable(case), more, reason)


def _placed(store: Store, record: Record) -> tuple[_Placed, str]:
    finished = FinishedCase.of(store, record)
    with opened(store, finished) as mask:
        assert isinstance(mask.grid, RasterGrid)
        place = location_of(mask.grid)
        return _Placed(record, finished, Placement(mask.grid.shape, place.ground)), place.reason


def _with_neighbours(store: Store, cases: Sequence[_Placed], rule: OverlapRule) -> list[_Placed]:
    if cases[0].placement.ground is None:
        raise SettingsError("--overlap-rule needs cases with a place on the Earth, and these have none: leave it out")
    every = [case.finished for case in cases]
    together = Neighbourhood.of(store, every, [extent_of(store, case) for case in every], rule)
    return [replace(case, around=together.around(k)) for k, case in enumerate(cases)]


def _rule(task: PolygonsTask, cases: Sequence[_Placed]) -> Rule:
    classes = {case.finished.classes for case in cases}
    if task.classes is not None and len(classes) > 1:
        raise InputError(
            "--classes needs cases with the same classes: keep the runs of each model in an output of their own"
        )
    wanted = chosen(task.classes, next(iter(classes)))
    if task.minimum is not None and task.minimum.unit != "px" and cases[0].placement.ground is None:
        raise SettingsError(
            f"cases without a place on the Earth have no area, got --min-area {task.minimum}: give pixels, 9px"
        )
    return Rule(wanted, task.minimum, task.corners_connect, task.simplify)


def _common_crs(task: PolygonsTask, cases: Sequence[_Placed]) -> CRS | None:
    """The CRS of the file; None for pixels.

    GeoJSON has longitudes and latitudes of WGS 84 (RFC 7946).
    """
    if cases[0].placement.ground is None:
        if task.crs is not None:
            raise SettingsError("--crs needs cases with a place on the Earth, and these have none: leave it out")
        return None
    wanted = None if task.crs is None else _parsed(task.crs)
    if task.path.suffix.lower() == ".geojson":
        if wanted is not None and not wanted.equals(CRS(LON_LAT)):
            raise SettingsError(
                f"GeoJSON has the CRS {LON_LAT} (RFC 7946), got --crs {task.crs}: leave it out, or write .gpkg"
            )
        return CRS(LON_LAT)
    return wanted or _only(cases)


def _parsed(text: str) -> CRS:
    try:
        return horizontal(parse_crs(text))
    except ValueError as error:
        raise SettingsError(f"--crs {error}") from None
    except NowhereError as error:
        raise SettingsError(f"--crs must be of the Earth: {error}") from None


def _only(cases: Sequence[_Placed]) -> CRS:
    groups = list[tuple[CRS, list[str]]]()
    for case in cases:
        assert case.placement.ground is not None
        own = case.placement.ground.reference.crs
        names = next((names for crs, names in groups if crs.equals(own)), None)
        if names is None:
            groups.append((own, names := []))
        names.append(case.record.case)
    if len(groups) > 1:
        said = "; ".join(f"{crs_name(crs)}: {', '.join(map(printable, names[:NAMED]))}" for crs, names in groups[:NAMED])
        raise SettingsError(
            f"a file has one CRS, and the masks have {len(groups)} ({said}): choose one, such as --crs EPSG:4326"
        )
    return groups[0][0]


def _moved(cases: Sequence[_Placed], crs: CRS | None) -> list[_Placed]:
    return [replace(case, placement=Placement(case.placement.shape, case.placement.ground, crs)) for case in cases]


def _rows(store: Store, cases: Sequence[_Placed], rule: Rule, written: WrittenPolygons) -> "Batches":
    for case in stepping(cases, "writing the polygons of cases"):
        written.cases += 1
        number = 1
        with _open(store, case) as mask:
            for features in features_of(mask, rule, written.left):
                yield CaseRows(case.record.case, case.finished.classes, number).table(features)
                number += len(features)
        written.polygons += number - 1


@contextmanager
def _open(store: Store, case: _Placed) -> Iterator[CaseMask]:
    finished = case.finished
    with ExitStack() as stack:
        mask = stack.enter_context(opened(store, finished))
        sure = stack.enter_context(_confidence(store, case.record))
        if sure is not None and (sure.grid.shape, sure.bands) != (mask.grid.shape, mask.bands):
            raise OutputError(
                f"the confidence of {finished.case} must fit its mask, and does not: run again with --overwrite"
            )
        shared = shared_with(store, finished, case.around, stack)
        path = store.path(finished.mask or "")
        yield CaseMask(
            path=path,
            mask=mask,
            classes=finished.classes,
            nodata=finished.nodata,
            placement=case.placement,
            confidence=sure,
            shared=shared,
        )


@contextmanager
def _confidence(store: Store, record: Record) -> Iterator[OpenMask | None]:
    """The confidence of a case, open; None if the run wrote none."""
    family, name = FORMATS[record.input.format], mask_name(record, CONFIDENCE)
    if name is None or family.open_mask is None:
        yield None
        return
    with reading_errors(store.path(name)):
        damaged = (store.size(name) or 0) < ((record.sizes or {}).get(name) or 1) or store.is_blank(name)
    if damaged:
        raise OutputError(
            f"{store.path(name)} must be the confidence of its case, and is damaged: run again with --overwrite"
        )
    with store.local(name) as local, family.open_mask(local) as sure:
        yield sure
