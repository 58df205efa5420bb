"""Clusters: worker processes of this machine, an existing scheduler, or jobs of a batch system."""

import atexit
import importlib
import importlib.util
import logging
import math
import multiprocessing
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakSet

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from segpipe import __version__
from segpipe.errors import InstallationError, SettingsError, WorkerError
from segpipe.jobs.lost import RETRIES
from segpipe.jobs.plan import WorkerPool
from segpipe.network.device import gpus
from segpipe.network.listed import spec_of_run
from segpipe.process import spawning
from segpipe.process.environment import settle
from segpipe.process.extras import install
from segpipe.process.spawning import WORKER_ENVIRONMENT, unchanged_environment, without_signals
from segpipe.results.device_kind import device_kind
from segpipe.results.records import Run
from segpipe.settings import LONGEST_WAIT, MOST_MEMORY, MOST_THREADS, MOST_WORKERS, Settings
from segpipe.storage.documents import DocumentError, read_toml
from segpipe.storage.invalid import readable

if TYPE_CHECKING:
    from distributed import Client, LocalCluster, Nanny, Security

LOG = logging.getLogger("segpipe")

STARTS = 3
"""Attempts to start the workers of this machine, if one is lost while it starts."""

OWN = (*WORKER_ENVIRONMENT, "PYTHONHASHSEED", "__DASK_PARENT_PID")
"""Variables for the workers that Dask writes into this process's environment before it starts them."""

CONNECT_SECONDS = 15

SILENT = "60s"
"""Silence after which a worker of this machine is restarted."""

LOOKS = {"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "500ms"}
"""Dask samples each worker's Python stack a hundred times a second, and checks fifty times whether its loop is late. Both
compete for the interpreter's lock: 17 % of a run over small pictures, 9 % of one over a mosaic (measured)."""

MESSAGES = {"distributed.admin.low-level-log-length": 20}
"""Dask keeps the last thousand messages of each connection for debugging. Those of segpipe carry the paths of 64 cases
each: 540 bytes per case, kept for nobody (measured)."""

LOG_LEVEL = "logging.distributed"
"""Key of Dask's configuration for its log level."""

NO_PAGES: dict[str, list[str]] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
"""Dask serves pages without authentication that show paths and stacks to any user of the machine."""

CLASSES = {"slurm": "SLURMCluster", "lsf": "LSFCluster", "pbs": "PBSCluster"}
"""Classes of dask-jobqueue."""


class ClusterFile(BaseModel):
    """The file of ``--cluster``: the batch system, the number of jobs, and the resources of each."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["slurm", "lsf", "pbs"]
    jobs: int = Field(ge=1, le=MOST_WORKERS)
    """Worker processes, one per job."""
    wait: float = Field(default=600, gt=0, le=LONGEST_WAIT, strict=True)
    """Seconds to wait for the first worker."""
    cores: int = Field(default=1, ge=1, le=MOST_THREADS)
    """Processors of a job, which its one worker uses for calls of the model in flight."""
    memory: str
    """Memory of a job, such as 8GB."""
    job: dict[str, Any] = Field(default_factory=dict)
    """Passed on to dask-jobqueue: queue, walltime, account, job_extra_directives ..."""

    @field_validator("memory")
    @classmethod
    def _bytes(cls, value: str) -> str:
        if not 0 < bytes_of(value) <= MOST_MEMORY * 1e9:
            raise ValueError(f"must be above 0 and at most {MOST_MEMORY} GB")
        return value


def read_cluster(path: Path) -> ClusterFile:
    """Read and check the file of ``--cluster``."""
    try:
        return ClusterFile.model_validate(read_toml(path))
    except OSError as error:
        raise SettingsError(f"the cluster's file cannot be read: {path}: {error.strerror}") from None
    except DocumentError as error:
        raise SettingsError(f"{path} {error}") from None
    except ValidationError as error:
        raise SettingsError(f"{path}: {readable(error)}") from None


def cluster_workers(settings: Settings) -> WorkerPool | None:
    """The workers of the cluster that the settings name; None for this machine.

    Raises:
        WorkerError: the scheduler cannot be reached, or has no worker.
    """
    if settings.cluster is not None:
        file = read_cluster(settings.cluster)
        return WorkerPool(file.jobs, max(1, file.cores // (settings.threads or 1)), bytes_of(file.memory))
    if settings.scheduler is None:
        return None
    with _client_of(settings) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
    if not workers:
        raise WorkerError(f"the scheduler {settings.scheduler} must have workers, and has none: start some with dask worker")
    limits = [worker["memory_limit"] // worker["nthreads"] for worker in workers if worker["memory_limit"]]
    return WorkerPool(sum(worker["nthreads"] for worker in workers), 1, min(limits, default=None))


def bytes_of(text: str) -> int:
    """Parse a size such as 8GB into bytes.

    Raises:
        ValueError: it is not a size.
    """
    from dask.utils import parse_bytes

    try:
        return int(parse_bytes(text))
    except (ValueError, OverflowError):
        raise ValueError("must be a size, such as 8GB") from None


@contextmanager
def connected(run: Run, workers: int) -> Iterator["Client"]:
    """Yield a client of the cluster that the settings name, with workers that fit the run.

    Raises:
        WorkerError: it cannot be started or reached, or its workers differ in anything that results depend on.
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
        _started(workers, settings.dashboard, [] if run.model.on_host else gpus()) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _has_dashboard() -> bool:
    return importlib.util.find_spec("bokeh") is not None


def dashboard(client: "Client") -> str | None:
    """URL of Dask's dashboard; None if bokeh, which draws it, is not installed."""
    return f"dashboard: {client.dashboard_link}" if _has_dashboard() else None


@contextmanager
def unchanged_dask() -> Iterator[None]:
    """Restore what runs change for Dask at the end: variables of its workers, and its configuration, or its defaults if it
    was imported meanwhile. Runs in several threads restore neither by themselves, as one may begin before another ends."""
    before = _kept() if "dask.config" in sys.modules else {}
    try:
        with unchanged_environment(OWN):
            yield
    finally:
        if "dask.config" in sys.modules:
            _restore(before)


def _kept() -> dict[str, Any]:
    import dask.config

    return {key: dask.config.get(key, None) for key in _changed()}


def _changed() -> tuple[str, ...]:
    """Keys of Dask's configuration that a run sets."""
    return (*MESSAGES, LOG_LEVEL, *_local_options())


def _restore(before: dict[str, Any]) -> None:
    import dask.config

    own = dask.config.merge(*dask.config.defaults)
    for key in _changed():
        was = before.get(key)
        value = dask.config.get(key, None, config=own) if was is None else was
        if value is None:
            dask.config.pop(key, None)
        else:
            dask.config.set({key: value})


def quieten() -> None:
    """Silence distributed's log here and in its processes, and shorten its memory: errors come back with futures.

    distributed reads its log configuration when it is first imported.
    """
    import dask.config

    dask.config.set(MESSAGES)

    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")
        dask.config.set({LOG_LEVEL: "critical"})
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # if it was imported before
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # about tasks of a cluster that is stopped while it starts
        import distributed  # noqa: F401 - sets its own level for its client

        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)


def _client_of(settings: Settings) -> "Client":
    quieten()
    from distributed import Client

    try:
        return Client(settings.scheduler, security=_security(settings), timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise WorkerError(f"the scheduler {settings.scheduler} cannot be reached: {error or 'no answer'}") from None


def _security(settings: Settings) -> "Security | None":
    """TLS settings if files for it are named."""
    files = {"tls_ca_file": settings.tls_ca, "tls_client_cert": settings.tls_cert, "tls_client_key": settings.tls_key}
    if not any(files.values()):
        return None
    from distributed import Security

    named = {key: str(path) for key, path in files.items() if path}
    return Security(require_encryption=True, **named)


def _worker_facts(settings: Settings) -> dict[str, Any]:
    """Versions, model and device of a worker, on which the bytes of masks depend."""
    settle()
    model = spec_of_run(settings)
    return {
        "segpipe": __version__,
        "Python": platform.python_version(),
        "the model": model.sha256,
        "the device": device_kind(model),
    }


def _check_workers(client: "Client", run: Run) -> None:
    """Check that workers have the run's segpipe, Python and model, one kind of device, and one thread where required."""
    for address, worker in client.scheduler_info(n_workers=-1)["workers"].items():
        check_threads(run, address, worker["nthreads"])
    mine = {"segpipe": __version__, "Python": platform.python_version(), "the model": run.model.sha256}
    try:
        workers = client.run(_worker_facts, run.settings)
    except InstallationError as error:
        raise WorkerError(f"a worker is not fit: {error}") from None
    except Exception as error:  # noqa: BLE001 - any error of a worker makes it unfit
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
    """Check that a worker has one thread where required: for a model on a device, and for a profile."""
    if threads > 1 and (not run.model.on_host or run.settings.profile):
        raise WorkerError(
            f"workers must have one thread each on a GPU and for --profile, and {address} has {threads}: "
            "start them with dask worker --nthreads 1, one for each GPU"
        )


@contextmanager
def _started(workers: int, dashboard: str, devices: list[str]) -> "Iterator[LocalCluster]":
    """Start workers on this machine, and stop them at the end of the block."""
    import dask.config

    with unchanged_environment(OWN), dask.config.set(_local_options()), _start(workers, dashboard, devices) as cluster:
        yield cluster


def _scheduler_options() -> dict[str, Any]:
    """Dask's configuration for a scheduler in this process."""
    return {"distributed.scheduler.allowed-failures": RETRIES, **({} if _has_dashboard() else NO_PAGES)}


def _local_options() -> dict[str, Any]:
    """Dask's configuration for workers of this machine."""
    return {
        **_scheduler_options(),
        **LOOKS,
        # glibc reads these at process start; only this key of Dask is applied early enough
        **{f"distributed.nanny.pre-spawn-environ.{key}": value for key, value in WORKER_ENVIRONMENT.items()},
        # a worker that freezes before it reports its task is detected by its silence only
        "distributed.scheduler.worker-ttl": SILENT,
        "distributed.worker.multiprocessing-method": spawning.register(),
    }


def _start(workers: int, dashboard: str, devices: list[str]) -> "LocalCluster":
    """Start workers; if one is lost before it joins the cluster, stop all and start again."""
    for _ in range(STARTS - 1):
        try:
            return _started_once(workers, dashboard, devices)
        except WorkerError as error:
            LOG.warning("warning: %s; starting again", error)
    return _started_once(workers, dashboard, devices)


def _started_once(workers: int, dashboard: str, devices: list[str]) -> "LocalCluster":
    try:
        return without_signals(lambda: _local_cluster(workers, dashboard, devices), _leave_partial)
    except (OSError, RuntimeError, TimeoutError) as error:
        why = str(error).rstrip(".")
        raise WorkerError(f"worker processes cannot be started: {why}: try --executor serial") from error


def _leave_partial() -> None:
    """Do not close a partial cluster at exit, which would fail; its processes end with this one."""
    from distributed.deploy import spec

    atexit.unregister(spec.close_clusters)


_NANNIES: "WeakSet[Nanny]" = WeakSet()
"""The nannies of all workers started by this process."""


def _end_workers() -> None:
    """Kill workers that have not been closed: at exit Python would send SIGTERM, which they ignore, and wait for them.

    Other child processes of a script that uses segpipe as a library are not touched.
    """
    own = {nanny.pid for nanny in _NANNIES}
    for child in multiprocessing.active_children():
        if child.pid in own:
            child.kill()


def _nanny(devices: list[str]) -> "type[Nanny]":
    """The class that starts a worker, restarts a lost one, and assigns a GPU to it if there are GPUs."""
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
        # any local user can reach its ports, and a client of a scheduler can run code as its owner
        security=_own_keys(),
        dashboard_address=dashboard,
        # the plan bounds memory; Dask's own limit would kill workers for GDAL's cache
        memory_limit=0,
        silence_logs=logging.CRITICAL,
    )


def _jobqueue(path: Path, settings: Settings) -> Any:
    """A cluster of dask-jobqueue; each job is one process with one thread, whatever its processors.

    Its scheduler is reachable by other nodes, and so by other users: all connections use TLS, with keys made for this run
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
    """TLS for one run, with keys in memory; dask-jobqueue passes them to its jobs in files, which it removes."""
    from distributed import Security

    own: Security = Security.temporary()
    return own


def _processors(file: ClusterFile) -> dict[str, Any]:
    """Options of dask-jobqueue for a job's processors: it assumes one worker with one thread."""
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
