"""Cut decoded windows into scaled tiles, and group tiles into batches across cases; the types of a tile until blending."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from segpipe.errors import case_errors
from segpipe.formats.case import Case
from segpipe.formats.neighbouring import Neighbouring
from segpipe.formats.resampled import Resampled
from segpipe.formats.source import Invalid, Source
from segpipe.geometry.reflection import mirrored, reflected
from segpipe.geometry.windows import Cover
from segpipe.network.arrays import Array
from segpipe.network.scaling import Scaling
from segpipe.pipeline.ahead import ahead, tiles_ahead
from segpipe.pipeline.opening import CaseInfo
from segpipe.pipeline.read import Decoded, Failed, Reading, Windows
from segpipe.pipeline.stretch import Stretch
from segpipe.timing.spans import span

Readable = Source | Neighbouring | Resampled | Stretch

LONGEST_BATCH = 64
"""Number of windows, with empty ones, after which a batch leaves even if it is not full."""


@dataclass(frozen=True, eq=False, slots=True)
class Patch:
    """The input of the network for one window."""

    pixels: NDArray[Any]
    """Pixels ``(channels, *Tiling.input)``, scaled or as stored."""
    invalid: Invalid | None = None
    """Mask of invalid pixels, of the shape of the pixels; None if all pixels are valid."""
    scaling: Scaling | None = None
    """Scaling to apply to stored pixels; None if they are scaled."""


@dataclass(frozen=True, eq=False, slots=True)
class Tile:
    """One window of a case, after it was read."""

    case: Case
    info: CaseInfo
    index: tuple[int, ...]
    patch: Patch | None = None
    """None if no pixel is valid."""
    own_invalid: Invalid | None = None
    """For a case that is resampled: mask of invalid own pixels, over ``Regridding.needed_by_box`` of the box that ends with
    the window; None if all are valid."""


@dataclass(frozen=True, eq=False, slots=True)
class Scored:
    """One window of a case with its scores."""

    case: Case
    info: CaseInfo
    index: tuple[int, ...]
    scores: Array | None = None
    """Weighted scores ``(classes, *tile)``; None if no pixel is valid."""
    invalid: Array | None = None
    """Mask of invalid pixels, shape ``tile``, on the device of the scores; None if all pixels are valid, or none."""
    own_invalid: Invalid | None = None
    """As in ``Tile``."""


Tiles = Generator[Tile | Failed, None, None]

Batch = list[Tile | Failed]
"""Consecutive tiles of one case or several; those without a valid pixel do not enter the model."""


def tiles(windows: Windows, reading: Reading) -> Tiles:
    """As ``cut_tiles``, in the reading thread on the CPU, for a GPU in another one while the next are decoded."""
    late: Callable[[bool], None] = reading.decoders.note if reading.model.on_host else lambda _: None
    return ahead(cut_tiles(windows), tiles_ahead(reading.model.batch), late=late)


def cut_tiles(windows: Windows) -> Tiles:
    """Yield windows one by one, scaled if the network is on the host; ``Failed`` if a case cannot be read."""
    with closing(windows):
        for decoded in windows:
            if isinstance(decoded, Failed):
                yield decoded
                continue
            with case_errors(decoded.case.path) as failed:
                yield from _cut(decoded)
            if failed.error is not None:
                decoded.info.abandoned.set()
                yield Failed(decoded.case, failed.error)


def _cut(decoded: Decoded) -> Iterator[Tile]:
    case, info = decoded.case, decoded.info
    if decoded.begun is None:
        yield from (Tile(case, info, index) for index in decoded.windows)
        return
    with span("read", case.name, decoded.windows[0]):
        stretch = decoded.begun()
        if decoded.examine is not None:
            info = decoded.examine(stretch)
    for index in decoded.windows:
        if info.leaves_out(index):
            yield Tile(case, info, index, None, stretch.own_invalid)
            continue
        with span("read", case.name, index):
            patch = patch_of(stretch, info.cover, index, decoded.scaling, raw=info.raw)
        yield Tile(case, info, index, patch, stretch.own_invalid)


def patch_of(
    source: Readable,
    cover: Cover,
    index: tuple[int, ...],
    scaling: Scaling,
    *,
    raw: bool = False,
) -> Patch | None:
    """The network's input for one window, scaled by the host unless ``raw``; None if no pixel is valid."""
    pixels, invalid = read_tile(source, cover, index, None if raw else scaling)
    return None if pixels is None else Patch(pixels, invalid, scaling if raw else None)


def read_tile(
    source: Readable, cover: Cover, index: tuple[int, ...], scaling: Scaling | None
) -> tuple[NDArray[Any] | None, Invalid | None]:
    """Pixels that the network sees of a window, mirrored beyond borders, and their invalid mask, both with the margin.

    Pixels are as stored if there is no scaling; None if no pixel that the window scores is valid.
    """
    inside, mirror = reflected(cover.seen(index), cover.shape)
    stored, invalid = source.read(inside)
    if invalid is not None and invalid.all():
        return None, None
    with span("scale"):
        whole = stored.shape[1:] == cover.tiling.input and inside.start == cover.seen(index).start
        lost = invalid if whole or invalid is None else mirrored(invalid, mirror)
        if lost is not None and lost[cover.tiling.middle].all():
            return None, None
        pixels = stored if scaling is None else scaling(stored, invalid)
        return pixels if whole else mirrored(pixels, mirror), lost


def batches(tiles: Iterable[Tile | Failed], size: int) -> Iterator[Batch]:
    """Group tiles, in order, into batches of ``size`` windows that have pixels."""
    batch: Batch = []
    space = size
    for tile in tiles:
        batch.append(tile)
        space -= isinstance(tile, Tile) and tile.patch is not None
        if not space or len(batch) >= max(size, LONGEST_BATCH):
            yield batch
            batch, space = [], size
    if batch:
        yield batch
