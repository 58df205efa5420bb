"""The workers of a run: how many, with how many calls of the model in flight, and the memory of each."""

from collections.abc import Sequence
from dataclasses import dataclass

from segpipe.formats.registry import FORMATS
from segpipe.jobs.plan import Plan, PlannedCase
from segpipe.network.device import gpus
from segpipe.pipeline.memory import Load, audit_bytes, is_large, usual_memory, worker_bytes
from segpipe.results.cleaning.stage import cleaning_bytes
from segpipe.results.run import Run


@dataclass(frozen=True, slots=True)
class WorkerPool:
    """The workers of a run."""

    workers: int
    calls: int
    memory: float | None = None
    """Bytes for each worker; None for workers that share this machine."""
    threads: int = 1
    """As in ``Plan``."""


def local_pool(planned: Sequence[PlannedCase], unopened: int, run: Run, processors: int) -> WorkerPool:
    """Distribute the processors of this machine over workers and their calls in flight."""
    workers = _workers(len(planned) + unopened, run, processors)
    if is_large(run.model):
        return _fitting(planned, run, processors, workers)
    return WorkerPool(workers, max(1, processors // workers // run.model.threads) if run.model.on_host else 1)


def _fitting(planned: Sequence[PlannedCase], run: Run, processors: int, workers: int) -> WorkerPool:
    """As many workers, and calls in each, as memory allows; threads of a call take the other processors."""
    settings = run.settings

    def fits(workers: int, calls: int) -> bool:
        return bytes_of_worker(planned, run, calls) <= usual_memory(settings, workers, run.model)

    if settings.workers is None:
        workers = next((n for n in range(workers, 0, -1) if fits(n, 1)), 1)
    each = max(1, processors // workers // run.model.threads)
    calls = next((n for n in range(each, 0, -1) if fits(workers, n)), 1)
    return WorkerPool(workers, calls, threads=each // calls)


def bytes_of_worker(planned: Sequence[PlannedCase], run: Run, calls: int) -> float:
    """Bytes of a worker that does any of these cases, each in one piece."""
    return _bytes_of_loads([case.load(run.model) for case in planned], run, calls)


def _bytes_of_loads(loads: Sequence[Load], run: Run, calls: int) -> float:
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


def memory_mb(plan: Plan, run: Run) -> float:
    """Expected peak memory of one worker in MB."""
    loads = [*(case.load(run.model) for case in plan.small), *(cut.load(run.model) for cut in plan.cuts)]
    needed = _bytes_of_loads(loads, run, plan.calls)
    cleaned = max((cleaning_bytes(case.shape) for case in plan.opened), default=0) if run.cleaning is not None else 0
    if run.settings.audit is not None:
        needed += audit_bytes(loads, run.model)
    return (needed + cleaned + max((_derived_memory(case, run) for case in plan.opened), default=0)) / 1e6


def _derived_memory(case: PlannedCase, run: Run) -> float:
    """Bytes while the files derived from the mask of a case are written."""
    classes = len(run.model.contract.mask_classes)
    return FORMATS[case.case.format].derived_memory(run.derived, classes, max(case.shape))
