"""Output storage: one interface for a local folder and for a prefix of a bucket."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from segpipe.errors import OutputError, on_failure
from segpipe.messages.printable import printable_json
from segpipe.messages.url_secrets import cleaned
from segpipe.storage.existence import ABSENT
from segpipe.storage.files import output_errors, remove, unshared

WIDTH = 120
"""Longest JSON value, in characters, that is written on one line."""

FORBIDDEN = ("", ".", "..")
"""Parts of a name that would lead out of the store."""

_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def check_name(name: str) -> str:
    """Check that a name stays inside its store, and return it.

    Raises:
        OutputError: the name is absolute, contains a NUL, or has a part that is empty, ``.`` or ``..``.
    """
    if "\0" in name or any(part in FORBIDDEN for part in name.split("/")):
        raise OutputError(f"a file of the output must have a name below it, without empty parts, . and .., got {name!r}")
    return name


class Store(ABC):
    """Files by name, with ``/`` between folders; a file is whole or absent.

    Every fault, of a bucket too, is raised as an ``OSError``, so that one rule decides which faults are transient.
    ``str()`` of a store is the path or URL that the user knows it by.
    """

    def check_name(self, name: str) -> str:
        """Check that this store can hold a file of this name, and return the name.

        Raises:
            OutputError: it cannot.
        """
        return check_name(name)

    @abstractmethod
    def path(self, name: str) -> str:
        """Path or URL of a file, as shown to the user."""

    @abstractmethod
    def aliases(self, name: str) -> set[str]:
        """Absolute paths under which the same file may appear as a source of the run."""

    @abstractmethod
    def settled(self) -> "Store":
        """The same store with an absolute path, which survives a change of the working directory."""

    @abstractmethod
    def is_inside(self, root: str) -> bool:
        """Whether the store lies below a folder that is searched for input."""

    @abstractmethod
    def beside(self, files: Iterable[tuple[str, str]], stem: Callable[[str], str]) -> str | None:
        """Path of the first (path, name) of ``files`` that lies here under its name; ``stem`` removes a suffix."""

    @abstractmethod
    def check(self) -> None:
        """Check, without writing, that the store is writable.

        Raises:
            OutputError: it is not; the message says what to mend.
        """

    @abstractmethod
    def make(self) -> None:
        """Create the store if it does not exist."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Read a whole file."""

    def has(self, name: str) -> bool:
        """Whether a file exists."""
        return self.size(name) is not None

    def read_if_there(self, name: str) -> bytes | None:
        """Read a file; None if there is no such file."""
        try:
            return self.read(name)
        except OSError as error:
            if error.errno in ABSENT:
                return None
            raise  # the file may exist on an unreachable server

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None where it does not exist."""

    @abstractmethod
    def is_blank(self, name: str) -> bool:
        """Whether a file begins with zeros, as after a disk failure or a power cut that lost its blocks."""

    @abstractmethod
    def below(self, folder: str) -> Iterator[str]:
        """Yield the names of the files directly in a folder (``""``: the root); nothing where the folder does not exist."""

    @abstractmethod
    def folders(self, folder: str) -> Iterator[str]:
        """Yield the names of the folders directly in a folder; nothing where it does not exist."""

    @abstractmethod
    def local(self, name: str) -> AbstractContextManager[Path]:
        """Context manager: a local file with the same content, valid inside the block."""

    @abstractmethod
    def draft(self, name: str) -> Path:
        """Local path to write a file to before ``publish``: hidden, and the same for every attempt, so that a crash leaves
        at most one."""

    @abstractmethod
    def disk(self) -> Path:
        """Folder on the local disk that drafts are written to."""

    @abstractmethod
    def publish(self, draft: Path, name: str, *, flush: bool = True) -> None:
        """Move a finished draft to its final name; ``flush`` as in ``write``."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file if it exists."""

    @abstractmethod
    def remove_folder(self, folder: str) -> None:
        """Remove a folder and its contents as far as possible, then its parent if that is empty."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove the drafts left by processes that were stopped."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Write a small file unless it exists, and return whether it was written; of concurrent calls, one succeeds."""

    @abstractmethod
    def replace(self, name: str, was: bytes, data: bytes) -> bool:
        """Replace a small file whose content is ``was``; return whether this call did: of concurrent calls, one succeeds."""

    @abstractmethod
    def leftovers(self, name: str) -> list[str]:
        """Names of the files that ``create`` and ``replace`` leave beside a file if they are killed."""

    @abstractmethod
    def touch(self, name: str, data: bytes) -> None:
        """Refresh the modification time of a file whose content is ``data``."""

    @abstractmethod
    def age(self, name: str) -> float:
        """Seconds since a file was written or touched."""

    def write(self, name: str, data: bytes, *, flush: bool = True) -> None:
        """Write a file; it appears whole or not at all.

        Args:
            name: name of the file.
            data: its content.
            flush: wait until the file would survive a power cut; otherwise one may lose it or leave it empty.
        """
        with self.draft_of(name, flush=flush) as draft:
            draft.write_bytes(data)

    def write_json(self, name: str, value: dict[str, Any], *, flush: bool = True) -> None:
        """Write a value as JSON; errors as of ``write``."""
        # surrogates (bytes of file names that are not UTF-8) are written as JSON escapes
        text = printable_json(_pretty(cleaned(value)) + "\n")
        self.write(name, text.encode(errors="backslashreplace"), flush=flush)

    @contextmanager
    def writing(self, name: str) -> Iterator[TextIO]:
        """Open a text file that appears under its name once the block succeeds; line endings are written as given."""
        errors = "backslashreplace"  # for bytes of file names that are not UTF-8
        with self.draft_of(name) as draft, draft.open("w", encoding="utf-8", errors=errors, newline="") as stream:
            yield stream

    @contextmanager
    def draft_of(self, name: str, *, flush: bool = True) -> Iterator[Path]:
        """Yield a draft of this attempt alone; publish it if the block succeeds, remove it if it does not."""
        with output_errors(self.path(name)):
            draft = unshared(self.draft(name))
            with on_failure(lambda: remove(draft)):
                yield draft
                self.publish(draft, name, flush=flush)

    def discard(self, name: str) -> None:
        """Remove a file that is no longer needed; a failure is ignored, and a later run tries again."""
        with suppress(OSError):
            self.remove(name)

    def is_among(self, name: str, sources: Collection[str]) -> bool:
        """Whether one of a file's absolute paths is among ``sources``."""
        return any(alias in sources for alias in self.aliases(name))


def _pretty(value: Any, indent: str = "") -> str:
    """JSON text: a value that fits on a line stays on one, any other has one line per item."""
    line = _json(value)
    if len(line) <= WIDTH or not isinstance(value, dict | list | tuple):
        return line
    deeper = indent + "  "
    if isinstance(value, dict):
        items, (opening, closing) = [f"{_json(key)}: {_pretty(item, deeper)}" for key, item in value.items()], "{}"
    else:
        items, (opening, closing) = [_pretty(item, deeper) for item in value], "[]"
    return f"{opening}\n{deeper}" + f",\n{deeper}".join(items) + f"\n{indent}{closing}"
