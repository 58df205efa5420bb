"""The files of a product in a folder, or in a zip or tar archive; names in an archive are not trusted."""

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from segpipe.errors import SourceError, of_system
from segpipe.formats.scenes.names import MEND, SAFE, TAR
from segpipe.formats.scenes.tar import members
from segpipe.storage.existence import is_file
from segpipe.storage.files import reading_errors
from segpipe.storage.retry import is_passing

MOST_FILES = 20_000
"""Files of a product; those of ESA have some 100."""

MOST_BYTES = 2**22
"""Bytes of a metadata file, and of the directory of an archive; those of ESA have 60 kB and 20 kB."""

END, END_64 = b"PK\x05\x06", b"PK\x06\x06"
"""Marks of the records at the end of an archive, the second for large ones (APPNOTE.TXT, 4.3.14 and 4.3.16)."""

TAIL = 2**16 + 128
"""Bytes at the end of an archive in which these records lie."""

MOST_RATIO, MOST_PLAIN = 200, 2**20
"""Images are compressed already: a member above this size that shrank to less than its 200th is no image."""

HEAD = 512
"""Bytes in which the name of the first member of an archive ends."""


@dataclass(frozen=True, slots=True)
class Container:
    """The files of a product by their names below its root, with ``/`` between folders."""

    root: str
    """Path of the folder or the archive."""
    names: tuple[str, ...]
    archive: Literal["zip", "tar"] | None = None
    prefix: str = ""
    """What precedes the names in the archive."""

    def path(self, name: str) -> str:
        """Path by which GDAL opens a file of the product, also inside an archive."""
        if self.archive is None:
            return os.path.join(self.root, name)  # noqa: PTH118
        return f"/vsi{self.archive}/{self.root}/{self.prefix}{name}"

    def read(self, name: str) -> bytes:
        """The content of a small file.

        Raises:
            SourceError: it cannot be read, or is larger than metadata are.
        """
        try:
            data = self._bytes(name)
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
            if isinstance(error, OSError) and is_passing(error):
                raise SourceError(f"{self.root}: {name} cannot be read: {of_system(error)}") from error
            raise SourceError(f"{self.root}: {name} cannot be read: {error}: {MEND}") from error
        if len(data) > MOST_BYTES:
            raise SourceError(f"{self.root}: {name} must be metadata of at most {MOST_BYTES:,} bytes, and is longer: {MEND}")
        return data

    def _bytes(self, name: str) -> bytes:
        if self.archive == "tar":
            return self._bytes_of_tar(name)
        if self.archive is None:
            if not is_file(path := Path(self.root, name)):  # opening a pipe may block forever
                raise SourceError(f"{path} must be a regular file: {MEND}")
            with path.open("rb") as stream:
                return stream.read(MOST_BYTES + 1)
        with zipfile.ZipFile(self.root) as archive, archive.open(self.prefix + name) as member:
            return member.read(MOST_BYTES + 1)

    def _bytes_of_tar(self, name: str) -> bytes:
        member = members(self.root, MOST_FILES)[self.prefix + name]
        with Path(self.root).open("rb") as stream:
            stream.seek(member.offset)
            return stream.read(min(member.size, MOST_BYTES + 1))

    def check(self, names: Sequence[str]) -> None:
        """Check members of a zip archive by its directory before GDAL reads them.

        Raises:
            SourceError: one is encrypted, is there twice, or would unpack to far more bytes than an image.
        """
        if self.archive != "zip":
            return  # members of a tar archive are as long as they are, and their names were compared
        with _archive(self.root) as archive:
            for name in names:
                _check_member(self.root, self.prefix + name, archive)


def container_at(path: str) -> Container:
    """The names of all files in the folder or archive of a product.

    Raises:
        SourceError: it cannot be read, is a damaged archive, has too many files, or names of files that lead out of it.
    """
    with reading_errors(path, SourceError):
        if not is_file(path):
            return _of_folder(path)
    return _of_tar(path) if path.lower().endswith(TAR) else _of_archive(path)


def _of_tar(path: str) -> Container:
    return Container(path, tuple(sorted(members(path, MOST_FILES))), archive="tar")


def _of_folder(root: str) -> Container:
    names: list[str] = []
    for folder, folders, files in os.walk(root, onerror=_unreadable):
        folders.sort()
        below = os.path.relpath(folder, root).replace(os.sep, "/")
        names += [file if below == "." else f"{below}/{file}" for file in sorted(files)]
        _check_count(root, len(names))
    return Container(root, tuple(names))


def _unreadable(error: OSError) -> None:
    raise SourceError(f"{error.filename} cannot be read: {of_system(error)}") from error


def _check_count(root: str, count: int) -> None:
    if count > MOST_FILES:
        raise SourceError(f"{root}: a product must have at most {MOST_FILES:,} files, and this one has more: {MEND}")


def _archive(path: str) -> zipfile.ZipFile:
    try:
        if (size := _directory_bytes(path)) > MOST_BYTES:  # zipfile would read all of it
            raise SourceError(
                f"{path}: the directory of an archive must have at most {MOST_BYTES:,} bytes, got {size:,}: {MEND}"
            )
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise SourceError(f"{path} is damaged: its directory of files cannot be read: {error}: {MEND}") from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {of_system(error)}") from error


def _directory_bytes(path: str) -> int:
    """Bytes of the directory of an archive, as the archive says; 0 where it says nothing."""
    with Path(path).open("rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - TAIL))
        tail = stream.read(TAIL)
    end, large = tail.rfind(END), tail.rfind(END_64)
    sizes = [int.from_bytes(tail[end + 12 : end + 16], "little")] if end >= 0 else []
    if large >= 0:
        sizes = [size for size in sizes if size < 2**32 - 1] + [int.from_bytes(tail[large + 40 : large + 48], "little")]
    return max(sizes, default=0)


def _of_archive(path: str) -> Container:
    with _archive(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    _check_count(path, len(names))
    for name in names:
        if name.startswith("/") or "\\" in name or "\0" in name or ".." in PurePosixPath(name).parts:
            raise SourceError(f"{path}: names in an archive must lie below its root, got {name!r}: {MEND}")
    tops = sorted({name.partition("/")[0] for name in names if name.partition("/")[0].lower().endswith(SAFE)})
    if len(tops) > 1:
        raise SourceError(f"{path}: an archive must hold one product, got {', '.join(tops)}: unpack it")
    prefix = f"{tops[0]}/" if tops else ""
    inside = tuple(sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix)))
    return Container(path, inside, archive="zip", prefix=prefix)


def _check_member(path: str, name: str, archive: zipfile.ZipFile) -> None:
    found = [info for info in archive.infolist() if info.filename == name]
    if len(found) != 1:
        raise SourceError(f"{path}: names in an archive must differ, and {name} is there {len(found)} times: {MEND}")
    info = found[0]
    if info.flag_bits & 1:
        raise SourceError(f"{path}: {name} is encrypted: unpack the archive")
    if info.file_size > MOST_PLAIN and info.file_size > MOST_RATIO * info.compress_size:
        raise SourceError(
            f"{path}: {name} would unpack from {info.compress_size:,} to {info.file_size:,} bytes, as no image does: {MEND}"
        )


def holds_product(path: str) -> bool:
    """Whether a zip archive holds a product of Sentinel-2, by the name of its first member.

    Raises:
        OSError: it cannot be read.
    """
    if not is_file(path):  # opening a pipe may block forever
        return False
    with Path(path).open("rb") as stream:
        head = stream.read(HEAD)
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head.startswith(b"PK\x03\x04") and SAFE.encode() in name.partition(b"/")[0].lower()[-len(SAFE) :]
