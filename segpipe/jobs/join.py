"""Join the parts of a case into one mask, one record and one table."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from segpipe.errors import DamagedPartError, SegpipeError, SourceError, on_failure
from segpipe.formats.case import Case
from segpipe.formats.registry import FORMATS
from segpipe.formats.samples import sampled
from segpipe.formats.source import Source
from segpipe.formats.unusual.pixel_check import PixelCheck
from segpipe.jobs.tasks import JoinJob
from segpipe.pipeline.findings import with_findings
from segpipe.pipeline.memory import most_memory
from segpipe.pipeline.opening import CHANGED, CaseInfo, open_checked
from segpipe.results.done import is_done
from segpipe.results.name_conflicts import refuse_taken
from segpipe.results.output import CaseOutput
from segpipe.results.parts import forget_part, forget_parts, read_cut, read_findings, read_scaling
from segpipe.results.run import Run

LOG = logging.getLogger("segpipe")


def case_output(case: Case, info: CaseInfo, run: Run) -> CaseOutput:
    """The output of a case, after checking that its mask replaces nothing that it must not."""
    refuse_taken(case, run, info.asked)
    return CaseOutput(case, _verified(case, info, run), run)


def _verified(case: Case, info: CaseInfo, run: Run) -> CaseInfo:
    """Compare a case's files with their checksums if requested, and note those without one."""
    if not run.settings.verify_input:
        return info
    return replace(info, notes=(*info.notes, *FORMATS[case.format].verify(info.asked)))


class DamagedPartsError(SegpipeError):
    """Damaged parts, which a join has removed, by number."""

    def __init__(self, numbers: Sequence[int]) -> None:
        super().__init__("parts are damaged")
        self.numbers = tuple(numbers)


def join(job: JoinJob, run: Run) -> tuple[str, ...]:
    """Join the parts of a case into one mask, one record and one table, then remove them; return the case's warnings."""
    case = job.case.case
    source, info = open_checked(case, run.model, run.overrides, memory=most_memory(run.settings))
    with closing(source):
        info = _with_findings(case, source, info, run)
    if read_cut(case, run, info.files, info.grid.shape) != job.parts:
        if is_done(case, run):  # by a worker that was lost while it removed the parts
            forget_parts(run.output, case)
            return info.warnings
        raise SourceError(CHANGED.format(case.path))
    output = case_output(case, info, run)
    with on_failure(output.discard):
        if damaged := list(_add_parts(output, len(job.parts))):
            for number in damaged:
                forget_part(run.output, case, number)
            raise DamagedPartsError(damaged)
        output.finish()
    forget_parts(run.output, case)
    return info.warnings


def _add_parts(output: CaseOutput, count: int) -> Iterator[int]:
    """Copy all parts, and yield the numbers of damaged ones."""
    for number in range(count):
        try:
            output.add(number)
        except DamagedPartError as error:
            LOG.warning("warning: %s: the part is processed again", error)
            yield number


def _with_findings(case: Case, source: Source, info: CaseInfo, run: Run) -> CaseInfo:
    """Add the findings of the case's parts; an earlier run may have allowed what this one does not."""
    found = read_findings(run.output, case)
    if found is None:
        pixel_check, scaling = PixelCheck(run.model.contract), read_scaling(run.output, case)
        found = pixel_check(sampled(source), scaling, source.tags(), axes=len(source.grid.shape))
    return with_findings(case, info, found, allow=run.settings.unusual_values == "allow")
