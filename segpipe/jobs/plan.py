"""The plan of a run: jobs of a size that suits the workers, made before anything is inferred."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from segpipe.cleaning.stage import cleaning_bytes
from segpipe.errors import OutputError, OutsideError, case_errors
from segpipe.formats.case import Case, Failure
from segpipe.formats.identity import identities
from segpipe.formats.registry import FORMATS, environment
from segpipe.geometry.division import Limits, divide, repeated
from segpipe.geometry.regridding import Regridding
from segpipe.geometry.windows import Cover, Part
from segpipe.network.device import gpus
from segpipe.network.spec import ModelSpec
from segpipe.pipeline.findings import findings_of, with_findings
from segpipe.pipeline.memory import (
    REPEATED,
    Load,
    audit_bytes,
    channels_of,
    is_large,
    longest_strip,
    most_memory,
    strip_bytes,
    usual_memory,
    worker_bytes,
    worker_memory,
)
from segpipe.pipeline.opening import HALO, CaseInfo, open_checked
from segpipe.results.parts import kept_cut, plan_name, write_cut
from segpipe.results.records import Run, done_cases
from segpipe.results.refused import refuse_taken
from segpipe.storage.retry import is_passing

JOB_WINDOWS, JOB_BATCHES = 64, 16
"""Most windows of small cases in one job: seconds of work on a CPU; or that many batches, if more, since a device waits for
the first of a job."""

JOBS_PER_WORKER = 4
"""Fewest jobs per worker, if there are enough cases, so that no worker waits long for the last."""

LOOKED_AT = 500
"""Most cases whose headers are read before inference, in about half a second. Beyond that, each case is opened only by
its job: opening a picture twice costs more than all other bookkeeping."""


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
    unseen: bool = False
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
    """Every case is in exactly one of: small, a cut, unseen, done, failed, outside."""

    workers: int
    calls: int
    """Batches in flight in the model of one worker."""
    small: tuple[PlannedCase, ...] = ()
    """Processed whole, several to a job."""
    cuts: tuple[Cut, ...] = ()
    unseen: Sequence[Case] = ()
    """Not opened yet; their jobs open them."""
    done: Sequence[Case] = ()
    failed: tuple[Failure, ...] = ()
    outside: Sequence[Case] = ()
    """Outside the area of interest."""
    threads: int = 1
    """Threads that a call may use if no processor is to be idle: memory allows fewer calls than there are processors."""

    @property
    def seen(self) -> list[PlannedCase]:
        """Remaining cases whose size is known."""
        return [*(cut.case for cut in self.cuts), *self.small]

    def __len__(self) -> int:
        """Number of remaining cases."""
        return len(self.cuts) + len(self.small) + len(self.unseen)

    @property
    def pixels(self) -> int | None:
        """Pixels of all remaining cases; None where that is not known yet."""
        return None if self.unseen else sum(case.pixels for case in self.seen)

    def jobs(self, run: Run) -> Iterator[Job]:
        """Yield jobs for the small cases."""
        return group(self.small, self.workers, job_windows(run))


@dataclass(frozen=True, slots=True)
class WorkerPool:
    """The workers of a run."""

    workers: int
    calls: int
    memory: float | None = None
    """Bytes for each worker; None for workers that share this machine."""
    threads: int = 1
    """As in ``Plan``."""


def make_plan(
    cases: Sequence[Case], run: Run, processors: int, pool: WorkerPool | None = None, *, look: bool = False
) -> Plan:
    """Skip finished cases, open the rest unless there are too many, and cut the large ones.

    Args:
        cases: cases of the run.
        run: the run.
        processors: those of this machine, which are distributed over workers.
        pool: the workers of a cluster; None: workers of this machine.
        look: open all cases, however many there are, and sample some of their pixels.
    """
    done = [] if run.settings.overwrite else done_cases(cases, run)
    finished = {id(case) for case in done}
    rest = [case for case in cases if id(case) not in finished] if done else cases
    if len(rest) > LOOKED_AT and not look:
        pool = pool or _local_pool([], len(rest), run, processors)
        return Plan(workers=pool.workers, calls=pool.calls, threads=pool.threads, unseen=rest, done=done)
    looked = _Looked()
    with environment():
        for case in rest:
            _look(case, run, looked, values=look)
    planned = _without_collisions(run, looked)
    pool = pool or _local_pool(planned, len(looked.unseen), run, processors)
    total = sum(case.windows for case in planned)
    # labels of a list are joined row by row, whatever the size of a case
    cuts = () if run.model.listed else tuple(cut_large(planned, run, pool.workers, total))
    in_parts = {cut.case.case.name for cut in cuts}
    return Plan(
        workers=pool.workers,
        calls=pool.calls,
        threads=pool.threads,
        small=tuple(case for case in planned if case.case.name not in in_parts),
        cuts=cuts,
        unseen=looked.unseen,
        done=done,
        failed=tuple(looked.failed),
        outside=looked.outside,
    )


def cut_large(planned: Sequence[PlannedCase], run: Run, workers: int, total: int) -> Iterator[Cut]:
    """Yield cases that are too large for one job: by their share of the workers, by memory, or for resuming.

    Args:
        planned: candidates.
        run: the run.
        workers: workers of the run.
        total: windows of all remaining cases, which define the share of a case.
    """
    for given in planned:
        case = _with_crop(given, run, total, workers)
        cover = case.cover(run.model)
        parts = _stored(case, run) or _cut(case, cover, total, run, workers)
        if len(parts) > 1:
            yield Cut(case, parts, repeated(cover, parts))


def _with_crop(case: PlannedCase, run: Run, total: int, workers: int) -> PlannedCase:
    """The case with the windows of its crop, if it has one and might be cut: parts are made of windows."""
    if run.model.contract.crop is None:
        return case
    if not _stored(case, run) and len(_cut(case, case.cover(run.model), total, run, workers)) == 1:
        return case
    with case_errors(case.case.path):  # its job says why
        source, info = open_checked(case.case, run.model, run.overrides, memory=most_memory(run.settings))
        with closing(source):
            return as_planned(case.case, info)
    return case


def keep_cut(cut: Cut, run: Run) -> None:
    """Store the plan of a cut for later runs."""
    case = cut.case
    write_cut(case.case, run, identities(case.case.path, case.files), case.shape, cut.parts)


def _stored(case: PlannedCase, run: Run) -> tuple[Part, ...] | None:
    """Parts planned by an earlier run, whose finished parts then count."""
    if run.settings.overwrite or run.settings.parts is not None or not run.output.has(plan_name(case.case)):
        return None
    return kept_cut(case.case, run, identities(case.case.path, case.files), case.shape)


def _cut(case: PlannedCase, cover: Cover, total: int, run: Run, workers: int) -> tuple[Part, ...]:
    """Parts within the memory that a worker usually takes; within all that it may take if they repeat too much."""
    usual, most = usual_memory(run.settings, workers, run.model), worker_memory(run.settings, workers)
    parts = divide(cover, _limits(case, total, run, workers, usual))
    if most > usual and repeated(cover, parts) > REPEATED:
        return divide(cover, _limits(case, total, run, workers, most))
    return parts


def _limits(case: PlannedCase, total: int, run: Run, workers: int, allowed: float) -> Limits:
    share = max(1, round(workers * case.windows / total))
    other = _bytes([case], run, 1) - strip_bytes(case.cover(run.model), run.model) if is_large(run.model) else None
    strip = longest_strip(run.model, allowed, other)
    if run.settings.audit is not None:  # votes are kept as scores are
        strip = strip * run.model.contract.scores // (run.model.contract.scores + channels_of(run.model.contract))
    return Limits(min(share, case.windows), run.settings.parts, strip)


@dataclass
class _Looked:
    """Cases after a first look, each in one list."""

    planned: list[PlannedCase] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    unseen: list[Case] = field(default_factory=list)
    """Their jobs try again later."""
    outside: list[Case] = field(default_factory=list)


def _look(case: Case, run: Run, looked: _Looked, *, values: bool) -> None:
    """Open a case; with ``values``, sample some of its pixels, too."""
    with case_errors(case.path) as caught:
        source, info = open_checked(case, _uncropped(run.model), run.overrides, memory=most_memory(run.settings))
        with closing(source):
            if values:
                found = findings_of(source, run.model.contract)
                info = with_findings(case, info, found, allow=run.settings.unusual_values == "allow")
            if (cleaning := run.cleaning) is not None:
                cleaning.weights(info.grid, case.path)  # refuses a unit that the case does not have
            looked.planned.append(as_planned(case, info))
    if isinstance(caught.error, OutsideError):
        looked.outside.append(case)
    elif is_passing(caught.error):
        looked.unseen.append(case)
    elif caught.error is not None:
        looked.failed.append(Failure(case, str(caught.error)))


def _uncropped(model: ModelSpec) -> ModelSpec:
    """The model, for a case of which no pixel is read yet: its job finds the crop, and ``cut_large`` that of a large one."""
    if model.contract.crop is None:
        return model
    return replace(model, contract=model.contract.model_copy(update={"crop": None}))


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


def _without_collisions(run: Run, looked: _Looked) -> list[PlannedCase]:
    """Fail the cases whose mask would replace a source of any case, or a file that segpipe did not write."""
    sources = {file for case in looked.planned for file in case.files}
    kept = []
    for case in looked.planned:
        try:
            refuse_taken(case.case, run, sources)
            kept.append(case)
        except OutputError as error:
            if is_passing(error):
                looked.unseen.append(case.case)
            else:
                looked.failed.append(Failure(case.case, str(error)))
    return kept


def _local_pool(planned: Sequence[PlannedCase], unseen: int, run: Run, processors: int) -> WorkerPool:
    """Distribute the processors of this machine over workers and their calls in flight."""
    workers = _workers(len(planned) + unseen, run, processors)
    if is_large(run.model):
        return _fitting(planned, run, processors, workers)
    return WorkerPool(workers, max(1, processors // workers // run.model.threads) if run.model.on_host else 1)


def _fitting(planned: Sequence[PlannedCase], run: Run, processors: int, workers: int) -> WorkerPool:
    """As many workers, and calls in each, as memory allows; threads of a call take the other processors."""
    settings = run.settings

    def fits(workers: int, calls: int) -> bool:
        return _bytes(planned, run, calls) <= usual_memory(settings, workers, run.model)

    if settings.workers is None:
        workers = next((n for n in range(workers, 0, -1) if fits(n, 1)), 1)
    each = max(1, processors // workers // run.model.threads)
    calls = next((n for n in range(each, 0, -1) if fits(workers, n)), 1)
    return WorkerPool(workers, calls, threads=each // calls)


def _bytes(planned: Sequence[PlannedCase], run: Run, calls: int) -> float:
    """Bytes of a worker that does any of these cases, each in one piece."""
    return _load_bytes([case.load(run.model) for case in planned], run, calls)


def _load_bytes(loads: Sequence[Load], run: Run, calls: int) -> float:
    settings = run.settings
    lesions = settings.lesions is not False
    return worker_bytes(loads, run.model, calls, confidence=settings.confidence, lesions=lesions)


def _workers(cases: int, run: Run, processors: int) -> int:
    """Number of workers: as requested, else at most the number of cases: calls of a worker share windows, parts do not."""
    if run.settings.executor == "serial":
        return 1
    if run.settings.workers:
        return run.settings.workers
    return max(1, len(gpus())) if not run.model.on_host else max(1, min(processors, cases))


def job_windows(run: Run) -> int:
    """Most windows of small cases in one job; fewer where each is scored several times."""
    return max(1, JOB_WINDOWS // run.model.passes, JOB_BATCHES * run.model.batch // run.model.passes)


def group(cases: Iterable[PlannedCase], workers: int, most: int) -> Iterator[Job]:
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


def memory_mb(plan: Plan, run: Run) -> float:
    """Expected peak memory of one worker in MB."""
    loads = [*(case.load(run.model) for case in plan.small), *(cut.load(run.model) for cut in plan.cuts)]
    needed = _load_bytes(loads, run, plan.calls)
    cleaned = max((cleaning_bytes(case.shape) for case in plan.seen), default=0) if run.cleaning is not None else 0
    if run.settings.audit is not None:
        needed += audit_bytes(loads, run.model)
    return (needed + cleaned + max((_derived_memory(case, run) for case in plan.seen), default=0)) / 1e6


def _derived_memory(case: PlannedCase, run: Run) -> float:
    """Bytes while the files derived from the mask of a case are written."""
    classes = len(run.model.contract.mask_classes)
    return FORMATS[case.case.format].derived_memory(run.derived, classes, max(case.shape))
