"""Finished cases as zones, totals and mosaics need them: what their records say, and their masks, opened and checked."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

from segpipe.array_types import Float
from segpipe.choices import OverlapRule
from segpipe.errors import OutputError, OverlapError
from segpipe.formats.registry import CONFIDENCE, FORMATS, OpenMask
from segpipe.geometry.extents import extent
from segpipe.geometry.grid import Grid
from segpipe.geometry.ground import Ground
from segpipe.geometry.raster_grid import NoGroundError, RasterGrid, ground_of, stated_grid
from segpipe.results.masks import mask_name
from segpipe.results.overlap.dates import Acquired, acquired
from segpipe.results.overlap.mask_cache import CachedMask, MaskCache
from segpipe.results.overlap.mask_stack import MaskStack
from segpipe.results.overlap.shared import Neighbour, Shared
from segpipe.results.schema import Record
from segpipe.storage import Store
from segpipe.storage.files import reading_errors

Classes = tuple[tuple[int, str], ...]
"""Id and name of each class, in the order of ``areas.csv``."""


def classes_of(record: Record) -> Classes:
    """The classes of a case, by the rows of its table of areas."""
    return tuple((row["class_id"], row["class_name"]) for row in record.areas if row["class_id"] is not None)


def are_independent(mask: OpenMask, classes: Classes) -> bool:
    """Whether each class has a band of zeros and ones; a mask of classes that exclude each other has two or more."""
    return mask.bands > 1 or len(classes) == 1


@dataclass(frozen=True)
class FinishedCase:
    """A case that has a mask."""

    case: str
    format: str
    mask: str | None
    """Name of the mask in the output."""
    size: int
    """Least number of its bytes."""
    shape: tuple[int, ...]
    classes: Classes
    nodata: int | None
    digest: str
    """Hash of the record; it changes whenever the case is processed again."""
    grid: RasterGrid | None = None
    """Grid of a raster; None if the record does not say it, as those of earlier versions."""
    acquired: Acquired | None = None
    confidence: str | None = None
    """Name of the confidence in the output; None if it was not written."""
    model: str = ""
    """Hash of the model."""

    @classmethod
    def of(cls, output: Store, record: Record) -> "FinishedCase":
        """Facts about a case from its record.

        Raises:
            OutputError: the record cannot be read again.
        """
        mask = mask_name(record)
        return cls(
            case=record.case,
            format=record.input.format,
            mask=mask,
            size=(record.sizes or {}).get(mask or "") or 0,
            shape=record.input.shape,
            classes=classes_of(record),
            nodata=record.nodata,
            digest=_digest(output, record),
            grid=stated_of(record),
            acquired=acquired(record),
            confidence=mask_name(record, CONFIDENCE),
            model=record.model.sha256,
        )

    @cached_property
    def ground(self) -> Ground | None:
        """The ground of its grid, if the record says it.

        Raises:
            NoGroundError: nowhere on the Earth.
        """
        return None if self.grid is None else ground_of(self.grid)

    def hidden(self, folder: str, suffix: str) -> str:
        """Name of a file about the case in a hidden folder, flat and with a digest: names of cases may be long, and hold
        folders."""
        return f"{folder}/{hashlib.sha256(self.case.encode(errors='surrogateescape')).hexdigest()[:32]}{suffix}"


def stated_of(record: Record) -> RasterGrid | None:
    """The grid that a record states."""
    return None if record.input.grid is None else stated_grid(record.input.shape, record.input.grid)


def _digest(output: Store, record: Record) -> str:
    name = f"{record.case}.json"
    with reading_errors(output.path(name)):
        return hashlib.sha256(output.read(name)).hexdigest()


@dataclass(frozen=True)
class CaseNeighbours:
    """The cases that may share ground with a case, and the rule by which one of them counts."""

    before: Sequence[FinishedCase] = ()
    """Those that come before it in the order of the rule."""
    after: Sequence[FinishedCase] = ()
    rule: OverlapRule = "first"
    rank: int = 0
    """Position of the case itself in that order."""
    stacks: Sequence[MaskStack] = ()
    """Those that hold cases of ``before`` and ``after``."""
    stacked: frozenset[str] = frozenset()
    """Names of the cases in these stacks."""

    @property
    def digest(self) -> str:
        """Text that changes with the rule, and with every case that may share ground."""
        order = "|".join(" ".join(case.digest for case in cases) for cases in (self.before, self.after))
        return f"{'confidence' if self.rule == 'confidence' else 'order'} {order}"


def extent_of(output: Store, case: FinishedCase) -> Float:
    """Where the grid of a case lies, from its record or its mask.

    Raises:
        NoGroundError: nowhere on the Earth.
        OutputError: the mask cannot be read.
    """
    return extent(*placed(output, case))


def placed(output: Store, case: FinishedCase) -> tuple[Ground, tuple[int, ...]]:
    """Ground and shape of a case; errors as of ``extent_of``."""
    grid = _grid_of(output, case)
    return ground_of(grid), grid.shape


@contextmanager
def opened(output: Store, case: FinishedCase) -> Iterator[OpenMask]:
    """Open the mask of a case after a quick check against its record.

    Raises:
        NoGroundError: it is a volume.
        OutputError: it is missing, or is not the mask of the record.
    """
    family = FORMATS[case.format]
    if family.open_mask is None:
        raise NoGroundError("volumes lie nowhere on the Earth")
    with ExitStack() as stack:
        with reading_errors(output.path(case.mask or case.case)):
            local = stack.enter_context(output.local(_whole_mask(output, case)))
        mask = stack.enter_context(family.open_mask(local))
        if mask.grid.shape != case.shape:
            raise _damaged(output.path(case.mask or case.case))
        yield mask


def _whole_mask(output: Store, case: FinishedCase) -> str:
    """Name of the mask, after a look at its size and its first bytes."""
    if case.mask is None or (size := output.size(case.mask)) is None:
        raise OutputError(f"{output.path(case.case)} must have a mask, and has none: run again with the same output")
    if size < case.size or output.is_blank(case.mask):
        raise _damaged(output.path(case.mask))
    return case.mask


@contextmanager
def opened_confidence(output: Store, case: FinishedCase) -> Iterator[OpenMask]:
    """Open the confidence of a case.

    Raises:
        OutputError: there is none, or it does not fit the record.
        OverlapError: its classes do not exclude each other.
    """
    open_mask, path = FORMATS[case.format].open_mask, output.path(case.confidence or case.case)
    with ExitStack() as stack:
        with reading_errors(path):
            if open_mask is None or case.confidence is None or output.size(case.confidence) is None:
                raise OutputError(
                    f"{output.path(case.case)} must have a confidence, and has none: run again with --confidence"
                )
            local = stack.enter_context(output.local(case.confidence))
        confidence = stack.enter_context(open_mask(local))
        if confidence.grid.shape != case.shape:
            raise _damaged(path)
        if are_independent(confidence, case.classes):
            raise OverlapError(
                "--overlap-rule confidence needs classes that exclude each other, and each class of this model has a "
                "probability of its own: give --overlap-rule first or newest"
            )
        yield confidence


def _damaged(path: str) -> OutputError:
    return OutputError(f"{path} is damaged, it is not the mask of its record: run again with the same output")


def shared_with(output: Store, case: FinishedCase, around: CaseNeighbours, stack: ExitStack) -> Shared | None:
    """The ground that a case shares with those around it; their masks are opened when they are read, and closed with the
    stack.

    Returns:
        None if no other mask lies on it.

    Raises:
        OutputError: a mask of a record without a grid, or a confidence, cannot be read.
    """
    each = [(other, True) for other in around.before] + [(other, False) for other in around.after]
    if not each:
        return None
    cache = stack.enter_context(MaskCache())
    alone = [(other, earlier) for other, earlier in each if other.case not in around.stacked]
    neighbours = [_neighbour(output, other, around.rule, cache, earlier=earlier) for other, earlier in alone]
    rivals = [masks.of(around.rank) for masks in around.stacks]
    own = stack.enter_context(opened_confidence(output, case)) if around.rule == "confidence" else None
    return Shared(*placed(output, case), [*rivals, *neighbours], own)


@contextmanager
def opened_both(output: Store, case: FinishedCase) -> Iterator[tuple[OpenMask, OpenMask]]:
    """Open the mask of a case and its confidence; errors as of both."""
    with opened(output, case) as mask, opened_confidence(output, case) as sure:
        yield mask, sure


def _neighbour(output: Store, case: FinishedCase, rule: OverlapRule, cache: MaskCache, *, earlier: bool) -> Neighbour:
    grid, ground = _grid_of(output, case), case.ground
    mask = CachedMask(cache, grid, partial(opened, output, case))
    confidence = CachedMask(cache, grid, partial(opened_confidence, output, case)) if rule == "confidence" else None
    return Neighbour(mask, ground_of(grid) if ground is None else ground, case.nodata, earlier, confidence)


def _grid_of(output: Store, case: FinishedCase) -> Grid:
    """From its record or its mask."""
    if case.grid is not None:
        return case.grid
    with opened(output, case) as mask:
        return mask.grid
