"""Compare the masks of two runs, case by case: what changed into what, how much, and where."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.accuracy.change import ChangeMap, check_codes
from segpipe.accuracy.evaluate import MOST_LISTED, classes_of, has_one_class_per_pixel
from segpipe.accuracy.labels import ReferenceLabels, open_reference, open_run_mask, windows
from segpipe.accuracy.overlaps import sharing
from segpipe.accuracy.pairing import Pairing, pairing
from segpipe.array_types import Float, Integers
from segpipe.errors import InputError, OutputError, case_errors
from segpipe.formats.registry import OpenMask, environment
from segpipe.geometry.cells import Cells
from segpipe.geometry.grid import MM3_PER_ML, Grid
from segpipe.jobs.last_run import finished_records, missing_mask_warnings
from segpipe.messages.printable import counted, first_few
from segpipe.messages.steps import stepping
from segpipe.results.areas import count_positions
from segpipe.results.masks import stored_mask
from segpipe.results.schema import Record
from segpipe.storage import Store
from segpipe.storage.folder import Folder
from segpipe.storage.stores import store_at

AMOUNTS = {"ha": ("ha", 1.0), "mm3": ("ml", MM3_PER_ML)}
"""Unit of a matrix, by the unit of the measure, and its size in that."""


@dataclass(frozen=True)
class CompareTask:
    """Two runs, and how to compare them."""

    first: str
    """Output folder of a run."""
    second: str
    output: Path | None = None
    """Folder for maps of change; None: none are written."""
    map_classes: Path | None = None


@dataclass(frozen=True, eq=False)
class Change:
    """One case in both runs. Matrices have shape ``(first, second)``: the classes, then unseen.

    Kept are the pairs of classes that occur, as few of the pairs of hundreds of classes do.
    """

    name: str
    side: int
    """Rows of a matrix."""
    at: Integers
    """Positions of the pairs in a matrix, ``first * side + second``."""
    counts: Integers
    """Pixels of each pair."""
    amounts: Float | None
    """Area or volume of each pair in ``unit``; None for pixels without a size."""
    unit: str
    """``ha``, ``ml`` or ``px``."""
    moved: bool
    """Whether the second mask was resampled onto the grid of the first."""
    grid: Grid
    written: str | None = None
    """Name of the map of change."""

    @property
    def pixels(self) -> Integers:
        """The matrix in pixels."""
        return self._matrix(self.counts)

    @property
    def sizes(self) -> Float:
        """The matrix in ``unit``."""
        return self._matrix(self.each_size).astype(np.float64)

    @property
    def each_size(self) -> Integers | Float:
        """Size of each pair in ``unit``."""
        return self.counts if self.amounts is None else self.amounts

    def _matrix(self, values: NDArray[Any]) -> NDArray[Any]:
        full = np.zeros(self.side * self.side, values.dtype)
        full[self.at] = values
        return full.reshape(self.side, self.side)


@dataclass(frozen=True, eq=False)
class Changes:
    """All cases that both runs have."""

    classes: Pairing
    cases: tuple[Change, ...]
    failed: dict[str, str]
    warnings: tuple[str, ...]

    def pooled(self) -> dict[str, tuple[Integers, Float]]:
        """Sums over the cases of each unit: pixels, and areas or volumes."""
        found = dict[str, tuple[Integers, Float]]()
        for unit in dict.fromkeys(one.unit for one in self.cases):
            own = [one for one in self.cases if one.unit == unit]
            pixels = np.zeros((own[0].side,) * 2, np.int64)
            for one in own:
                pixels += one.pixels
            found[unit] = pixels, _exact_sums(own)
        return found

    def listed(self) -> bool:
        """Whether the matrix of every case is written; many cases with many classes would need gigabytes."""
        return sum(one.side**2 for one in self.cases) <= MOST_LISTED


def _exact_sums(cases: Sequence[Change]) -> Float:
    """Sums of the sizes over cases, shape ``(first, second)``, whatever their order."""
    each = defaultdict[int, list[float]](list)
    for one in cases:
        for at, size in zip(one.at.tolist(), one.each_size.tolist(), strict=True):
            each[at].append(size)
    sums = np.zeros(cases[0].side ** 2)
    for at, sizes in each.items():
        sums[at] = math.fsum(sizes)
    return sums.reshape(cases[0].side, -1)


def compare(task: CompareTask) -> Changes:
    """Compare the masks of two runs.

    Raises:
        OutputError: there is no such run, or maps of change cannot be written.
        InputError: the runs have no case in common, or their classes do not match.
        SettingsError: the file with classes cannot be used.
    """
    stores = [store_at(place).settled() for place in (task.first, task.second)]
    runs = [{record.case: record for record in finished_records(store)} for store in stores]
    one, other = (classes_of(list(run.values())) for run in runs)
    classes = pairing(one, other, task.map_classes)
    common = [name for name in runs[0] if name in runs[1]]
    if not common:
        raise InputError(_without_common(*runs))
    maps = None if task.output is None else _maps(task.output, stores, classes)
    done, failed = list[Change](), dict[str, str]()
    with environment():
        for name in stepping(common, "comparing cases"):
            with case_errors(name) as caught:
                pair = Pair(stores[0], stores[1], runs[0][name], runs[1][name])
                done.append(_compared(pair, classes, maps))
            if caught.error is not None:
                failed[name] = str(caught.error)
        if isinstance(maps, Folder):
            maps.tidy()
        warnings = (*(text for store in stores for text in missing_mask_warnings(store)), *_warnings(task, runs, done))
    return Changes(classes, tuple(done), failed, warnings)


def _maps(folder: Path, stores: Sequence[Store], classes: Pairing) -> Store:
    """The folder for maps of change.

    Raises:
        OutputError: it is one of the runs.
        InputError: there are too many classes for a map of change.
    """
    check_codes(classes)
    store = store_at(str(folder)).settled()
    if str(store) in map(str, stores):
        raise OutputError(f"--output must be a folder of its own, and {folder} holds one of the runs: name another")
    store.check()
    store.make()
    return store


@dataclass(frozen=True)
class Pair:
    """A case in both runs."""

    first: Store
    second: Store
    one: Record
    other: Record

    @contextmanager
    def open(self) -> Iterator[tuple[OpenMask, ReferenceLabels]]:
        """The mask of the first run, and that of the second on its grid."""
        for record in (self.one, self.other):
            if not has_one_class_per_pixel(record):
                raise InputError(f"masks must have one class per pixel, and that of {record.case} has several (multilabel)")
        with ExitStack() as stack:
            mask = stack.enter_context(open_run_mask(self.first, self.one))
            local = stack.enter_context(self.second.local(stored_mask(self.second, self.other)))
            yield mask, stack.enter_context(open_reference(local, mask.grid))


def _compared(pair: Pair, classes: Pairing, maps: Store | None) -> Change:
    side = classes.unseen + 1
    with pair.open() as (mask, other), ExitStack() as stack:
        change = None if maps is None else stack.enter_context(ChangeMap.writing(maps, pair.one.case, mask, classes))
        cells = Cells.of(mask.grid.measure, mask.grid.shape, side * side)
        counts = np.zeros((*cells.count, side * side), np.int64)
        for window in windows(mask.grid.shape):
            one = classes.of_first(mask.read(window))
            two = classes.of_second(*other.read(window))
            count_positions(counts, cells, window, one * side + two)
            if change is not None:
                change.write(window, one, two)
        name = None if change is None else change.finish()
        pixels = counts.reshape(-1, side * side).sum(axis=0)
        at = np.flatnonzero(pixels)
        amounts, unit = _amounts(counts, cells, at)
        return Change(
            name=pair.one.case,
            side=side,
            at=at,
            counts=pixels[at],
            amounts=amounts,
            unit=unit,
            moved=other.moved,
            grid=mask.grid,
            written=name,
        )


def _amounts(counts: Integers, cells: Cells, at: Integers) -> tuple[Float | None, str]:
    """Areas or volumes of some pairs, as ``areas.csv`` computes those of a class, and their unit."""
    measure = cells.measure
    if measure is None:
        return None, "px"
    unit, per = AMOUNTS[measure.unit]
    sizes = [math.fsum((counts[..., k] * cells.sizes).ravel()) for k in at]
    return np.array(sizes, np.float64) / measure.per_unit / per, unit


def _without_common(first: dict[str, Record], second: dict[str, Record]) -> str:
    few = first_few(first), first_few(second)
    return f"both runs must have cases of the same names, and one has {few[0]}, the other {few[1]}: rename the inputs"


def _warnings(task: CompareTask, runs: Sequence[dict[str, Record]], done: Sequence[Change]) -> Iterator[str]:
    for place, own, other in ((task.first, *runs), (task.second, *runs[::-1])):
        if alone := [name for name in own if name not in other]:
            yield f"only in {place}: {len(alone)} of {counted(len(own), 'case')}: {first_few(alone)}"
    if moved := sum(one.moved for one in done):
        yield f"resampled onto the grids of {task.first} (nearest neighbour): {counted(moved, 'mask')} of {task.second}"
    if volumes := sum(one.written is None and task.output is not None for one in done):
        yield f"no map of change is written of volumes: {counted(volumes, 'case')}"
    placed = [one for one in done if one.unit == "ha"]
    if few := first_few(f"{placed[a].name} and {placed[b].name}" for a, b in sharing([one.grid for one in placed])):
        yield f"cases share ground, which totals count once for each: {few}"
