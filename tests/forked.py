"""Worker processes that are forks of one that has imported all: a new interpreter imports for a second.

Who starts a worker has no say in the bytes that it makes. Tests of the start itself let segpipe do it.
"""

import os
import signal
import socket
from multiprocessing import context, forkserver, popen_forkserver
from multiprocessing.process import BaseProcess
from typing import Any

from segpipe.process import spawning
from segpipe.process.signals import ENDING

WORKERS = ["distributed.nanny", "distributed.worker", "segpipe.jobs.worker", "segpipe.jobs.executors"]


class Forked(context.SpawnProcess):
    """A process with the folder and the environment of its parent, as if it were started anew."""

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        super().run()

    @staticmethod
    def _Popen(process: BaseProcess) -> Any:  # noqa: N802 - the name that multiprocessing calls
        process._environment = dict(os.environ)  # type: ignore[attr-defined]
        with spawning._without_main():
            return popen_forkserver.Popen(process)


def fork_workers() -> None:
    """From now on the workers of this process are forks of what it is now: a child of it makes them.

    The child is one of the same session, and ends with the last of this process and its workers.
    """
    listener, (alive, held) = socket.socket(socket.AF_UNIX), os.pipe()
    listener.bind(f"\0segpipe-tests-{os.getpid()}")
    listener.listen()
    if not (child := os.fork()):
        os.close(held)
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            forkserver.main(listener.detach(), alive, None)
        finally:
            os._exit(0)
    known = forkserver._forkserver
    known._forkserver_address, known._forkserver_alive_fd, known._forkserver_pid = listener.getsockname(), held, child
    listener.close()
    os.close(alive)
    spawning._Context.Process = Forked  # type: ignore[assignment]
