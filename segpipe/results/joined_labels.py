"""Join the label maps of the models of a list, box by box: a later model's class lies over an earlier one's."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.errors import SourceError
from segpipe.formats.case import Case
from segpipe.formats.finished_mask import OpenLabels, as_stored, open_labels
from segpipe.formats.registry import CONFIDENCE
from segpipe.geometry.windows import Window, row_boxes
from segpipe.network.joined_spec import settings_of_listed
from segpipe.network.spec import ListMember
from segpipe.pipeline.decide import Boxes, Decided
from segpipe.pipeline.decision import CONFIDENCE_NODATA, Decision
from segpipe.pipeline.memory import most_memory
from segpipe.pipeline.opening import CaseInfo, open_checked
from segpipe.results.done import is_done
from segpipe.results.masks import mask_name
from segpipe.results.records import read_record
from segpipe.results.run import Run
from segpipe.results.schema import Record
from segpipe.storage import Store


def joined(cases: Iterable[Case], run: Run) -> Generator[tuple[Case, Boxes], None, None]:
    """Yield each case with the boxes of its joined map, in order; needs the finished masks of every model."""
    for case in cases:
        yield case, _boxes(case, run)


def run_of(run: Run, listed: ListMember) -> Run:
    """The run of one model of a list, in its own folder."""
    return replace(run, model=listed.spec, settings=settings_of_listed(run.settings, listed))


def _boxes(case: Case, run: Run) -> Boxes:
    """Boxes of all rows, from the first to the last.

    Raises:
        SourceError: a model's mask is not that of this run, or does not fit the case.
    """
    source, info = open_checked(case, run.model, run.overrides, memory=most_memory(run.settings))
    source.close()
    decision = Decision(run.model.contract, run.model.blend_on)
    windows = len(info.cover)
    with ExitStack() as stack:
        layers = [stack.enter_context(_opened(case, run, one, info)) for one in run.model.listed]
        for window in row_boxes(info.grid.shape):
            labels, confidence = laid_over([layer.read(window) for layer in layers], decision)
            yield Decided(info, window, labels[None], None if confidence is None else confidence[None], windows)
            windows = 0  # counted with the first box


@dataclass(frozen=True, eq=False, slots=True)
class Claims:
    """What a model says of a box."""

    ids: NDArray[np.int64]
    """Joined id per band and pixel, 0 where it claims nothing; shape ``(bands, *box)``."""
    invalid: NDArray[np.bool_]
    """Pixels that it has not seen, shape ``box``."""
    confidence: NDArray[np.uint8] | None
    """Confidence, shape ``(bands, *box)``."""


def laid_over(claims: Sequence[Claims], decision: Decision) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
    """Labels of a box and their confidence: the last claim wins, background is where no model claims.

    The confidence of a claim is its model's; that of the background is the least of all. A pixel that a model has not seen
    is nodata.
    """
    labels = np.zeros(claims[0].invalid.shape, decision.dtype)
    confidence = None if claims[0].confidence is None else np.full(labels.shape, CONFIDENCE_NODATA - 1, np.uint8)
    invalid = np.zeros(labels.shape, bool)
    for one in claims:
        invalid |= one.invalid
        for band, ids in enumerate(one.ids):
            claimed = ids != 0
            if confidence is not None and one.confidence is not None:
                least = np.where(labels == 0, np.minimum(confidence, one.confidence[band]), confidence)
                confidence = np.where(claimed, one.confidence[band], least)
            labels[claimed] = ids[claimed]
    labels[invalid] = decision.nodata
    if confidence is not None:
        confidence[invalid] = CONFIDENCE_NODATA
    return labels, confidence


@dataclass(frozen=True)
class _ModelLabels:
    """The finished mask of one model over a case."""

    path: str
    mask: OpenLabels
    confidence: OpenLabels | None
    tables: tuple[NDArray[np.int64], ...]
    """Joined id of each label, for each band; -1 for a label that is no class's."""
    nodata: int

    def read(self, window: Window) -> Claims:
        """What the model says of a window.

        Raises:
            SourceError: the mask holds a label that is no class's.
        """
        stored = self.mask.read(window)
        invalid = (stored == self.nodata).any(axis=0)
        ids = np.stack([table[band] for table, band in zip(self.tables, stored, strict=True)])
        if (wrong := (ids < 0) & ~invalid).any():
            found = stored[wrong][0]
            raise SourceError(f"{self.path} must hold the labels of its model, got {found}: run again with --overwrite")
        confidence = None if self.confidence is None else self.confidence.read(window)
        return Claims(np.where(invalid, 0, ids), invalid, None if confidence is None else np.asarray(confidence, np.uint8))


@contextmanager
def _opened(case: Case, run: Run, listed: ListMember, info: CaseInfo) -> Iterator[_ModelLabels]:
    """Open the mask of a model, and its confidence if the run has one.

    Raises:
        SourceError: it is not the mask of this model and of the case as it is now.
    """
    own = run_of(run, listed)
    record = read_record(own.output, case)
    if record is None or not is_done(case, own):
        raise SourceError(
            f"{case.path}: the labels of model {listed.name} in {own.output} are not those of this run any more: "
            "run the same command again"
        )
    nodata = Decision(listed.spec.contract, listed.spec.blend_on).nodata
    with ExitStack() as stack:
        mask = stack.enter_context(_labels(own.output, case, record, "", listed.spec.contract))
        confidence = None
        if run.settings.confidence:
            confidence = stack.enter_context(_labels(own.output, case, record, CONFIDENCE, listed.spec.contract))
        for one in (mask, confidence):
            if one is not None and one.shape != info.grid.shape:
                raise SourceError(f"{one.path} does not lie on the grid of {case.path}: run again with --overwrite")
        yield _ModelLabels(mask.path, mask, confidence, tuple(_tables(listed)), nodata)


def _labels(output: Store, case: Case, record: Record, kind: str, contract: Contract) -> AbstractContextManager[OpenLabels]:
    name = mask_name(record, kind)
    assert name is not None  # the case is done
    bands = len(contract.mask_classes) if contract.task == "multilabel" else 1
    return open_labels(case.format, output, name, as_stored(bands))


def _tables(listed: ListMember) -> Iterator[NDArray[np.int64]]:
    if listed.spec.contract.task == "multilabel":
        for _, joined_id in sorted(listed.ids):
            yield _table({0: 0, 1: joined_id})
    else:
        yield _table(dict(listed.ids))


def _table(ids: dict[int, int]) -> NDArray[np.int64]:
    table = np.full(2**16, -1, np.int64)
    table[list(ids)] = list(ids.values())
    return table
