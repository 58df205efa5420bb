"""One run at a time per output folder: a file that names host and process, and goes stale with them."""

import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from segpipe.pipeline.errors import OutputError
from segpipe.pipeline.files import output_errors, remove

NAME = ".segpipe.lock"

HEARTBEAT = 20.0
"""Seconds between two signs of life."""

STALE = 300.0
"""Seconds without a sign of life after which a process of another machine counts as gone: its clock and the file server's
may differ by some, and a machine may be suspended for a while."""


NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems without hard links say: exFAT, some FUSE, shared folders of virtual machines."""

SETTLED = 0.2


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: a process, told from a later one of the same number by when it began."""

    host: str
    pid: int
    began: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _myself() -> Holder:
    return Holder(socket.gethostname(), os.getpid(), _began(os.getpid()) or "")


def _began(pid: int) -> str | None:
    """When a process of this machine began, in clock ticks since its start; None where there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]


@contextmanager
def locked(output: Path) -> Iterator[bool]:
    """Hold the output folder against other runs; gives whether the last one was killed, and may have left something.

    Raises:
        OutputError: another run, which is alive, holds it.
    """
    path = output / NAME
    with output_errors(path):
        killed = path.exists()
        _take(path)
        _sweep(path)
    stopped = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, stopped), name="segpipe-lock", daemon=True)
    beat.start()
    try:
        yield killed
    finally:
        stopped.set()
        if _holder(path) == _myself():
            remove(path)


def holder_of(output: Path) -> str | None:
    """Who holds an output folder now."""
    path = output / NAME
    holder = _holder(path)
    return None if holder is None or _is_gone(holder, path) else str(holder)


def _take(path: Path) -> None:
    mine = _beside(path)
    try:
        mine.write_text(json.dumps(asdict(_myself())), encoding="utf-8")
        for _ in range(3):
            with suppress(FileExistsError):
                _link(mine, path)
                return
            _clear_if_stale(path)
    finally:
        remove(mine)
    raise OutputError(f"{path.parent} is held by {_holder(path)}, and changes hands too fast: try again")


def _link(mine: Path, path: Path) -> None:
    """A link appears whole or not at all, on file servers too; some file systems have none."""
    try:
        os.link(mine, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with path.open("x", encoding="utf-8") as stream:
            stream.write(mine.read_text(encoding="utf-8"))
        time.sleep(SETTLED)  # whoever has seen it empty has cleared it by now
        if _holder(path) != _myself():
            raise FileExistsError from None


def _sweep(path: Path) -> None:
    """Remove what a run left beside the lock that was killed while it took it."""
    for left in path.parent.glob(f"{NAME}.????????"):
        holder = _holder(left)
        if holder is not None and _is_gone(holder, left):
            remove(left)


def _clear_if_stale(path: Path) -> None:
    holder = _holder(path)
    if holder is None or _is_gone(holder, path):
        _clear(path, holder)
        return
    raise OutputError(
        f"one run at a time may write to {path.parent}, and {holder} does: wait for it, stop it, or name another --output "
        f"(if it is gone for certain, remove {path})"
    )


def _clear(path: Path, holder: Holder | None) -> None:
    """Take a stale lock away, but put it back if somebody has replaced it in the meantime."""
    aside = _beside(path)
    with suppress(FileNotFoundError):
        path.rename(aside)
        if _holder(aside) != holder:
            with suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}")


def _holder(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _is_gone(holder: Holder, path: Path) -> bool:
    if holder.host == socket.gethostname():
        return _began(holder.pid) != holder.began
    with suppress(OSError):
        return time.time() - path.stat().st_mtime > STALE
    return True


def _beat(path: Path, stopped: threading.Event) -> None:
    while not stopped.wait(HEARTBEAT):
        with suppress(OSError):
            os.utime(path)
