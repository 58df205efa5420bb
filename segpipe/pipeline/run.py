"""The whole pipeline from cases to labels, in one sentence."""

from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import groupby
from operator import attrgetter

from segpipe.formats.case import Case
from segpipe.pipeline.blend import blend
from segpipe.pipeline.decide import Boxes, beside_writer, decide
from segpipe.pipeline.decision import Decision
from segpipe.pipeline.infer import LoadedModel, infer
from segpipe.pipeline.read import Reading, read
from segpipe.pipeline.regrid import regrid
from segpipe.pipeline.tiles import batches, tiles
from segpipe.pipeline.votes import Votes
from segpipe.pipeline.within_scope import within_scope


def segmented(  # noqa: PLR0913 - two of them say what boxes include
    cases: Sequence[Case], reading: Reading, model: LoadedModel, calls: int, *, confidence: bool, audit: bool = False
) -> Generator[tuple[Case, Boxes], None, None]:
    """Read, infer, blend and decide: yield each case with its boxes, in order.

    Args:
        cases: cases to read.
        reading: how they are read.
        model: scores windows; batches are filled across cases.
        calls: calls of the model in flight.
        confidence: whether boxes include a confidence.
        audit: whether boxes say how sure they are, and where overlapping tiles differ.
    """
    windows = tiles(read(cases, reading), reading)
    scored = infer(model, batches(windows, model.spec.batch), calls)
    with closing(windows), closing(scored):
        for case, own in groupby(scored, key=attrgetter("case")):
            arrays = model.arrays  # these change if the device's memory is too small for a batch
            decision = Decision(model.spec.contract, model.spec.blend_on, arrays)
            blended = blend(own, arrays, Votes(decision) if audit else None)
            winners = decision.only_winners(confidence=confidence, audit=audit)
            own_grid = regrid(blended, arrays, nearest=decision.contract.gives_labels, winners=winners)
            boxes = decide(within_scope(own_grid, arrays), decision, confidence=confidence)
            yield case, beside_writer(boxes, arrays)
