"""Decode the windows of cases in order; neighbours in a row are decoded together if that is faster."""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any

import numpy as np

from segpipe.contract import Contract
from segpipe.errors import SegpipeError, case_errors
from segpipe.formats.case import Case
from segpipe.formats.case_scaling import scaling_of
from segpipe.formats.nnunet_case import NnunetCase
from segpipe.formats.registry import FORMATS, environment
from segpipe.formats.samples import is_small, sampled, thinned
from segpipe.formats.source import Source
from segpipe.formats.unusual.pixel_check import PixelCheck
from segpipe.formats.unusual.values import Finding
from segpipe.geometry.windows import Part
from segpipe.network.device import ON_HOST, Kind
from segpipe.network.scaling import Scaling, of_input
from segpipe.network.spec import ModelSpec
from segpipe.overrides import AS_STORED, Overrides
from segpipe.pipeline.ahead import ahead
from segpipe.pipeline.findings import with_findings
from segpipe.pipeline.opening import CaseInfo, info_in_memory, on_network_grid, open_checked
from segpipe.pipeline.stretch import ASKED_FOR, STRETCH_BYTES, Stretch, are_empty, begin_stretch, stretches
from segpipe.process.machine import processors
from segpipe.storage.paths import is_remote
from segpipe.timing.spans import span

STRETCHES_AHEAD = 1
"""Stretches that are decoded while one is cut into tiles for a GPU."""

DECODERS = 8
"""Threads that decode for a GPU at first. 1 thread reads 32 Mpx/s of 4 bands of uint16 (DEFLATE), 4 read 86, 8 read 126, and
16 read 157 (measured on 16 processors). If the model waits for tiles, the number grows. On the CPU it is 1 at first, since
the network uses the processors."""

LATE = 8
"""Number of consecutive windows or stretches of one case for which the model waited, before more threads decode."""


class HandedBackError(SegpipeError):
    """A case that its job does not do: it is too large, or the job has enough windows."""

    def __init__(self, info: CaseInfo | None) -> None:
        super().__init__("the case is for another job")
        self.info = info
        """Facts about the case; None if it was not opened."""


@dataclass
class Decoders:
    """Number of decoding threads, which grows until reading keeps up with the model; later cases start with it."""

    count: int
    most: int
    _late: int = 0

    def begin(self) -> None:
        """Begin another case: waiting for its first tiles does not count."""
        self._late = 0

    def note(self, waited: bool) -> None:
        """Record whether the model was waiting when a tile arrived."""
        self._late = self._late + 1 if waited else 0
        if self._late > LATE and self.count < self.most:
            self.count, self._late = min(2 * self.count, self.most), 0


def decoders_for(device: Kind) -> Decoders:
    """The decoders of this process, for all cases that it will read."""
    return _decoders(1 if device in ON_HOST else min(DECODERS, processors()), processors())


_decoders = cache(Decoders)


@dataclass(frozen=True)
class Reading:
    """How cases are read."""

    model: ModelSpec
    """The model that they are read for."""
    overrides: Overrides = AS_STORED
    decoders: Decoders = field(default_factory=lambda: Decoders(1, 1))
    """Number of threads that decode."""
    part: Part | None = None
    """Part of the only case; None: all of it."""
    scaling: Scaling | None = None
    """Scaling of the only case, if it was measured before."""
    limit: float = math.inf
    """Windows after which no further case is opened, and above which a case is not read."""
    findings: Sequence[Finding] | None = None
    """Findings of the only case, if it was sampled before."""
    memory: float = math.inf
    """Bytes that a worker may use; cases that need more are not read."""
    allow_unusual: bool = False
    """Read cases whose pixels cannot be what the contract expects."""
    source: Source | None = None
    """Source of the only case, if it is in memory."""

    @cached_property
    def pixel_check(self) -> PixelCheck:
        """Judge of pixels by the model's contract, for all cases."""
        return PixelCheck(self.model.contract)


Examine = Callable[[Stretch], CaseInfo]
"""Checks the pixels of a case that is read in one request, and records what is unusual about them."""


@dataclass(frozen=True, eq=False, slots=True)
class Decoded:
    """Neighbouring windows of a case, decoded or known to be empty, before they are cut into tiles."""

    case: Case
    info: CaseInfo
    windows: Sequence[tuple[int, ...]]
    begun: Callable[[], Stretch] | None
    """Finishes reading the windows; None if they are known to have no valid pixel, or none that gets a label."""
    scaling: Scaling
    examine: Examine | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Failed:
    """Takes the place of the rest of a case that failed."""

    case: Case
    error: SegpipeError


Windows = Generator[Decoded | Failed, None, None]


def read(cases: Sequence[Case], reading: Reading) -> Windows:
    """As ``windows_of``, inside the formats' environment; for a GPU in a separate thread, one stretch ahead."""
    windows = windows_of(cases, reading)
    if reading.source is None:
        windows = _with_environment(windows, reading.decoders.count)
    if reading.model.on_host:
        return windows
    return ahead(windows, STRETCHES_AHEAD, late=reading.decoders.note)


def _with_environment(windows: Windows, decoders: int) -> Windows:
    """Enter the formats' environment in the thread that reads, since it belongs to a thread."""
    with environment(decoders):
        yield from windows


def windows_of(cases: Iterable[Case], reading: Reading) -> Windows:
    """Yield the windows of every case in order, neighbours together; ``Failed`` if a case cannot be read."""
    windows = 0
    for case in cases:
        with case_errors(case.path) as failed:
            if windows >= reading.limit:
                raise HandedBackError(None)
            with span("open", case.name):
                source, info = _opened(case, reading)
            with closing(source):
                if len(info.windows) > reading.limit:
                    raise HandedBackError(info)
                windows += len(info.windows)
                yield from _decoded(case, source, info, reading)
        if failed.error is not None:
            yield Failed(case, failed.error)


def _opened(case: Case, reading: Reading) -> tuple[Source, CaseInfo]:
    if reading.source is not None:
        return reading.source, info_in_memory(case, reading.source, reading.model)
    return open_checked(case, reading.model, reading.overrides, reading.part, reading.memory)


def _decoded(case: Case, source: Source, info: CaseInfo, reading: Reading) -> Iterator[Decoded]:
    scaling = reading.scaling or scaling_of(source, reading.model.contract, info.box)
    if reading.source is None:
        FORMATS[case.format].cache().grow(info.block_bytes)
    info, examine = _examined(case, source, info, scaling, reading)
    reading.decoders.begin()
    scaling = of_input(scaling, reading.model.contract)
    seen = on_network_grid(source, info, reading.model, scaling)
    scaling = seen.scaling if isinstance(seen, NnunetCase) else scaling
    for windows in stretches(info.windows, *_at_once(case, source, info, reading.model.contract)):
        if info.abandoned.is_set():
            return
        if all(info.leaves_out(index) or are_empty(seen, info.cover, [index]) for index in windows):
            yield Decoded(case, info, windows, None, scaling)
            continue
        with span("read", case.name, windows[0]):
            begun = begin_stretch(seen, info.cover, windows, reading.decoders.count)
        yield Decoded(case=case, info=info, windows=windows, begun=begun, scaling=scaling, examine=examine)


def _examined(
    case: Case, source: Source, info: CaseInfo, scaling: Scaling, reading: Reading
) -> tuple[CaseInfo, Examine | None]:
    """Add findings to a case; for a case that is read in one request, return the function that adds them afterwards."""
    keep = partial(with_findings, case, allow=reading.allow_unusual)
    if reading.findings is not None:
        return keep(info, reading.findings), None
    judged = partial(reading.pixel_check, scaling=scaling, tags=source.tags(), axes=len(source.grid.shape))
    plain = info.regridding is None and not reading.model.contract.neighbours
    if plain and len(info.cover) == 1 and is_small(info.grid.shape):
        # the same pixels as in the sample of the case
        return info, lambda stretch: keep(info, judged(thinned(stretch.pixels, stretch.invalid)))
    return keep(info, judged(sampled(source))), None


def _at_once(case: Case, source: Source, info: CaseInfo, contract: Contract) -> tuple[int, int]:
    """Number of windows of a row that are read in one request, at first and at most."""
    remote = is_remote(case.path)
    if info.regridding is not None or not (source.separable and (remote or info.raw)):
        return 1, 1  # the network uses the processors here, and would wait for the first stretch, and between stretches
    fit = max(1, STRETCH_BYTES // (stored_bytes(contract, source.dtype) * math.prod(info.cover.tiling.input)))
    return (min(ASKED_FOR, fit),) * 2 if remote else (1, fit)


def stored_bytes(contract: Contract, dtype: np.dtype[Any]) -> int:
    """Bytes per pixel as it is read, including what is needed to find invalid pixels."""
    return contract.input_channels * dtype.itemsize + 3
