"""What memory a run takes: every estimate of bytes, from shapes alone, before a pixel is read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from segpipe.errors import ModelError, SourceError
from segpipe.formats.registry import FORMATS, RASTER
from segpipe.geometry.division import MOST_PIECES
from segpipe.geometry.regridding import AT_ONCE, Regridding
from segpipe.geometry.windows import Cover
from segpipe.network.arrays import LAG_BATCHES
from segpipe.network.spec import ModelSpec, by
from segpipe.pipeline.ahead import tiles_ahead
from segpipe.pipeline.stretch import STRETCH_BYTES
from segpipe.process.machine import memory
from segpipe.settings import Settings

FLOAT = 4

PROCESS = 180 * 10**6
"""A worker process with its libraries, before it loads a model (measured: Python 3.11, ONNX Runtime 1.31, GDAL 3.10)."""

SHARE = 0.8
"""Of the machine's memory that all workers together may use, unless ``--memory`` says otherwise."""

FEW = 250 * 10**6
"""Below which a case is not too large for any worker, whatever ``--memory`` says."""

STRIP_SHARE = 0.5
"""Of a worker's memory that score sums of a case may take; a case that needs more is cut."""

STRETCHES = 4
"""Stretches that are in memory at once for a GPU: decoded, waiting, being cut, and held by their tiles."""

SPARE = 1
"""Batches whose arrays between layers ONNX Runtime's arena keeps beside those of the calls in flight: the first call of a
shape allocates them one by one, and later calls as one block, for which there is no room among the first ones."""

DECIDING = 3
"""Arrays of the size of a box's scores that confidence takes: mean scores, their distance from the best, its exponential."""

AVERAGING, INTERPOLATING = 3, 3
"""Arrays of the size of a window's scores, and of those interpolated at once, that a case with a grid of its own takes."""

RESAMPLING = 3
"""Arrays of the size of a window's pixels before and behind an axis that is resampled: both, and one of the products."""

MASKS = 4
"""Bytes of a pixel of the case's own grid while the validity of a tile's is read, kept and looked at."""

WINDOW = 100
"""Bytes that Python keeps of a window of an axis, beside its weights."""

TABLE_ENTRY, TABLE_BLOCK = 16, 512
"""GDAL keeps place and length of every block of a raster that it writes."""


@dataclass(frozen=True, slots=True)
class Load:
    """What of a case decides how much memory a worker takes for it."""

    cover: Cover
    cached: int
    """Bytes that its format's cache may come to."""
    regridding: Regridding | None = None
    """To the grid that the network sees, where that is another than its own."""

    @property
    def own(self) -> float:
        """Pixels of the case's own grid for each of the grid that the network sees."""
        return 1.0 if self.regridding is None else math.prod(self.regridding.own) / math.prod(self.regridding.shape)


def worker_memory(settings: Settings, workers: int) -> float:
    """Bytes that one worker may use: as asked, else its share of the machine's, limits of a container included."""
    return memory() * SHARE / workers if settings.memory is None else settings.memory * 1e9


def most_memory(settings: Settings) -> float:
    """Bytes that a worker may use at most, whatever the number of workers will be; what little all need is not refused."""
    return max(worker_memory(settings, settings.workers or 1), FEW)


def worker_bytes(loads: Sequence[Load], model: ModelSpec, calls: int, *, confidence: bool) -> float:
    """Expected peak of a worker that does any of these cases, each in one piece.

    Args:
        loads: of the cases; none where nobody has looked at them, and rasters are expected.
        model: with what was measured in its trial.
        calls: in flight at once.
        confidence: whether a mask has one.
    """
    strip = max((strip_bytes(load.cover, model) for load in loads), default=0)
    box = max((_box_bytes(load, model, confidence) for load in loads), default=_decided_bytes(model, confidence))
    stretches = 0 if model.device == "cpu" else STRETCHES * STRETCH_BYTES
    resampled = max((_resampling_bytes(load, model, calls) for load in loads), default=0)
    under_way = network_bytes(model, calls + SPARE) + _tiles_bytes(model, calls) + box + stretches + resampled
    cached = max((load.cached for load in loads), default=FORMATS[RASTER].cache().size(0))
    return PROCESS + cached + under_way + strip


def _box_bytes(load: Load, model: ModelSpec, confidence: bool) -> float:
    """Of what a box becomes on its way to labels: scores on the case's own grid, where that is another, and confidence."""
    decided = _decided_bytes(model, confidence)
    if not load.cover.halo:
        return decided
    scores = math.prod(model.tiling.tile) * model.contract.scores * FLOAT
    at_once = min(AT_ONCE * FLOAT, scores * load.own)
    return AVERAGING * scores + INTERPOLATING * at_once + decided * at_once / scores


def _decided_bytes(model: ModelSpec, confidence: bool) -> float:
    return DECIDING * confidence * math.prod(model.tiling.tile) * model.contract.scores * FLOAT


def _resampling_bytes(load: Load, model: ModelSpec, calls: int) -> int:
    """Of the own pixels that a tile is made of, and of the validity of those under way."""
    if load.regridding is None:
        return 0
    tile, own = math.prod(load.cover.tiling.tile), math.prod(load.regridding.extent(load.cover.tiling.tile))
    read = RESAMPLING * max(tile, min(own, AT_ONCE)) * model.contract.channel_count * FLOAT
    return read + own * (tiles_ahead(model.batch) + (calls + 2) * model.batch)


def network_bytes(model: ModelSpec, calls: int, *, batches: float = 1.0, copies: int = 1) -> float:
    """Of a network's weights and of what lies between its layers, as the trial found them.

    Args:
        model: that has been tried.
        calls: in flight at once.
        batches: size of each call, in batches of the trial.
        copies: loaded models.
    """
    return copies * (model.weights_mb + calls * batches * model.network_mb) * 1e6


def _tile_bytes(model: ModelSpec, layers: int) -> int:
    """Of a batch of tiles with so many channels or classes."""
    return model.batch * math.prod(model.tiling.tile) * layers * FLOAT


def _tiles_bytes(model: ModelSpec, calls: int) -> float:
    """Of tiles under way: pixels that are read ahead or in the network, and scores that are made, wait or are blended."""
    batches = calls + 3  # in calls, waiting, fetched, and the one before, which goes when the next is there
    pixels = (batches + tiles_ahead(model.batch) / model.batch) * _tile_bytes(model, model.contract.channel_count)
    return pixels + batches * _tile_bytes(model, model.contract.scores)


def strip_bytes(cover: Cover, model: ModelSpec) -> int:
    """Of the score sums that are kept while a case is blended in one piece."""
    return int(cover.strip_size(cover.padded)) * model.contract.scores * FLOAT


def longest_strip(model: ModelSpec, allowed: float) -> int:
    """Score sums per class that there is memory for: of a worker that may use so many bytes, or of its GPU."""
    most = allowed * STRIP_SHARE if model.room is None else model.room.strip
    return int(most / (model.contract.scores * FLOAT))


def least_bytes(cover: Cover, model: ModelSpec, block: int) -> int:
    """Of a worker that does one part of a case: weights, a strip of the narrowest part, the mask's blocks, a decoded one.

    Args:
        cover: of the case.
        model: that it is for.
        block: bytes of a block of its pixels, which is decoded whole.
    """
    axes = list(zip(cover.padded, cover.counts, cover.tiling.tile, strict=True))
    weights = sum(FLOAT * padded + count * (FLOAT * tile + WINDOW) for padded, count, tile in axes)
    narrowest = [min(padded, padded // MOST_PIECES + tile) for padded, _, tile in axes]
    strip = cover.strip_size(narrowest) * model.contract.scores * FLOAT if model.device == "cpu" else 0
    table = math.prod(-(-n // TABLE_BLOCK) for n in cover.shape) * TABLE_ENTRY
    return int(weights + strip + table + block)


def refuse_large_case(path: str, cover: Cover, model: ModelSpec, block: int, allowed: float) -> None:
    """A case must fit into what a worker may use.

    Raises:
        SourceError: with what it needs at least.
    """
    if (least := least_bytes(cover, model, block)) > allowed:
        raise SourceError(
            f"{path}: {by(cover.shape)} pixels in blocks of {in_words(block)} need at least {in_words(least)} of memory, "
            f"and a worker may use {in_words(allowed)}: raise --memory, or check the file, whose header may be damaged"
        )


def refuse_fine_case(path: str, regridding: Regridding, cover: Cover, allowed: float) -> None:
    """The validity of the own pixels of a tile must fit into what a worker may use.

    Raises:
        SourceError: with what it needs at least.
    """
    tile, own = cover.tiling.tile, regridding.extent(cover.tiling.tile)
    if (least := MASKS * math.prod(own)) > allowed:
        raise SourceError(
            f"{path}: a tile of {by(tile)} of the model's pixels is made of {by(own)} of the case's, and needs at least "
            f"{in_words(least)} of memory, and a worker may use {in_words(allowed)}: lower --tile, raise --memory, or "
            "resample the file"
        )


def refuse_large_tile(model: ModelSpec, allowed: float) -> None:
    """A batch of tiles and its scores must fit into what a worker may use.

    Raises:
        ModelError: with what they need at least.
    """
    contract = model.contract
    if (least := _tile_bytes(model, contract.channel_count + contract.scores)) > allowed:
        raise ModelError(
            f"{model.batch} tile(s) of {by(model.tiling.tile)} pixels with {contract.channel_count} channels and "
            f"{contract.scores} classes need at least {in_words(least)} of memory, and a worker may use "
            f"{in_words(allowed)}: lower --tile or --batch, or raise --memory"
        )


def device_bytes(model: ModelSpec) -> int:
    """Of a device's memory that tiles take while they are scaled, scored and blended, beside the network and the strip."""
    sent, image, scores = 8 + 8, 4 + 4, 2 * 4
    values = model.contract.channel_count * (sent + image) + (LAG_BATCHES + 2) * model.contract.scores * scores
    return model.batch * math.prod(model.tiling.tile) * values


def in_words(size: float) -> str:
    """
    >>> in_words(1_234_567_890), in_words(20_000)
    ('1.2 GB', '1 MB')
    """
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6)):,} MB"
