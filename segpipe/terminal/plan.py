"""What a run would do, for ``--dry-run``, and notes on it."""

from collections.abc import Iterator

from segpipe.formats.left_out import listed
from segpipe.formats.registry import FORMATS, by_suffix
from segpipe.jobs.disk import forecast, shortages
from segpipe.jobs.plan import Plan
from segpipe.jobs.prepare import Prepared
from segpipe.jobs.unpacking import unpacking, unpacking_shortages
from segpipe.jobs.worker_pool import memory_mb
from segpipe.messages.console import echo
from segpipe.messages.printable import and_more, counted, dims
from segpipe.pipeline.memory import worker_memory
from segpipe.results.run import Run
from segpipe.terminal.progress import say


def print_plan(prepared: Prepared) -> None:
    """Print what a run would do, for ``--dry-run``."""
    run, plan = prepared.run, prepared.plan
    for planned in plan.opened:
        size, element = dims(planned.shape), FORMATS[planned.case.format].element
        windows = counted(planned.windows, "window")
        say(f"case  {planned.case.name}  {size} {element.replace('voxel', 'voxels')}  {windows}")
        for note in planned.notes:
            say(f"note  {planned.case.name}: {note}")
    for case in plan.done:
        say(f"done  {case.name}")
    for case in plan.outside:
        say(f"outside  {case.name}")
    for failure in plan.failed:
        say(f"problem  {failure.case.name}: {failure.error}")
    for problem in prepared.problems:
        say(f"problem  {problem}")
    for cut in plan.cuts:
        parts = counted(len(cut.parts), "part")
        say(f"parts  {cut.case.case.name}  {parts}, {cut.repeated:.1%} of the windows inferred twice")
    outside = f", {len(plan.outside)} outside the area of interest" if plan.outside else ""
    windows = counted(sum(case.windows for case in plan.opened), "window")
    jobs = counted(len(list(plan.jobs(run))) + sum(len(cut.parts) for cut in plan.cuts), "job")
    echo(
        f"{counted(len(plan), 'case')} to do, {len(plan.done)} done before, {len(plan.failed)} with problems{outside}; "
        f"{windows} in {jobs}; {counted(plan.workers, 'worker')}, calls in flight in each: {plan.calls}; "
        f"about {memory_mb(plan, run):,.0f} MB of memory per worker"
    )
    for line in _passes_line(run):
        echo(line)
    echo(f"disk  {forecast(plan, run)}")
    for line in [*unpacking(plan, run), *shortages(plan, run), *unpacking_shortages(plan, run)]:
        echo(line)


def _passes_line(run: Run) -> Iterator[str]:
    """How often a tile is scored, if more than once."""
    model = run.model
    if model.passes > 1:
        models, flips = len(model.members), len(model.flips)
        yield (f"each tile is scored {model.passes} times: {counted(models, 'model')}, {counted(flips, 'flip')}")


def print_left_out(prepared: Prepared) -> None:
    """Print on stderr how many files of folders and globs were left out."""
    if prepared.left_out:
        taken = " ".join(sorted(by_suffix()))
        echo(f"left out: {listed(prepared.left_out)} (a folder is searched for {taken})", err=True)


def note_lines(prepared: Prepared) -> list[str]:
    """Notes on cases for stderr, without repetitions."""
    cases: dict[str, list[str]] = {}
    for planned in prepared.plan.opened:
        for note in planned.notes:
            cases.setdefault(note, []).append(planned.case.name)
    lines = [f"note: {and_more(names, 1)}: {note}" for note, names in cases.items()]
    run, plan = prepared.run, prepared.plan
    space = [*shortages(plan, run), *unpacking_shortages(plan, run)]
    return [*lines, *_lesion_line(run), *_cut_line(plan), *_memory_line(prepared), *space]


def _lesion_line(run: Run) -> Iterator[str]:
    """Note on a first class that is left out as background although its name does not say so."""
    lesions, contract = run.lesions, run.model.contract
    if lesions is None or run.settings.lesions is not True or contract.task == "multilabel":
        return
    for c in contract.mask_classes:
        if c.id == 0 and c.name.strip(" _").casefold() != "background":
            yield f"note: --lesions leaves out class 0, {c.name}, as the background: name the classes to measure it"


def _cut_line(plan: Plan) -> Iterator[str]:
    """The cost of cutting cases into parts."""
    if plan.cuts:
        windows = sum(cut.case.windows for cut in plan.cuts)
        twice = sum(cut.repeated * cut.case.windows for cut in plan.cuts) / windows
        parts = sum(len(cut.parts) for cut in plan.cuts)
        count = len(plan.cuts)
        yield f"note: {counted(count, 'case')} in {counted(parts, 'part')}: {twice:.1%} of their windows are inferred twice"


def _memory_line(prepared: Prepared) -> Iterator[str]:
    """A note if a worker is expected to need more memory than it may use."""
    run, plan = prepared.run, prepared.plan
    needed, allowed = memory_mb(plan, run), worker_memory(run.settings, plan.workers) / 1e6
    if needed > allowed:
        yield (
            f"note: a worker is expected to take {needed:,.0f} MB, and may take {allowed:,.0f}: "
            "raise --memory, or lower --workers, --tile or --batch"
        )
