"""What can go wrong and be mended by the user: one class for each place to look.

A message states the rule, then the value that broke it, then the mend.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from segpipe.messages.redact import without_secrets

EXHAUSTED = (
    "out of memory",
    "failed to allocate memory",
    "can't allocate memory",
    "alloc_failed",
    "bad allocation",
    "resource allocation failed",
)
"""How torch, ONNX Runtime, cuDNN and cuBLAS say that a device's memory is used up."""


class SegpipeError(Exception):
    """Base of every error that segpipe raises on purpose; its text has no secrets of URLs."""

    def __str__(self) -> str:
        return without_secrets(super().__str__(), pieces=True)


class SettingsError(SegpipeError):
    """A flag or a key of the configuration file."""


class InstallationError(SegpipeError):
    """What is installed beside segpipe, or what the environment makes of it."""


class InputError(SegpipeError):
    """What ``--input`` names: nothing found, names that collide, a list that cannot be read."""


class OutputError(SegpipeError):
    """The output folder: not writable, inside the input, full."""


class ModelError(SegpipeError):
    """The ONNX file, or what it computes."""


class ContractError(SegpipeError):
    """What the contract says of the model, or that there is none."""


class ExportError(SegpipeError):
    """A network to export: its architecture, its weights, what it gives."""


class DisagreementError(ExportError):
    """An export that does not agree with its network."""


class ZonesError(SegpipeError):
    """The file of ``--zones``: its layers, columns, coordinates and polygons."""


class DeviceError(SegpipeError):
    """The device that was asked for."""


class DeviceMemoryError(DeviceError):
    """The memory of a device, which is too small for what was asked of it."""


class SourceError(SegpipeError):
    """One case: it cannot be opened or decoded, or it does not fit the model."""


class DamagedPartError(SegpipeError):
    """A file of a part that is not as it was written; the part is made again."""


class UnforeseenError(SegpipeError):
    """An unexpected error, with its original text; it fails one case."""


def one_line(value: object) -> str:
    """The text of anything, such as an error of another library, in one line."""
    return " ".join(str(value).split())


@contextmanager
def memory_errors() -> Iterator[None]:
    """Tell a device whose memory is used up from all else that may fail there."""
    try:
        yield
    except SegpipeError:
        raise
    except Exception as error:
        if any(said in str(error).casefold() for said in EXHAUSTED):
            words = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise DeviceMemoryError(f"the device's memory is used up, lower --batch or --tile: {words}") from None
        raise


@dataclass
class Caught:
    """How a block of ``case_errors`` ended."""

    error: SegpipeError | None = None
    """None if the block raised nothing."""


@contextmanager
def case_errors(path: str) -> Iterator[Caught]:
    """Catch any error of one case, so that other cases go on; ``path`` names the case in messages."""
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
    words = f"{type(error).__name__}: {one_line(error)}"
    unforeseen = UnforeseenError(f"{path} failed in a way that segpipe does not know: {words}")
    unforeseen.__cause__ = error
    return unforeseen


class WorkerError(SegpipeError):
    """A worker process that was lost with the jobs it held."""
