"""Clusters: worker processes of this machine, an existing scheduler, or jobs of a batch system."""

import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from segpipe import __version__
from segpipe.errors import InstallationError, WorkerError
from segpipe.jobs.batch_system import await_worker, bytes_of, read_cluster, submitted
from segpipe.jobs.dask_options import has_dashboard, quieten, scheduler_options
from segpipe.jobs.local_cluster import started
from segpipe.jobs.tls import security
from segpipe.jobs.worker_pool import WorkerPool
from segpipe.network.device import gpus
from segpipe.network.joined_spec import spec_of_run
from segpipe.process.environment import clean_environment
from segpipe.results.device_kind import device_kind
from segpipe.results.run import Run
from segpipe.settings import Settings

if TYPE_CHECKING:
    from distributed import Client

CONNECT_SECONDS = 15

ENCODING = "the encoding of file names (see LC_ALL and PYTHONUTF8)"


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
            dask.config.set(scheduler_options()),
            submitted(settings.cluster, settings) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            await_worker(client, read_cluster(settings.cluster))
            _check_workers(client, run)
            yield client
        return
    with (
        started(workers, settings.dashboard, [] if run.model.on_host else gpus()) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def dashboard(client: "Client") -> str | None:
    """URL of Dask's dashboard; None if bokeh, which draws it, is not installed."""
    return f"dashboard: {client.dashboard_link}" if has_dashboard() else None


def _client_of(settings: Settings) -> "Client":
    quieten()
    from distributed import Client

    try:
        return Client(settings.scheduler, security=security(settings), timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise WorkerError(f"the scheduler {settings.scheduler} cannot be reached: {error or 'no answer'}") from None


def _worker_facts(settings: Settings) -> dict[str, Any]:
    """Versions, model and device of a worker, on which the bytes of masks depend."""
    clean_environment()
    model = spec_of_run(settings)
    return {
        "segpipe": __version__,
        "Python": platform.python_version(),
        "the model": model.sha256,
        "the device": device_kind(model),
        ENCODING: sys.getfilesystemencoding(),
    }


def _check_workers(client: "Client", run: Run) -> None:
    """Check that workers have what results depend on as the run has it, one kind of device, one thread where required."""
    for address, worker in client.scheduler_info(n_workers=-1)["workers"].items():
        check_threads(run, address, worker["nthreads"])
    mine = {"segpipe": __version__, "Python": platform.python_version(), "the model": run.model.sha256}
    mine[ENCODING] = sys.getfilesystemencoding()
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
