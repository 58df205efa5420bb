"""One job, from files to masks: the sentence that all other modules are words of."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import groupby
from operator import attrgetter

from segpipe.pipeline.ahead import ahead
from segpipe.pipeline.batches import (
    CHANGED,
    HandedBackError,
    Pieces,
    Reading,
    Sheet,
    Tile,
    batches,
    note_findings,
    open_sheet,
    read_pieces,
    scaling_of,
    tiles,
)
from segpipe.pipeline.blend import blend
from segpipe.pipeline.cases import Case
from segpipe.pipeline.decide import Decided, decide, gathered
from segpipe.pipeline.decoders import Decoders
from segpipe.pipeline.errors import DamagedPartError, DeviceMemoryError, OutputError, SegpipeError, SourceError, foreseen
from segpipe.pipeline.faults import is_passing, tell, unwritable, waits
from segpipe.pipeline.gdal import gdal_options
from segpipe.pipeline.identity import Beside
from segpipe.pipeline.labels import Decision
from segpipe.pipeline.machine import processors
from segpipe.pipeline.model import Model
from segpipe.pipeline.output import CaseOutput, PartOutput
from segpipe.pipeline.parts import (
    forget_part,
    forget_parts,
    is_part_done,
    read_cut,
    read_findings,
    read_scaling,
    write_findings,
    write_scaling,
)
from segpipe.pipeline.plan import Job, as_planned, job_windows, most_memory
from segpipe.pipeline.predict import predict
from segpipe.pipeline.profile import span, waiting
from segpipe.pipeline.records import Run, done_pixels, is_done, refuse_taken
from segpipe.pipeline.samples import sampled
from segpipe.pipeline.sources import Source
from segpipe.pipeline.sources.tiff import verify_files
from segpipe.pipeline.tasks import Damaged, GivenUp, JoinJob, MeasureJob, Outcome, PartJob, Progress, Returned, Task, Told
from segpipe.pipeline.unusual import Judge
from segpipe.pipeline.windows import Part

LOG = logging.getLogger("segpipe")

READ_AHEAD = 3
"""Tiles that are read while others are inferred; two batches where that is more."""

PIECES_AHEAD = 1
"""Stretches that are decoded while one is cut into tiles for a GPU."""

WRITE_BEHIND = 4
"""Boxes that wait to be written while a device is given more to do."""

DECODERS = 8
"""Threads that decode for a GPU at first. 1 reads 32 Mpx/s of 4 bands of uint16 (DEFLATE), 4 read 86, 8 126, and 16 157
(measured on 16 processors). On the CPU it is one, since the processors are the network's. Where tiles are waited for there
come to be more."""


@dataclass(frozen=True, eq=False, slots=True)
class Context:
    """What all tasks of a process are done with."""

    run: Run
    model: Model
    calls: int
    """Of the model, in flight at once."""
    progress: Progress
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when nothing can be written any more: what runs is given up."""


class _StoppedError(SegpipeError):
    """Nothing can be written any more."""


def work(task: Task, context: Context) -> Iterator[Told]:
    """Do a task; one word for each of its cases. What a storage fault has stopped is begun anew, later and later."""
    for wait in waits(context.run.settings.retries):
        stopped: list[Outcome] = []
        for told in _fitting(task, context):
            if isinstance(told, Outcome) and told.passing:
                stopped.append(told)
            else:
                yield told
        if not stopped:
            return
        if context.stop.is_set():
            yield from (GivenUp(outcome.case) for outcome in stopped)
            return
        for outcome in stopped:
            tell(str(outcome.error), wait)
            context.progress(-outcome.pixels)
        time.sleep(wait)
        if isinstance(task, Job):
            task = replace(task, cases=tuple(outcome.case for outcome in stopped))
    for told in _fitting(task, context):
        if isinstance(told, Outcome) and told.unwritable:  # a disk that fails, and goes on failing
            context.stop.set()
        yield told


def _fitting(task: Task, context: Context) -> Iterator[Told]:
    """All that the memory of the device was too small for begins anew, with half the batch."""
    short: list[Outcome] = []
    for told in _once(task, context):
        if isinstance(told, Outcome) and told.short:
            context.progress(-told.pixels)
            short.append(told)
        else:
            yield told
    if short and context.model.shrink():
        names = ", ".join(outcome.case.name for outcome in short)
        LOG.warning("%s; begun anew with batches of %d: %s", short[0].error, context.model.spec.batch, names)
        yield from _fitting(_only(task, short), context)
    else:
        yield from short


def _only(task: Task, outcomes: list[Outcome]) -> Task:
    """What a task has to do for some of its cases."""
    names = {outcome.case.name for outcome in outcomes}
    return replace(task, cases=tuple(case for case in task.cases if case.name in names)) if isinstance(task, Job) else task


def _once(task: Task, context: Context) -> Iterator[Told]:
    if isinstance(task, Job):
        yield from run_job(task, context)
    elif isinstance(task, PartJob):
        yield run_part(task, context)
    else:
        told = _alone(task, context.run)
        yield _stopping(told, context) if isinstance(told, Outcome) else told


def _alone(task: MeasureJob | JoinJob, run: Run) -> Told:
    """What needs no model."""
    case = task.case.case
    if isinstance(task, MeasureJob):
        return _timed("measure", case, lambda: measure(case, run))
    return _timed("join", case, lambda: join(task, run), task.case.pixels, task.seconds)


def run_job(job: Job, context: Context) -> Iterator[Told]:
    """Do every case of a job; one word for each, in order, once its mask has its name or it has failed."""
    run, model = context.run, context.model
    limit = job_windows(run) if job.unseen else math.inf
    run = replace(run, model=model.spec)  # whose batch may be smaller by now
    before = {} if run.settings.overwrite else _done_before(job, run)
    yield from before.values()
    left = [case for case in job.cases if case.name not in before]
    allow = run.settings.unusual_values == "allow"
    reading = Reading(
        run.model,
        run.settings.overrides,
        _decoders(run.model.device),
        limit=limit,
        memory=most_memory(run),
        allow_unusual=allow,
    )
    windows = _tiles(left, reading)
    scored = predict(model, batches(windows, run.model.batch), context.calls)
    with gdal_options(), closing(windows), closing(scored), ThreadPoolExecutor(1, "segpipe-finish") as finisher:
        finishing: deque[Future[Told]] = deque()
        for case, own in groupby(scored, key=attrgetter("case")):
            boxes = _boxes(own, run, model)
            finish = _segment(case, boxes, partial(_case_output, case, run=run), context)
            finishing.append(finisher.submit(finish))
            # the last case is finished beside the next one, unless that one may not begin
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


def _finished(finishing: deque[Future[Told]]) -> Told:
    with waiting("finish"):
        return finishing.popleft().result()


def _done_before(job: Job, run: Run) -> dict[str, Outcome]:
    """Cases that are done: by a worker that was lost before it could tell."""
    beside = Beside()
    found = ((case, done_pixels(case, run, beside)) for case in job.cases)
    return {case.name: Outcome(case, 0.0, pixels) for case, pixels in found if pixels is not None}


def _case_output(case: Case, sheet: Sheet, run: Run) -> CaseOutput:
    """What takes a case, unless its mask would replace what it must not."""
    refuse_taken(case, run, sheet.asked)
    return CaseOutput(case, _verified(sheet, run), run)


def _verified(sheet: Sheet, run: Run) -> Sheet:
    """A case whose files have been compared with their checksums, if that was asked for, and what has none."""
    if not run.settings.verify_input:
        return sheet
    return replace(sheet, notes=(*sheet.notes, *verify_files(sheet.asked)))


def run_part(job: PartJob, context: Context) -> Told:
    """Do one part of a case, which needs nothing of the others."""
    run, model, case = context.run, context.model, job.case.case
    if is_part_done(run.output, case, job.number, confidence=run.settings.confidence):
        return Outcome(case, 0.0)  # by a worker that was lost before it could tell
    reading = Reading(
        run.model,
        run.settings.overrides,
        _decoders(run.model.device),
        part=job.part,
        scaling=read_scaling(run.output, case),
        findings=read_findings(run.output, case),
        memory=most_memory(run),
        allow_unusual=run.settings.unusual_values == "allow",
    )
    windows = _tiles([case], reading)
    scored = predict(model, batches(windows, model.spec.batch), context.calls)
    with gdal_options(), closing(windows), closing(scored):
        boxes = _boxes(scored, run, model)
        return _segment(case, boxes, lambda sheet: _part_output(job, sheet, run, model.spec.batch), context)()


def _boxes(scored: Iterable[Tile], run: Run, model: Model) -> Generator[Decided, None, None]:
    """Scored tiles of one case blended and decided, where the scores are; beside what writes them if that is elsewhere."""
    decision = Decision(run.model.contract, run.model.blend_on, model.arrays)
    boxes = decide(blend(scored, model.arrays), decision, confidence=run.settings.confidence)
    return ahead(gathered(boxes), WRITE_BEHIND, stage="infer") if model.arrays.lag else boxes


def _part_output(job: PartJob, sheet: Sheet, run: Run, batch: int) -> PartOutput:
    """What takes a part, if its input is still as it was when the case was cut."""
    case = job.case.case
    if read_cut(case, run, sheet.files, sheet.grid.shape) is None:
        raise SourceError(CHANGED.format(case.path))
    if read_findings(run.output, case) is None:
        write_findings(run.output, case, sheet.findings)
    return PartOutput(case, sheet, run, job.number, batch)


def measure(case: Case, run: Run) -> tuple[str, ...]:
    """Keep the scaling of a case by its own statistics for its parts."""
    source, _ = open_sheet(case, run.model, run.settings.overrides, memory=most_memory(run))
    with closing(source):
        write_scaling(run.output, case, scaling_of(source, run.model.contract))
    return ()


class _DamagedPartsError(SegpipeError):
    """Parts that a join has taken away, by their numbers."""

    def __init__(self, numbers: Sequence[int]) -> None:
        super().__init__("parts are damaged")
        self.numbers = tuple(numbers)


def join(job: JoinJob, run: Run) -> tuple[str, ...]:
    """One mask, one record and one table of a case from what its parts have left, which then goes; and its warnings."""
    case = job.case.case
    source, sheet = open_sheet(case, run.model, run.settings.overrides, memory=most_memory(run))
    with closing(source):
        _note_findings(case, source, sheet, run)
    if read_cut(case, run, sheet.files, sheet.grid.shape) != job.parts:
        if is_done(case, run):  # by a worker that was lost while it took the parts away
            forget_parts(run.output, case)
            return sheet.warnings
        raise SourceError(CHANGED.format(case.path))
    output = _case_output(case, sheet, run)
    try:
        if damaged := list(_add_parts(output, job.parts)):
            for number in damaged:
                forget_part(run.output, case, number)
            raise _DamagedPartsError(damaged)
        output.finish()
    except BaseException:
        output.discard()
        raise
    forget_parts(run.output, case)
    return sheet.warnings


def _add_parts(output: CaseOutput, parts: Sequence[Part]) -> Iterator[int]:
    """Copy all parts; the numbers of those that are damaged come back."""
    for number, part in enumerate(parts):
        try:
            output.add(number, part)
        except DamagedPartError as error:
            LOG.warning("warning: %s: the part is made again", error)
            yield number


def _note_findings(case: Case, source: Source, sheet: Sheet, run: Run) -> None:
    """As one of its parts has seen it; a run without that setting may have allowed what this one does not."""
    found = read_findings(run.output, case)
    if found is None:
        found = Judge(run.model.contract)(sampled(source), read_scaling(run.output, case), source.tags())
    note_findings(case, sheet, found, allow=run.settings.unusual_values == "allow")


def _timed(stage: str, case: Case, do: Callable[[], tuple[str, ...]], pixels: int = 0, seconds: float = 0.0) -> Told:
    started = time.perf_counter()
    try:
        with gdal_options(), span(stage, case.name):
            warnings = do()
    except _DamagedPartsError as damaged:
        return Damaged(case, damaged.numbers)
    except Exception as error:  # noqa: BLE001 - a bad case costs only itself
        return _failed(case, started, 0, error)
    return Outcome(case, seconds + time.perf_counter() - started, pixels, warnings=warnings)


def _failed(case: Case, started: float, pixels: int, error: Exception) -> Outcome:
    told = foreseen(error, case.path)
    short, full = isinstance(error, DeviceMemoryError), unwritable(told, writing=isinstance(told, OutputError))
    seconds = time.perf_counter() - started
    return Outcome(case, seconds, pixels, str(told), is_passing(told), short, unwritable=full)


def _segment(
    case: Case,
    boxes: Generator[Decided, None, None],
    make_output: Callable[[Sheet], CaseOutput | PartOutput],
    context: Context,
) -> Callable[[], Told]:
    """Write all but the last word of a case, or of a part; what is returned says it, beside the next case."""
    started, pixels = time.perf_counter(), 0
    sheet: Sheet | None = None
    output: CaseOutput | PartOutput | None = None
    try:
        with closing(boxes):
            for box in boxes:
                sheet = box.sheet
                with span("write", case.name, box.window.start):
                    output = output or make_output(sheet)
                    output.write(box)
                pixels += box.window.size
                context.progress(box.window.size)
                if context.stop.is_set():
                    raise _StoppedError("nothing can be written any more")
    except HandedBackError as back:
        returned = Returned(case, None if back.sheet is None else as_planned(case, back.sheet))
        return lambda: returned
    except BaseException as error:
        if sheet is not None:
            sheet.abandoned.set()
        if output is not None:
            output.discard()
        if isinstance(error, _StoppedError):
            return lambda: GivenUp(case)
        if not isinstance(error, Exception):
            raise
        failed = _stopping(_failed(case, started, pixels, error), context)
        return lambda: failed
    LOG.info("%s: %d pixels blended in %.1f s", case.name, pixels, time.perf_counter() - started)
    return lambda: _stopping(_finish(case, output, started, pixels), context)


def _stopping(outcome: Outcome, context: Context) -> Outcome:
    """Stop what runs beside a case that could not be written, where nothing else can be; what may pass is waited for."""
    if outcome.unwritable and not outcome.passing:
        context.stop.set()
    return outcome


def _finish(case: Case, output: CaseOutput | PartOutput | None, started: float, pixels: int) -> Outcome:
    try:
        with gdal_options(), span("finish", case.name):
            if output is not None:
                output.finish()
    except Exception as error:  # noqa: BLE001 - a bad case costs only itself
        if output is not None:
            output.discard()
        return _failed(case, started, pixels, error)
    return Outcome(case, time.perf_counter() - started, pixels, warnings=() if output is None else output.warnings)


@cache
def _decoders(device: str) -> Decoders:
    """Of this process, for all cases that it will read."""
    return Decoders(1 if device == "cpu" else min(DECODERS, processors()), processors())


def _tiles(cases: Sequence[Case], reading: Reading) -> Generator[Tile, None, None]:
    """Tiles of cases, read in a thread of their own; for a GPU cut in another, while the next are decoded."""
    decoders, depth = reading.decoders, max(READ_AHEAD, 2 * reading.model.batch)
    pieces = _with_gdal(read_pieces(tuple(cases), reading), decoders.count)
    if reading.model.device == "cpu":
        return ahead(tiles(pieces), depth, late=decoders.note)
    return ahead(tiles(ahead(pieces, PIECES_AHEAD, late=decoders.note)), depth)


def _with_gdal(pieces: Pieces, decoders: int) -> Pieces:
    """GDAL's options belong to a thread: enter them in whichever runs this."""
    with gdal_options(decoders):
        yield from pieces
