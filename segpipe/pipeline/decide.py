"""Turn finished score sums into labels and confidence, on the device of the scores; results are fetched in parallel."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import ModelError
from segpipe.geometry.windows import Window
from segpipe.network.arrays import Arrays
from segpipe.pipeline.ahead import ahead
from segpipe.pipeline.blend import FinishedBox
from segpipe.pipeline.decision import CONFIDENCE_NODATA, Decision
from segpipe.pipeline.opening import CaseInfo
from segpipe.timing.spans import span, waiting

WRITE_BEHIND = 4
"""Most boxes that wait to be written while the device computes the next ones."""

GATHERED = 2**21
"""Pixels from which a box is large enough."""


@dataclass(frozen=True, slots=True)
class Checked:
    """How sure a box is, for one window: whole numbers, so that sums over boxes are exact."""

    number: int
    """Number of the window that the box finishes, in order."""
    window: Window
    """The box, in the case's own grid."""
    valid: int
    """Valid pixels."""
    confidence: int
    """Sum of the confidence of these, of all bands."""
    differing: int
    """Valid pixels where overlapping tiles give different labels."""


@dataclass(frozen=True, eq=False, slots=True)
class Decided:
    """A box of a case with its labels, on the host."""

    info: CaseInfo
    window: Window
    labels: NDArray[Any]
    """Shape ``(bands, *box)``."""
    confidence: NDArray[np.uint8] | None
    """Shape ``(bands, *box)``; None if the run has no confidence."""
    inferred: int
    """Number of windows with a valid pixel that the box finishes."""
    checked: tuple[Checked, ...] = ()
    """With an audit: how sure the box is, for each window that it finishes."""


Boxes = Generator[Decided, None, None]
"""Boxes of one case with their labels, in order. Closing the generator ends the work in progress."""


def decide(boxes: Iterable[FinishedBox], decision: Decision, *, confidence: bool) -> Boxes:
    """Yield finished boxes with their labels, in order.

    Raises:
        ModelError: a valid pixel has scores that are not finite, or a label that is no class's.
    """
    under_way: deque[Callable[[], Decided]] = deque()
    for begun in _begun_boxes(iter(boxes), decision, confidence):
        under_way.append(begun)
        if len(under_way) > decision.arrays.lag:
            yield under_way.popleft()()
    while under_way:
        yield under_way.popleft()()


def beside_writer(boxes: Boxes, arrays: Arrays) -> Boxes:
    """On a device, join boxes in a thread while others are written; on the host, return the boxes unchanged."""
    return ahead(gathered(boxes), WRITE_BEHIND, stage="infer") if arrays.lag else boxes


def gathered(boxes: Boxes) -> Boxes:
    """Join neighbouring boxes of a row up to some size, so that they are written and counted in fewer calls."""
    held: list[Decided] = []
    with closing(boxes):
        for box in boxes:
            if held and (_is_separate(box, held[-1]) or len(held) * held[0].window.size >= GATHERED):
                yield _joined(held)
                held = []
            held.append(box)
    if held:
        yield _joined(held)


def _is_separate(box: Decided, before: Decided) -> bool:
    """Whether a box is not the right neighbour of the one before."""
    new, old = box.window, before.window
    return (new.start[:-1], new.stop[:-1], new.start[-1]) != (old.start[:-1], old.stop[:-1], old.stop[-1])


def _joined(boxes: list[Decided]) -> Decided:
    first, last = boxes[0], boxes[-1]
    if first is last:
        return first
    confidences = [box.confidence for box in boxes if box.confidence is not None]
    return Decided(
        info=first.info,
        window=Window(first.window.start, last.window.stop),
        labels=np.concatenate([box.labels for box in boxes], axis=-1),
        confidence=np.concatenate(confidences, axis=-1) if confidences else None,
        inferred=sum(box.inferred for box in boxes),
        checked=tuple(one for box in boxes for one in box.checked),
    )


def _begun_boxes(boxes: Iterator[FinishedBox], decision: Decision, confidence: bool) -> Iterator[Callable[[], Decided]]:
    while True:
        # not around the loop: an abandoned generator would leave the device's stream at some later time
        with decision.arrays.here():
            box = next(boxes, None)
            if box is None:
                return
            begun = _unseen(box, decision, confidence) if box.sums is None else _begun(box, decision, confidence)
            box = None  # the next one is made without its scores in memory
        yield begun


def _unseen(box: FinishedBox, decision: Decision, confidence: bool) -> Callable[[], Decided]:
    """A box of nodata, where no pixel is valid."""
    shape = (decision.bands, *box.window.shape)
    labels = np.full(shape, decision.nodata, decision.dtype)
    confidences = np.full(shape, CONFIDENCE_NODATA, np.uint8) if confidence else None
    return lambda: Decided(box.info, box.window, labels, confidences, box.inferred)


def _begun(box: FinishedBox, decision: Decision, confidence: bool) -> Callable[[], Decided]:
    # the result must not refer to the box: its sums would stay on the device until the labels arrive
    info, window, inferred, number = box.info, box.window, box.inferred, box.number
    total = None
    if box.mean:
        total = 1.0
    elif confidence or decision.needs_total or box.differ is not None:
        weights = decision.arrays.weights(info.weights)
        total = weights.total(window.slices)
    with span("decide"):
        labels, found = decision.labels(box.sums, total, box.invalid, box.channels)
        sure = confidence or box.differ is not None
        confidences = decision.confidence(box.sums, total, box.invalid) if sure else None
        counts = None if box.differ is None else decision.counts(confidences, box.differ, box.invalid)
        fetched = decision.arrays.fetch(labels, confidences if confidence else None, found, counts)

    def arrived() -> Decided:
        with waiting("infer"):
            labels, confidences, found, counts = fetched()
        if refusal := decision.refusal(found):
            info.abandoned.set()  # otherwise the rest would be read and inferred before the error is seen
            raise ModelError(refusal)
        checked = () if counts is None else (Checked(number, window, *map(int, counts)),)
        return Decided(info=info, window=window, labels=labels, confidence=confidences, inferred=inferred, checked=checked)

    return arrived
