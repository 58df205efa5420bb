"""Open cases, check them against the model, and collect what all later stages know of them."""

import math
import threading
import time
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from segpipe.contract import Contract
from segpipe.errors import SourceError, on_failure
from segpipe.formats.case import Case
from segpipe.formats.cropping import cropped
from segpipe.formats.identity import FolderListings, Identity, asked_names, identities, no_state
from segpipe.formats.neighbouring import Neighbouring
from segpipe.formats.nnunet_case import NnunetCase, grids_of
from segpipe.formats.registry import FORMATS, open_case
from segpipe.formats.resampled import Resampled
from segpipe.formats.scope import Scope, scope_of
from segpipe.formats.source import Scene, Source
from segpipe.formats.unusual.values import Finding
from segpipe.geometry.cropped_grids import CroppedGrids
from segpipe.geometry.grid import Grid
from segpipe.geometry.nnunet_grids import NnunetGrids
from segpipe.geometry.reflection import reflected
from segpipe.geometry.regridding import Regridding
from segpipe.geometry.weighting import Weights
from segpipe.geometry.windows import Cover, Part, Window
from segpipe.network.scaling import Scaling
from segpipe.network.spec import ModelSpec
from segpipe.overrides import AS_STORED, Overrides
from segpipe.pipeline.memory import refuse_fine_case, refuse_large_case
from segpipe.pipeline.spacing import check_spacing, regridding_of, resampling_note
from segpipe.storage.paths import is_remote

CHANGED = "{} has changed while it was processed: run the same command again"

HALO = 1
"""Number of pixels before a box that linear interpolation needs."""


@dataclass(frozen=True, eq=False)
class CaseInfo:
    """Facts about an opened case, shared by all stages after reading."""

    grid: Grid
    files: list[Identity]
    """Identities of the files that the pixels come from, taken before the first pixel was read."""
    notes: tuple[str, ...]
    cover: Cover
    opened: float
    """Time of opening, by the monotonic clock of this process."""
    part: Part
    """The windows that are finished in this job: all windows of the case, or a part of them."""
    block_bytes: int = 0
    """Bytes of the blocks that a row of windows touches; they stay decoded for the next row."""
    raw: bool = False
    """Whether pixels are passed on as stored, to be scaled on a device."""
    findings: tuple[Finding, ...] = ()
    """Unusual properties of the pixels; complete before the first tile leaves."""
    place: str = ""
    """Path of the case, with links resolved."""
    asked: tuple[str, ...] = field(default=(), repr=False)
    """Names for opening the files, which may contain secrets; the names in ``files`` contain none."""
    scene: Scene = field(default_factory=dict)
    """Metadata that describe the scene, by domain."""
    template: object = None
    """``Source.template``, for the sinks of its masks."""
    regridding: Regridding | None = None
    """The case's own grid and the network's; None if they are the same. ``cover`` refers to the network's grid."""
    scope: Scope | None = None
    """The pixels that get labels; None: all."""
    unpacked: int = 0
    """Bytes that a process takes in TMPDIR while it reads the case."""
    abandoned: threading.Event = field(default_factory=threading.Event)
    """Set by any stage in which the case fails; reading then stops."""

    @property
    def box(self) -> Window | None:
        """The own pixels that the network sees, if not all."""
        return self.regridding.box if isinstance(self.regridding, CroppedGrids) else None

    @property
    def resampled(self) -> bool:
        """Whether the network's pixels have another size than the case's own."""
        return self.regridding is not None and any(factor != 1 for factor in self.regridding.factors)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Texts of the findings."""
        return tuple(finding.text for finding in self.findings)

    @property
    def windows(self) -> Part:
        """The windows that are inferred in this job: those of the part, and earlier ones that overlap them."""
        return self.cover.touching(self.part)

    @cached_property
    def weights(self) -> Weights:
        """Weights of the windows of the case, computed once."""
        return Weights.over(self.cover)

    def leaves_out(self, index: tuple[int, ...]) -> bool:
        """Whether no pixel that a window scores gets a label.

        For a case that is resampled, the own pixels that the window's pixels are computed from are those whose scores follow
        from it, since both ways interpolate over the same distance.
        """
        if self.scope is None:
            return False
        window = reflected(self.cover.window(index), self.cover.shape)[0]
        return self.scope.excludes(window if self.regridding is None else self.regridding.needed(window))


def open_checked(
    case: Case,
    model: ModelSpec,
    overrides: Overrides = AS_STORED,
    part: Part | None = None,
    memory: float = math.inf,
) -> tuple[Source, CaseInfo]:
    """Open a case, or a part of it, and check that the model can take it.

    Raises:
        SourceError: the case cannot be opened, its bands, pixels or pixel size do not fit the model, or it needs more than
            ``memory`` bytes however it is cut.
    """
    opened, place, before = time.monotonic(), FolderListings().place(case.path), _state(case.path)
    source = open_case(case, model.contract, overrides)
    with on_failure(source.close):
        regridding, cover, spacing_notes = _fitted(case, source, model, overrides, memory)
        notes = [*(source.notes if part is None else ()), *spacing_notes]  # a record belongs to the case, not to a part
        files = identities(case.path, source.files)
        shrunk = part is not None and any(b > n for b, n in zip(part.stop, cover.counts, strict=True))
        if shrunk or _state(case.path) != before:
            raise SourceError(CHANGED.format(case.path))
        part = part or cover.whole
        stack = with_neighbours(source, model.contract)
        seen = stack if regridding is None or model.like else Resampled(stack, regridding)
        block_bytes = 0 if model.like else seen.memory(row_of(cover, cover.touching(part)))
        info = CaseInfo(
            grid=source.grid,
            files=files,
            notes=(*notes, *no_state(files), *FORMATS[case.format].cache().notes(block_bytes)),
            cover=cover,
            opened=opened,
            part=part,
            block_bytes=block_bytes,
            raw=not model.on_host,
            place=place,
            asked=tuple(asked_names(source.files)),
            scene=source.scene,
            template=source.template,
            regridding=regridding,
            scope=scope_of(overrides.aoi, source.grid, case),
            unpacked=source.unpacked,
        )
    return source, info


def _fitted(
    case: Case, source: Source, model: ModelSpec, overrides: Overrides, memory: float
) -> tuple[Regridding | None, Cover, list[str]]:
    """How the network sees a case: both grids, None if they are the same, its windows, and notes on its spacing.

    Raises:
        SourceError: pixels, their type, size or number do not fit the model, or ``memory``.
    """
    path, grid, contract, as_nnunet = case.path, source.grid, model.contract, model.like == "nnunet"
    _check_pixels(case, source, model)
    resampled = None if as_nnunet else regridding_of(path, grid, contract, resample=overrides.resample)
    regridding = grids_of(path, source, contract) if as_nnunet else cropped(source, contract, resampled)
    cover = cover_of(case, grid.shape, model, regridding)
    refuse_large_case(path, cover, model, source.block, memory)
    if regridding is not None:
        refuse_fine_case(path, regridding, cover, memory)
    checked = resampled is None and not as_nnunet
    return regridding, cover, check_spacing(path, grid, contract) if checked else resampling_note(grid, contract)


def info_in_memory(case: Case, source: Source, model: ModelSpec) -> CaseInfo:
    """As ``open_checked``, for a case whose pixels are in memory.

    Raises:
        SourceError: its pixels or shape do not fit the model.
    """
    _check_pixels(case, source, model)
    regridding = cropped(source, model.contract, None)
    cover = cover_of(case, source.grid.shape, model, regridding)
    now, raw = time.monotonic(), not model.on_host
    return CaseInfo(source.grid, [], (), cover, opened=now, part=cover.whole, raw=raw, regridding=regridding)


def _state(path: str) -> list[Identity]:
    """Identity of a local file, so that a file that is replaced after its header was read is detected."""
    return [] if is_remote(path) else identities(path, [path])


def cover_of(case: Case, shape: tuple[int, ...], model: ModelSpec, regridding: Regridding | None = None) -> Cover:
    """The windows of a case of this shape; with ``regridding``, on the network's grid.

    Raises:
        SourceError: the number of axes does not fit the model.
    """
    try:
        tiling = model.tiling_of(shape)
    except SourceError as error:
        raise SourceError(f"{case.path}: {error}") from None
    return Cover(shape, tiling) if regridding is None else Cover(regridding.shape, tiling, HALO)


def row_of(cover: Cover, windows: Part) -> tuple[int, ...]:
    """Shape of a row of windows with their margins: one tile high, and as wide as all windows."""
    first, last = cover.seen(windows.first), cover.seen(tuple(stop - 1 for stop in windows.stop))
    return (cover.tiling.input[0], *(b - a for a, b in zip(first.start[1:], last.stop[1:], strict=True)))


def _check_pixels(case: Case, source: Source, model: ModelSpec) -> None:
    """Check that pixels fit the type of a model that takes integers; models of floats take all pixels."""
    wanted = np.dtype(model.input_dtype)
    if wanted.kind in "iu" and not np.can_cast(source.dtype, wanted):
        raise SourceError(
            f"{case.path}: pixels must fit the model's {wanted} input without loss, got {source.dtype}: convert the file"
        )


def with_neighbours(source: Source, contract: Contract) -> Source | Neighbouring:
    """The source with the slices that the network takes beside each."""
    return Neighbouring(source, contract.neighbours) if contract.neighbours else source


def on_network_grid(
    source: Source, info: CaseInfo, model: ModelSpec, scaling: Scaling | None = None
) -> Source | Neighbouring | Resampled:
    """The source from which the network's pixels are read: the case with neighbouring slices, and resampled.

    A contract with ``crop`` leaves out zeros before a case is resampled, as nnU-Net does; ``scaling`` is that of the case.
    """
    if isinstance(info.regridding, NnunetGrids):
        return NnunetCase(source, info.regridding, model.contract)
    stack = with_neighbours(source, model.contract)
    if info.regridding is None:
        return stack
    early = model.contract.crop is not None and scaling is not None and scaling.blank is not None and info.resampled
    whole = np.dtype(model.input_dtype).kind in "iu"
    return Resampled(stack, info.regridding, whole=whole, blank=scaling if early else None)
