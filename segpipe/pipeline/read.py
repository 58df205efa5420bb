"""From opened cases to batches of scaled tiles, read in window order and filled across cases."""

import logging
import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.errors import SegpipeError, SourceError, case_errors
from segpipe.formats.cases import Case
from segpipe.formats.identity import Beside, Identity, asked_names, identities, no_state
from segpipe.formats.registry import FORMATS, open_path
from segpipe.formats.resampled import Resampled
from segpipe.formats.samples import is_small, sampled, thinned
from segpipe.formats.source import Invalid, Scene, Source
from segpipe.formats.unusual import Finding, Judge
from segpipe.geometry.grid import Grid
from segpipe.geometry.regridding import Regridding
from segpipe.geometry.weighting import Weights
from segpipe.geometry.windows import Cover, Part, Window, mirrored, reflected
from segpipe.network.arrays import Array
from segpipe.network.scaling import Scaling, case_scaling, fixed_scaling, unscaled
from segpipe.network.spec import ModelSpec
from segpipe.overrides import AS_STORED, Overrides
from segpipe.pipeline.decoders import Decoders
from segpipe.pipeline.memory import refuse_large_case
from segpipe.pipeline.spacing import check_spacing, regridding_of, resampling_note
from segpipe.pipeline.stretch import ASKED_FOR, STRETCH_BYTES, Stretch, are_empty, begin_stretch, stretches
from segpipe.storage.bucket import is_remote
from segpipe.timing.spans import span

LOG = logging.getLogger("segpipe")

STATISTICS_BLOCK = {2: 1024, 3: 128}
"""Side of the blocks over which the statistics of an image or a volume are taken: 1 and 2 million pixels. Fixed: it decides
the order of a sum."""

CHANGED = "{} has changed while it was done: run the same command again"

HALO = 1
"""Pixels that linear interpolation takes from before a box."""

LONGEST_BATCH = 64
"""Windows, empty ones included, after which a batch leaves even if it is not full."""


@dataclass(frozen=True, eq=False)
class Sheet:
    """What the stages behind reading know of an opened case."""

    grid: Grid
    files: list[Identity]
    """What its pixels come from, as it was before the first was read."""
    notes: tuple[str, ...]
    cover: Cover
    opened: float
    """When it was opened, as ``time.time`` gives it."""
    part: Part
    """The windows that are finished here: all of the case, or a part of it."""
    room: int = 0
    """Bytes of blocks that a row of its windows touches; they stay decoded for the next row."""
    raw: bool = False
    """Whether its pixels travel as they are stored, to be scaled on a device."""
    findings: list[Finding] = field(default_factory=list)
    """What is unusual about its pixels; all of it is here before its first tile leaves."""
    place: str = ""
    """Where it was found, links resolved."""
    asked: tuple[str, ...] = field(default=(), repr=False)
    """Names by which its files are asked for: those of ``files`` have no secrets."""
    scene: Scene = field(default_factory=dict)
    """Metadata that describe the scene, by domain."""
    origin: object = None
    """``Source.origin``, for the sinks of its masks."""
    regridding: Regridding | None = None
    """To the grid that the network sees, where that is another one than the case's own. ``cover`` is of the network's."""
    abandoned: threading.Event = field(default_factory=threading.Event)
    """Set by whoever finds that the case cannot be finished: it is read no further."""

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(finding.text for finding in self.findings)

    @property
    def windows(self) -> Part:
        """The windows that are inferred here: those of the part, and those that share pixels with it."""
        return self.cover.touching(self.part)

    @cached_property
    def weights(self) -> Weights:
        return Weights.over(self.cover)


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


def open_source(case: Case, contract: Contract, overrides: Overrides = AS_STORED) -> Source:
    """Open a case by its format."""
    return open_path(case.format, case.path, contract, overrides)


def open_sheet(
    case: Case,
    model: ModelSpec,
    overrides: Overrides = AS_STORED,
    part: Part | None = None,
    memory: float = math.inf,
) -> tuple[Source, Sheet]:
    """Open a case, or a part of it, and check that the model can take it.

    Raises:
        SourceError: it cannot be opened, its bands, pixels or pixel size are not the model's, or it needs more than
            ``memory`` bytes however it is cut.
    """
    opened, place = time.time(), Beside().place(case.path)
    source = open_source(case, model.contract, overrides)
    try:
        _check_pixels(case, source, model)
        regridding = regridding_of(source.grid, model.contract, resample=overrides.resample)
        cover = cover_of(case, source.grid.shape, model, regridding)
        refuse_large_case(case.path, cover, model, source.block, memory)
        told = source.notes if part is None else ()  # the record is of the case
        spaced = check_spacing if regridding is None else resampling_note
        notes = [*told, *spaced(case.path, source.grid, model.contract)]
        files = identities(case.path, source.files)
        notes += no_state(files)
        if part is not None and any(b > n for b, n in zip(part.stop, cover.counts, strict=True)):
            raise SourceError(CHANGED.format(case.path))
        part = part or cover.whole
        seen = source if regridding is None else Resampled(source, regridding)
        room = seen.memory(row_of(cover, cover.touching(part)))
        notes += FORMATS[case.format].cache().notes(room)
    except BaseException:
        source.close()
        raise
    raw = model.device != "cpu"
    found, asked = (files, tuple(notes), cover, opened, part, room, raw), tuple(asked_names(source.files))
    sheet = Sheet(source.grid, *found, place=place, scene=source.scene, origin=source.origin, asked=asked)
    return source, replace(sheet, regridding=regridding)


def cover_of(case: Case, shape: tuple[int, ...], model: ModelSpec, regridding: Regridding | None = None) -> Cover:
    """The windows of a case of this shape; on the grid that the network sees, where that is another.

    Raises:
        SourceError: it is an image and the model is of volumes.
    """
    try:
        tiling = model.tiling_of(shape)
    except SourceError as error:
        raise SourceError(f"{case.path}: {error}") from None
    return Cover(shape, tiling) if regridding is None else Cover(regridding.shape, tiling, HALO)


def row_of(cover: Cover, windows: Part) -> tuple[int, ...]:
    """Shape of a row of windows: a tile high, and as wide as all of them."""
    first, last = cover.window(windows.first), cover.window(tuple(stop - 1 for stop in windows.stop))
    return (cover.tiling.tile[0], *(b - a for a, b in zip(first.start[1:], last.stop[1:], strict=True)))


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


def on_network_grid(source: Source, sheet: Sheet, model: ModelSpec) -> Source | Resampled:
    """What is read of a case for the network: on the case's own grid, if that is the one that the network sees."""
    if sheet.regridding is None:
        return source
    return Resampled(source, sheet.regridding, whole=np.dtype(model.input_dtype).kind in "iu")


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


def note_findings(case: Case, sheet: Sheet, findings: Sequence[Finding], *, allow: bool) -> None:
    """Keep what is unusual about a case.

    Raises:
        SourceError: labels would mean nothing, and this is not allowed.
    """
    sheet.findings.extend(findings)
    far = [finding.text for finding in findings if finding.far]
    if far and not allow:
        raise SourceError(f"{case.path}: {far[0]}. To label it all the same, give segpipe run --unusual-values allow")


def warn_of_findings(case: Case, source: Source, contract: Contract) -> None:
    """Warn of unusual pixels in a scene that ``tune`` or ``export`` reads for comparison or calibration."""
    for finding in findings_of(source, contract):
        LOG.warning("warning: %s: %s", case.name, finding.text)


def findings_of(source: Source, contract: Contract) -> list[Finding]:
    """What is unusual about the pixels of an opened case, as far as that can be seen without its own statistics."""
    return Judge(contract)(sampled(source), None, source.tags())


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


def _check_pixels(case: Case, source: Source, model: ModelSpec) -> None:
    """Raw pixels for a model of integers must fit its type; floats are scaled and always do."""
    wanted = np.dtype(model.input_dtype)
    if wanted.kind in "iu" and not np.can_cast(source.dtype, wanted):
        raise SourceError(
            f"{case.path}: pixels must fit the model's {wanted} input without loss, got {source.dtype}: convert the file"
        )


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


def scaling_of(source: Source, contract: Contract) -> Scaling:
    """The contract's scaling for one case; its own z-score or min-max takes a pass over its pixels."""
    if contract.scaling == "graph":
        return unscaled(contract)
    scaling = fixed_scaling(contract, source.tags() if contract.pixel == "physical" else None)
    if contract.normalize in ("fixed", "none"):
        return scaling
    return case_scaling(contract, scaling, _valid_blocks(source, scaling))


def _valid_blocks(source: Source, scaling: Scaling) -> Iterator[NDArray[np.float32]]:
    """The valid pixels of a case, ``(channels, pixels)`` per block, in row-major order of blocks."""
    shape = source.grid.shape
    side = STATISTICS_BLOCK[len(shape)]
    for block in np.ndindex(*(-(-n // side) for n in shape)):
        start = tuple(k * side for k in block)
        stop = tuple(min(a + side, n) for a, n in zip(start, shape, strict=True))
        window = Window(start, stop)
        if source.empty(window):
            continue
        stored, invalid = source.read(window)
        scaled = scaling(stored, None)
        yield scaled.reshape(len(scaled), -1) if invalid is None else scaled[:, ~invalid]


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
