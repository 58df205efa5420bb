"""Errors that the user can mend, one class per cause.

A message states the rule, then the value that broke it, then the mend.
"""

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from segpipe.messages.redaction import is_redacting, without_quotes
from segpipe.messages.url_secrets import without_secrets

EXHAUSTED = (
    "out of memory",
    "failed to allocate memory",
    "can't allocate memory",
    "alloc_failed",
    "bad allocation",
    "resource allocation failed",
)
"""Phrases with which torch, ONNX Runtime, cuDNN and cuBLAS report that a device is out of memory."""


class SegpipeError(Exception):
    """Base class of the errors that segpipe raises on purpose; the text hides secrets in URLs."""

    def __str__(self) -> str:
        return without_secrets(super().__str__(), pieces=True)


class SettingsError(SegpipeError):
    """A flag, or a key of the configuration file, is wrong."""


class InstallationError(SegpipeError):
    """A package is missing or unusable, or the environment breaks it."""


class InputError(SegpipeError):
    """``--input`` is wrong: nothing found, names that collide, a list that cannot be read."""


class OutputError(SegpipeError):
    """The output folder is wrong: not writable, inside the input, full."""


class ModelError(SegpipeError):
    """The ONNX file, or its results, are wrong."""


class ContractError(SegpipeError):
    """The contract is missing, or does not fit the model."""


class ExportError(SegpipeError):
    """A network cannot be exported: its architecture, weights or outputs are the cause."""


class DisagreementError(ExportError):
    """An export does not agree with its network."""


class ZonesError(SegpipeError):
    """A file of polygons, of ``--zones`` or ``--aoi``, is wrong: its layers, columns, coordinates or polygons."""


class OutsideError(SegpipeError):
    """A case lies outside the area of interest. It is no failure: there is nothing to do for it."""


class OverlapError(SegpipeError):
    """Cases that share ground cannot be joined: what the rule needs is missing, or their maps differ in kind."""


class DeviceError(SegpipeError):
    """The requested device is missing or unusable."""


class DeviceMemoryError(DeviceError):
    """The device has too little memory for the request."""


class SourceError(SegpipeError):
    """A case cannot be opened or decoded, or does not fit the model."""


class DamagedPartError(SegpipeError):
    """A part's file differs from what was written; the part is processed again."""


class UnforeseenError(SegpipeError):
    """An unexpected error, with its original text; only its case fails."""


MENDS = {
    errno.EMFILE: "raise the limit of open files of this process (ulimit -n)",
    errno.ENFILE: "raise the limit of open files of this machine (sysctl fs.file-max)",
    errno.EACCES: "mend its permissions",
    errno.EPERM: "mend its permissions",
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there",
    errno.EROFS: "make it writable, or name a folder on another disk",
    errno.EFBIG: "raise the limit of the size of files (ulimit -f)",
    errno.ENAMETOOLONG: "shorten the name",
    errno.EIO: "check the disk",
}
"""What a user can do about errors of the operating system."""


def of_system(error: OSError) -> str:
    """An error of the operating system in its words, with the mend if there is one."""
    said = error.strerror or one_line(error)
    mend = MENDS.get(error.errno or 0)
    return said if mend is None else f"{said}: {mend}"


LIMITS = {os.strerror(number): MENDS[number] for number in (errno.EMFILE, errno.ENFILE)}
"""Mends of limits of open files, by the text of the operating system: libraries in C report no error numbers."""


def with_limit(said: str) -> str:
    """A library's message, with the mend if it ends with a limit of open files."""
    return next((f"{said}: {mend}" for words, mend in LIMITS.items() if said.endswith(words)), said)


def correct_path(path: object) -> str:
    """The mend of a path that does not exist. A relative one may be right from another folder, as in a job of cron."""
    text = str(path)
    if "://" in text or Path(text).is_absolute():
        return "correct the path"
    with suppress(OSError):  # the folder of the process is gone
        return f"correct the path, which is relative to {Path.cwd()}"
    return "correct the path"


def one_line(value: object) -> str:
    """Text of any object, such as another library's error, on one line."""
    return " ".join(str(value).split())


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise ``DeviceMemoryError`` for errors that mean a device is out of memory; pass on all others."""
    try:
        yield
    except SegpipeError:
        raise
    except Exception as error:
        if any(said in str(error).casefold() for said in EXHAUSTED):
            words = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise DeviceMemoryError(f"the device's memory is used up, lower --batch or --tile: {words}") from None
        raise


@contextmanager
def on_failure(undo: Callable[[], object]) -> Iterator[None]:
    """Call ``undo`` if the block raises anything, an interruption included, and pass the error on."""
    try:
        yield
    except BaseException:
        undo()
        raise


@dataclass
class Caught:
    """How a block of ``case_errors`` ended."""

    error: SegpipeError | None = None
    """None if the block raised nothing."""


@contextmanager
def case_errors(path: str) -> Iterator[Caught]:
    """Catch any error of one case, so that other cases continue; ``path`` names the case in messages."""
    caught = Caught()
    try:
        yield caught
    except Exception as error:  # noqa: BLE001 - a bad case costs only itself
        caught.error = foreseen(error, path)


def foreseen(error: Exception, path: str) -> SegpipeError:
    """Return the error itself if it is a ``SegpipeError``, else an ``UnforeseenError`` that names the case."""
    if isinstance(error, SegpipeError):
        return error
    logging.getLogger("segpipe").info("unforeseen error in %s", path, exc_info=error)
    said = without_quotes(one_line(error)) if is_redacting() else one_line(error)
    words = f"{type(error).__name__}: {said}"
    unforeseen = UnforeseenError(f"{path} failed in a way that segpipe does not know: {words}")
    unforeseen.__cause__ = error
    return unforeseen


class WorkerError(SegpipeError):
    """A worker process was lost with its jobs."""
