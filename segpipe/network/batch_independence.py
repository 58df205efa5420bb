"""Check that the scores of a tile do not depend on the other tiles of its batch, to the last bit."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from segpipe.errors import ModelError
from segpipe.network.model_file import read_model
from segpipe.network.noise import noise_tiles
from segpipe.network.spec import ModelSpec

LOG = logging.getLogger("segpipe")

Score = Callable[[NDArray[Any]], NDArray[Any]]
"""Function that scores a batch ``(batch, channels, *tile)``; one result per tile."""


def batch_tiles(spec: ModelSpec) -> NDArray[Any]:
    """A batch of noise, in which each tile has a wider range than the one before it."""
    tiles = noise_tiles(spec, spec.batch)
    for number in range(1, spec.batch):
        tiles[number] = tiles[number] // (spec.batch - number) if tiles.dtype.kind in "iu" else tiles[number] * (1 + number)
    return tiles


def depends_on_batch(score: Score, tiles: NDArray[Any], scores: NDArray[Any], *, alone: bool) -> bool:
    """Whether a tile's scores change with its position in a batch, with its neighbours, or when it is alone.

    Args:
        score: the model.
        tiles: a batch of different tiles, the last of the widest range.
        scores: scores of the tiles.
        alone: also compare a tile scored alone, where the model takes it.
    """
    return any(a.tobytes() != b.tobytes() for a, b in _pairs(score, tiles, scores, alone))


def _pairs(
    score: Score, tiles: NDArray[Any], scores: NDArray[Any], alone: bool
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield pairs of scores of the same tiles: shifted by one position, after an empty tile (as padding is); and alone."""
    moved = np.roll(tiles, 1, axis=0)
    moved[0] = 0
    yield scores[:-1], score(moved)[1:]
    if alone:
        yield scores[:1], score(tiles[:1])


SUSPECTS = {
    "DynamicQuantizeLinear": "DynamicQuantizeLinear takes its range from the whole batch",
    "DynamicQuantizeMatMul": "DynamicQuantizeMatMul takes its range from the whole batch",
    "DynamicQuantizeLSTM": "DynamicQuantizeLSTM takes its range from the whole batch",
}


def cause(proto: onnx.ModelProto) -> str:
    """Name the operators that make scores depend on the batch, as far as the graph shows them."""
    for node in proto.graph.node:
        if node.op_type in SUSPECTS:
            return SUSPECTS[node.op_type]
    return "some of its operators mix tiles, or round them otherwise in a batch"


def one_by_one(spec: ModelSpec) -> ModelSpec:
    """The model with a batch of 1, for a model whose scores depend on the batch.

    Raises:
        ModelError: its batch size is fixed.
    """
    why = cause(read_model(spec.path))
    if spec.batch_is_fixed:
        raise ModelError(
            f"{spec.path}: a tile's scores must not depend on the tiles beside it in a batch, and they do, in batches that "
            f"are fixed at {spec.batch} ({why}): export it with a batch of 1 or a free one"
        )
    LOG.warning("%s: scores depend on the batch (%s): batches of 1 are taken, in place of %d", spec.path, why, spec.batch)
    return replace(spec, batch=1)
