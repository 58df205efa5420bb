"""Space in TMPDIR for cases that workers unpack, such as packed volumes: what is needed, what is free, and warnings."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import nlargest
from pathlib import Path

from segpipe.jobs.disk import free_at, needed, sampled_infos
from segpipe.jobs.plan import Plan
from segpipe.jobs.worker_pool import memory_mb
from segpipe.pipeline.memory import in_words
from segpipe.process.machine import is_in_memory, memory
from segpipe.results.run import Run


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Bytes in TMPDIR during a run. A worker has one unpacked case at a time."""

    largest: int
    """Bytes of the largest case."""
    together: int
    """Most bytes of all workers at once."""


def unpacked(plan: Plan, run: Run) -> Unpacked:
    """Space for the remaining cases; each worker that processes parts of a case unpacks it."""
    parts = [cut.case.unpacked for cut in plan.cuts for _ in range(min(plan.workers, len(cut.parts)))]
    whole = [case.unpacked for case in plan.small]
    unopened = [info.unpacked for info in sampled_infos(plan, run)] if plan.unopened else []
    # of the unopened cases, one per worker may be as large as the largest of the sample
    sizes = nlargest(plan.workers, [*parts, *whole, *[max(unopened, default=0)] * min(plan.workers, len(plan.unopened))])
    return Unpacked(max(sizes, default=0), sum(sizes))


def unpacking(plan: Plan, run: Run) -> Iterator[str]:
    """Line of ``--dry-run``; none if no case is unpacked."""
    want = unpacked(plan, run)
    if not want.largest:
        return
    if _is_elsewhere(run):
        yield f"disk  each worker unpacks cases into TMPDIR of its machine, one at a time, at most {in_words(want.largest)}"
        return
    folder = tempfile.gettempdir()
    free = free_at(Path(folder)).bytes
    kind = ", a tmpfs, so this is memory beside that of the workers" if is_in_memory(folder) else ""
    yield (
        f"disk  unpacked cases take at most {in_words(want.together)} in {folder} (TMPDIR{kind}), {in_words(want.largest)} "
        f"for the largest, only while the run lasts; free there: {'unknown' if free is None else in_words(free)}"
    )


def unpacking_shortages(plan: Plan, run: Run) -> Iterator[str]:
    """Warnings if TMPDIR is too small for the cases that workers of this machine unpack."""
    want, folder = unpacked(plan, run), tempfile.gettempdir()
    if not want.largest or _is_elsewhere(run):
        return
    free = free_at(Path(folder)).bytes
    if free is not None and want.together > free:
        yield (
            f"warning: workers unpack cases of {in_words(want.together)} at once into {folder}, and {in_words(free)} are "
            f"free: {_remedy(want.together - free, plan)}"
        )
    elif free is not None and _is_same_disk(run, folder) and (both := needed(plan, run).likely + want.together) > free:
        yield (
            f"warning: {run.output.disk()} and {folder} are on one disk, where the run likely takes {in_words(both)} with "
            f"unpacked cases, and {in_words(free)} are free: {_remedy(both - free, plan)}"
        )
    workers = plan.workers * memory_mb(plan, run) * 1e6
    if is_in_memory(folder) and workers + want.together > memory():
        yield (
            f"warning: {folder} is a tmpfs, so unpacked cases take {in_words(want.together)} of memory beside "
            f"{in_words(workers)} of the workers, and the machine has {in_words(memory())}: set TMPDIR to a folder on a disk"
        )


def _remedy(missing: float, plan: Plan) -> str:
    fewer = ", or lower --workers" if plan.workers > 1 else ""
    return f"free {in_words(missing)} there, set TMPDIR to a folder on another disk{fewer}"


def _is_elsewhere(run: Run) -> bool:
    """Whether workers may run on other machines, whose TMPDIR is not known here."""
    return run.settings.scheduler is not None or run.settings.cluster is not None


def _is_same_disk(run: Run, folder: str) -> bool:
    """Whether TMPDIR and the output are on one disk; False if unknown."""
    try:
        return os.stat(run.output.disk()).st_dev == os.stat(folder).st_dev  # noqa: PTH116
    except OSError:
        return False
