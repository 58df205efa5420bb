"""What a worker of Dask does: it keeps the model of each run that uses it, and carries out tasks of any of them."""

import hashlib
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.errors import WorkerError
from segpipe.formats.registry import release
from segpipe.jobs.attempts import loaded
from segpipe.jobs.cluster import check_threads
from segpipe.jobs.task_runner import TaskRunner, warnings_sent
from segpipe.jobs.tasks import Result, Task
from segpipe.pipeline.infer import LoadedModel, load_model
from segpipe.results.run import Run
from segpipe.storage.lock import NAME as LOCK
from segpipe.storage.paths import is_remote
from segpipe.timing.spans import ProcessRecord
from segpipe.vectors.area import Area, AreaPolygons, polygons_of, remember_area

if TYPE_CHECKING:
    from distributed import Worker

MODELS: dict[str, LoadedModel] = {}
"""Loaded models of this process, by the identity of their run: several runs may use one scheduler at once."""

AREAS: dict[str, tuple[Area, AreaPolygons]] = {}
"""Areas of interest of these runs; their files may not exist on this machine."""

CHECKED: set[str] = set()
"""Runs whose files this process sees where their first processes do."""

STOPS: dict[str, threading.Event] = {}
"""Events that stop the tasks of this process, by key."""

PATIENCE = 5.0
"""Seconds for the lock of a run to appear on another machine, which a file server may delay."""


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """What workers know of the first process of a run: the identity of the run, and its files to check."""

    identity: str
    folder: str
    """Working folder of the first process."""
    lock: bytes | None
    """Content of the lock that it holds in the output; None if there is none."""

    @classmethod
    def of(cls, run: Run, identity: str) -> "ClientInfo":
        """That of this process, which holds the lock of the output."""
        lock = run.output.read(LOCK) if run.output.has(LOCK) else None
        return cls(identity, os.getcwd(), lock)  # noqa: PTH109 - without links

    @property
    def topic(self) -> str:
        """Topic of the messages of the run."""
        return f"segpipe-progress-{self.identity}"


def check_files(run: Run, client: ClientInfo, address: str) -> None:
    """Check that a worker sees the files of a run where the first process does.

    Raises:
        WorkerError: it would read other inputs, or write to another output.
    """
    here = os.getcwd()  # noqa: PTH109
    relative = next(filter(_is_relative, run.settings.input), None)
    shares_output = client.lock is None or _reads(run, client.lock)
    # a relative output that is the same one shows that folders are the same, too, whatever their names
    if not shares_output or (relative and not _is_relative(run.output.path(LOCK)) and here != client.folder):
        what = f"the input {relative}" if shares_output else f"the output {run.output}"
        raise WorkerError(
            f"workers must see the files of the run, and {what} of {client.folder} is not that of {address}, which runs in "
            f"{here}: give absolute paths, to folders that all machines share"
        )


def _is_relative(path: str) -> bool:
    return not (is_remote(path) or Path(path).is_absolute())


def _reads(run: Run, lock: bytes) -> bool:
    limit = time.monotonic() + PATIENCE
    while True:
        with suppress(OSError):
            if run.output.read(LOCK) == lock:
                return True
        if time.monotonic() > limit:
            return False
        time.sleep(0.2)


def run_on_worker(
    key: str, task: Task, run: Run, calls: int, client: ClientInfo
) -> tuple[list[Result], ProcessRecord | None]:
    """Run a task on a worker of Dask, with the model that the plugin has loaded for its run."""
    from distributed import get_worker

    worker, identity = get_worker(), client.identity
    check_threads(run, worker.address, worker.state.nthreads)
    if identity not in CHECKED:
        check_files(run, client, worker.address)
        CHECKED.add(identity)
    worker.log_event(client.topic, {"began": key, "worker": worker.address})
    if identity in AREAS:
        remember_area(*AREAS[identity])  # other runs on this worker may have replaced it
    runner = TaskRunner(
        *(run, calls),
        # if the plugin has failed, loading the model again raises the reason
        model=lambda: MODELS.get(identity) or loaded(run),
        progress=lambda pixels: worker.log_event(client.topic, {"pixels": pixels}),
    )
    with warnings_sent(lambda text: worker.log_event(client.topic, {"warning": text})):
        try:
            return runner.carry_out(task, lambda stop: STOPS.update({key: stop}))
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
        name = f"segpipe-{hashlib.sha256(str(run.output.settled()).encode()).hexdigest()[:16]}"

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
        AREAS[identity] = run.aoi, AreaPolygons.unpacked(polygons)
    MODELS[identity] = load_model(run.model)


def forget(identity: str) -> None:
    """Free what this process keeps of a run."""
    AREAS.pop(identity, None)
    MODELS.pop(identity, None)
    CHECKED.discard(identity)
    release()
