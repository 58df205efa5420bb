"""From opened cases to batches of scaled tiles, read in window order and filled across cases."""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.errors import SegpipeError, case_errors
from segpipe.formats.case_scaling import scaling_of
from segpipe.formats.cases import Case
from segpipe.formats.registry import FORMATS
from segpipe.formats.resampled import Resampled
from segpipe.formats.samples import is_small, sampled, thinned
from segpipe.formats.source import Invalid, Source
from segpipe.formats.unusual import Finding, Judge
from segpipe.geometry.windows import Cover, Part, mirrored, reflected
from segpipe.network.arrays import Array
from segpipe.network.scaling import Scaling
from segpipe.network.spec import ModelSpec
from segpipe.overrides import AS_STORED, Overrides
from segpipe.pipeline.findings import note_findings
from segpipe.pipeline.opening import Sheet, on_network_grid, open_sheet
from segpipe.pipeline.stretch import ASKED_FOR, STRETCH_BYTES, Stretch, are_empty, begin_stretch, stretches
from segpipe.storage.bucket import is_remote
from segpipe.timing.spans import span

LATE = 8
"""Windows, or stretches of them, of one case in a row that have been waited for, before more threads decode."""

LONGEST_BATCH = 64
"""Windows, empty ones included, after which a batch leaves even if it is not full."""


class HandedBackError(SegpipeError):
    """A case that its job does not do: it is too large for it, or the job has enough."""

    def __init__(self, sheet: Sheet | None) -> None:
        super().__init__("the case is for another job")
        self.sheet = sheet
        """What was seen of the case; None if it was not opened."""


@dataclass(eq=False, slots=True)
class Tile:
    """One window of a case on its way through the stages."""

    case: Case
    sheet: Sheet | None = None
    index: tuple[int, ...] = ()
    pixels: NDArray[Any] | None = None
    """Scaled, ``(channels, *tile)``, or as they are stored; None if no pixel is valid."""
    invalid: Array | None = None
    """Shape ``tile``; None if all pixels are valid, or none. It goes where the scores are."""
    scaling: Scaling | None = None
    """Of pixels that are as they are stored."""
    scores: Array | None = None
    """Weighted, ``(classes, *tile)``."""
    error: SegpipeError | None = None
    """Why the case ends here."""
    own_invalid: Invalid | None = None
    """Of a case with a grid of its own: which pixels of that are invalid, over ``Regridding.needed_by_box`` of the box that
    ends with the window; None if none."""


@dataclass(eq=False, slots=True)
class Batch:
    """Consecutive windows, of one case or several; those without a valid pixel take no room in the model."""

    tiles: list[Tile] = field(default_factory=list)

    @property
    def filled(self) -> list[Tile]:
        return [tile for tile in self.tiles if tile.pixels is not None]


@dataclass
class Decoders:
    """A count that grows to where reading keeps up, and is kept for the cases that come after."""

    count: int
    most: int
    _late: int = 0

    def begin(self) -> None:
        """Another case: the model waits for the first tiles of each."""
        self._late = 0

    def note(self, waited: bool) -> None:
        """Whether the model had no tile left when the next one came."""
        self._late = self._late + 1 if waited else 0
        if self._late > LATE and self.count < self.most:
            self.count, self._late = min(2 * self.count, self.most), 0


@dataclass(frozen=True)
class Reading:
    """What is read of cases."""

    model: ModelSpec
    """That they are for."""
    overrides: Overrides = AS_STORED
    decoders: Decoders = field(default_factory=lambda: Decoders(1, 1))
    """Threads that decode."""
    part: Part | None = None
    """Of the only case, where it is one part."""
    scaling: Scaling | None = None
    """Of the only case, where it has been measured before."""
    limit: float = math.inf
    """Windows after which no further case is opened, and above which a case is not read."""
    findings: Sequence[Finding] | None = None
    """About the only case, where somebody has looked before."""
    memory: float = math.inf
    """Bytes that a worker may use; cases that need more are not read."""
    allow_unusual: bool = False
    """Read cases whose pixels cannot be what the contract expects."""

    @cached_property
    def judge(self) -> Judge:
        return Judge(self.model.contract)


@dataclass(frozen=True, eq=False, slots=True)
class Piece:
    """Neighbouring windows of a case that have been decoded, or need not be, on their way to be tiles."""

    case: Case
    sheet: Sheet
    windows: Sequence[tuple[int, ...]]
    begun: Callable[[], Stretch] | None
    """Ends reading them; None where they are known to have no valid pixel."""
    scaling: Scaling
    look: Callable[[Stretch], None] | None = None
    """Looks at the pixels of a case that is read at one go."""

    def tiles(self) -> Iterator[Tile]:
        sheet, scaling = self.sheet, self.scaling
        if self.begun is None:
            yield from (Tile(self.case, sheet, index) for index in self.windows)
            return
        with span("read", self.case.name, self.windows[0]):
            stretch = self.begun()
            if self.look is not None:
                self.look(stretch)
        for index in self.windows:
            with span("read", self.case.name, index):
                pixels, invalid = read_tile(stretch, sheet.cover, index, None if sheet.raw else scaling)
            travelling = scaling if sheet.raw else None
            yield Tile(self.case, sheet, index, pixels, invalid, travelling, own_invalid=stretch.own_invalid)


Pieces = Generator[Piece | Tile, None, None]


def read(cases: Iterable[Case], reading: Reading) -> Iterator[Tile]:
    """Every window of every case in order; a case that cannot be read ends in a tile that says why."""
    return tiles(read_pieces(cases, reading))


def read_pieces(cases: Iterable[Case], reading: Reading) -> Pieces:
    """The windows of every case in order as they are read, some at once; or the tile in which a case ends."""
    windows = 0
    for case in cases:
        with case_errors(case.path) as failed:
            if windows >= reading.limit:
                raise HandedBackError(None)
            with span("open", case.name):
                source, sheet = open_sheet(case, reading.model, reading.overrides, reading.part, reading.memory)
            with closing(source):
                if len(sheet.windows) > reading.limit:
                    raise HandedBackError(sheet)
                windows += len(sheet.windows)
                yield from _pieces(case, source, sheet, reading)
        if failed.error is not None:
            yield Tile(case, error=failed.error)


def tiles(pieces: Pieces) -> Generator[Tile, None, None]:
    """Windows one by one, scaled where the network is on the host."""
    with closing(pieces):
        for piece in pieces:
            if isinstance(piece, Tile):
                yield piece
                continue
            with case_errors(piece.case.path) as failed:
                yield from piece.tiles()
            if failed.error is not None:
                piece.sheet.abandoned.set()
                yield Tile(piece.case, error=failed.error)


def _pieces(case: Case, source: Source, sheet: Sheet, reading: Reading) -> Iterator[Piece]:
    scaling = reading.scaling or scaling_of(source, reading.model.contract)
    FORMATS[case.format].cache().grow(sheet.room)
    look = _examine(case, source, sheet, scaling, reading)
    reading.decoders.begin()
    seen = on_network_grid(source, sheet, reading.model)
    for windows in stretches(sheet.windows, *_at_once(case, source, sheet, reading.model.contract)):
        if sheet.abandoned.is_set():
            return
        if are_empty(seen, sheet.cover, windows):
            yield Piece(case, sheet, windows, None, scaling)
            continue
        with span("read", case.name, windows[0]):
            begun = begin_stretch(seen, sheet.cover, windows, reading.decoders.count)
        yield Piece(case, sheet, windows, begun, scaling, look)


def _examine(
    case: Case, source: Source, sheet: Sheet, scaling: Scaling, reading: Reading
) -> Callable[[Stretch], None] | None:
    """Look at the pixels of a case; or what does so once they are read, where that is at one go."""
    note = partial(note_findings, case, sheet, allow=reading.allow_unusual)
    judged = partial(reading.judge, scaling=scaling, tags=source.tags())
    if reading.findings is not None:
        note(reading.findings)
    elif (
        sheet.regridding is None and len(sheet.cover) == 1 and is_small(sheet.grid.shape)
    ):  # the same pixels as in its sample
        return lambda stretch: note(judged(thinned(stretch.pixels, stretch.invalid)))
    else:
        note(judged(sampled(source)))
    return None


def _at_once(case: Case, source: Source, sheet: Sheet, contract: Contract) -> tuple[int, int]:
    """Windows of a row that are read at one go, at first and at most."""
    remote = is_remote(case.path)
    if sheet.regridding is not None or not (source.separable and (remote or sheet.raw)):
        return 1, 1  # here the processors are the network's, which would wait for the first, and between two stretches
    fit = max(1, STRETCH_BYTES // (stored_bytes(contract, source.dtype) * math.prod(sheet.cover.tiling.tile)))
    return (min(ASKED_FOR, fit),) * 2 if remote else (1, fit)


def stored_bytes(contract: Contract, dtype: np.dtype[Any]) -> int:
    """Of a pixel as it is read, with what is needed to find whether it is invalid."""
    return contract.channel_count * dtype.itemsize + 3


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


def batches(windows: Iterable[Tile], size: int) -> Iterator[Batch]:
    """Group tiles, in order, into batches of ``size`` windows that have pixels."""
    batch, room = Batch(), size
    for tile in windows:
        batch.tiles.append(tile)
        room -= tile.pixels is not None
        if not room or len(batch.tiles) >= max(size, LONGEST_BATCH):
            yield batch
            batch, room = Batch(), size
    if batch.tiles:
        yield batch
