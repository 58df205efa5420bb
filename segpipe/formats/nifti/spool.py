"""Unpack a packed volume once, into a file in TMPDIR without a name, which disappears when its last descriptor is closed."""

import errno
import gzip
import os
import shutil
import tempfile
from typing import IO

from segpipe.errors import SourceError
from segpipe.formats.nifti.header import Volume, check_length, opened, source_errors

CHUNK = 2**22
"""Bytes that are unpacked at once."""

FULL = (errno.ENOSPC, errno.EDQUOT)

NO_ROOM = "{} takes {:,} bytes unpacked, and {} has {:,} free: make room there, or set TMPDIR to another folder"


def unpacked(volume: Volume) -> int:
    """Open the unpacked file of a volume and return its descriptor, which the caller must close.

    A packed file is read to its end, where gzip compares checksum and length, so that a truncated or damaged file is found.

    Raises:
        SourceError: the file is damaged, its length does not match its header, or TMPDIR has no room for it.
    """
    if not volume.packed:
        with source_errors(volume.path):
            return os.open(volume.path, os.O_RDONLY | os.O_CLOEXEC)
    folder = tempfile.gettempdir()
    if shutil.disk_usage(folder).free < volume.end:
        raise _no_room(volume, folder)
    with _unnamed(volume, folder) as spool:
        _reserve(spool, volume, folder)
        with source_errors(volume.path), opened(volume.path, packed=True) as stream:
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
            raise _no_room(volume, folder) from error


def _no_room(volume: Volume, folder: str) -> SourceError:
    return SourceError(NO_ROOM.format(volume.path, volume.end, folder, shutil.disk_usage(folder).free))


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
            raise _no_room(volume, folder) from error
        raise SourceError(f"{volume.path} cannot be unpacked into {folder}: {error.strerror}") from error
