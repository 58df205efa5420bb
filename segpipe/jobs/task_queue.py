"""Order of tasks: a large case is measured, processed part by part, and joined; small cases have jobs of their own."""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from segpipe.errors import OutputError
from segpipe.formats.case import Case
from segpipe.jobs.cuts import cut_large, keep_cut
from segpipe.jobs.plan import JOBS_PER_WORKER, Cut, Job, Plan, PlannedCase, job_windows
from segpipe.jobs.tasks import Damaged, JoinJob, MeasureJob, Outcome, PartJob, Result, Returned, Task
from segpipe.results.name_conflicts import refuse_taken
from segpipe.results.parts import is_part_done, read_scaling
from segpipe.results.run import Run
from segpipe.storage.retry import is_passing

REPEATS = 2
"""Number of times that a part is processed again if it is damaged when its case is joined."""

DAMAGING_DISK = (
    "{} damages what is written to it: a part was processed again {} times, and is damaged each time it is read: "
    "check the disk, or name another --output"
)


@dataclass
class _CutCase:
    """A case that is processed in parts, and how far it is."""

    cut: Cut
    left: set[int] = field(default_factory=set)
    """Numbers of the unfinished parts."""
    seconds: float = 0.0
    again: Counter[int] = field(default_factory=Counter)
    """Number of times that each part was damaged."""


class TaskQueue:
    """Tasks that may start as others end; falsy when no task may start now."""

    def __init__(self, plan: Plan, run: Run) -> None:
        self._run, self._workers = run, plan.workers
        self._cut_cases: dict[str, _CutCase] = {}
        self._ready: deque[Task] = deque()
        for cut in plan.cuts:
            self._enter(cut)
        self._ready.extend(plan.jobs(run))
        self._unopened = iter(plan.unopened)
        self._left = len(plan.unopened)
        self._returned: deque[Case] = deque()

    def __bool__(self) -> bool:
        """Whether a task may start now."""
        return bool(self._ready or self._returned or self._left)

    def take(self) -> Task:
        """Take the next task. Known cases come first, so that few are in memory at any time, however many there are."""
        if self._ready:
            return self._ready.popleft()
        fair = -(-(self._left + len(self._returned)) // (self._workers * JOBS_PER_WORKER))
        cases: list[Case] = []
        while len(cases) < min(job_windows(self._run), fair):
            cases.append(self._next())
        return Job(tuple(cases), unopened=True)

    def _next(self) -> Case:
        if self._returned:
            return self._returned.popleft()
        self._left -= 1
        return next(self._unopened)

    def _take_back(self, returned: Returned) -> Iterator[Outcome]:
        """Take a case back from its job: cut it if it was opened and is large; fail it if its mask's name is taken."""
        if returned.planned is None:
            self._returned.append(returned.case)
            return
        if (error := _refused(returned.planned, self._run)) is not None:
            yield Outcome(returned.case, 0.0, error=error)
            return
        others = self._left + len(self._returned) + len(self._ready)
        total = returned.planned.windows * (1 + others)  # as if all cases had this size
        cuts = list(cut_large([returned.planned], self._run, self._workers, total))
        for cut in cuts:
            keep_cut(cut, self._run)
            self._enter(cut)
        if not cuts:
            self._ready.append(Job((returned.case,)))

    def _enter(self, cut: Cut) -> None:
        cut_case = self._cut_cases[cut.case.case.name] = _CutCase(cut, _undone(cut, self._run))
        self._begin(cut_case)

    def put_back(self, tasks: list[Task]) -> None:
        """Return tasks in place of one that was lost."""
        self._ready.extendleft(reversed(tasks))

    def _begin(self, cut_case: _CutCase) -> None:
        case = cut_case.cut.case
        if cut_case.left and _is_measured(self._run) and read_scaling(self._run.output, case.case) is None:
            self._ready.append(MeasureJob(case))
        else:
            self._continue(cut_case)

    def _continue(self, cut_case: _CutCase) -> None:
        case, parts = cut_case.cut.case, cut_case.cut.parts
        if cut_case.left:
            self._ready.extend(PartJob(case, number, parts[number]) for number in sorted(cut_case.left))
        else:
            self._ready.appendleft(JoinJob(case, parts, cut_case.seconds))

    def ended(self, task: Task, results: list[Result]) -> Iterator[Outcome]:
        """Record the end of a task, and yield its outcomes."""
        outcomes = [outcome for outcome in results if isinstance(outcome, Outcome)]
        if isinstance(task, Job | JoinJob):
            for other in results:
                if isinstance(other, Returned):
                    yield from self._take_back(other)
                elif isinstance(other, Damaged):
                    yield from self._repeat_parts(other)
            yield from outcomes
            return
        if not outcomes:
            return  # given up
        (outcome,) = outcomes
        cut_case = self._cut_cases.get(task.case.case.name)
        if cut_case is None:
            return  # the case has failed already
        cut_case.seconds += outcome.seconds
        if outcome.error is not None:
            self._drop(task.case)
            yield outcome
        elif isinstance(task, MeasureJob):
            self._continue(cut_case)
        else:
            cut_case.left.discard(task.number)
            if not cut_case.left:
                self._continue(cut_case)

    def _repeat_parts(self, damaged: Damaged) -> Iterator[Outcome]:
        """Process parts again that were found damaged while joining; give up where the disk keeps damaging them."""
        cut_case = self._cut_cases[damaged.case.name]
        cut_case.again.update(damaged.parts)
        if max(cut_case.again.values()) > REPEATS:
            del self._cut_cases[damaged.case.name]
            yield Outcome(damaged.case, cut_case.seconds, error=DAMAGING_DISK.format(self._run.output, REPEATS))
            return
        cut_case.left = set(damaged.parts)
        self._begin(cut_case)

    def _drop(self, case: PlannedCase) -> None:
        """Remove the tasks of a case after one of its parts has failed."""
        del self._cut_cases[case.case.name]
        self._ready = deque(task for task in self._ready if not (isinstance(task, PartJob) and task.case is case))


def _refused(case: PlannedCase, run: Run) -> str | None:
    """The reason why a case may not get its mask; checked before its parts, each of which takes long."""
    try:
        refuse_taken(case.case, run, case.files)
    except OutputError as error:
        return None if is_passing(error) else str(error)  # its last job checks again
    return None


def _undone(cut: Cut, run: Run) -> set[int]:
    confidence, case = run.settings.confidence, cut.case.case
    return {n for n in range(len(cut.parts)) if not is_part_done(run.output, case, n, confidence=confidence)}


def _is_measured(run: Run) -> bool:
    """Whether scaling depends on the statistics of a whole case, which no part has."""
    contract = run.model.contract
    return contract.scaling == "host" and contract.is_measured
