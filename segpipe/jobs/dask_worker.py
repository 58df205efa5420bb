"""What a worker of Dask does: it keeps the model of each run that uses it, and carries out tasks of any of them."""

import hashlib
import threading
from typing import TYPE_CHECKING, Any

from segpipe.formats.registry import release
from segpipe.jobs.carrying import Carrier, warnings_sent
from segpipe.jobs.cluster import check_threads
from segpipe.jobs.tasks import Result, Task
from segpipe.pipeline.infer import Model, load
from segpipe.results.records import Run
from segpipe.timing.spans import Taken
from segpipe.vectors.area import Area, Polygons, polygons_of, remember

if TYPE_CHECKING:
    from distributed import Worker

MODELS: dict[str, Model] = {}
"""Loaded models of this process, by the identity of their run: several runs may use one scheduler at once."""

AREAS: dict[str, tuple[Area, Polygons]] = {}
"""Areas of interest of these runs; their files may not exist on this machine."""

STOPS: dict[str, threading.Event] = {}
"""Events that stop the tasks of this process, by key."""


def topic(identity: str) -> str:
    """Topic of the messages of a run."""
    return f"segpipe-progress-{identity}"


def work(key: str, task: Task, run: Run, calls: int, identity: str) -> tuple[list[Result], Taken | None]:
    """Run a task on a worker of Dask, with the model that the plugin has loaded for its run."""
    from distributed import get_worker

    worker, about = get_worker(), topic(identity)
    check_threads(run, worker.address, worker.state.nthreads)
    worker.log_event(about, {"began": key, "worker": worker.address})
    if identity in AREAS:
        remember(*AREAS[identity])  # other runs may have had theirs meanwhile
    carrier = Carrier(
        *(run, calls),
        # if the plugin has failed, loading the model again raises the reason
        model=lambda: MODELS.get(identity) or load(run.model),
        progress=lambda pixels: worker.log_event(about, {"pixels": pixels}),
    )
    with warnings_sent(lambda text: worker.log_event(about, {"warning": text})):
        try:
            return carrier.carry_out(task, lambda stop: STOPS.update({key: stop}))
        finally:
            STOPS.pop(key, None)


def give_up(keys: list[str]) -> None:
    """Stop tasks of this worker."""
    for key in keys:
        if (stop := STOPS.get(key)) is not None:
            stop.set()


def plugin_of(run: Run, identity: str) -> Any:
    """A worker plugin that loads the model and the area of interest of a run once per worker process.

    It is named after the output, which only one run may use at a time: so it replaces that of a run that was killed, and no
    other.
    """
    from distributed import WorkerPlugin

    polygons = None if run.aoi is None else polygons_of(run.aoi).packed()

    class RunPlugin(WorkerPlugin):
        name = f"segpipe-{hashlib.sha256(str(run.output).encode()).hexdigest()[:16]}"

        def setup(self, worker: "Worker") -> None:
            del worker
            keep(run, identity, polygons)

        def teardown(self, worker: "Worker") -> None:
            del worker
            forget(identity)

    return RunPlugin()


# functions of this module, as the plugin's own class travels with copies of the dictionaries


def keep(run: Run, identity: str, polygons: bytes | None) -> None:
    """Make this process know a run, before its first task."""
    if run.aoi is not None and polygons is not None:
        AREAS[identity] = run.aoi, Polygons.unpacked(polygons)
    MODELS[identity] = load(run.model)


def forget(identity: str) -> None:
    """Free what this process keeps of a run."""
    AREAS.pop(identity, None)
    MODELS.pop(identity, None)
    release()
