"""Batches through the model, several calls in flight, results in order."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from segpipe.errors import foreseen
from segpipe.network.arrays import Array, Arrays
from segpipe.pipeline.infer import Model
from segpipe.pipeline.read import Batch, Tile
from segpipe.timing.spans import span, waiting


def predict(model: Model, batches: Iterable[Batch], calls: int) -> Generator[Tile, None, None]:
    """The same tiles in the same order, with weighted scores instead of pixels.

    ``calls`` batches are in the model at once and one more waits, so that the model never waits for whoever takes the
    results. A device has one stream, and one call. A batch that fails ends the cases that it holds tiles of.
    """
    calls = 1 if model.arrays.lag else calls
    running: deque[Future[list[Tile]]] = deque()
    with ThreadPoolExecutor(calls, thread_name_prefix="segpipe-model") as pool:
        try:
            for batch in batches:
                running.append(pool.submit(_scored, model, batch))
                if len(running) > calls + 1:
                    yield from _next(running)
            while running:
                yield from _next(running)
        finally:
            for future in running:
                future.cancel()


def _next(running: deque[Future[list[Tile]]]) -> list[Tile]:
    with waiting("infer"):
        return running.popleft().result()


def _scored(model: Model, batch: Batch) -> list[Tile]:
    filled = batch.filled
    try:
        with model.arrays.here():
            if filled:
                with span("infer", filled[0].case.name, filled[0].index):
                    scores = model.score(filled)
                for tile, own in zip(filled, scores, strict=True):
                    with span("weight", tile.case.name, tile.index):
                        tile.scores, tile.pixels = weighted(own, tile, model.arrays), None
    except Exception as error:  # noqa: BLE001 - a bad batch costs only its cases
        for tile in filled:
            tile.error, tile.pixels = foreseen(error, tile.case.path), None
            if tile.sheet is not None:
                tile.sheet.abandoned.set()  # the rest of the case would be read and inferred for nothing
    return batch.tiles


def weighted(scores: Array, tile: Tile, arrays: Arrays) -> Array:
    """A network's scores times the weights of their window, in place, shape ``(classes, *tile)`` of the case's tiling.

    Done here, beside the model, in parallel.
    """
    assert tile.sheet is not None
    weights = arrays.weights(tile.sheet.weights).of(tile.index)
    scores = scores.reshape(len(scores), *weights.shape)
    scores *= weights
    return scores
