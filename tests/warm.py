"""Worker processes of runs in the process of the tests: forks of one that has imported all, in place of new interpreters."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from forked import WORKERS, Forked

from segpipe.jobs.worker import AHEAD
from segpipe.process import spawning
from segpipe.process.signals import ENDING

FORMATS = [*AHEAD, "segpipe.formats.nifti.sink", "segpipe.formats.dicom.sink", "segpipe.results.lesions.components"]


@contextmanager
def warm_workers() -> Iterator[None]:
    """Workers that start in this block are forks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spawning._Context, "Process", _Fork)
        yield


class _Fork(Forked):
    """The process that is forked is started with the first of them."""

    @staticmethod
    def _Popen(process: BaseProcess) -> Any:  # noqa: N802 - the name that multiprocessing calls
        _serve()
        return Forked._Popen(process)


@cache
def _serve() -> None:
    """Start the process that is forked; it has what a worker must find when its libraries are loaded, and this module, by
    whose name a fork finds its class: pytest, which it loads, takes a third of a second."""
    paths = filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])  # Python 3.11 passes on none
    environment = {
        **spawning.WORKER_ENVIRONMENT,
        "DASK_LOGGING__DISTRIBUTED": "critical",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    forkserver.set_forkserver_preload([*WORKERS, *FORMATS, __name__])
    with spawning.unchanged_environment(environment):
        os.environ.update(environment)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        forkserver.ensure_running()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
