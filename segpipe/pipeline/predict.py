"""Batches through the model, several calls in flight, results in order."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from segpipe.pipeline.arrays import Array, Arrays
from segpipe.pipeline.batches import Batch, Tile
from segpipe.pipeline.errors import foreseen
from segpipe.pipeline.model import Model


def predict(model: Model, batches: Iterable[Batch], calls: int) -> Generator[Tile, None, None]:
    """The same tiles in the same order, with weighted scores instead of pixels.

    ``calls`` batches are in the model at once and one more waits, so that the model never waits for whoever takes the
    results. A device has one stream, and one call. A batch that fails ends the cases that it holds tiles of.
    """
    calls = 1 if model.arrays.lag else calls
    waiting: deque[Future[list[Tile]]] = deque()
    with ThreadPoolExecutor(calls, thread_name_prefix="segpipe-model") as pool:
        try:
            for batch in batches:
                waiting.append(pool.submit(_scored, model, batch))
                if len(waiting) > calls + 1:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _scored(model: Model, batch: Batch) -> list[Tile]:
    filled = batch.filled
    try:
        with model.arrays.here():
            if filled:
                for tile, own in zip(filled, model.score(filled), strict=True):
                    tile.scores, tile.pixels = weighted(own, tile, model.arrays), None
    except Exception as error:  # noqa: BLE001 - a bad batch costs only its cases
        for tile in filled:
            tile.error, tile.pixels = foreseen(error, tile.case.path), None
            if tile.sheet is not None:
                tile.sheet.abandoned.set()  # the rest of the case would be read and inferred for nothing
    return batch.tiles


def weighted(scores: Array, tile: Tile, arrays: Arrays) -> Array:
    """Scores ``(classes, *tile)`` times the weights of their window, in place; done here, beside the model, in parallel."""
    assert tile.sheet is not None
    scores *= arrays.weights(tile.sheet.weights).of(tile.index)
    return scores
