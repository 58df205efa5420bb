"""Unpack a packed volume once per process, into a file in TMPDIR without a name.

The last unpacked file is kept for the next opening of the same volume, as by the next part of a case. It disappears with
its last descriptor: those of open sources, and the one here, which another volume or ``release`` closes.
"""

import errno
import gzip
import os
import shutil
import tempfile
import threading
from typing import IO

from segpipe.errors import SourceError
from segpipe.formats.nifti.header import Volume, check_length, opened, source_errors

CHUNK = 2**22
"""Bytes that are unpacked at once."""

FULL = (errno.ENOSPC, errno.EDQUOT)

NO_SPACE = "{} takes {:,} bytes unpacked, and {} has {:,} free: free space there, or set TMPDIR to another folder"


Key = tuple[int, ...]
"""Identity of a packed file, and the size of the unpacked one by its header."""


class _Spools:
    """The last unpacked file of this process; threads that ask for the same volume at once wait for one unpacking."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: Key | None = None
        self._file: int | None = None

    def descriptor(self, volume: Volume) -> int:
        """A new descriptor of the unpacked file, which the caller must close."""
        with self._lock:
            key = _key(volume)
            if self._file is None or key != self._key:
                self._drop()
                self._file = _unpack(volume)
                self._key = key if _key(volume) == key else None  # a file that has changed is unpacked again
            return os.dup(self._file)

    def release(self) -> None:
        """Close the descriptor that is kept here."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = self._key = None


_SPOOLS = _Spools()


def release() -> None:
    """Free the space of the last unpacked file, as soon as no open source uses it."""
    _SPOOLS.release()


def unpacked(volume: Volume) -> int:
    """Open the unpacked file of a volume and return its descriptor, which the caller must close.

    A packed file is read to its end, where gzip compares checksum and length, so that a truncated or damaged file is found.

    Raises:
        SourceError: the file is damaged, its length does not match its header, or TMPDIR has no space for it.
    """
    if volume.packed:
        return _SPOOLS.descriptor(volume)
    with source_errors(volume.path):
        return os.open(volume.path, os.O_RDONLY | os.O_CLOEXEC)


def _key(volume: Volume) -> Key:
    with source_errors(volume.path):
        found = os.stat(volume.path)  # noqa: PTH116
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, volume.end


def _unpack(volume: Volume) -> int:
    """Descriptor of the unpacked file."""
    folder = tempfile.gettempdir()
    if shutil.disk_usage(folder).free < volume.end:
        raise _full(volume, folder)
    with _unnamed(volume, folder) as spool:
        _reserve(spool, volume, folder)
        with source_errors(volume.path), opened(volume.path, packed=True, start=volume.start) as stream:
            size = _copied(stream, spool, volume, folder)
        check_length(volume, size)
        return os.dup(spool.fileno())


def _unnamed(volume: Volume, folder: str) -> IO[bytes]:
    """A temporary file without a name, which disappears with the process, however the process ends."""
    try:
        return tempfile.TemporaryFile(dir=folder, buffering=0)
    except OSError as error:
        raise SourceError(f"{volume.path} cannot be unpacked into {folder}: {error.strerror}: set TMPDIR") from error


def _reserve(spool: IO[bytes], volume: Volume, folder: str) -> None:
    """Reserve all space at once, since other workers may unpack into the same folder at the same time."""
    try:
        os.posix_fallocate(spool.fileno(), 0, volume.end)
    except OSError as error:
        if error.errno in FULL:
            raise _full(volume, folder) from error


def _full(volume: Volume, folder: str) -> SourceError:
    return SourceError(NO_SPACE.format(volume.path, volume.end, folder, shutil.disk_usage(folder).free))


def _copied(stream: IO[bytes] | gzip.GzipFile, spool: IO[bytes], volume: Volume, folder: str) -> int:
    """Copy a stream and return its length in bytes; bytes beyond the volume's end are counted but not stored."""
    size = 0
    while chunk := stream.read(CHUNK):
        if size < volume.end:
            _write(spool, chunk[: volume.end - size], volume, folder)
        size += len(chunk)
        if size - volume.end > max(CHUNK, volume.slack):
            break  # already too long; a few bytes may unpack to terabytes
    return size


def _write(spool: IO[bytes], data: bytes, volume: Volume, folder: str) -> None:
    try:
        view = memoryview(data)
        while view:
            view = view[spool.write(view) :]
    except OSError as error:
        if error.errno in FULL:
            raise _full(volume, folder) from error
        raise SourceError(f"{volume.path} cannot be unpacked into {folder}: {error.strerror}") from error
