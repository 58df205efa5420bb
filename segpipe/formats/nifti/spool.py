"""A packed volume, unpacked once into a file of TMPDIR, which has no name and goes with whoever has opened it."""

import errno
import gzip
import os
import shutil
import tempfile
from typing import IO

from segpipe.errors import SourceError
from segpipe.formats.nifti.header import Volume, check_length, opened, source_errors

CHUNK = 2**22
"""Bytes that are unpacked at one go."""

FULL = (errno.ENOSPC, errno.EDQUOT)

NO_ROOM = "{} takes {:,} bytes unpacked, and {} has {:,} free: make room there, or set TMPDIR to another folder"


def unpacked(volume: Volume) -> int:
    """A descriptor of the voxels of a volume as they are unpacked; whoever takes it closes it.

    A packed file is read up to the checksum and the length at its end, which a truncated or damaged one fails.

    Raises:
        SourceError: it is damaged, is not as long as its header says, or TMPDIR has no room for it.
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
    """A file that nobody else sees, and that is gone with the process, however that ends."""
    try:
        return tempfile.TemporaryFile(dir=folder, buffering=0)
    except OSError as error:
        raise SourceError(f"{volume.path} cannot be unpacked into {folder}: {error.strerror}: set TMPDIR") from error


def _reserve(spool: IO[bytes], volume: Volume, folder: str) -> None:
    """Take all the room at once: workers that unpack at the same time share what is free."""
    try:
        os.posix_fallocate(spool.fileno(), 0, volume.end)
    except OSError as error:
        if error.errno in FULL:
            raise _no_room(volume, folder) from error


def _no_room(volume: Volume, folder: str) -> SourceError:
    return SourceError(NO_ROOM.format(volume.path, volume.end, folder, shutil.disk_usage(folder).free))


def _copied(stream: IO[bytes] | gzip.GzipFile, spool: IO[bytes], volume: Volume, folder: str) -> int:
    """Bytes up to the end of a stream; those that no header accounts for are counted, and not kept."""
    size = 0
    while chunk := stream.read(CHUNK):
        if size < volume.end:
            _write(spool, chunk[: volume.end - size], volume, folder)
        size += len(chunk)
        if size - volume.end > max(CHUNK, volume.slack):
            break  # too long in any case; a few bytes may unpack to terabytes
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
