"""Local files that appear whole or not at all."""

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import disk_usage

from segpipe.errors import OutputError, SegpipeError, of_system


def partial(path: Path) -> Path:
    """Path of a file while it is being written: in the same folder, hidden, the same for every attempt."""
    return path.with_name(f".{path.name}.partial")


NEARLY_FULL = 2**20
"""Free bytes below which a write error of unknown cause is taken for a full disk."""

NOT_EVERYWHERE = re.compile(r'[<>:"|?*\\]|[ .]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)
"""Matches names that Windows reserves, so that exFAT, NTFS and shares of SMB refuse them."""

LONGEST = 230
"""Longest name in bytes to which a draft can add a prefix and a suffix: most file systems allow 255."""


def is_utf8(name: str) -> bool:
    """Whether a file name is valid text: GDAL reads files of any name, but rasterio writes only these."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def draft_name(name: str) -> str:
    """Name of a file's draft, the same for every attempt: that of the file, or a hash if it cannot name a draft."""
    if is_utf8(name) and all(len(part.encode()) <= LONGEST for part in name.split("/")):
        return name
    return hashlib.sha256(os.fsencode(name)).hexdigest()


def unshared(draft: Path) -> Path:
    """Path beside a draft that no other attempt uses: a lost worker that still lives may write the same file."""
    return draft.with_name(f".{secrets.token_hex(6)}{draft.name}")


def unlinked(path: Path) -> Path:
    """Remove whatever is at a path, and return the path: opening a leftover link would write to its target."""
    path.unlink(missing_ok=True)
    return path


def commit(temporary: Path, path: Path, *, flush: bool = True) -> None:
    """Rename a finished file to its final name, after flushing it to disk unless ``flush`` is False."""
    if flush:
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
    temporary.replace(path)


def digest_of(path: Path) -> str:
    """SHA-256 of the content of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remove(path: Path) -> None:
    """Remove a file that is no longer needed; a failure, as on a disk that became read-only, is left to a later run."""
    with suppress(OSError):
        path.unlink()


@contextmanager
def reading_errors(path: Path | str, kind: type[SegpipeError] = OutputError) -> Iterator[None]:
    """Turn an ``OSError`` of reading into an error of this kind, with the path and the mend."""
    try:
        yield
    except OSError as error:
        raise kind(f"{path} cannot be read: {of_system(error)}") from error


def is_nearly_full(folder: Path | str) -> bool:
    """Whether a disk has so little space that it is the likely cause of an error of writing."""
    with suppress(OSError):  # the folder may not exist
        return disk_usage(folder).free < NEARLY_FULL
    return False


@contextmanager
def output_errors(path: Path | str) -> Iterator[None]:
    """Turn an ``OSError`` of writing into an ``OutputError`` with the path and the mend."""
    try:
        yield
    except OSError as error:
        mend = ""
        if error.errno in {errno.EINVAL, errno.ENOENT} and NOT_EVERYWHERE.search(Path(path).name):
            mend = f': exFAT, NTFS and SMB shares allow no file named "{Path(path).name}": rename the input'
        raise OutputError(f"{path} cannot be written: {of_system(error)}{mend}") from error
