"""The margin of a model without a contract, for the template that its user fills in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from segpipe.errors import ModelError
from segpipe.geometry.layout import Layout
from segpipe.network.device import engine_errors, failed_batch, open_session
from segpipe.network.shapes import margin_by_size, output_sizes
from segpipe.network.signature import TensorSpec
from segpipe.network.view import Probe, Scores, Tiles, measured_margin

LOOKED_AT = 65
"""Sizes that are tried where the file leaves them open: valid convolutions and poolings fit only some."""

MOST_PIXELS = 2**21
"""Pixels of a tile above which the model is not run for the template."""

LOOPS = {"Loop", "Scan"}
"""Operators with which a model is not run either: it might never end."""


@dataclass(frozen=True)
class BareMargin:
    """A tile whose scores are fewer than its pixels, and what they leave out on each side."""

    tile: tuple[int, ...]
    margin: tuple[int, ...]
    is_sure: bool
    """Whether noise has shown that the output is the middle of the tile."""


@dataclass(frozen=True)
class BareModel:
    """A model without a contract, as far as its file shows it."""

    path: Path
    proto: onnx.ModelProto
    image: TensorSpec
    scores: TensorSpec
    layout: Layout
    """Axis order of the input."""
    scores_layout: Layout
    """Axis order of the output."""

    def shape(self, tile: Sequence[int]) -> tuple[int, ...]:
        """Shape of a batch, in the model's order of axes."""
        channels = self.layout.channels(self.image.shape) or 3
        return self.layout.shape((self.image.shape[0] or 1, channels, *tile))

    def sizes(self, tile: Sequence[int]) -> tuple[int, ...] | None:
        """Sizes of the output for a tile; None if they do not follow from the graph."""
        return output_sizes(self.proto, {self.image.name: self.shape(tile)}, self.scores.name, self.scores_layout)


def margin_of(bare: BareModel, tile: Sequence[int]) -> BareMargin | None:
    """The margin for a tile, or for a somewhat larger one of an image of free size; None if scores cover the tile."""
    free = not bare.layout.is_volume and all(n is None for n in bare.layout.spatial(bare.image.shape))
    for more in range(LOOKED_AT if free else 1):
        seen = tuple(n + more for n in tile)
        sizes = bare.sizes(seen)
        if sizes == seen:
            return None
        margin = None if sizes is None else margin_by_size(seen, sizes)
        if margin is not None and (found := _measured(bare, seen, margin)) is not None:
            return found if any(found.margin) else None
    return None


def _measured(bare: BareModel, tile: tuple[int, ...], margin: tuple[int, ...]) -> BareMargin | None:
    """The margin by noise: zeros if scores show the whole tile, None for a tile that is not right."""
    if math.prod(tile) > MOST_PIXELS or any(node.op_type in LOOPS for node in bare.proto.graph.node):
        return BareMargin(tile, margin, is_sure=False)
    try:
        found = measured_margin(_probe(bare, tile), str(bare.path))
    except ModelError:
        return None
    return BareMargin(tile, found or (0,) * len(tile), is_sure=True)


def _probe(bare: BareModel, tile: tuple[int, ...]) -> Probe:
    session = open_session(str(bare.path), arena="none")
    layout, dtype = bare.layout, bare.image.dtype or np.dtype(np.float32)

    def score(pixels: Tiles) -> Scores:
        batch = np.repeat(pixels, bare.image.shape[0] or 1, axis=0).transpose(layout.from_first)
        with engine_errors(ModelError, lambda: failed_batch(bare.path, [batch])):
            (raw,) = session.run([bare.scores.name], {bare.image.name: np.ascontiguousarray(batch, dtype=dtype)})
        raw = np.asarray(raw)
        order = bare.scores_layout
        first = raw.transpose(order.to_first) if order.has_class_axis(raw.shape) else raw[:, None]
        return np.asarray(np.nan_to_num(first[0]), np.float32)

    shape = (1, layout.channels(bare.image.shape) or 3, *tile)
    calm, loud = (_noise(shape, dtype, spread, seed) for seed, spread in enumerate((1.0, 30.0)))
    return Probe(score, calm, loud, (1,) * len(tile))


def _noise(shape: tuple[int, ...], dtype: np.dtype[np.generic], spread: float, seed: int) -> NDArray[np.generic]:
    """Noise around 0; for integers, around the middle of 8 bits."""
    noise = np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(spread)
    if dtype.kind == "f":
        return np.asarray(noise, dtype)
    high = 127 if dtype == np.int8 else 255
    return np.asarray(np.clip(high / 2 + 10 * noise, 0, high), dtype)
