"""What is to be done next: a large case is measured, done part by part, and joined; small ones have jobs of their own."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from segpipe.pipeline.parts import is_part_done, read_scaling
from segpipe.pipeline.plan import Cut, Job, Plan, PlannedCase
from segpipe.pipeline.records import Run
from segpipe.pipeline.run import JoinJob, MeasureJob, Outcome, PartJob, Task


@dataclass
class _Course:
    """How far a cut case has come."""

    cut: Cut
    left: set[int] = field(default_factory=set)
    """Numbers of the parts that are not done."""
    seconds: float = 0.0


class Agenda:
    """Tasks that may begin, as others end; empty and idle when all is done or has failed."""

    def __init__(self, plan: Plan, run: Run) -> None:
        self._run = run
        self._courses = {cut.case.case.name: _Course(cut, _undone(cut, run)) for cut in plan.cuts}
        self._ready: deque[Task] = deque()
        for course in self._courses.values():
            self._begin(course)
        self._ready.extend(plan.jobs)

    def __bool__(self) -> bool:
        """Whether a task may begin now."""
        return bool(self._ready)

    def take(self) -> Task:
        return self._ready.popleft()

    def put_back(self, tasks: list[Task]) -> None:
        """Tasks in place of one that was lost."""
        self._ready.extendleft(reversed(tasks))

    def _begin(self, course: _Course) -> None:
        case = course.cut.case
        if course.left and _is_measured(self._run) and read_scaling(self._run.output, case.case) is None:
            self._ready.append(MeasureJob(case))
        else:
            self._go_on(course)

    def _go_on(self, course: _Course) -> None:
        case, parts = course.cut.case, course.cut.parts
        if course.left:
            self._ready.extend(PartJob(case, number, parts[number]) for number in sorted(course.left))
        else:
            self._ready.appendleft(JoinJob(case, parts, course.seconds))

    def ended(self, task: Task, outcomes: list[Outcome]) -> Iterator[Outcome]:
        """Note how a task has ended, and give what is to be told of cases."""
        if isinstance(task, Job | JoinJob):
            yield from outcomes
            return
        (outcome,) = outcomes
        course = self._courses.get(task.case.case.name)
        if course is None:
            return  # the case has failed before
        course.seconds += outcome.seconds
        if outcome.error is not None:
            self._drop(task.case)
            yield outcome
        elif isinstance(task, MeasureJob):
            self._go_on(course)
        else:
            course.left.discard(task.number)
            if not course.left:
                self._go_on(course)

    def _drop(self, case: PlannedCase) -> None:
        """One part has failed, and with it the case: no other need begin."""
        del self._courses[case.case.name]
        self._ready = deque(task for task in self._ready if not (isinstance(task, PartJob) and task.case is case))


def _undone(cut: Cut, run: Run) -> set[int]:
    confidence, case = run.settings.confidence, cut.case.case
    return {n for n in range(len(cut.parts)) if not is_part_done(run.output, case, n, confidence=confidence)}


def _is_measured(run: Run) -> bool:
    """Whether scaling is by a case's own statistics, which no part can know alone."""
    contract = run.model.contract
    return contract.scaling == "host" and contract.normalize in ("zscore", "minmax")
