"""Carry out a task: the cases of a job, a part of a case, its statistics, or its join."""

import errno
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from uuid import uuid4

from segpipe.errors import (
    DeviceMemoryError,
    OutputError,
    OutsideError,
    SegpipeError,
    SourceError,
    UnforeseenError,
    case_errors,
    foreseen,
)
from segpipe.formats.case import Case
from segpipe.formats.case_scaling import scaling_of
from segpipe.formats.identity import FolderListings
from segpipe.formats.registry import environment, release
from segpipe.jobs.join import DamagedPartsError, case_output, join
from segpipe.jobs.plan import Job, as_planned, job_windows
from segpipe.jobs.tasks import Damaged, GivenUp, JoinJob, MeasureJob, Outcome, PartJob, Progress, Result, Returned, Task
from segpipe.pipeline.decide import Boxes
from segpipe.pipeline.infer import LoadedModel
from segpipe.pipeline.memory import most_memory
from segpipe.pipeline.opening import CHANGED, CaseInfo, open_checked
from segpipe.pipeline.read import HandedBackError, Reading, decoders_for
from segpipe.pipeline.run import segmented
from segpipe.results.done import done_pixels
from segpipe.results.joined_labels import joined
from segpipe.results.output import CaseOutput, PartOutput, check_unchanged
from segpipe.results.parts import is_part_done, read_cut, read_findings, read_scaling, write_findings, write_scaling
from segpipe.results.run import Run
from segpipe.storage import Store
from segpipe.storage.retry import is_passing, unwritable
from segpipe.timing.spans import span, waiting

LOG = logging.getLogger("segpipe")

PROBE = bytes(4096)
"""Bytes that are written to test whether the output is writable."""


@dataclass(frozen=True, eq=False, slots=True)
class Context:
    """Objects shared by all tasks of a process."""

    run: Run
    model: LoadedModel
    calls: int
    """Calls of the model in flight."""
    progress: Progress
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when the output is unwritable: running work is given up."""


class _StoppedError(SegpipeError):
    """The output is unwritable."""


def work(task: Task, context: Context) -> Iterator[Result]:
    """Carry out a task once and yield one result per case."""
    if isinstance(task, Job):
        try:
            yield from run_job(task, context)
        finally:
            release()  # unlike cut cases, its cases are not opened again
    elif isinstance(task, PartJob):
        yield run_part(task, context)
    else:
        result = _without_model(task, context.run)
        yield _stopping(result, context) if isinstance(result, Outcome) else result


def _without_model(task: MeasureJob | JoinJob, run: Run) -> Result:
    """Carry out a task that infers nothing."""
    case = task.case.case
    if isinstance(task, MeasureJob):
        return _timed("measure", case, lambda: measure(case, run))
    return _timed("join", case, lambda: join(task, run), task.case.pixels, task.seconds)


def run_job(job: Job, context: Context) -> Iterator[Result]:
    """Do every case of a job; yield each result, in order, once its mask has its name or it has failed."""
    run, model = context.run, context.model
    limit = job_windows(run) if job.unopened else math.inf
    run = replace(run, model=model.spec)  # its batch may be smaller than planned
    before = {} if run.settings.overwrite else _done_before(job, run)
    yield from before.values()
    left = [case for case in job.cases if case.name not in before]
    todo = tuple(left)
    cases = joined(todo, run) if run.model.listed else _segmented(todo, replace(_reading(run), limit=limit), context)
    with environment(), closing(cases), ThreadPoolExecutor(1, "segpipe-finish") as finisher:
        finishing: deque[Future[Result]] = deque()
        for case, boxes in cases:
            finish = _write(case, boxes, partial(case_output, case, run=run), context)
            finishing.append(finisher.submit(finish))
            # a case is finished while the next one runs, unless that must wait
            while len(finishing) > (0 if run.settings.fail_fast else 1):
                yield _finished(finishing)
            left.remove(case)
            if context.stop.is_set():
                break
        while finishing:
            yield _finished(finishing)
    if context.stop.is_set():
        yield from map(GivenUp, left)
    else:
        yield from (Outcome(case, 0.0, error=f"{case.path}: the job ended before it") for case in left)


def _finished(finishing: deque[Future[Result]]) -> Result:
    with waiting("finish"):
        return finishing.popleft().result()


def _done_before(job: Job, run: Run) -> dict[str, Outcome]:
    """Cases that were finished by a worker that was lost before it could report them."""
    listings = FolderListings()
    found = ((case, done_pixels(case, run, listings)) for case in job.cases)
    return {case.name: Outcome(case, 0.0, pixels) for case, pixels in found if pixels is not None}


def run_part(job: PartJob, context: Context) -> Result:
    """Do one part of a case, independently of the others."""
    run, case = context.run, job.case.case
    if is_part_done(run.output, case, job.number, confidence=run.settings.confidence):
        return Outcome(case, 0.0)  # by a worker that was lost before it could report it
    scaling, findings = read_scaling(run.output, case), read_findings(run.output, case)
    reading = replace(_reading(run), part=job.part, scaling=scaling, findings=findings)
    cases = _segmented([case], reading, context)
    with environment(), closing(cases):
        _, boxes = next(cases)
        return _write(case, boxes, lambda info: _part_output(job, info, run, context.model.spec.batch), context)()


def _reading(run: Run) -> Reading:
    """How any task of a run reads its cases."""
    return Reading(
        run.model,
        run.overrides,
        decoders_for(run.model.device),
        memory=most_memory(run.settings),
        allow_unusual=run.settings.unusual_values == "allow",
    )


def _segmented(cases: Sequence[Case], reading: Reading, context: Context) -> Generator[tuple[Case, Boxes], None, None]:
    settings, audit = context.run.settings, context.run.settings.audit is not None
    return segmented(cases, reading, context.model, context.calls, confidence=settings.confidence, audit=audit)


def _part_output(job: PartJob, info: CaseInfo, run: Run, batch: int) -> PartOutput:
    """The output of a part, if the input is unchanged since the case was cut."""
    case = job.case.case
    if read_cut(case, run, info.files, info.grid.shape) is None:
        raise SourceError(CHANGED.format(case.path))
    if read_findings(run.output, case) is None:
        write_findings(run.output, case, info.findings)
    return PartOutput(case, info, run, job.number, batch)


def measure(case: Case, run: Run) -> tuple[str, ...]:
    """Store the scaling of a case by its own statistics for its parts."""
    source, info = open_checked(case, run.model, run.overrides, memory=most_memory(run.settings))
    with closing(source):
        write_scaling(run.output, case, scaling_of(source, run.model.contract, info.box))
    return ()


def _timed(stage: str, case: Case, do: Callable[[], tuple[str, ...]], pixels: int = 0, seconds: float = 0.0) -> Result:
    started = time.perf_counter()
    warnings: tuple[str, ...] = ()
    with case_errors(case.path) as failed, environment(), span(stage, case.name):
        warnings = do()
    if isinstance(failed.error, DamagedPartsError):
        return Damaged(case, failed.error.numbers)
    if failed.error is not None:
        return _failed(case, started, 0, failed.error)
    return Outcome(case, seconds + time.perf_counter() - started, pixels, warnings=warnings)


def _failed(case: Case, started: float, pixels: int, error: SegpipeError) -> Outcome:
    short, full = isinstance(error, DeviceMemoryError), unwritable(error, writing=isinstance(error, OutputError))
    seconds = time.perf_counter() - started
    return Outcome(
        case=case, seconds=seconds, pixels=pixels, error=str(error), passing=is_passing(error), short=short, unwritable=full
    )


def _write(
    case: Case,
    boxes: Boxes,
    make_output: Callable[[CaseInfo], CaseOutput | PartOutput],
    context: Context,
) -> Callable[[], Result]:
    """Write the boxes of a case or a part; return a function that finishes it, to run beside the next case."""
    started, pixels = time.perf_counter(), 0
    info: CaseInfo | None = None
    output: CaseOutput | PartOutput | None = None
    try:
        with closing(boxes):
            for box in boxes:
                info = box.info
                with span("write", case.name, box.window.start):
                    output = output or make_output(info)
                    output.write(box)
                pixels += box.window.size
                context.progress(box.window.size)
                if context.stop.is_set():
                    raise _StoppedError("nothing can be written any more")
    except HandedBackError as back:
        returned = Returned(case, None if back.info is None else as_planned(case, back.info))
        return lambda: returned
    except BaseException as error:
        if info is not None:
            info.abandoned.set()
        if output is not None:
            output.discard()
        if isinstance(error, _StoppedError):
            return lambda: GivenUp(case)
        if isinstance(error, OutsideError):
            outside = Outcome(case, time.perf_counter() - started, outside=True)
            return lambda: outside
        if not isinstance(error, Exception):
            raise
        failed = _stopping(_failed(case, started, pixels, _cause(error, case, info)), context)
        return lambda: failed
    LOG.info("%s: %d pixels blended in %.1f s", case.name, pixels, time.perf_counter() - started)
    return lambda: _stopping(_finish(case, output, started, pixels), context)


def _cause(error: Exception, case: Case, info: CaseInfo | None) -> SegpipeError:
    """Why a case failed: a file that changed while it was read is not damaged, whatever its decoder says."""
    cause = foreseen(error, case.path)
    if info is not None and isinstance(cause, SourceError | UnforeseenError) and not is_passing(cause):
        with case_errors(case.path) as changed:
            check_unchanged(case, info)
        cause = changed.error or cause
    return cause


def _stopping(outcome: Outcome, context: Context) -> Outcome:
    """Set the stop event after an error that affects all cases; transient errors are retried instead."""
    if outcome.unwritable == os.strerror(errno.EIO) and _can_write(context.run.output):
        outcome = replace(outcome, unwritable=None)  # one bad sector of an old file must not end the run
    if outcome.unwritable and not outcome.passing:
        context.stop.set()
    return outcome


def _can_write(output: Store) -> bool:
    """Whether a test file can be written to the output."""
    name = f".{uuid4().hex}.probe"
    try:
        output.write(name, PROBE)
    except (OSError, OutputError):
        return False
    output.discard(name)
    return True


def _finish(case: Case, output: CaseOutput | PartOutput | None, started: float, pixels: int) -> Outcome:
    with case_errors(case.path) as failed, environment(), span("finish", case.name):
        if output is not None:
            output.finish()
    if failed.error is not None:
        if output is not None:
            output.discard()
        return _failed(case, started, pixels, failed.error)
    return Outcome(case, time.perf_counter() - started, pixels, warnings=() if output is None else output.warnings)
