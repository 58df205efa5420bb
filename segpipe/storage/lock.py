"""Allow one run at a time per output: a lock file names host and process, and goes stale with them."""

import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

from segpipe.errors import OutputError
from segpipe.storage import Store
from segpipe.storage.documents import DocumentError, parse_json
from segpipe.storage.files import output_errors
from segpipe.storage.retry import persistently

NAME = ".segpipe.lock"

HEARTBEAT = 20.0
"""Seconds between two heartbeats."""

STALE = 300.0
"""Seconds without a heartbeat after which a process of another machine counts as dead: a file server may be slow, and a
machine may be suspended for a while."""


@dataclass(frozen=True)
class Holder:
    """Process that holds a lock; its start time distinguishes it from a later process with the same number."""

    host: str
    pid: int
    began: str
    space: str = ""
    """Boot ID and PID namespace: containers of one host number their processes separately."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def content(self) -> bytes:
        """Content of the lock file."""
        return json.dumps(asdict(self)).encode()


def _myself() -> Holder:
    return Holder(socket.gethostname(), os.getpid(), _began(os.getpid()) or "", _space())


@cache
def _space() -> str:
    """Scope in which a process number is unique: this boot of the kernel and this process's PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux: fall back on the host name
        return socket.gethostname()


def _began(pid: int) -> str | None:
    """Start time of a local process in clock ticks since boot; None where there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]


@contextmanager
def locked(output: Store, retries: int = 0) -> Iterator[bool]:
    """Hold the output against other runs; yield whether the last run was killed, and may have left drafts behind.

    Args:
        output: the output.
        retries: retries after storage faults.

    Raises:
        OutputError: a live run holds it.
    """
    with output_errors(output.path(NAME)):
        killed = persistently(lambda: output.has(NAME), retries)
        persistently(lambda: _take(output), retries)
        persistently(lambda: _sweep(output), retries)
    stopped = threading.Event()
    beat = threading.Thread(target=_beat, args=(output, stopped), name="segpipe-lock", daemon=True)
    beat.start()
    try:
        yield killed
    finally:
        stopped.set()
        if _holder(output, NAME) == _myself():
            output.discard(NAME)


@dataclass(frozen=True)
class LockState:
    """State of the run that holds a lock."""

    holder: Holder
    alive: bool
    """Whether the run is alive. On another machine or container this is a guess: its last heartbeat is recent."""
    seconds: float | None
    """Seconds since its last heartbeat; None where the store gives no time."""


def sign_of(output: Store) -> LockState | None:
    """Read who holds the lock of an output, and since when it has been silent; None where there is no lock."""
    holder = _holder(output, NAME)
    if holder is None:
        return None
    try:
        seconds = max(0.0, output.age(NAME))
    except OSError:
        seconds = None
    return LockState(holder, not _is_gone(holder, output, NAME), seconds)


def _take(output: Store) -> None:
    mine = _myself().content
    for _ in range(3):
        if output.create(NAME, mine):
            return
        try:
            was = output.read(NAME)
        except FileNotFoundError:
            continue
        except (IsADirectoryError, PermissionError) as error:
            raise OutputError(
                f"{output.path(NAME)} must be the lock of a run, and cannot be read: {error.strerror}: if no run writes to "
                f"{output}, remove it; else wait"
            ) from error
        _refuse_living(output, was)
        if output.replace(NAME, was, mine):
            return
    raise OutputError(f"{output} is held by {_holder(output, NAME)}, and changes hands too fast: try again")


def _refuse_living(output: Store, was: bytes) -> None:
    holder = _parsed(was)
    if holder is not None and not _is_gone(holder, output, NAME, ahead=_ahead(output)):
        raise OutputError(
            f"one run at a time may write to {output}, and {holder} does: wait for it, stop it, or name another --output "
            f"(if it is gone for certain, remove {output.path(NAME)})"
        )


def _sweep(output: Store) -> None:
    """Remove what a run left beside the lock when it was killed while taking it."""
    ahead = _ahead(output) if (there := output.leftovers(NAME)) else 0.0
    for left in there:
        holder = _holder(output, left)
        if holder is not None and _is_gone(holder, output, left, ahead=ahead):
            output.discard(left)


def _holder(output: Store, name: str) -> Holder | None:
    try:
        return _parsed(output.read(name))
    except OSError:
        return None


def _parsed(content: bytes) -> Holder | None:
    """Parse the content of a lock; None where it names no process. Fields of later versions are ignored."""
    try:
        values = parse_json(content)
        holder = Holder(**{field.name: values[field.name] for field in fields(Holder) if field.name in values})
    except (DocumentError, TypeError):
        return None
    return holder if [type(value) for value in asdict(holder).values()] == [str, int, str, str] else None


def _ahead(output: Store) -> float:
    """Seconds by which this machine's clock is ahead of the one that stamps files: the age of a file that is new."""
    name = f"{NAME}.{secrets.token_hex(4)}"
    try:
        output.create(name, _myself().content)
        return output.age(name)
    except (OSError, OutputError):
        return 0.0
    finally:
        output.discard(name)


def _is_gone(holder: Holder, output: Store, name: str, *, ahead: float = 0.0) -> bool:
    if holder.space == _space():
        return _began(holder.pid) != holder.began
    try:
        return output.age(name) - ahead > STALE
    except OSError as error:
        return isinstance(error, FileNotFoundError)


def _beat(output: Store, stopped: threading.Event) -> None:
    mine = _myself().content
    while not stopped.wait(HEARTBEAT):
        with suppress(OSError):
            output.touch(NAME, mine)
