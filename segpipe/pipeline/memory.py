"""Estimates of the memory of a run, from shapes alone, before a pixel is read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from segpipe.contract import Contract
from segpipe.errors import ModelError, SourceError
from segpipe.formats.registry import FORMATS, RASTER
from segpipe.geometry.division import MOST_PIECES
from segpipe.geometry.regridding import AT_ONCE, Regridding
from segpipe.geometry.windows import Cover
from segpipe.messages.printable import dims
from segpipe.network.arrays import FLOAT, HOST, LAG_BATCHES
from segpipe.network.session import has_large_scores
from segpipe.network.spec import ModelSpec
from segpipe.pipeline.ahead import tiles_ahead
from segpipe.pipeline.stretch import STRETCH_BYTES
from segpipe.process.machine import memory
from segpipe.settings import Settings

SCORE = FLOAT.itemsize
"""Bytes of a score."""

PROCESS = 180 * 10**6
"""Bytes of a worker process before it loads a model (measured with Python 3.11, ONNX Runtime 1.31, GDAL 3.10)."""

SHARE = 0.8
"""Share of the machine's memory that all workers together may use without ``--memory``."""

FEW = 250 * 10**6
"""Bytes below which no case is refused, whatever ``--memory`` says."""

STRIP_SHARE = 0.5
"""Share of a worker's memory that the score sums of a case may take; a case that needs more is cut."""

STRETCHES = 4
"""Stretches that are in memory at once for a GPU: one being decoded, one waiting, one being cut, one held by its tiles."""

SPARE = 1
"""Batches of intermediate arrays that ONNX Runtime's arena keeps beside those of the calls in flight. The first call of a
shape allocates the arrays one by one; later calls allocate one block, which does not fit into the memory of the first."""

WORKER = 8 * 10**9
"""Bytes that a worker of a model with large scores takes at most without ``--memory``, if fewer calls in flight and parts of
a case can keep it below, and parts repeat no more than ``REPEATED`` of the windows."""

REPEATED = 0.5

LEAST_STRIP_SHARE = 0.25
"""As ``STRIP_SHARE``, where scores are so large that little of a worker's memory is left for sums."""

DECIDING = 3
"""Arrays of the size of some scores of a box that confidence needs: mean scores, their distance from the best, its
exponential."""

AVERAGING, INTERPOLATING = 2, 4
"""Arrays that a resampled case needs on a device: of the size of a window's scores, and of the scores interpolated at once,
with those of the box before."""

RESAMPLING = 3
"""Arrays of the size of a window's pixels while one axis is resampled: before, after, and one of products."""

LESION_SLAB = 2**19
"""Most voxels of a box that are labelled at once where components are measured."""

LESION_VOXEL, LESION_CHANNEL = 48, 36
"""Bytes per voxel of a slab while its components are measured, and per channel of its pixels (measured with noise)."""

LESIONS, LESION_TABLE = 60 * 10**6, 9 * 10**6
"""Bytes of the largest table of components of a case, as arrays and as rows, and of its sums for each channel."""

FACE = 8
"""Bytes per labelled voxel of a face that later boxes may join."""

MASKS = 4
"""Bytes per own pixel while the validity of a tile's own pixels is read, kept and used."""

VOTE_BASE = 256
"""Positions of classes are split into digits of this base: sums of their squares stay exact for 258 tiles at a pixel."""

AUDITING = 4
"""Arrays of the votes of a tile at once: new ones, and those of its finished box as float64 with products."""

WINDOW = 100
"""Bytes of Python objects per window of an axis, without its weights."""

TABLE_ENTRY, TABLE_BLOCK = 16, 512
"""GDAL keeps 16 bytes, offset and length, for each block of 512 x 512 pixels of a raster that it writes."""


@dataclass(frozen=True, slots=True)
class Load:
    """The properties of a case that determine the memory of a worker."""

    cover: Cover
    cached: int
    """Largest size of the format's block cache in bytes."""
    regridding: Regridding | None = None
    """The case's own grid and the network's; None if they are the same."""
    extent: tuple[int, ...] | None = None
    """Most pixels that a part of the case spans, per axis; None: it is not cut."""

    @property
    def own(self) -> float:
        """Pixels of the case's own grid per pixel of the network's grid."""
        return 1.0 if self.regridding is None else math.prod(self.regridding.own) / math.prod(self.regridding.shape)


def worker_memory(settings: Settings, workers: int) -> float:
    """Bytes that one worker may use: as the user set, else its share of the machine's memory or of a container's limit."""
    return memory() * SHARE / workers if settings.memory is None else settings.memory * 1e9


def usual_memory(settings: Settings, workers: int, model: ModelSpec) -> float:
    """As ``worker_memory``; without ``--memory``, a model with large scores takes no more than it needs to be quick."""
    allowed = worker_memory(settings, workers)
    return min(allowed, WORKER) if settings.memory is None and is_large(model) else allowed


def most_memory(settings: Settings) -> float:
    """Most bytes that a worker may use, whatever the number of workers; at least ``FEW``."""
    return max(worker_memory(settings, settings.workers or 1), FEW)


def channels_of(contract: Contract) -> int:
    """Sums per pixel that votes need beside the scores."""
    if contract.task != "multiclass":
        return 1 + contract.scores
    return 3 if contract.scores <= VOTE_BASE else 5


def audit_bytes(loads: Sequence[Load], model: ModelSpec) -> int:
    """Bytes of the votes of tiles that an audit keeps beside their scores: a strip, and those of one tile."""
    channels = channels_of(model.contract)
    strip = max((int(load.cover.strip_size(load.cover.padded)) for load in loads), default=0)
    return (strip + AUDITING * math.prod(model.tiling.tile)) * channels * SCORE


def worker_bytes(loads: Sequence[Load], model: ModelSpec, calls: int, *, confidence: bool, lesions: bool = False) -> float:
    """Expected peak memory in bytes of a worker that does any of these cases, each in the parts of its load.

    Args:
        loads: loads of the cases; if empty, no case was opened, and rasters are assumed.
        model: the model, with the measurements of its trial.
        calls: number of calls in flight.
        confidence: whether the run writes confidence.
        lesions: whether the run measures components.
    """
    strip = max((strip_bytes(load.cover, model, load.extent) for load in loads), default=0)
    box = max((_box_bytes(load, model, confidence) for load in loads), default=_decided_bytes(model, confidence))
    stretches = 0 if model.on_host else STRETCHES * STRETCH_BYTES
    resampled = max((_resampling_bytes(load, model, calls) for load in loads), default=0)
    batches = calls + (0 if is_large(model) else SPARE)
    called = network_bytes(model, batches) - batches * model.output_mb * 1e6 * model.on_host
    under_way = called + _tiles_bytes(model, calls) + box + stretches + resampled
    cached = max((load.cached for load in loads), default=FORMATS[RASTER].cache().size(0))
    measured = max((lesion_bytes(load, model) for load in loads), default=LESIONS) if lesions else 0
    return PROCESS + cached + under_way + strip + measured


def _box_bytes(load: Load, model: ModelSpec, confidence: bool) -> float:
    """Bytes of a box until it has labels: its scores on the case's own grid, if that differs, and its confidence."""
    if not load.cover.halo:
        return _decided_bytes(model, confidence)
    one = math.prod(n + load.cover.halo for n in load.cover.tiling.tile)
    scores = one * model.contract.scores * SCORE
    at_once = min(AT_ONCE * SCORE, scores * load.own)
    deciding = DECIDING * confidence * min(at_once, HOST.at_once)
    reused = any(math.prod(shape) >= one for shape in load.cover.strip_shapes(load.extent or load.cover.padded)[:1])
    haloed = min(scores, max(HOST.at_once, SCORE * one))
    return haloed + scores * (not reused) + INTERPOLATING * at_once + deciding


def lesion_bytes(load: Load, model: ModelSpec) -> float:
    """Bytes of components: the table of a case, a slab while it is labelled, and the faces that later boxes join.

    Pixels of the slab are counted as floats. Of faces, a plane of boxes is open on both sides, and all of it is labelled.
    """
    contract = model.contract
    own: float = load.own ** (1 / len(load.cover.shape))
    slab = min(LESION_SLAB, math.prod(load.cover.tiling.tile) * load.own)
    bands = len(contract.classes) if contract.task == "multilabel" else 1
    plane = math.prod(n * own for n in load.cover.padded[1:])
    tables = LESIONS + LESION_TABLE * contract.channel_count
    return tables + slab * (LESION_VOXEL + LESION_CHANNEL * contract.channel_count) + 2 * FACE * bands * plane


def _decided_bytes(model: ModelSpec, confidence: bool) -> float:
    scores, plane = (math.prod(n) * model.contract.scores * SCORE for n in (model.tiling.tile, model.tiling.tile[1:]))
    return DECIDING * confidence * (min(scores, max(HOST.at_once, plane)) if model.on_host else scores)


def _resampling_bytes(load: Load, model: ModelSpec, calls: int) -> int:
    """Bytes of the own pixels that a tile needs, and of the validity of own pixels of tiles in progress."""
    if load.regridding is None:
        return 0
    seen = load.cover.tiling.input
    tile, own = math.prod(seen), math.prod(load.regridding.extent(seen))
    read = RESAMPLING * max(tile, min(own, AT_ONCE)) * model.contract.input_channels * SCORE
    return read + own * (tiles_ahead(model.batch) + (calls + 2) * model.batch)


def network_bytes(model: ModelSpec, calls: int, *, batches: float = 1.0, copies: int = 1) -> float:
    """Bytes of a network's weights and intermediate arrays, as measured in the trial.

    Args:
        model: the model, after its trial.
        calls: number of calls in flight.
        batches: size of each call, in batches of the trial.
        copies: number of loaded copies of the model.
    """
    return copies * (model.weights_mb + calls * batches * model.network_mb) * 1e6


def _image_bytes(model: ModelSpec) -> int:
    """Bytes of a batch of what the network sees."""
    return model.batch * math.prod(model.tiling.input) * model.contract.input_channels * SCORE


def _score_bytes(model: ModelSpec) -> int:
    """Bytes of the scores of a batch."""
    return model.batch * math.prod(model.tiling.tile) * model.contract.scores * SCORE


def _tiles_bytes(model: ModelSpec, calls: int) -> float:
    """Bytes of tiles in progress: pixels read ahead or in the network, and scores computed, waiting or blended."""
    scores = _score_bytes(model)
    batches = calls + waiting_batches(model) + 1
    pixels = (batches + 1 + tiles_ahead(model.batch) / model.batch) * _image_bytes(model)
    # a call that averages holds a flipped copy of its tiles, and scores that are added to those before
    averaged = calls * (_image_bytes(model) + scores) if model.passes > 1 else 0
    return pixels + batches * scores + averaged


def is_large(model: ModelSpec) -> bool:
    """Whether the scores of a batch decide how much memory a worker on the CPU takes: none wait to be blended, and calls in
    flight are only as many as memory allows."""
    return model.on_host and has_large_scores(model)


def waiting_batches(model: ModelSpec) -> int:
    """Batches whose scores wait while another one is blended, beside those in the model."""
    return 0 if is_large(model) else 1


def strip_bytes(cover: Cover, model: ModelSpec, extent: Sequence[int] | None = None) -> int:
    """Bytes of the score sums that blending keeps of a case, or of a part of it that spans ``extent``."""
    return int(cover.strip_size(cover.padded if extent is None else extent)) * model.contract.scores * SCORE


def longest_strip(model: ModelSpec, allowed: float, other: float | None = None) -> int:
    """Most score sums per class that fit into a worker's ``allowed`` bytes, or into the memory of its GPU.

    Args:
        model: the model.
        allowed: bytes of the worker.
        other: bytes that everything else takes; None: a share of ``allowed``.
    """
    if model.memory is not None:
        most: float = model.memory.strip
    elif other is None:
        most = allowed * STRIP_SHARE
    else:
        most = max(allowed - other, allowed * LEAST_STRIP_SHARE)
    return int(most / (model.contract.scores * SCORE))


def least_bytes(cover: Cover, model: ModelSpec, block: int) -> int:
    """Least bytes of a worker for one part of a case: weights, strip of the narrowest part, table of blocks, decoded block.

    Args:
        cover: cover of the case.
        model: the model.
        block: bytes of one block of the case, which is decoded whole.
    """
    axes = list(zip(cover.padded, cover.counts, cover.tiling.tile, strict=True))
    weights = sum(SCORE * padded + count * (SCORE * tile + WINDOW) for padded, count, tile in axes)
    narrowest = [min(padded, padded // MOST_PIECES + tile) for padded, _, tile in axes]
    strip = cover.strip_size(narrowest) * model.contract.scores * SCORE if model.on_host else 0
    table = math.prod(-(-n // TABLE_BLOCK) for n in cover.shape) * TABLE_ENTRY
    return int(weights + strip + table + block)


def refuse_large_case(path: str, cover: Cover, model: ModelSpec, block: int, allowed: float) -> None:
    """Refuse a case that does not fit into the memory of a worker, however it is cut.

    Raises:
        SourceError: the case is too large; the message has the least memory that it needs.
    """
    if (least := least_bytes(cover, model, block)) > allowed:
        raise SourceError(
            f"{path}: {dims(cover.shape)} pixels in blocks of {in_words(block)} need at least {in_words(least)} of memory, "
            f"and a worker may use {in_words(allowed)}: raise --memory, or check the file, whose header may be damaged"
        )


def refuse_fine_case(path: str, regridding: Regridding, cover: Cover, allowed: float) -> None:
    """Refuse a case if the validity of a tile's own pixels does not fit into the memory of a worker.

    Raises:
        SourceError: a tile needs too many own pixels; the message has the least memory that it needs.
    """
    tile, own = cover.tiling.input, regridding.extent(cover.tiling.input)
    if (least := MASKS * math.prod(own)) > allowed:
        raise SourceError(
            f"{path}: a tile of {dims(tile)} pixels of the model covers {dims(own)} pixels of the case, which take at least "
            f"{in_words(least)} of memory, and a worker may use {in_words(allowed)}: lower --tile, raise --memory, or "
            "resample the file"
        )


def refuse_large_tile(model: ModelSpec, allowed: float) -> None:
    """Refuse a model if a batch of its tiles and scores does not fit into the memory of a worker.

    Raises:
        ModelError: the batch is too large; the message has the least memory that it needs.
    """
    contract = model.contract
    if (least := _image_bytes(model) + _score_bytes(model)) > allowed:
        raise ModelError(
            f"{model.batch} tile(s) of {dims(model.tiling.input)} pixels with {contract.input_channels} channels and "
            f"{contract.scores} classes need at least {in_words(least)} of memory, and a worker may use "
            f"{in_words(allowed)}: lower --tile or --batch, or raise --memory"
        )


def device_bytes(model: ModelSpec) -> int:
    """Bytes of device memory for tiles from scaling to their own scores, without the network and the strip."""
    sent, image, scores = 8 + 8, 4 + 4, 2 * 4
    pixels = math.prod(model.tiling.input) * model.contract.input_channels * (sent + image)
    values = math.prod(model.tiling.tile) * (LAG_BATCHES + 2) * model.contract.scores * scores
    return model.batch * (pixels + values) + _interpolated_bytes(model)


def _interpolated_bytes(model: ModelSpec) -> int:
    """Bytes of mean and interpolated scores, if cases may be resampled: if the contract has a spacing."""
    if model.contract.spacing is None:
        return 0
    return AVERAGING * math.prod(model.tiling.tile) * model.contract.scores * SCORE + INTERPOLATING * AT_ONCE * SCORE


def in_words(size: float) -> str:
    """
    >>> in_words(1_234_567_890), in_words(20_000)
    ('1.2 GB', '1 MB')
    """
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6)):,} MB"
