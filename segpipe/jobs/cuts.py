"""Cut large cases into parts: by their share of the workers, by memory, or as an earlier run has cut them."""

from collections.abc import Iterator, Sequence
from contextlib import closing

from segpipe.errors import case_errors
from segpipe.formats.identity import identities
from segpipe.geometry.division import Limits, divide, repeated
from segpipe.geometry.windows import Cover, Part
from segpipe.jobs.plan import Cut, PlannedCase, as_planned
from segpipe.jobs.worker_pool import bytes_of_worker
from segpipe.pipeline.memory import (
    REPEATED,
    channels_of,
    is_large,
    longest_strip,
    most_memory,
    strip_bytes,
    usual_memory,
    worker_memory,
)
from segpipe.pipeline.opening import open_checked
from segpipe.results.parts import kept_cut, plan_name, write_cut
from segpipe.results.run import Run


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
    other = bytes_of_worker([case], run, 1) - strip_bytes(case.cover(run.model), run.model) if is_large(run.model) else None
    strip = longest_strip(run.model, allowed, other)
    if run.settings.audit is not None:  # votes are kept as scores are
        strip = strip * run.model.contract.scores // (run.model.contract.scores + channels_of(run.model.contract))
    return Limits(min(share, case.windows), run.settings.parts, strip)
