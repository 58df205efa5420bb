"""From cases to labels: the sentence that all other modules are words of."""

from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import groupby
from operator import attrgetter

from segpipe.formats.cases import Case
from segpipe.pipeline.blend import blend
from segpipe.pipeline.decide import Boxes, Decision, beside_writer, decide
from segpipe.pipeline.infer import Model, infer
from segpipe.pipeline.read import Reading, read
from segpipe.pipeline.regrid import regrid
from segpipe.pipeline.tiles import batches, tiles


def segmented(
    cases: Sequence[Case], reading: Reading, model: Model, calls: int, *, confidence: bool
) -> Generator[tuple[Case, Boxes], None, None]:
    """Read cases, infer, blend and decide: each case with its boxes, in order.

    Args:
        cases: what is read.
        reading: how.
        model: what scores windows; batches are filled across cases.
        calls: of the model, in flight at once.
        confidence: whether boxes have a confidence, too.
    """
    windows = tiles(read(cases, reading), reading)
    scored = infer(model, batches(windows, model.spec.batch), calls)
    with closing(windows), closing(scored):
        for case, own in groupby(scored, key=attrgetter("case")):
            arrays = model.arrays  # they change if the device has no memory for a batch
            decision = Decision(model.spec.contract, model.spec.blend_on, arrays)
            boxes = decide(regrid(blend(own, arrays), arrays), decision, confidence=confidence)
            yield case, beside_writer(boxes, arrays)
