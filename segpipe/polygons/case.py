"""Polygons of one case, in batches, from its mask in strips."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Float, Integers
from segpipe.errors import InputError, OutputError
from segpipe.formats.registry import OpenMask
from segpipe.geometry.cells import Cells
from segpipe.geometry.windows import Window
from segpipe.polygons.corners import Nodes
from segpipe.polygons.placement import OTHER_CRS, Placement
from segpipe.polygons.regions import FinishedRegions, MaskRegions, MaskRows, RegionTable
from segpipe.polygons.rings import rings_of
from segpipe.polygons.rule import Rule
from segpipe.polygons.simplified import Coverage
from segpipe.results.overlap.finished import Classes, are_independent
from segpipe.results.overlap.shared import Shared
from segpipe.vectors.surfaces import Shapes

STRIP = 2**20
"""Pixels of a strip, which has at least one row."""
BATCH = 2**19
"""Corners of the regions whose rings are traced together; at least one region is."""
CHECKED = 2**14
"""Vertices up to which GEOS checks a polygon: those with more have thousands of holes, and took two thirds of the time."""


@dataclass(frozen=True, eq=False)
class CaseMask:
    """The open mask of a case, with its properties."""

    path: str
    mask: OpenMask
    classes: Classes
    nodata: int | None
    placement: Placement
    confidence: OpenMask | None = None
    shared: Shared | None = None
    """The ground that it shares with other cases, if that counts once: what counts in another one is in no polygon."""

    def elsewhere(self, window: Window) -> NDArray[np.bool_] | None:
        """The pixels of a window that count in another case; None if none can.

        Raises:
            OutputError: a mask cannot be read.
        """
        if self.shared is None:
            return None
        unseen = np.zeros(window.shape, np.bool_) if self.nodata is None else self.mask.read(window, 0) == self.nodata
        return self.shared.elsewhere(window, unseen)

    @property
    def independent(self) -> bool:
        """Whether each class has a band of its own."""
        return are_independent(self.mask, self.classes)


@dataclass(frozen=True, eq=False)
class Features:
    """Polygons of a case."""

    table: RegionTable
    shapes: Shapes
    """Polygons, or with 8 neighbours multipolygons, of shapely."""
    known: frozenset[str] = frozenset({"area", "confidence"})
    """Which sums of the table are known."""

    def __len__(self) -> int:
        return len(self.shapes)


@dataclass
class Unwritten:
    """Number of the regions that are not written, and of their pixels."""

    number: int = 0
    pixels: int = 0

    def add(self, table: RegionTable) -> None:
        self.number += len(table)
        self.pixels += int(table.pixels.sum())


def features_of(case: CaseMask, rule: Rule, left: Unwritten) -> Iterator[Features]:
    """The polygons of a case; small ones are added to ``left`` instead.

    They are sorted by their last row, then by their first pixel; if classes are independent, by class before.

    Raises:
        OutputError: the mask cannot be read, or holds a label that is no class.
        InputError: a polygon has no place in the target CRS, or is invalid there, or there are too many to be simplified.
    """
    known = frozenset({"area"} if case.placement.ground else ()) | ({"confidence"} if case.confidence else set())
    for band in range(case.mask.bands):
        if (lookup := _lookup(case, rule, band)) is None:
            continue
        batches = _large(_finished(case, rule, band, lookup), rule, left)
        for table, shapes in _shaped(batches, case, rule):
            _check(shapes, case)
            yield Features(table, shapes, known)


def _shaped(batches: Iterator[FinishedRegions], case: CaseMask, rule: Rule) -> Iterator[tuple[RegionTable, Shapes]]:
    place = case.placement
    if rule.simplify is None:
        return ((batch.table, _oriented(_shapes(batch, case, rule, place.points), place)) for batch in batches)
    coverage = Coverage(case.path, place, rule.simplify)
    simple = coverage.simplified((batch.table, _shapes(batch, case, rule, coverage.flat)) for batch in batches)
    return ((table, _oriented(shapes, place)) for table, shapes in simple)


def _lookup(case: CaseMask, rule: Rule, band: int) -> NDArray[np.int32] | None:
    """Class of each label, from 1; 0 for none, -1 for a label that should not be there. None if no class is wanted."""
    wanted = [rule.classes is None or number in rule.classes for number, _ in case.classes]
    lookup = np.full(2**16, -1, np.int32)
    if case.independent:
        lookup[0], lookup[1] = 0, band + 1
        some = wanted[band]
    else:
        lookup[[number for number, _ in case.classes]] = np.where(wanted, np.arange(1, len(wanted) + 1), 0)
        some = any(wanted)
    if case.nodata is not None:
        lookup[case.nodata] = 0
    return lookup if some else None


def _finished(case: CaseMask, rule: Rule, band: int, lookup: NDArray[np.int32]) -> Iterator[FinishedRegions]:
    nodes = Nodes() if rule.simplify is not None and case.placement.nodes is None else case.placement.nodes
    regions = MaskRegions(case.placement.shape, corners_connect=rule.corners_connect, nodes=nodes)
    for strip in _strips(case, band, lookup):
        yield regions.add(strip)


def _strips(case: CaseMask, band: int, lookup: NDArray[np.int32]) -> Iterator[MaskRows]:
    rows, cols = case.placement.shape
    tall = max(1, STRIP // cols)
    areas = _areas(case)
    for top in range(0, rows, tall):
        window = Window((top, 0), (min(top + tall, rows), cols))
        values = lookup[case.mask.read(window, band)]
        if (values < 0).any():
            raise OutputError(
                f"{case.path} must hold the labels of its classes, and row {top + int((values < 0).any(axis=1).argmax())} "
                "has another: run again with --overwrite"
            )
        if (elsewhere := case.elsewhere(window)) is not None:
            values[elsewhere] = 0
        values = values.astype(np.uint8 if len(case.classes) < 256 else np.uint16)
        sure = None if case.confidence is None else case.confidence.read(window, band)
        yield MaskRows(values, areas(window), sure)


def _areas(case: CaseMask) -> Callable[[Window], Float]:
    """A function that returns the area of each pixel of a window in m², as ``areas.csv`` has it; 0 without ground."""
    ground, shape = case.placement.ground, case.placement.shape
    if ground is None:
        return lambda window: np.zeros(window.shape)
    labels = 2 if case.independent else len(case.classes)
    cells = Cells.of(ground, shape, case.mask.bands * (labels + 1))
    return lambda window: np.broadcast_to(cells.of_elements(window.start, window.stop), window.shape)


def _large(batches: Iterator[FinishedRegions], rule: Rule, left: Unwritten) -> Iterator[FinishedRegions]:
    """Leave out small features, and cut batches so that their rings fit into memory."""
    for batch in batches:
        kept = batch
        if rule.minimum is not None:
            large = rule.minimum.reached(batch.table)
            left.add(batch.table[~large])
            kept = batch.where(large)
        yield from _cut(kept)


def _cut(batch: FinishedRegions) -> Iterator[FinishedRegions]:
    corners = np.bincount(batch.feature[batch.corners.region], minlength=len(batch))
    part = np.cumsum(corners) // BATCH
    if not len(part) or part[-1] == 0:
        yield from [batch] * bool(len(batch))
        return
    for number in np.unique(part):
        yield batch.where(part == number)


def _shapes(batch: FinishedRegions, case: CaseMask, rule: Rule, points: Callable[[Integers, Integers], Float]) -> Shapes:
    """Polygons or multipolygons of features; ``points`` places the points of the lattice."""
    import shapely

    rings = rings_of(batch.corners, case.placement.shape)
    parts = [rings.start, _offsets(rings.region, len(batch.feature))]
    kind = shapely.GeometryType.POLYGON
    if rule.corners_connect:
        parts.append(_offsets(batch.feature, len(batch)))
        kind = shapely.GeometryType.MULTIPOLYGON
    return np.asarray(shapely.from_ragged_array(kind, points(rings.row, rings.col), tuple(parts)))


def _offsets(owner: Integers, count: int) -> Integers:
    return np.append(0, np.cumsum(np.bincount(owner, minlength=count)))


def _oriented(shapes: Shapes, placement: Placement) -> Shapes:
    """Outer rings turn left (RFC 7946, section 3.1.6)."""
    import shapely

    return shapes if placement.turns_left else np.asarray(shapely.orient_polygons(shapes))


def _check(shapes: Shapes, case: CaseMask) -> None:
    """Check that polygons are whole, and valid; for that, GEOS does not look at those with more than ``CHECKED`` vertices.

    Along pixel edges all are, by the way in which corners are paired. In another CRS rounding could make one invalid.
    """
    import shapely

    if case.placement.are_torn(shapes):
        assert case.placement.crs is not None  # there is another CRS
        raise InputError(
            f"all polygons must lie within the map of {case.placement.crs.name}, and some of {case.path} go on at its other "
            f"edge, or around a pole: {OTHER_CRS}"
        )
    small = shapely.get_num_coordinates(shapes) <= CHECKED
    wrong = np.flatnonzero(small)[~shapely.is_valid(shapes[small])]
    if wrong.size:
        reason = shapely.is_valid_reason(shapes[wrong[0]])
        raise InputError(
            f"all polygons must be valid, and in {case.path} {len(wrong)} are not ({reason}): {OTHER_CRS}; or leave "
            "--simplify out"
        )
