"""Unpack a packed volume once per process, into a file in TMPDIR without a name.

Unpacked files are kept for the next opening of the same volume, as by the next part of a case. A file disappears with its
last descriptor: those of open sources, and the one here, which another volume or ``release`` closes.
"""

import gzip
import os
import threading
from collections.abc import Iterable
from typing import IO

from segpipe.errors import on_failure
from segpipe.formats.volume.file import Volume, check_length, opened, source_errors
from segpipe.formats.volume.scratch import file_state, scratch_error, scratch_file

CHUNK = 2**22
"""Bytes that are unpacked at once."""

DONE = "unpacked"

Key = tuple[int, ...]
"""Identity of a packed file, and where its stream starts and its volume ends by its header."""


class _UnpackedFiles:
    """The unpacked files of this process; threads that ask for the same volume at once wait for one unpacking.

    A file that no open source uses is kept until another volume is unpacked. So the volumes of one case, a channel each, are
    kept together for its next opening.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[Key, int] = {}
        self._users: dict[int, Key] = {}

    def open(self, volume: Volume) -> int:
        """A new descriptor of the unpacked file, for ``close``."""
        with self._lock:
            key = _key(volume)
            if key not in self._files:
                self._drop([other for other in self._files if other not in self._users.values()])
                self._files[key] = _unpack(volume)
                if _key(volume) != key:  # a file that has changed is unpacked again
                    self._files[key := (*key, -1)] = self._files.pop(key)
            file = os.dup(self._files[key])
            self._users[file] = key
            return file

    def close(self, file: int) -> None:
        """Close a descriptor that ``open`` returned."""
        with self._lock:
            self._users.pop(file, None)
            os.close(file)

    def release(self) -> None:
        """Close the descriptors that are kept here; open sources keep theirs."""
        with self._lock:
            self._drop(list(self._files))

    def _drop(self, keys: Iterable[Key]) -> None:
        for key in keys:
            os.close(self._files.pop(key))


_FILES = _UnpackedFiles()


def release() -> None:
    """Free the space of unpacked files, as soon as no open source uses them."""
    _FILES.release()


def close(file: int) -> None:
    """Close a descriptor that ``unpacked`` returned."""
    _FILES.close(file)


def unpacked(volume: Volume) -> int:
    """Open the unpacked file of a volume and return its descriptor, which the caller must pass to ``close``.

    A packed file is read to its end, where gzip compares checksum and length, so that a truncated or damaged file is found.

    Raises:
        SourceError: the file is damaged, its length does not match its header, or TMPDIR has no space for it.
    """
    if volume.packed:
        return _FILES.open(volume)
    with source_errors(volume.path):
        return os.open(volume.path, os.O_RDONLY | os.O_CLOEXEC)


def _key(volume: Volume) -> Key:
    return (*file_state(volume.path), volume.start, volume.end)


def _unpack(volume: Volume) -> int:
    """Descriptor of the unpacked file."""
    file = scratch_file(volume.path, volume.end, DONE)
    with on_failure(lambda: os.close(file)):
        with source_errors(volume.path), opened(volume.path, packed=True, start=volume.start) as stream:
            size = _copied(stream, file, volume)
        check_length(volume, size)
    return file


def _copied(stream: IO[bytes] | gzip.GzipFile, file: int, volume: Volume) -> int:
    """Copy a stream and return its length in bytes; bytes beyond the volume's end are counted but not stored."""
    size = 0
    while chunk := stream.read(CHUNK):
        if size < volume.end:
            _write(file, chunk[: volume.end - size], volume)
        size += len(chunk)
        if size - volume.end > max(CHUNK, volume.slack):
            break  # already too long; a few bytes may unpack to terabytes
    return size


def _write(file: int, data: bytes, volume: Volume) -> None:
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
    except OSError as error:
        raise scratch_error(error, volume.path, volume.end, DONE) from error
