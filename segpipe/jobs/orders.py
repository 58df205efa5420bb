"""Messages between the first process and its worker processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from segpipe.jobs.tasks import Result, Task
from segpipe.network.spec import ModelSpec
from segpipe.results.run import Run
from segpipe.timing.spans import ProcessRecord
from segpipe.vectors.area import AreaPolygons, polygons_of


@dataclass(frozen=True, slots=True)
class LoadAhead:
    """Sent to a worker that waits: a model that the first process tries meanwhile, and that the run may use."""

    model: ModelSpec


@dataclass(frozen=True, slots=True)
class Setup:
    """The first order of a run: the run whose model is to be loaded."""

    run: Run
    calls: int
    """Calls of the model in flight."""
    polygons: bytes | None = None
    """The area of interest, whose file the worker does not read."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the environment to set before the model is loaded."""

    @classmethod
    def of(cls, run: Run, calls: int) -> "Setup":
        """The setup of a run whose worker calls the model ``calls`` times at once."""
        return cls(run, calls, None if run.aoi is None else polygons_of(run.aoi).packed())

    def unpacked(self) -> AreaPolygons | None:
        return None if self.polygons is None else AreaPolygons.unpacked(self.polygons)


@dataclass(frozen=True, slots=True)
class RunTask:
    """Carry out a task."""

    task: Task


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Give up the task in progress, because the output is unwritable."""


@dataclass(frozen=True, slots=True)
class End:
    """Release all resources, and end."""


Order = LoadAhead | Setup | RunTask | GiveUp | End


@dataclass(frozen=True, slots=True)
class Ready:
    """The process has started."""


@dataclass(frozen=True, slots=True)
class Alive:
    """Sent at intervals: a process that is silent is frozen."""


@dataclass(frozen=True, slots=True)
class PixelsDone:
    """Pixels finished since the last report."""

    count: int


@dataclass(frozen=True, slots=True)
class Warned:
    """A warning for the user, since nobody reads a worker's log."""

    text: str


@dataclass(frozen=True, slots=True)
class TaskEnded:
    """A task has ended, one result per case."""

    results: list[Result]
    taken: ProcessRecord | None
    """Its profile, if one is recorded."""


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """A task has ended with an error that belongs to no case."""

    error: Exception


Report = Ready | Alive | PixelsDone | Warned | TaskEnded | TaskFailed
