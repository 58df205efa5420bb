"""One job, from files to masks: the sentence that all other modules are words of."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from segpipe.pipeline.ahead import ahead
from segpipe.pipeline.batches import Sheet, Tile, batches, read
from segpipe.pipeline.blend import blend
from segpipe.pipeline.cases import Case
from segpipe.pipeline.errors import foreseen
from segpipe.pipeline.gdal import gdal_options
from segpipe.pipeline.model import Model
from segpipe.pipeline.output import CaseOutput
from segpipe.pipeline.plan import Job
from segpipe.pipeline.predict import predict
from segpipe.pipeline.records import Run

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


def run_job(job: Job, run: Run, model: Model, calls: int, progress: Progress) -> Iterator[Outcome]:
    """Do every case of a job; one outcome each, in order, once its mask has its name or it has failed."""
    cases = [planned.case for planned in job.cases]
    left = list(cases)
    tiles = ahead(_with_gdal(read(cases, run.model, run.settings.bands)), READ_AHEAD)
    scored = predict(model, batches(tiles, run.model.batch), calls)
    with gdal_options(), closing(tiles), closing(scored), ThreadPoolExecutor(1, "segpipe-finish") as finisher:
        finishing: deque[Future[Outcome]] = deque()
        for case, own in groupby(scored, key=attrgetter("case")):
            finishing.append(finisher.submit(_segment(case, own, run, progress)))
            # the last case is finished beside the next one, unless that one may not begin
            while len(finishing) > (0 if run.settings.fail_fast else 1):
                yield finishing.popleft().result()
            left.remove(case)
        yield from (future.result() for future in finishing)
    yield from (Outcome(case, 0.0, error=f"{case.path}: the job ended before it") for case in left)


def _segment(case: Case, tiles: Iterable[Tile], run: Run, progress: Progress) -> Callable[[], Outcome]:
    """Write all but the last word of a case; what is returned says it, beside the next case."""
    started, pixels = time.perf_counter(), 0
    sheet: Sheet | None = None
    output: CaseOutput | None = None
    try:
        for box in blend(tiles):
            sheet = box.sheet
            output = output or CaseOutput(case, box.sheet, run)
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
        failed = Outcome(case, time.perf_counter() - started, pixels, str(foreseen(error, case.path)))
        return lambda: failed
    LOG.info("%s: %d pixels blended in %.1f s", case.name, pixels, time.perf_counter() - started)
    return lambda: _finish(case, output, started, pixels)


def _finish(case: Case, output: CaseOutput | None, started: float, pixels: int) -> Outcome:
    error = None
    try:
        with gdal_options():
            if output is not None:
                output.finish()
    except Exception as caught:  # noqa: BLE001 - a bad case costs only itself
        error = str(foreseen(caught, case.path))
    return Outcome(case, time.perf_counter() - started, pixels, error)


def _with_gdal(tiles: Iterator[Tile]) -> Iterator[Tile]:
    """GDAL's options belong to a thread: enter them in whichever runs this."""
    with gdal_options():
        yield from tiles
