"""A plan as data: cases, jobs of small cases, and large cases cut into parts; picklable, without pixels."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from segpipe.formats.case import Case, Failure
from segpipe.formats.registry import FORMATS
from segpipe.geometry.regridding import Regridding
from segpipe.geometry.windows import Cover, Part
from segpipe.network.spec import ModelSpec
from segpipe.pipeline.memory import Load
from segpipe.pipeline.opening import HALO, CaseInfo
from segpipe.results.run import Run

JOB_WINDOWS, JOB_BATCHES = 64, 16
"""Most windows of small cases in one job: seconds of work on a CPU; or that many batches, if more, since a device waits for
the first of a job."""

JOBS_PER_WORKER = 4
"""Fewest jobs per worker, if there are enough cases, so that no worker waits long for the last."""


@dataclass(frozen=True, slots=True)
class PlannedCase:
    """A case to be done and what it requires."""

    case: Case
    shape: tuple[int, ...]
    windows: int
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = field(default=(), repr=False)
    """Absolute paths of the files that its pixels come from."""
    block_bytes: int = 0
    """Bytes of the blocks that a row of its windows touches."""
    regridding: Regridding | None = None
    """The case's own grid and the network's; None if they are the same."""
    unpacked: int = 0
    """Bytes that a process takes in TMPDIR while it reads the case."""

    def cover(self, model: ModelSpec) -> Cover:
        """The windows of the case."""
        if self.regridding is None:
            return Cover(self.shape, model.tiling_of(self.shape))
        return Cover(self.regridding.shape, model.tiling_of(self.shape), HALO)

    def load(self, model: ModelSpec) -> Load:
        """What determines the memory of a worker that does the case in one piece."""
        return Load(self.cover(model), FORMATS[self.case.format].cache().size(self.block_bytes), self.regridding)

    @property
    def pixels(self) -> int:
        """Pixels of the case's own grid."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Job:
    """Work for one task: whole cases, in order. Picklable; carries paths, never pixels."""

    cases: tuple[Case, ...]
    unopened: bool = False
    """Whether the cases have not been opened; a case that is too large, or beyond ``job_windows``, is handed back."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A case that is large enough to be processed in parts."""

    case: PlannedCase
    parts: tuple[Part, ...]
    repeated: float
    """Windows that are inferred for several parts, as a share of the case's windows."""

    def load(self, model: ModelSpec) -> Load:
        """What determines the memory of a worker that does any part of the case."""
        cover = self.case.cover(model)
        extents = zip(*(cover.extent(part) for part in self.parts), strict=True)
        return replace(self.case.load(model), extent=tuple(map(max, extents)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Every case is in exactly one of: small, a cut, unopened, done, failed, outside."""

    workers: int
    calls: int
    """Batches in flight in the model of one worker."""
    small: tuple[PlannedCase, ...] = ()
    """Processed whole, several to a job."""
    cuts: tuple[Cut, ...] = ()
    unopened: Sequence[Case] = ()
    """Not opened yet; their jobs open them."""
    done: Sequence[Case] = ()
    failed: tuple[Failure, ...] = ()
    outside: Sequence[Case] = ()
    """Outside the area of interest."""
    threads: int = 1
    """Threads that a call may use if no processor is to be idle: memory allows fewer calls than there are processors."""

    @property
    def opened(self) -> list[PlannedCase]:
        """Remaining cases whose size is known."""
        return [*(cut.case for cut in self.cuts), *self.small]

    def __len__(self) -> int:
        """Number of remaining cases."""
        return len(self.cuts) + len(self.small) + len(self.unopened)

    @property
    def pixels(self) -> int | None:
        """Pixels of all remaining cases; None if not known yet."""
        return None if self.unopened else sum(case.pixels for case in self.opened)

    def jobs(self, run: Run) -> Iterator[Job]:
        """Yield jobs for the small cases."""
        return group_into_jobs(self.small, self.workers, job_windows(run))


def as_planned(case: Case, info: CaseInfo) -> PlannedCase:
    """Facts about a case after it was opened."""
    return PlannedCase(
        case,
        shape=info.grid.shape,
        windows=len(info.cover),
        notes=(*info.notes, *info.warnings),
        files=info.asked,
        block_bytes=info.block_bytes,
        regridding=info.regridding,
        unpacked=info.unpacked,
    )


def job_windows(run: Run) -> int:
    """Most windows of small cases in one job; fewer where each is scored several times."""
    return max(1, JOB_WINDOWS // run.model.passes, JOB_BATCHES * run.model.batch // run.model.passes)


def group_into_jobs(cases: Iterable[PlannedCase], workers: int, most: int) -> Iterator[Job]:
    """Group consecutive small cases into jobs of up to ``most`` windows, and no fewer jobs than suit the workers."""
    cases = list(cases)
    fair = -(-sum(case.windows for case in cases) // (workers * JOBS_PER_WORKER))
    limit = min(most, fair)
    held: list[PlannedCase] = []
    for case in cases:
        if held and sum(c.windows for c in held) + case.windows > limit:
            yield Job(tuple(c.case for c in held))
            held = []
        held.append(case)
    if held:
        yield Job(tuple(c.case for c in held))
