"""What memory a case or a tile needs at least, however it is cut; known before a pixel is read."""

import math

from segpipe.errors import ModelError, SourceError
from segpipe.geometry.division import MOST_PIECES
from segpipe.geometry.windows import Cover
from segpipe.network.spec import ModelSpec

WINDOW = 100
"""Bytes that Python keeps of a window of an axis, beside its weights."""

TABLE_ENTRY, TABLE_BLOCK = 16, 512
"""GDAL keeps place and length of every block of a raster that it writes."""

FLOAT = 4


def least_bytes(cover: Cover, model: ModelSpec, block: int) -> int:
    """Of a worker that does one part of a case: weights, a strip of the narrowest part, the mask's blocks, a decoded one.

    Args:
        cover: of the case.
        model: that it is for.
        block: bytes of a block of its pixels, which is decoded whole.
    """
    axes = zip(cover.padded, cover.counts, cover.tiling.tile, strict=True)
    weights = sum(FLOAT * padded + count * (FLOAT * tile + WINDOW) for padded, count, tile in axes)
    sides = zip(cover.padded, cover.tiling.tile, strict=True)
    narrow = [min(padded, padded // MOST_PIECES + tile) for padded, tile in sides]
    strip = cover.strip_size(narrow) * model.contract.scores * FLOAT if model.device == "cpu" else 0
    table = math.prod(-(-n // TABLE_BLOCK) for n in cover.shape) * TABLE_ENTRY
    return weights + strip + table + block


def refuse_large_case(path: str, cover: Cover, model: ModelSpec, block: int, memory: float) -> None:
    """A case must fit into what a worker may use.

    Raises:
        SourceError: with what it needs at least.
    """
    if (least := least_bytes(cover, model, block)) > memory:
        size = " x ".join(map(str, cover.shape))
        raise SourceError(
            f"{path}: {size} pixels in blocks of {told(block)} need at least {told(least)} of memory, and a worker may use "
            f"{told(memory)}: raise --memory, or check the file, whose header may be damaged"
        )


def refuse_large_tile(model: ModelSpec, memory: float) -> None:
    """A batch of tiles and its scores must fit into what a worker may use.

    Raises:
        ModelError: with what they need at least.
    """
    tile, contract = model.tiling.tile, model.contract
    if (least := math.prod(tile) * model.batch * (contract.channel_count + contract.scores) * FLOAT) > memory:
        raise ModelError(
            f"{model.batch} tile(s) of {' x '.join(map(str, tile))} pixels with {contract.channel_count} channels and "
            f"{contract.scores} classes need at least {told(least)} of memory, and a worker may use {told(memory)}: "
            "lower --tile or --batch, or raise --memory"
        )


def told(size: float) -> str:
    """
    >>> told(1_234_567_890), told(20_000)
    ('1.2 GB', '1 MB')
    """
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6)):,} MB"
