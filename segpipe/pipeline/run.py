"""One job, from files to masks: the sentence that all other modules are words of."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import attrgetter

from segpipe.pipeline.ahead import ahead
from segpipe.pipeline.batches import CHANGED, Sheet, Tile, batches, open_sheet, read, scaling_of
from segpipe.pipeline.blend import blend
from segpipe.pipeline.cases import Case
from segpipe.pipeline.decide import Decided, decide
from segpipe.pipeline.errors import DeviceMemoryError, SourceError, foreseen
from segpipe.pipeline.gdal import gdal_options
from segpipe.pipeline.labels import Decision
from segpipe.pipeline.model import Model
from segpipe.pipeline.output import CaseOutput, PartOutput
from segpipe.pipeline.parts import forget_parts, is_part_done, read_cut, read_scaling, write_scaling
from segpipe.pipeline.plan import Job, PlannedCase
from segpipe.pipeline.predict import predict
from segpipe.pipeline.records import Run, is_done
from segpipe.pipeline.windows import Part

LOG = logging.getLogger("segpipe")

READ_AHEAD = 3
"""Tiles that are read while others are inferred."""

Progress = Callable[[int], None]
"""Told how many more pixels are done."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a case ended."""

    case: Case
    seconds: float
    pixels: int = 0
    error: str | None = None
    short: bool = False
    """Whether the memory of the device was too small for it."""


@dataclass(frozen=True, slots=True)
class MeasureJob:
    """Take the statistics of all of a case, by which its parts are scaled."""

    case: PlannedCase


@dataclass(frozen=True, slots=True)
class PartJob:
    """Do one part of a case."""

    case: PlannedCase
    number: int
    part: Part


@dataclass(frozen=True, slots=True)
class JoinJob:
    """Make the mask and the record of a case whose parts are all done."""

    case: PlannedCase
    parts: tuple[Part, ...]
    seconds: float
    """That the parts took."""


Task = Job | MeasureJob | PartJob | JoinJob


def work(task: Task, run: Run, model: Model, calls: int, progress: Progress) -> Iterator[Outcome]:
    """Do a task; one outcome for each of its cases.

    Where the memory of the device is too small, all that it was too small for begins anew, with half the batch.
    """
    short: list[Outcome] = []
    for outcome in _work(task, run, model, calls, progress):
        if outcome.short:
            short.append(outcome)
        else:
            yield outcome
    if short and model.shrink():
        names = ", ".join(outcome.case.name for outcome in short)
        LOG.warning("%s; begun anew with batches of %d: %s", short[0].error, model.spec.batch, names)
        yield from work(_only(task, short), run, model, calls, progress)
    else:
        yield from short


def _only(task: Task, outcomes: list[Outcome]) -> Task:
    """What a task has to do for some of its cases."""
    names = {outcome.case.name for outcome in outcomes}
    return Job(tuple(case for case in task.cases if case.case.name in names)) if isinstance(task, Job) else task


def _work(task: Task, run: Run, model: Model, calls: int, progress: Progress) -> Iterator[Outcome]:
    if isinstance(task, Job):
        yield from run_job(task, run, model, calls, progress)
    elif isinstance(task, PartJob):
        yield run_part(task, run, model, calls, progress)
    elif isinstance(task, MeasureJob):
        yield _timed(task.case.case, lambda: measure(task.case.case, run))
    else:
        yield _timed(task.case.case, lambda: join(task, run), task.case.pixels, task.seconds)


def run_job(job: Job, run: Run, model: Model, calls: int, progress: Progress) -> Iterator[Outcome]:
    """Do every case of a job; one outcome each, in order, once its mask has its name or it has failed."""
    run = replace(run, model=model.spec)  # whose batch may be smaller by now
    cases = [planned.case for planned in job.cases]
    left = list(cases)
    tiles = ahead(_with_gdal(read(cases, run.model, run.settings.bands)), READ_AHEAD)
    scored = predict(model, batches(tiles, model.spec.batch), calls)
    with gdal_options(), closing(tiles), closing(scored), ThreadPoolExecutor(1, "segpipe-finish") as finisher:
        finishing: deque[Future[Outcome]] = deque()
        for case, own in groupby(scored, key=attrgetter("case")):
            boxes = _boxes(own, run, model)
            finishing.append(finisher.submit(_segment(case, boxes, partial(CaseOutput, case, run=run), progress)))
            # the last case is finished beside the next one, unless that one may not begin
            while len(finishing) > (0 if run.settings.fail_fast else 1):
                yield finishing.popleft().result()
            left.remove(case)
        yield from (future.result() for future in finishing)
    yield from (Outcome(case, 0.0, error=f"{case.path}: the job ended before it") for case in left)


def run_part(job: PartJob, run: Run, model: Model, calls: int, progress: Progress) -> Outcome:
    """Do one part of a case, which needs nothing of the others."""
    case = job.case.case
    if is_part_done(run.output, case, job.number, confidence=run.settings.confidence):
        return Outcome(case, 0.0)  # by a worker that was lost before it could tell
    scaling = read_scaling(run.output, case)
    tiles = ahead(_with_gdal(read([case], run.model, run.settings.bands, job.part, scaling)), READ_AHEAD)
    scored = predict(model, batches(tiles, model.spec.batch), calls)
    with gdal_options(), closing(tiles), closing(scored):
        return _segment(case, _boxes(scored, run, model), lambda sheet: _part_output(job, sheet, run), progress)()


def _boxes(tiles: Iterable[Tile], run: Run, model: Model) -> Iterator[Decided]:
    """Scored tiles of one case blended and decided, where the scores are."""
    decision = Decision(run.model.contract, run.model.blend_on, model.arrays)
    return decide(blend(tiles, model.arrays), decision, confidence=run.settings.confidence)


def _part_output(job: PartJob, sheet: Sheet, run: Run) -> PartOutput:
    """What takes a part, if its input is still as it was when the case was cut."""
    case = job.case.case
    if read_cut(case, run, sheet.files, sheet.grid.shape) is None:
        raise SourceError(CHANGED.format(case.path))
    return PartOutput(case, sheet, run, job.number)


def measure(case: Case, run: Run) -> None:
    """Keep the scaling of a case by its own statistics for its parts."""
    source, _ = open_sheet(case, run.model, run.settings.bands)
    with closing(source):
        write_scaling(run.output, case, scaling_of(source, run.model.contract))


def join(job: JoinJob, run: Run) -> None:
    """One mask, one record and one table of a case from what its parts have left, which then goes."""
    case = job.case.case
    source, sheet = open_sheet(case, run.model, run.settings.bands)
    source.close()
    if read_cut(case, run, sheet.files, sheet.grid.shape) != job.parts:
        if is_done(case, run):  # by a worker that was lost while it took the parts away
            forget_parts(run.output, case)
            return
        raise SourceError(CHANGED.format(case.path))
    output = CaseOutput(case, sheet, run)
    try:
        for number, part in enumerate(job.parts):
            output.add(number, part)
        output.finish()
    except BaseException:
        output.discard()
        raise
    forget_parts(run.output, case)


def _timed(case: Case, do: Callable[[], None], pixels: int = 0, seconds: float = 0.0) -> Outcome:
    started, error = time.perf_counter(), None
    try:
        with gdal_options():
            do()
    except Exception as caught:  # noqa: BLE001 - a bad case costs only itself
        error = str(foreseen(caught, case.path))
    return Outcome(case, seconds + time.perf_counter() - started, pixels, error)


def _segment(
    case: Case, boxes: Iterable[Decided], make_output: Callable[[Sheet], CaseOutput | PartOutput], progress: Progress
) -> Callable[[], Outcome]:
    """Write all but the last word of a case, or of a part; what is returned says it, beside the next case."""
    started, pixels = time.perf_counter(), 0
    sheet: Sheet | None = None
    output: CaseOutput | PartOutput | None = None
    try:
        for box in boxes:
            sheet = box.sheet
            output = output or make_output(sheet)
            output.write(box)
            pixels += box.window.size
            progress(box.window.size)
    except BaseException as error:
        if sheet is not None:
            sheet.abandoned.set()
        if output is not None:
            output.discard()
        if not isinstance(error, Exception):
            raise
        told, short = str(foreseen(error, case.path)), isinstance(error, DeviceMemoryError)
        failed = Outcome(case, time.perf_counter() - started, pixels, told, short)
        return lambda: failed
    LOG.info("%s: %d pixels blended in %.1f s", case.name, pixels, time.perf_counter() - started)
    return lambda: _finish(case, output, started, pixels)


def _finish(case: Case, output: CaseOutput | PartOutput | None, started: float, pixels: int) -> Outcome:
    error = None
    try:
        with gdal_options():
            if output is not None:
                output.finish()
    except Exception as caught:  # noqa: BLE001 - a bad case costs only itself
        error = str(foreseen(caught, case.path))
        if output is not None:
            output.discard()
    return Outcome(case, time.perf_counter() - started, pixels, error)


def _with_gdal(tiles: Iterator[Tile]) -> Iterator[Tile]:
    """GDAL's options belong to a thread: enter them in whichever runs this."""
    with gdal_options():
        yield from tiles
