"""A draft held open: its path is the same for every attempt at a mask, its descriptor is one attempt's alone."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from segpipe.errors import OutputError
from segpipe.storage.files import remove

CHUNK = 2**22
"""Bytes that are read at one go."""


class Draft:
    """A new file, open to be written and read.

    Whoever begins the same mask later unlinks it and puts a file of their own under its path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        """Descriptor; -1 once it is closed."""

    def chunks(self) -> Iterator[bytes]:
        """The whole file, whatever lies under its path by now."""
        at = 0
        while chunk := os.pread(self.file, CHUNK, at):
            yield chunk
            at += len(chunk)

    def take_aside(self) -> None:
        """Give the file a name that no other attempt has: what is checked there is what is published.

        Raises:
            OutputError: another file lies under its path.
        """
        if self._is_there():
            self.path = self.path.rename(self.path.with_name(f".{secrets.token_hex(8)}.partial"))
        if not self._is_there():  # asked anew: another attempt may have begun just before the file was renamed
            raise OutputError("another attempt writes the same mask: run segpipe again once that has ended")

    def discard(self) -> None:
        """Remove the file, and no other; safe to call twice."""
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
