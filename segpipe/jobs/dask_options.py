"""Dask's configuration for runs, and what was before."""

import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from segpipe.jobs.lost_workers import RETRIES
from segpipe.process import spawning
from segpipe.process.spawning import WORKER_ENVIRONMENT, unchanged_environment

OWN = (*WORKER_ENVIRONMENT, "PYTHONHASHSEED", "__DASK_PARENT_PID")
"""Variables for the workers that Dask writes into this process's environment before it starts them."""


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


LEVELS = {
    "distributed": logging.CRITICAL,
    "distributed.client": logging.CRITICAL,
    # with a traceback, that a client has closed while a worker reports its progress, as it may at the end of a run
    "distributed.scheduler": logging.CRITICAL + 1,
    "asyncio": logging.CRITICAL,  # about tasks of a cluster that is stopped while it starts
}
"""Levels of loggers in this process."""


NO_PAGES: dict[str, list[str]] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
"""Dask serves pages without authentication that show paths and stacks to any user of the machine."""


def has_dashboard() -> bool:
    """Whether bokeh, which draws Dask's dashboard, is installed."""
    return importlib.util.find_spec("bokeh") is not None


@contextmanager
def unchanged_dask() -> Iterator[None]:
    """Restore what runs change for Dask at the end: variables of its workers, levels of loggers, and its configuration, or
    its defaults if it was imported meanwhile. Runs in several threads restore none by themselves, as one may begin before
    another ends."""
    before = _current() if "dask.config" in sys.modules else {}
    levels = {name: logging.getLogger(name).level for name in LEVELS}
    try:
        with unchanged_environment(OWN):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if "dask.config" in sys.modules:
            _restore(before)


def _current() -> dict[str, Any]:
    import dask.config

    return {key: dask.config.get(key, None) for key in _changed()}


def _changed() -> tuple[str, ...]:
    """Keys of Dask's configuration that a run sets."""
    return (*MESSAGES, LOG_LEVEL, *local_options())


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
        import distributed  # noqa: F401 - sets levels of its own

        for name, level in LEVELS.items():
            logging.getLogger(name).setLevel(level)


def scheduler_options() -> dict[str, Any]:
    """Dask's configuration for a scheduler in this process."""
    return {"distributed.scheduler.allowed-failures": RETRIES, **({} if has_dashboard() else NO_PAGES)}


def local_options() -> dict[str, Any]:
    """Dask's configuration for workers of this machine."""
    return {
        **scheduler_options(),
        **LOOKS,
        # glibc reads these at process start; only this key of Dask is applied early enough
        **{f"distributed.nanny.pre-spawn-environ.{key}": value for key, value in WORKER_ENVIRONMENT.items()},
        # a worker that freezes before it reports its task is detected by its silence only
        "distributed.scheduler.worker-ttl": SILENT,
        "distributed.worker.multiprocessing-method": spawning.register(),
    }
