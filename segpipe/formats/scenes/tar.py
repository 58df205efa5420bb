"""The members of a tar archive without compression, whose headers are not trusted.

Follows POSIX.1-2001 (ustar, pax) and GNU tar as far as GDAL's ``/vsitar/`` does, so that both see the same members.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from segpipe.errors import SourceError
from segpipe.formats.scenes.names import MEND
from segpipe.storage.existence import is_file
from segpipe.storage.files import reading_errors

BLOCK = 512
"""Bytes of a header, and unit of all sizes."""

REGULAR, FOLDER, SKIPPED, LONG_NAME = b"0\0", b"5", b"xg", b"L"
"""Kinds of members: files, folders, records with more on the next member, and its name if it is longer than 100 bytes."""

MOST_EXTRA = 2**16
"""Bytes of a record with more on a member."""

CHECKSUM = slice(148, 156)


@dataclass(frozen=True, slots=True)
class Member:
    """Where a file lies in an archive."""

    offset: int
    size: int


def members(path: str, most: int) -> Mapping[str, Member]:
    """The files of an archive by their names; only headers are read.

    Args:
        path: a file of this machine.
        most: most files.

    Raises:
        SourceError: it is damaged, is compressed, has too many files, or names that lead out of it or are there twice.
    """
    found: dict[str, Member] = {}
    with reading_errors(path, SourceError), Path(path).open("rb") as stream:
        for name, member in _files(path, stream):
            _check_name(path, name, found)
            found[name] = member
            if len(found) > most:
                raise SourceError(f"{path}: a product must have at most {most:,} files, and this one has more: {MEND}")
    return found


def first_member(path: str) -> str | None:
    """Name of the first file of an archive; None if the file is no archive without compression.

    Raises:
        OSError: it cannot be read.
    """
    if not is_file(path):  # opening a pipe may block forever
        return None
    with Path(path).open("rb") as stream, suppress(SourceError):
        return next((name for name, _ in _files(path, stream)), None)
    return None


def _files(path: str, stream: BinaryIO) -> Iterator[tuple[str, Member]]:
    end, start, named = os.fstat(stream.fileno()).st_size, 0, ""
    while True:
        stream.seek(start)
        head = stream.read(BLOCK)
        if start and not head.strip(b"\0"):
            return  # a block of zeros ends an archive, or its end does
        size, kind = _size(path, head), head[156:157]
        offset, start = start + BLOCK, start + BLOCK + -(-size // BLOCK) * BLOCK
        if offset + size > end:
            raise SourceError(f"{path} is damaged: it ends within {_name(head)}: {MEND}")
        if kind in REGULAR:
            yield named or _name(head), Member(offset, size)
        elif kind == LONG_NAME:
            named = _extra(path, stream, size).rstrip(b"\0").decode("utf-8", "replace")
            continue
        elif kind in SKIPPED:
            if b" path=" in _extra(path, stream, size):
                raise SourceError(f"{path}: names of members must lie in their headers, and one is apart: unpack it")
        elif kind != FOLDER:
            raise SourceError(f"{path}: members must be files and folders, and {_name(head)} is neither: unpack it")
        named = ""


def _size(path: str, head: bytes) -> int:
    """Bytes of a member by its header, whose checksum is compared.

    Raises:
        SourceError: it is no header.
    """
    if len(head) == BLOCK:
        total = sum(head) - sum(head[CHECKSUM]) + 8 * ord(" ")
        try:
            size, said = (int(head[where].strip(b" \0") or b"0", 8) for where in (slice(124, 136), CHECKSUM))
        except ValueError:
            size, said = 0, -1
        if size >= 0 and said == total:
            return size
    raise SourceError(f"{path} is damaged, or no tar archive without compression: a header of a member is not right: {MEND}")


def _extra(path: str, stream: BinaryIO, size: int) -> bytes:
    if size > MOST_EXTRA:
        raise SourceError(f"{path}: a name of a member must be short, got a record of {size:,} bytes: {MEND}")
    return stream.read(size)


def _name(head: bytes) -> str:
    name, folder = (head[where].partition(b"\0")[0].decode("utf-8", "replace") for where in (slice(100), slice(345, 500)))
    return f"{folder}/{name}" if folder and head[257:263] == b"ustar\0" else name


def _check_name(path: str, name: str, found: Mapping[str, Member]) -> None:
    if not name or name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
        raise SourceError(f"{path}: names in an archive must lie below its root, got {name!r}: {MEND}")
    if name in found:
        raise SourceError(f"{path}: names in an archive must differ, and {name} is there twice: {MEND}")
