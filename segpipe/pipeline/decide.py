"""From finished score sums to labels on the host: decided where the scores are, and fetched while more are made."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.pipeline.batches import Sheet
from segpipe.pipeline.blend import Finished
from segpipe.pipeline.errors import ModelError
from segpipe.pipeline.labels import CONFIDENCE_NODATA, Decision
from segpipe.pipeline.profile import span, waiting
from segpipe.pipeline.windows import Window


@dataclass(frozen=True, eq=False, slots=True)
class Decided:
    """A box of a case with its labels, on the host."""

    sheet: Sheet
    window: Window
    labels: NDArray[Any]
    """Shape ``(bands, *box)``."""
    confidence: NDArray[np.uint8] | None
    """Shape ``(bands, *box)``; None where nobody asked for it."""
    inferred: bool
    """Whether any pixel of its window is valid."""


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
    return lambda: Decided(box.sheet, box.window, labels, likely, inferred=False)


def _begun(box: Finished, decision: Decision, confidence: bool) -> Callable[[], Decided]:
    sheet, window = box.sheet, box.window
    total = None
    if confidence or decision.needs_total:
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
            raise ModelError(
                "the model's scores must be finite, got NaN or infinity at a valid pixel: "
                "check the contract's scaling and the model's precision"
            )
        return Decided(sheet, window, labels, likely, inferred=True)

    return arrived
