"""Compare the masks of a run with references, case by case."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from segpipe.accuracy.annotated import Annotated
from segpipe.accuracy.annotations import Annotations, Labelling, by_case, read_annotations
from segpipe.accuracy.boundary import BoundaryScores, Compared, boundary_scores, check_installed
from segpipe.accuracy.class_map import class_map, label_map
from segpipe.accuracy.confusion import ClassMap, Confusion, PairCounts, confusion_of, of_reference
from segpipe.accuracy.labels import ReferenceLabels, open_reference, open_run_mask, rows_at_once, windows
from segpipe.accuracy.polygons import SHOWN, read_polygons
from segpipe.accuracy.population import positions
from segpipe.accuracy.scores import LARGE, Margins, Scores, bootstrap, scores
from segpipe.array_types import Float, Integers
from segpipe.errors import InputError, case_errors
from segpipe.formats.registry import OpenMask, by_suffix, environment, split_suffix
from segpipe.geometry.grid import Grid
from segpipe.geometry.windows import Window
from segpipe.jobs.last_run import finished_records, missing_mask_warnings
from segpipe.messages.printable import counted, first_few, printable
from segpipe.messages.steps import stepping
from segpipe.results.overlap.finished import classes_of as named_classes
from segpipe.results.schema import Record
from segpipe.storage import Store
from segpipe.storage.existence import files_below, is_file, is_folder
from segpipe.storage.stores import store_at

FEW_CASES = 5
"""With fewer cases, nothing can be concluded about other cases of the kind."""
MOST_LISTED = 2_000_000
"""Numbers in the matrices of all cases up to which they are kept and written."""


@dataclass(frozen=True)
class EvaluateTask:
    """The masks to compare, and how to compare them."""

    labels: str
    """Output folder of a run."""
    reference: Path
    """Folder of references, the reference of the only case, or a file or folder of annotations."""
    column: str | None = None
    """Column of a vector file with the class of each polygon; None: references are rasters or volumes."""
    map_classes: Path | None = None
    ignore: tuple[int, ...] = ()
    boundary: float | None = None
    """Tolerance of boundary scores, in the unit of the grids; None: none are computed."""
    draws: int = 1000
    seed: int = 0
    level: float = 0.95


@dataclass(frozen=True, eq=False)
class CaseScores:
    """One case beside its reference."""

    name: str
    margins: Margins
    unseen: int
    """Pixels of a class of the reference where the mask has no data."""
    ignored: int
    """Pixels where the reference has no data, or a value that is ignored."""
    moved: bool
    """Whether the reference was resampled onto the grid of the mask."""
    boundary: tuple[BoundaryScores, ...] = ()
    """Boundary measures of each class; empty without ``--boundary``."""
    unit: str = ""
    """Unit of distances: ``m``, ``mm`` or ``px``."""
    matrix: Integers | None = None
    """Shape ``(reference, map)``; None: the matrices of all cases would take too much memory."""

    def missed(self) -> Integers:
        """Classes that the reference has and of which the map found no pixel."""
        return np.flatnonzero((self.margins.support > 0) & (self.margins.hits == 0))

    def false(self) -> Integers:
        """Classes that only the map has."""
        return np.flatnonzero((self.margins.support == 0) & (self.margins.mapped > 0))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All cases beside their references."""

    classes: ClassMap
    cases: tuple[CaseScores, ...]
    failed: Mapping[str, str]
    pooled: Confusion
    found: Scores
    """Scores over all pixels of all cases."""
    limits: Mapping[str, Float]
    """Low and high of each score, from a bootstrap over cases; empty with fewer than two cases."""
    level: float
    warnings: tuple[str, ...]
    boundary: float | None = None
    """Tolerance of boundary scores."""


def evaluate(task: EvaluateTask) -> Evaluation:
    """Compare the masks of a run with references.

    Raises:
        OutputError: there is no such run.
        InputError: there is no reference of any of its cases, or cases have different classes.
        SettingsError: the file with classes cannot be used.
        InstallationError: boundary scores need an optional dependency.
    """
    if task.boundary is not None:
        check_installed()
    store = store_at(task.labels).settled()
    records = finished_records(store)
    pictures = read_annotations(task.reference) if task.column is None else None
    classes = class_map(classes_of(records), None if pictures else task.map_classes, task.ignore)
    openers, problems = _annotated(task, records, pictures) if pictures else _openers(task, records)
    listed = len(openers) * len(classes.ids) ** 2 <= MOST_LISTED
    cases, pooled, failed = _compared(store, openers, Comparison(classes, task.boundary, task.column is None, listed))
    limits = {}
    if len(cases) > 1 and task.draws:
        limits = bootstrap(Margins.stacked([one.margins for one in cases]), task.draws, task.seed, task.level)
    paired = {*failed, *(one.name for one in cases)}
    warnings = [
        *missing_mask_warnings(store),
        *_unpaired(records, paired, task.reference),
        *_few(problems),
        *_warnings(classes, cases, pooled),
    ]
    return Evaluation(
        classes=classes,
        cases=tuple(cases),
        failed=failed,
        pooled=pooled,
        found=scores(Margins.of(pooled.matrix)),
        limits=limits,
        level=task.level,
        warnings=tuple(warnings),
        boundary=task.boundary,
    )


def classes_of(records: Sequence[Record]) -> dict[int, str]:
    """Name of each class by its id, which is the same in all cases of a run.

    Raises:
        InputError: cases have different classes.
    """
    first = dict(named_classes(records[0]))
    for record in records:
        if dict(named_classes(record)) != first:
            names = f"{printable(records[0].case)} and {printable(record.case)}"
            raise InputError(
                f"all cases must have the same classes, and those of {names} differ: keep the runs of each model in an "
                "output of their own"
            )
    return first


Opener = Callable[[Grid], AbstractContextManager[ReferenceLabels]]
"""Opens the reference of a case on the grid of its mask."""


def _openers(task: EvaluateTask, records: Sequence[Record]) -> tuple[list[tuple[Record, Opener]], tuple[str, ...]]:
    """Functions that open the reference of a case, by case, and problems of the references."""
    if task.column is not None:
        classes = classes_of(records)
        found = read_polygons(task.reference, task.column, classes, mapped=task.map_classes is not None)
        return [(record, found.on) for record in records], found.problems
    paths = references(task.reference, [record.case for record in records])
    return [(record, partial(open_reference, paths[record.case])) for record in records if record.case in paths], ()


def _annotated(
    task: EvaluateTask, records: Sequence[Record], pictures: Sequence[Annotated]
) -> tuple[list[tuple[Record, Opener]], tuple[str, ...]]:
    """As ``_openers``, for a file or folder of annotations."""
    classes = classes_of(records)
    mapped = None if task.map_classes is None else label_map(classes, task.map_classes)
    labelling = Labelling.of(classes, mapped)
    found = by_case(pictures, task.reference, [record.case for record in records])
    pairs: list[tuple[Record, Opener]] = [
        (one, Annotations(found[one.case], labelling).on) for one in records if one.case in found
    ]
    problems = [text for picture in found.values() for text in picture.problems]
    return pairs, (labelling.rule, *problems)


def references(place: Path, cases: Sequence[str]) -> dict[str, Path]:
    """The reference of each case that has one: the file with its name below the folder.

    Raises:
        InputError: there is none, or a case has two.
    """
    if is_file(place) and len(cases) == 1:
        return {cases[0]: place}
    if not is_folder(place):
        raise InputError(f"--reference must be a folder with a file per case, or the file of the only case, got {place}")
    known, found, wanted = by_suffix(), dict[str, Path](), {*cases}
    for path in files_below(place):
        stem, suffix = split_suffix(path.relative_to(place).as_posix(), known)
        if suffix.lower() not in known or stem not in wanted or not is_file(path):
            continue
        if stem in found:
            raise InputError(f"each case must have one reference, and {stem} has {found[stem].name} and {path.name}")
        found[stem] = path
    if not found:
        raise InputError(
            f"references must have the names of cases, {first_few(cases)}, and {place} has none of them: rename the files"
        )
    return found


def _compared(
    store: Store, pairs: Sequence[tuple[Record, Opener]], how: "Comparison"
) -> tuple[list[CaseScores], Confusion, dict[str, str]]:
    """All cases, all of them together, and why others failed."""
    done, failed = list[CaseScores](), dict[str, str]()
    pooled = Confusion(np.zeros((len(how.classes.ids),) * 2, np.int64))
    with environment():
        for record, opener in stepping(pairs, "comparing cases"):
            with case_errors(record.case) as caught:
                one, confusion = _compare(store, record, opener, how)
                if how.complete or confusion.matrix.any() or confusion.unseen:
                    done.append(one)
                    pooled += confusion
            if caught.error is not None:
                failed[record.case] = str(caught.error)
    return done, pooled, failed


@dataclass(frozen=True)
class Comparison:
    """The settings of a comparison."""

    classes: ClassMap
    boundary: float | None
    complete: bool = True
    """Whether each case must have labels; a file of polygons for all cases may have none on some."""
    listed: bool = False
    """Whether the matrix of each case is kept."""


def _compare(store: Store, record: Record, opener: Opener, how: Comparison) -> tuple[CaseScores, Confusion]:
    counts = PairCounts()
    with open_run_mask(store, record) as mask:
        if mask.bands > 1 or not has_one_class_per_pixel(record):
            raise InputError(f"masks must have one class per pixel, and that of {record.case} may have several (multilabel)")
        with opener(mask.grid) as reference:
            for window in windows(mask.grid.shape):
                truth, valid = reference.read(window)
                counts.add(truth, mask.read(window), valid)
            if how.complete and counts.invalid == np.prod(mask.grid.shape, dtype=np.int64):
                raise InputError(
                    f"the reference of {record.case} must lie on its mask, and has no label there: name another"
                )
            confusion = confusion_of(counts, how.classes)
            found = () if how.boundary is None else _boundary(mask, reference, how.classes, how.boundary)
            unit = mask.grid.unit if mask.grid.spacing else "px"
    return (
        CaseScores(
            name=record.case,
            margins=Margins.of(confusion.matrix),
            unseen=confusion.unseen,
            ignored=confusion.ignored,
            moved=reference.moved,
            boundary=found,
            unit=unit,
            matrix=confusion.matrix if how.listed else None,
        ),
        confusion,
    )


def _boundary(mask: OpenMask, reference: ReferenceLabels, classes: ClassMap, tolerance: float) -> tuple[BoundaryScores, ...]:
    def read(window: Window) -> tuple[Integers, Integers]:
        truth, valid = reference.read(window)
        one, other = of_reference(truth, classes), positions(mask.read(window), classes.ids)
        counted = (one >= 0) & (other >= 0)
        if valid is not None:
            counted &= valid
        return np.where(counted, one, -1), np.where(counted, other, -1)

    shape = mask.grid.shape
    spacing = mask.grid.spacing or (1.0,) * len(shape)
    return tuple(boundary_scores(Compared(read, shape, spacing, len(classes.ids), rows_at_once(shape)), tolerance))


def has_one_class_per_pixel(record: Record) -> bool:
    """Whether no pixel of a mask can have several classes, as those of a multilabel model can."""
    return sum(int(row["pixels"]) for row in record.areas) == int(np.prod(record.input.shape, dtype=np.int64))


def _unpaired(records: Sequence[Record], paired: Collection[str], place: Path) -> Iterator[str]:
    unpaired = [record.case for record in records if record.case not in paired]
    if unpaired:
        yield f"{len(unpaired)} of {counted(len(records), 'case')} without a reference in {place}: {first_few(unpaired)}"


def _few(problems: Sequence[str]) -> Iterator[str]:
    yield from problems[:SHOWN]
    if (more := len(problems) - SHOWN) > 0:
        yield f"{counted(more, 'more object')} of references not as they should be"


def _warnings(classes: ClassMap, cases: Sequence[CaseScores], pooled: Confusion) -> Iterator[str]:
    support, total = pooled.matrix.sum(axis=1), int(pooled.matrix.sum())
    if total and support.max() > LARGE * total:
        name, share = classes.names[int(support.argmax())], support.max() / total
        yield f"{name} is {share:.1%} of the reference: a map of nothing else would have that overall accuracy"
    if pooled.unseen:
        yield f"not counted, since masks have no data there: {counted(pooled.unseen, 'pixel')} of the reference"
    if 0 < len(cases) < FEW_CASES:
        yield f"intervals need at least {FEW_CASES} cases, got {len(cases)}, which say little about others"
    if moved := sum(one.moved for one in cases):
        yield f"resampled onto the grids of masks (nearest neighbour): {counted(moved, 'reference')}"
