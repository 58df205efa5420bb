"""Decoded windows to scaled tiles and these to batches, which fill across cases; what a tile is on its way to be blended."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from segpipe.errors import case_errors
from segpipe.formats.cases import Case
from segpipe.formats.resampled import Resampled
from segpipe.formats.source import Invalid, Source
from segpipe.geometry.windows import Cover, mirrored, reflected
from segpipe.network.arrays import Array
from segpipe.network.scaling import Scaling
from segpipe.pipeline.ahead import ahead, tiles_ahead
from segpipe.pipeline.opening import Sheet
from segpipe.pipeline.read import Decoded, Failed, Reading, Windows
from segpipe.pipeline.stretch import Stretch
from segpipe.timing.spans import span

LONGEST_BATCH = 64
"""Windows, empty ones included, after which a batch leaves even if it is not full."""


@dataclass(frozen=True, eq=False, slots=True)
class Patch:
    """What a network is given of a window."""

    pixels: NDArray[Any]
    """Scaled, ``(channels, *tile)``, or as they are stored."""
    invalid: Invalid | None = None
    """Shape ``tile``; None if all pixels are valid."""
    scaling: Scaling | None = None
    """Of pixels that are as they are stored."""


@dataclass(frozen=True, eq=False, slots=True)
class Tile:
    """One window of a case as it was read."""

    case: Case
    sheet: Sheet
    index: tuple[int, ...]
    patch: Patch | None = None
    """None if no pixel is valid."""
    own_invalid: Invalid | None = None
    """Of a case with a grid of its own: which pixels of that are invalid, over ``Regridding.needed_by_box`` of the box that
    ends with the window; None if none."""


@dataclass(frozen=True, eq=False, slots=True)
class Scored:
    """One window of a case with its scores."""

    case: Case
    sheet: Sheet
    index: tuple[int, ...]
    scores: Array | None = None
    """Weighted, ``(classes, *tile)``; None if no pixel is valid."""
    invalid: Array | None = None
    """Shape ``tile``, where the scores are; None if all pixels are valid, or none."""
    own_invalid: Invalid | None = None
    """As of the tile."""


Tiles = Generator[Tile | Failed, None, None]

Batch = list[Tile | Failed]
"""Consecutive tiles, of one case or several; those without a valid pixel take no room in the model."""


def tiles(windows: Windows, reading: Reading) -> Tiles:
    """As ``cut``, in a thread: on the CPU in the one that reads, for a GPU while the next are decoded."""
    late: Callable[[bool], None] = reading.decoders.note if reading.model.device == "cpu" else lambda _: None
    return ahead(cut(windows), tiles_ahead(reading.model.batch), late=late)


def cut(windows: Windows) -> Tiles:
    """Windows one by one, scaled where the network is on the host; a case that cannot be read ends with the reason."""
    with closing(windows):
        for decoded in windows:
            if isinstance(decoded, Failed):
                yield decoded
                continue
            with case_errors(decoded.case.path) as failed:
                yield from _cut(decoded)
            if failed.error is not None:
                decoded.sheet.abandoned.set()
                yield Failed(decoded.case, failed.error)


def _cut(decoded: Decoded) -> Iterator[Tile]:
    case, sheet = decoded.case, decoded.sheet
    if decoded.begun is None:
        yield from (Tile(case, sheet, index) for index in decoded.windows)
        return
    with span("read", case.name, decoded.windows[0]):
        stretch = decoded.begun()
        if decoded.look is not None:
            sheet = decoded.look(stretch)
    for index in decoded.windows:
        with span("read", case.name, index):
            patch = patch_of(stretch, sheet.cover, index, decoded.scaling, raw=sheet.raw)
        yield Tile(case, sheet, index, patch, stretch.own_invalid)


def patch_of(
    source: Source | Resampled | Stretch, cover: Cover, index: tuple[int, ...], scaling: Scaling, *, raw: bool = False
) -> Patch | None:
    """What a network is given of one window, scaled by the host unless ``raw``; None if no pixel is valid."""
    pixels, invalid = read_tile(source, cover, index, None if raw else scaling)
    return None if pixels is None else Patch(pixels, invalid, scaling if raw else None)


def read_tile(
    source: Source | Resampled | Stretch, cover: Cover, index: tuple[int, ...], scaling: Scaling | None
) -> tuple[NDArray[Any] | None, Invalid | None]:
    """Pixels of one window, mirrored behind the far border, and where they are invalid; without a scaling as stored."""
    inside, mirror = reflected(cover.window(index), cover.shape)
    stored, invalid = source.read(inside)
    if invalid is not None and invalid.all():
        return None, None
    with span("scale"):
        pixels = stored if scaling is None else scaling(stored, invalid)
        if pixels.shape[1:] != cover.tiling.tile or inside.start != cover.window(index).start:
            pixels = mirrored(pixels, mirror)
            invalid = None if invalid is None else mirrored(invalid, mirror)
    return pixels, invalid


def batches(tiles: Iterable[Tile | Failed], size: int) -> Iterator[Batch]:
    """Group tiles, in order, into batches of ``size`` windows that have pixels."""
    batch: Batch = []
    room = size
    for tile in tiles:
        batch.append(tile)
        room -= isinstance(tile, Tile) and tile.patch is not None
        if not room or len(batch) >= max(size, LONGEST_BATCH):
            yield batch
            batch, room = [], size
    if batch:
        yield batch
