"""Where tasks run: processes of this machine, a scheduler that is there already, or jobs of a batch system."""

import atexit
import importlib
import importlib.util
import logging
import math
import multiprocessing
import os
import platform
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar
from weakref import WeakSet

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from segpipe import __version__
from segpipe.contract import readable
from segpipe.errors import InstallationError, SettingsError, WorkerError
from segpipe.jobs.plan import Crew
from segpipe.network.device import gpus
from segpipe.network.spec import read_spec
from segpipe.process import spawning
from segpipe.process.environment import settle
from segpipe.process.extras import install
from segpipe.process.signals import ENDING
from segpipe.results.records import Run, device_kind
from segpipe.settings import LONGEST_WAIT, MOST_MEMORY, MOST_THREADS, MOST_WORKERS, Settings
from segpipe.storage.documents import DocumentError, read_toml

if TYPE_CHECKING:
    from distributed import Client, LocalCluster, Nanny, Security

C = TypeVar("C", bound="_Closing")

LOG = logging.getLogger("segpipe")

RETRIES = 2
"""How often a job goes to another worker when its own was lost."""

STARTS = 3
"""How often workers of this machine are started, if one is lost while it starts."""

CONNECT_SECONDS = 15

LATE = 10.0
"""Seconds that workers have to be there, and to end, if the run is interrupted while they start."""

SILENT = "60s"
"""After which a worker of this machine that gives no sign of life is restarted."""

MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(2**26), "MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_ARENA_MAX": "1"}
"""Let glibc keep what a tile has freed for the next one. Dask's own setting gives it back to the kernel at once, and every
tile then faults its pages in again: 0.6 s of 7.1 for a network of 0.1 M parameters (measured)."""

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "GDAL_NUM_THREADS")
"""Libraries that would each start a thread per processor in every worker. Processors belong to the calls of the model."""

WORKER_ENVIRONMENT = MALLOC | dict.fromkeys(ONE_THREAD, "1")

LOOKS = {"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "500ms"}
"""Dask looks at each worker's Python stack a hundred times a second, and fifty times whether its loop is late. Both wait for
the interpreter's lock, and whoever holds it waits for them: 17 % of a run over small pictures, 9 % of one over a mosaic
(measured)."""

MESSAGES = {"distributed.admin.low-level-log-length": 20}
"""Dask keeps the last thousand messages of each connection, for its developers. Those of segpipe carry the paths of 64 cases
each: 540 bytes a case, kept for no reader (measured)."""

LOG_LEVEL = "logging.distributed"
"""The key of Dask's configuration for the level of its log."""

NO_PAGES: dict[str, list[str]] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
"""Dask serves pages without keys that show paths and stacks to any user of the machine."""

CLASSES = {"slurm": "SLURMCluster", "lsf": "LSFCluster", "pbs": "PBSCluster"}
"""Of dask-jobqueue."""


class ClusterFile(BaseModel):
    """The file of ``--cluster``: which batch system, how many jobs, and what each asks for."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["slurm", "lsf", "pbs"]
    jobs: int = Field(ge=1, le=MOST_WORKERS)
    """Worker processes, each a job of its own."""
    wait: float = Field(default=600, gt=0, le=LONGEST_WAIT, strict=True)
    """Seconds to wait for the first of them."""
    cores: int = Field(default=1, ge=1, le=MOST_THREADS)
    """Processors of a job, which its one worker uses for calls of the model in flight."""
    memory: str
    """Of a job, such as 8GB."""
    job: dict[str, Any] = Field(default_factory=dict)
    """Handed to dask-jobqueue as it is: queue, walltime, account, job_extra_directives ..."""

    @field_validator("memory")
    @classmethod
    def _bytes(cls, value: str) -> str:
        if not 0 < bytes_of(value) <= MOST_MEMORY * 1e9:
            raise ValueError(f"must be above 0 and at most {MOST_MEMORY} GB")
        return value


def read_cluster(path: Path) -> ClusterFile:
    """The file of ``--cluster``, checked."""
    try:
        return ClusterFile.model_validate(read_toml(path))
    except OSError as error:
        raise SettingsError(f"the cluster's file cannot be read: {path}: {error.strerror}") from None
    except DocumentError as error:
        raise SettingsError(f"{path} {error}") from None
    except ValidationError as error:
        raise SettingsError(f"{path}: {readable(error)}") from None


def crew(settings: Settings) -> Crew | None:
    """Who works, where settings name a cluster; None on this machine.

    Raises:
        WorkerError: the scheduler cannot be reached, or has no worker.
    """
    if settings.cluster is not None:
        file = read_cluster(settings.cluster)
        return Crew(file.jobs, max(1, file.cores // (settings.threads or 1)), bytes_of(file.memory))
    if settings.scheduler is None:
        return None
    with _client_of(settings) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
    if not workers:
        raise WorkerError(f"the scheduler {settings.scheduler} must have workers, and has none: start some with dask worker")
    limits = [worker["memory_limit"] // worker["nthreads"] for worker in workers if worker["memory_limit"]]
    return Crew(sum(worker["nthreads"] for worker in workers), 1, min(limits, default=None))


def bytes_of(text: str) -> int:
    """Bytes of a size such as 8GB.

    Raises:
        ValueError: it is no size.
    """
    from dask.utils import parse_bytes

    try:
        return int(parse_bytes(text))
    except (ValueError, OverflowError):
        raise ValueError("must be a size, such as 8GB") from None


@contextmanager
def connected(run: Run, workers: int) -> Iterator["Client"]:
    """A client of the cluster that the settings name, whose workers are fit for the run.

    Raises:
        WorkerError: it cannot be started or reached, or its workers differ in what bytes depend on.
    """
    quieten()
    settings = run.settings
    if settings.scheduler is not None:
        with _client_of(settings) as client:
            _check_workers(client, run)
            yield client
        return
    import dask.config
    from distributed import Client

    if settings.cluster is not None:
        with (
            dask.config.set(_scheduler_options()),
            _jobqueue(settings.cluster, settings) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            _await(client, read_cluster(settings.cluster))
            _check_workers(client, run)
            yield client
        return
    with (
        _started(workers, settings.dashboard, [] if run.model.device == "cpu" else gpus()) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@contextmanager
def _own_environment() -> Iterator[None]:
    """After which this process has its environment again: Dask writes that of the workers into it before it starts them."""
    names = (*WORKER_ENVIRONMENT, "PYTHONHASHSEED", "__DASK_PARENT_PID")
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _has_dashboard() -> bool:
    return importlib.util.find_spec("bokeh") is not None


def dashboard(client: "Client") -> str | None:
    """Where to watch the cluster at work; None where bokeh, which draws it, is not installed."""
    return f"dashboard: {client.dashboard_link}" if _has_dashboard() else None


@contextmanager
def unchanged_dask() -> Iterator[None]:
    """At the end Dask's configuration is as before ``quieten``, or as Dask has it where it was imported meanwhile."""
    import dask.config

    before = {key: dask.config.get(key, None) for key in (*MESSAGES, LOG_LEVEL)}
    try:
        yield
    finally:
        own = dask.config.merge(*dask.config.defaults)
        for key, was in before.items():
            value = dask.config.get(key, None, config=own) if was is None else was
            if value is None:
                dask.config.pop(key, None)
            else:
                dask.config.set({key: value})


def quieten() -> None:
    """Keep distributed's log to itself, here and in its processes, and its memory short: errors come back with futures.

    It reads how to log when it is first imported.
    """
    import dask.config

    dask.config.set(MESSAGES)

    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")
        dask.config.set({LOG_LEVEL: "critical"})
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # where it has been imported before
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of tasks whose cluster is stopped while it starts
        import distributed  # noqa: F401 - it sets a level of its own for its client

        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)


def _client_of(settings: Settings) -> "Client":
    quieten()
    from distributed import Client

    try:
        return Client(settings.scheduler, security=_security(settings), timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise WorkerError(f"the scheduler {settings.scheduler} cannot be reached: {error or 'no answer'}") from None


def _security(settings: Settings) -> "Security | None":
    """TLS, where files for it are named."""
    files = {"tls_ca_file": settings.tls_ca, "tls_client_cert": settings.tls_cert, "tls_client_key": settings.tls_key}
    if not any(files.values()):
        return None
    from distributed import Security

    named = {key: str(path) for key, path in files.items() if path}
    return Security(require_encryption=True, **named)


def _worker_facts(settings: Settings) -> dict[str, Any]:
    """Versions, model and device of one worker; the bytes of masks depend on them."""
    settle()
    model = read_spec(settings)
    return {
        "segpipe": __version__,
        "Python": platform.python_version(),
        "the model": model.sha256,
        "the device": device_kind(model),
    }


def _check_workers(client: "Client", run: Run) -> None:
    """Workers must have the run's segpipe, Python and model, the same kind of device, and one thread where that matters."""
    for address, worker in client.scheduler_info(n_workers=-1)["workers"].items():
        check_threads(run, address, worker["nthreads"])
    mine = {"segpipe": __version__, "Python": platform.python_version(), "the model": run.model.sha256}
    try:
        workers = client.run(_worker_facts, run.settings)
    except InstallationError as error:
        raise WorkerError(f"a worker is not fit: {error}") from None
    except Exception as error:  # noqa: BLE001 - whatever a worker raises, it is not fit
        raise WorkerError(f"a worker cannot read the model as this process does: {type(error).__name__}: {error}") from None
    first = next(iter(workers.values()))
    for address, facts in workers.items():
        for key, wanted in {**mine, "the device": first["the device"]}.items():
            if facts[key] != wanted:
                raise WorkerError(
                    f"workers must not differ in {key}, and {address} has {facts[key]}, where {wanted} is needed"
                )
    if first["the device"]["device"] != run.model.device:
        raise WorkerError(
            f"workers must run the model on the device that the plan is for, and they would take "
            f"{first['the device']['device']}, where this process has taken {run.model.device}: say which with --device"
        )


def check_threads(run: Run, address: str, threads: int) -> None:
    """A model on a device is for one thread, and so is what records a profile."""
    if threads > 1 and (run.model.device != "cpu" or run.settings.profile):
        raise WorkerError(
            f"workers must have one thread each on a GPU and for --profile, and {address} has {threads}: "
            "start them with dask worker --nthreads 1, one for each GPU"
        )


@contextmanager
def _started(workers: int, dashboard: str, devices: list[str]) -> "Iterator[LocalCluster]":
    """Start workers on this machine, and stop them at the end of the block."""
    import dask.config

    with _own_environment(), dask.config.set(_local_options()), _start(workers, dashboard, devices) as cluster:
        yield cluster


def _scheduler_options() -> dict[str, Any]:
    """Dask's configuration for a scheduler of this process."""
    return {"distributed.scheduler.allowed-failures": RETRIES, **({} if _has_dashboard() else NO_PAGES)}


def _local_options() -> dict[str, Any]:
    """Dask's configuration for workers of this machine."""
    return {
        **_scheduler_options(),
        **LOOKS,
        # glibc reads these when a process starts: Dask sets only this key early enough
        **{f"distributed.nanny.pre-spawn-environ.{key}": value for key, value in WORKER_ENVIRONMENT.items()},
        # a worker that freezes before it could tell what it has begun shows by its silence alone
        "distributed.scheduler.worker-ttl": SILENT,
        "distributed.worker.multiprocessing-method": spawning.register(),
    }


def _start(workers: int, dashboard: str, devices: list[str]) -> "LocalCluster":
    """Start workers. If one is lost before it has joined the cluster, all workers are stopped and started again."""
    for _ in range(STARTS - 1):
        try:
            return _started_once(workers, dashboard, devices)
        except WorkerError as error:
            LOG.warning("warning: %s; started anew", error)
    return _started_once(workers, dashboard, devices)


def _started_once(workers: int, dashboard: str, devices: list[str]) -> "LocalCluster":
    try:
        return _deaf(lambda: _local_cluster(workers, dashboard, devices))
    except (OSError, RuntimeError, TimeoutError) as error:
        why = str(error).rstrip(".")
        raise WorkerError(f"worker processes cannot be started: {why}: try --executor serial") from error


class _Closing(Protocol):
    def close(self) -> object: ...


def _deaf(make: Callable[[], C]) -> C:
    """What is made in a thread that hears no signals, nor do its threads and processes, those of later included.

    If the caller is interrupted meanwhile, what comes of it is closed.

    Ctrl-C reaches every process of a terminal, and a service that is stopped tells each of its processes; workers leave the
    answer to the first one, whose main thread hears it also while they start.
    """
    ended: SimpleQueue[C | BaseException] = SimpleQueue()

    def run() -> None:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
            resource_tracker.ensure_running()  # this unblocks them
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
            ended.put(make())
        except BaseException as error:  # noqa: BLE001 - whatever it is, the thread that waits raises it
            ended.put(error)

    threading.Thread(target=run, name="segpipe-workers", daemon=True).start()
    try:
        found = ended.get()
    except KeyboardInterrupt:
        _close_late(ended)
        raise
    if isinstance(found, BaseException):
        raise found
    return found


def _close_late(ended: "SimpleQueue[C | BaseException]") -> None:
    """Close what nobody waits for any more once it is there; wait a while for that."""

    def close() -> None:
        if not isinstance(late := ended.get(), BaseException):
            late.close()

    thread = threading.Thread(target=close, name="segpipe-late-workers", daemon=True)
    thread.start()
    thread.join(LATE)
    if thread.is_alive():
        from distributed.deploy import spec

        # a cluster that is half there cannot be closed at exit, and its processes end with this one
        atexit.unregister(spec.close_clusters)


_NANNIES: "WeakSet[Nanny]" = WeakSet()
"""The nannies of all workers that this process has started."""


def _end_workers() -> None:
    """Kill workers that have not been closed: at exit, Python would send them SIGTERM, which they ignore, and wait for them.

    Child processes that a script which uses segpipe as a library has started itself are not touched.
    """
    own = {nanny.pid for nanny in _NANNIES}
    for child in multiprocessing.active_children():
        if child.pid in own:
            child.kill()


def _nanny(devices: list[str]) -> "type[Nanny]":
    """The class that starts a worker, restarts it if it is lost, and makes one GPU visible to it, if there are GPUs."""
    from distributed import Nanny

    class OwnNanny(Nanny):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            if devices:
                options["env"] = {"CUDA_VISIBLE_DEVICES": devices[options["name"] % len(devices)]}
            super().__init__(*arguments, **options)
            _NANNIES.add(self)

    return OwnNanny


def _local_cluster(workers: int, dashboard: str, devices: list[str]) -> "LocalCluster":
    """Worker processes on this machine; each sees one GPU, if there are GPUs."""
    from distributed import LocalCluster

    atexit.register(_end_workers)
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        worker_class=_nanny(devices),
        host="127.0.0.1",
        # any user of this machine reaches a port of it, and whoever talks to a scheduler can run code as its owner
        security=_own_keys(),
        dashboard_address=dashboard,
        # the plan bounds memory; Dask's own limit would kill workers for GDAL's cache
        memory_limit=0,
        silence_logs=logging.CRITICAL,
    )


def _jobqueue(path: Path, settings: Settings) -> Any:
    """A cluster of dask-jobqueue; each job is one process with one thread, whatever its processors.

    Its scheduler listens where other nodes reach it, and so others, too: all talk TLS, with keys made for this run alone
    unless files are named.
    """
    file = read_cluster(path)
    try:
        jobqueue = importlib.import_module("dask_jobqueue")
    except ModuleNotFoundError:
        raise WorkerError(f"--cluster needs dask-jobqueue, which is not installed: {install('cluster')}") from None
    keys = {"security": _security(settings) or _own_keys(), "shared_temp_directory": str(Path.cwd())}
    looks = {f"DASK_{key.replace('.', '__').upper()}": value for key, value in {**LOOKS, **MESSAGES}.items()}
    exports = [f"export {key}={value}" for key, value in {**WORKER_ENVIRONMENT, **looks}.items()]
    own = {"scheduler_options": {"dashboard_address": settings.dashboard}, **keys, **_processors(file), **file.job}
    own["job_script_prologue"] = [*exports, *own.get("job_script_prologue", [])]
    try:
        cluster = getattr(jobqueue, CLASSES[file.kind])(cores=1, processes=1, memory=file.memory, **own)
        cluster.scale(jobs=file.jobs)
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise WorkerError(f"{path}: jobs cannot be submitted to {file.kind}: {error}") from None
    return cluster


def _own_keys() -> "Security":
    """TLS for one run, with keys in memory; dask-jobqueue hands them to its jobs in files, which it removes."""
    from distributed import Security

    own: Security = Security.temporary()
    return own


def _processors(file: ClusterFile) -> dict[str, Any]:
    """Options of dask-jobqueue for the processors of a job: it assumes one worker with one thread."""
    if file.kind == "pbs":
        return {"resource_spec": f"select=1:ncpus={file.cores}:mem={math.ceil(bytes_of(file.memory) / 2**20)}mb"}
    return {"job_cpu" if file.kind == "slurm" else "ncpus": file.cores}


def _await(client: "Client", file: ClusterFile) -> None:
    try:
        client.wait_for_workers(1, timeout=file.wait)
    except TimeoutError:
        raise WorkerError(
            f"no job of {file.kind} has begun within {file.wait:g} s: look at its queue, or raise wait in the cluster's file"
        ) from None
