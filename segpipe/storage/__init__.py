"""Where a run leaves its files: one noun for a folder of this machine and for a prefix of a bucket."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from segpipe.errors import OutputError
from segpipe.messages.printable import printable_json
from segpipe.messages.redact import cleaned
from segpipe.storage.files import output_errors, remove

WIDTH = 120
"""Characters up to which a value of JSON has one line."""

FORBIDDEN = ("", ".", "..")
"""Parts of a name that would lead elsewhere."""

_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def check_name(name: str) -> str:
    """The same name, which stays below the store that it is for.

    Raises:
        OutputError: it is absolute, or has an empty part, ``.`` or ``..``, or a NUL.
    """
    if "\0" in name or any(part in FORBIDDEN for part in name.split("/")):
        raise OutputError(f"a file of the output must have a name below it, without empty parts, . and .., got {name!r}")
    return name


class Store(ABC):
    """Files by name, with ``/`` between folders; each is there whole or not at all.

    What goes wrong is an ``OSError``, of a bucket too, so that one rule says what may pass by itself.
    ``str()`` of a store is what a user calls it.
    """

    def check_name(self, name: str) -> str:
        """The same name, of which a file can lie here.

        Raises:
            OutputError: none can.
        """
        return check_name(name)

    @abstractmethod
    def path(self, name: str) -> str:
        """What a user calls a file."""

    @abstractmethod
    def aliases(self, name: str) -> set[str]:
        """Absolute paths by which a run may know the same file as a source."""

    @abstractmethod
    def settled(self) -> "Store":
        """The same store, wherever this process goes from here."""

    @abstractmethod
    def is_inside(self, root: str) -> bool:
        """Whether it lies below a folder that is searched for input."""

    @abstractmethod
    def beside(self, files: Iterable[tuple[str, str]], stem: Callable[[str], str]) -> str | None:
        """The first of ``files``, pairs of path and name, that lies here under its name, without the suffix (``stem``)."""

    @abstractmethod
    def check(self) -> None:
        """Raise where nothing can be written, as far as that shows without writing.

        Raises:
            OutputError: with what to mend.
        """

    @abstractmethod
    def make(self) -> None:
        """Be there, from now on."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """All of a file."""

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return self.size(name) is not None

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file; None where it is not there."""

    @abstractmethod
    def is_blank(self, name: str) -> bool:
        """Whether a file begins with zeros, as one whose blocks were lost with a disk or a power cut."""

    @abstractmethod
    def below(self, folder: str) -> Iterator[str]:
        """Names of the files directly in a folder, ``""`` for the store's own; none where it is not there."""

    @abstractmethod
    def folders(self, folder: str) -> Iterator[str]:
        """Names of the folders directly in a folder; none where it is not there."""

    @abstractmethod
    def local(self, name: str) -> AbstractContextManager[Path]:
        """A file of this machine with the same content, while the block lasts."""

    @abstractmethod
    def draft(self, name: str) -> Path:
        """A file of this machine to write a file in before it gets its name: hidden, and the same for every attempt, so that
        a crash leaves at most one."""

    @abstractmethod
    def disk(self) -> Path:
        """A folder of this machine, on the disk that drafts are written to."""

    @abstractmethod
    def publish(self, draft: Path, name: str, *, flush: bool = True) -> None:
        """Give a finished draft its name, and leave none behind; ``flush`` as in ``write``."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Take a file away, if it is there."""

    @abstractmethod
    def remove_folder(self, folder: str) -> None:
        """Take a folder away with all that is in it, as far as that can be done, and the one above if it is empty then."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove the drafts that stopped processes have left."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Write a small file unless there is one; of many at once, one succeeds."""

    @abstractmethod
    def replace(self, name: str, was: bytes, data: bytes) -> bool:
        """Write a small file where there is one that says ``was``, and nowhere else; of many at once, one succeeds."""

    @abstractmethod
    def leftovers(self, name: str) -> list[str]:
        """What ``create`` and ``replace`` leave beside a file if they are killed."""

    @abstractmethod
    def touch(self, name: str, data: bytes) -> None:
        """Make a file young again that says ``data``."""

    @abstractmethod
    def age(self, name: str) -> float:
        """Seconds since a file was written or touched."""

    def write(self, name: str, data: bytes, *, flush: bool = True) -> None:
        """Write a file, whole or not at all.

        Args:
            name: of the file.
            data: all of it.
            flush: wait until it would outlast a power cut; without, it may be gone after one, or there and empty.
        """
        with self.draft_of(name, flush=flush) as draft:
            draft.write_bytes(data)

    def write_json(self, name: str, value: dict[str, Any], *, flush: bool = True) -> None:
        # what stands for a byte of a name that is no UTF-8 is escaped, as JSON escapes it
        text = printable_json(_pretty(cleaned(value)) + "\n")
        self.write(name, text.encode(errors="backslashreplace"), flush=flush)

    @contextmanager
    def writing(self, name: str) -> Iterator[TextIO]:
        """A text file that has its name once the block has ended well; lines end as they are written."""
        errors = "backslashreplace"  # of bytes of file names that are no UTF-8
        with self.draft_of(name) as draft, draft.open("w", encoding="utf-8", errors=errors, newline="") as stream:
            yield stream

    @contextmanager
    def draft_of(self, name: str, *, flush: bool = True) -> Iterator[Path]:
        """A draft that has its name once the block has ended well, and that is gone if it has not."""
        with output_errors(self.path(name)):
            draft = self.draft(name)
            try:
                yield draft
                self.publish(draft, name, flush=flush)
            except BaseException:
                remove(draft)
                raise

    def discard(self, name: str) -> None:
        """Take away what is of no use; where that cannot be done, a later run does it."""
        with suppress(OSError):
            self.remove(name)

    def is_among(self, name: str, sources: Collection[str]) -> bool:
        """Whether a file is one of these, by their absolute paths."""
        return any(alias in sources for alias in self.aliases(name))


def _pretty(value: Any, indent: str = "") -> str:
    """JSON in which whatever fits has a line, and all else a line for each of its items."""
    line = _json(value)
    if len(line) <= WIDTH or not isinstance(value, dict | list | tuple):
        return line
    deeper = indent + "  "
    if isinstance(value, dict):
        items, (opening, closing) = [f"{_json(key)}: {_pretty(item, deeper)}" for key, item in value.items()], "{}"
    else:
        items, (opening, closing) = [_pretty(item, deeper) for item in value], "[]"
    return f"{opening}\n{deeper}" + f",\n{deeper}".join(items) + f"\n{indent}{closing}"
