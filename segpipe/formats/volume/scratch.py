"""Files without a name in TMPDIR: each disappears with its last descriptor, however the process ends."""

import errno
import os
import shutil
import tempfile

from segpipe.errors import SourceError
from segpipe.storage.files import reading_errors

FULL = (errno.ENOSPC, errno.EDQUOT)

NO_SPACE = "{} takes {:,} bytes {}, and {} has {:,} free: free space there, or set TMPDIR to another folder"


def scratch_file(path: str, size: int, done: str) -> int:
    """A descriptor of a new file whose whole space is reserved, since other workers fill the same folder at the same time.

    Args:
        path: the case that needs it, for messages.
        size: bytes.
        done: what is done to the case there, such as ``unpacked``, for messages.

    Raises:
        SourceError: TMPDIR has no space for it.
    """
    folder = tempfile.gettempdir()
    try:
        if shutil.disk_usage(folder).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            _reserve(file.fileno(), size)
            return os.dup(file.fileno())
    except OSError as error:
        raise scratch_error(error, path, size, done) from error


def _reserve(file: int, size: int) -> None:
    """Reserve space, where the file system can do so."""
    try:
        os.posix_fallocate(file, 0, max(1, size))
    except OSError as error:
        if error.errno in FULL:
            raise


def scratch_error(error: OSError, path: str, size: int, done: str) -> SourceError:
    """Return the error of a case for a failure to write such a file."""
    folder = tempfile.gettempdir()
    if error.errno in FULL:
        return SourceError(NO_SPACE.format(path, size, done, folder, shutil.disk_usage(folder).free))
    return SourceError(f"{path} cannot be {done} into {folder}: {error.strerror}: set TMPDIR to another folder")


def file_state(path: str) -> tuple[int, ...]:
    """Return the facts that change with the content of a file: device, inode, size and times.

    Raises:
        SourceError: the file cannot be read.
    """
    with reading_errors(path, SourceError):
        found = os.stat(path)  # noqa: PTH116
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
