"""From finished score sums to labels on the host: decided where the scores are, and fetched while more are made."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import ModelError
from segpipe.geometry.windows import Window
from segpipe.pipeline.blend import Finished
from segpipe.pipeline.labels import CONFIDENCE_NODATA, Decision
from segpipe.pipeline.read import Sheet
from segpipe.timing.spans import span, waiting

GATHERED = 2**21
"""Pixels from which on a box is large enough."""


@dataclass(frozen=True, eq=False, slots=True)
class Decided:
    """A box of a case with its labels, on the host."""

    sheet: Sheet
    window: Window
    labels: NDArray[Any]
    """Shape ``(bands, *box)``."""
    confidence: NDArray[np.uint8] | None
    """Shape ``(bands, *box)``; None where nobody asked for it."""
    inferred: int
    """Windows with a valid pixel that it is of."""


def decide(boxes: Iterable[Finished], decision: Decision, *, confidence: bool) -> Generator[Decided, None, None]:
    """Labels of finished boxes, in order.

    Raises:
        ModelError: a valid pixel has scores that are not finite.
    """
    under_way: deque[Callable[[], Decided]] = deque()
    for begun in _begun_boxes(iter(boxes), decision, confidence):
        under_way.append(begun)
        if len(under_way) > decision.arrays.lag:
            yield under_way.popleft()()
    while under_way:
        yield under_way.popleft()()


def gathered(boxes: Generator[Decided, None, None]) -> Generator[Decided, None, None]:
    """Neighbours of a row as one box, up to some size: what writes and counts them is called less often."""
    held: list[Decided] = []
    with closing(boxes):
        for box in boxes:
            if held and (_starts_anew(box, held[-1]) or len(held) * held[0].window.size >= GATHERED):
                yield _joined(held)
                held = []
            held.append(box)
    if held:
        yield _joined(held)


def _starts_anew(box: Decided, before: Decided) -> bool:
    """Whether a box is no neighbour of the one before, on its right."""
    new, old = box.window, before.window
    return (new.start[:-1], new.stop[:-1], new.start[-1]) != (old.start[:-1], old.stop[:-1], old.stop[-1])


def _joined(boxes: list[Decided]) -> Decided:
    first, last = boxes[0], boxes[-1]
    if first is last:
        return first
    likely = [box.confidence for box in boxes if box.confidence is not None]
    return Decided(
        first.sheet,
        Window(first.window.start, last.window.stop),
        np.concatenate([box.labels for box in boxes], axis=-1),
        np.concatenate(likely, axis=-1) if likely else None,
        sum(box.inferred for box in boxes),
    )


def _begun_boxes(boxes: Iterator[Finished], decision: Decision, confidence: bool) -> Iterator[Callable[[], Decided]]:
    while True:
        # not around the loop: a generator that is left half-way would leave the device's stream at some later time
        with decision.arrays.here():
            box = next(boxes, None)
            if box is None:
                return
            begun = _unseen(box, decision, confidence) if box.sums is None else _begun(box, decision, confidence)
        yield begun


def _unseen(box: Finished, decision: Decision, confidence: bool) -> Callable[[], Decided]:
    """Nodata, where no pixel is valid."""
    shape = (decision.bands, *box.window.shape)
    labels = np.full(shape, decision.nodata, decision.dtype)
    likely = np.full(shape, CONFIDENCE_NODATA, np.uint8) if confidence else None
    return lambda: Decided(box.sheet, box.window, labels, likely, box.inferred)


def _begun(box: Finished, decision: Decision, confidence: bool) -> Callable[[], Decided]:
    sheet, window = box.sheet, box.window
    total = None
    if box.mean:
        total = 1.0
    elif confidence or decision.needs_total:
        weights = decision.arrays.weights(sheet.weights)
        total = weights.total(tuple(slice(a, b) for a, b in zip(window.start, window.stop, strict=True)))
    with span("decide"):
        labels, finite = decision.labels(box.sums, total, box.invalid)
        likely = decision.confidence(box.sums, total, box.invalid) if confidence else None
        fetched = decision.arrays.fetch(labels, likely, finite)

    def arrived() -> Decided:
        with waiting("infer"):
            labels, likely, finite = fetched()
        if not finite:
            sheet.abandoned.set()  # the rest would be read and inferred before anybody sees this box
            raise ModelError(
                "the model's scores must be finite, got NaN or infinity at a valid pixel: "
                "check the contract's scaling and the model's precision"
            )
        return Decided(sheet, window, labels, likely, box.inferred)

    return arrived
