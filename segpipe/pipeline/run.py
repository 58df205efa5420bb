"""From cases to labels: the sentence that all other modules are words of."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from functools import cache
from itertools import groupby
from operator import attrgetter

from segpipe.formats.cases import Case
from segpipe.formats.registry import environment
from segpipe.pipeline.ahead import ahead, tiles_ahead
from segpipe.pipeline.blend import blend
from segpipe.pipeline.decide import Decided, Decision, decide, gathered
from segpipe.pipeline.infer import Model, infer
from segpipe.pipeline.read import Decoders, Pieces, Reading, Tile, batches, read_pieces, tiles
from segpipe.pipeline.regrid import regrid
from segpipe.process.machine import processors

PIECES_AHEAD = 1
"""Stretches that are decoded while one is cut into tiles for a GPU."""

WRITE_BEHIND = 4
"""Boxes that wait to be written while a device is given more to do."""

DECODERS = 8
"""Threads that decode for a GPU at first. 1 reads 32 Mpx/s of 4 bands of uint16 (DEFLATE), 4 read 86, 8 126, and 16 157
(measured on 16 processors). On the CPU it is one, since the processors are the network's. Where tiles are waited for there
come to be more."""


Boxes = Generator[Decided, None, None]
"""Boxes of one case with their labels, in order. Closing them ends what is under way."""


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
    windows = _tiles(cases, reading)
    scored = infer(model, batches(windows, model.spec.batch), calls)
    with closing(windows), closing(scored):
        for case, own in groupby(scored, key=attrgetter("case")):
            yield case, _boxes(own, model, confidence=confidence)


def _boxes(scored: Iterable[Tile], model: Model, *, confidence: bool) -> Boxes:
    """Scored tiles of one case blended and decided, where the scores are; beside what writes them if that is elsewhere."""
    decision = Decision(model.spec.contract, model.spec.blend_on, model.arrays)
    boxes = decide(regrid(blend(scored, model.arrays), model.arrays), decision, confidence=confidence)
    return ahead(gathered(boxes), WRITE_BEHIND, stage="infer") if model.arrays.lag else boxes


def decoders_for(device: str) -> Decoders:
    """Of this process, for all cases that it will read."""
    return _decoders(1 if device == "cpu" else min(DECODERS, processors()), processors())


_decoders = cache(Decoders)


def _tiles(cases: Sequence[Case], reading: Reading) -> Generator[Tile, None, None]:
    """Tiles of cases, read in a thread of their own; for a GPU cut in another, while the next are decoded."""
    decoders, depth = reading.decoders, tiles_ahead(reading.model.batch)
    pieces = _with_environment(read_pieces(tuple(cases), reading), decoders.count)
    if reading.model.device == "cpu":
        return ahead(tiles(pieces), depth, late=decoders.note)
    return ahead(tiles(ahead(pieces, PIECES_AHEAD, late=decoders.note)), depth)


def _with_environment(pieces: Pieces, decoders: int) -> Pieces:
    """The environment belongs to a thread: enter it in the one that reads."""
    with environment(decoders):
        yield from pieces
