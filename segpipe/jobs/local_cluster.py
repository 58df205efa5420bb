"""Dask's workers on this machine."""

import atexit
import logging
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from segpipe.errors import WorkerError
from segpipe.jobs.dask_options import OWN, local_options
from segpipe.jobs.lost_workers import cannot_start
from segpipe.jobs.tls import own_keys
from segpipe.process.spawning import unchanged_environment, without_signals

if TYPE_CHECKING:
    from distributed import LocalCluster, Nanny

LOG = logging.getLogger("segpipe")

STARTS = 3
"""Attempts to start the workers of this machine, if one is lost while it starts."""


@contextmanager
def started(workers: int, dashboard: str, devices: list[str]) -> "Iterator[LocalCluster]":
    """Start workers on this machine, and stop them at the end of the block."""
    import dask.config

    with unchanged_environment(OWN), dask.config.set(local_options()), _start(workers, dashboard, devices) as cluster:
        yield cluster


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
        raise cannot_start(str(error)) from error


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
        security=own_keys(),
        dashboard_address=dashboard,
        # the plan bounds memory; Dask's own limit would kill workers for GDAL's cache
        memory_limit=0,
        silence_logs=logging.CRITICAL,
    )
