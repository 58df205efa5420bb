"""The draft of a mask: all attempts at a mask share its path, but each attempt has its own open file."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from segpipe.errors import OutputError
from segpipe.storage.files import remove

CHUNK = 2**22
"""Bytes per read."""


class Draft:
    """A new file, open for writing and reading.

    A later attempt at the same mask, by another process, unlinks this file and creates its own file under the same path.
    This attempt keeps its file through the descriptor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        """File descriptor; -1 after it is closed."""

    def chunks(self) -> Iterator[bytes]:
        """Yield the content of this file, even if another file has its path by now."""
        at = 0
        while chunk := os.pread(self.file, CHUNK, at):
            yield chunk
            at += len(chunk)

    def take_aside(self) -> None:
        """Rename the file to a name that no other attempt uses, so that the checked file is the published one.

        Raises:
            OutputError: the path belongs to the file of another attempt.
        """
        if self._is_there():
            self.path = self.path.rename(self.path.with_name(f".{secrets.token_hex(8)}.partial"))
        if not self._is_there():  # checked again: another attempt may have begun just before the rename
            raise OutputError("another process is writing the same mask: run segpipe again when it has ended")

    def discard(self) -> None:
        """Close the file, and remove it unless its path belongs to another file by now; safe to call twice."""
        if self.file < 0:
            return
        if self._is_there():
            remove(self.path)
        os.close(self.file)
        self.file = -1

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self.file), self.path.lstat())
        except OSError:
            return False
