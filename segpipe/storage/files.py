"""Files that are there whole or not at all."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from segpipe.errors import OutputError


def partial(path: Path) -> Path:
    """Name of a file that is being written: in the same folder, hidden, the same for every attempt."""
    return path.with_name(f".{path.name}.partial")


LONGEST = 230
"""Bytes of a name that leave room for what a draft has before and behind it: most file systems take 255."""


def is_utf8(name: str) -> bool:
    """Whether a name of the operating system's is text: GDAL reads files of any name, and rasterio writes those alone."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def draft_name(name: str) -> str:
    """A name for the draft of a file, the same for every attempt: its own, unless no draft can be called so."""
    if is_utf8(name) and all(len(part.encode()) <= LONGEST for part in name.split("/")):
        return name
    return hashlib.sha256(os.fsencode(name)).hexdigest()


def unlinked(path: Path) -> Path:
    """The same path, with nothing there: opening a link that somebody has left would write to what it leads to."""
    path.unlink(missing_ok=True)
    return path


def commit(temporary: Path, path: Path, *, flush: bool = True) -> None:
    """Make sure a finished file is on the disk, then give it its name; without ``flush``, only the latter."""
    if flush:
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
    temporary.replace(path)


def remove(path: Path) -> None:
    """Take away what is of no use; where that cannot be done, as on a disk that is read-only by now, a later run does it."""
    with suppress(OSError):
        path.unlink()


@contextmanager
def output_errors(path: Path | str) -> Iterator[None]:
    """Turn an operating system's error into ours, with the path."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
