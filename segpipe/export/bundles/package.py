"""The files of a described model: a folder, or a zip of it."""

import hashlib
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from segpipe.errors import ExportError, correct_path, of_system
from segpipe.messages.printable import printable
from segpipe.storage.documents import DocumentError, read_json, shortened
from segpipe.storage.existence import exists, is_file, is_folder
from segpipe.storage.yaml_text import read_yaml


@dataclass(frozen=True)
class Package:
    """Files by name, relative to ``root``; those of a zip are unpacked to ``scratch`` when they are needed."""

    source: Path
    root: str
    """Folder of the description inside a zip, with a slash at its end; empty for the top, and for a folder."""
    archive: zipfile.ZipFile | None
    scratch: Path

    def has(self, name: str) -> bool:
        """Whether there is a regular file of that name inside the package."""
        if not _is_inside(name):
            return False
        if self.archive is None:
            return is_file(self.source / name)
        return self.root + _normal(name) in self.archive.namelist()

    def path(self, name: str) -> Path:
        """Path of a file of the package, unpacked if need be.

        Raises:
            ExportError: there is no such file, or it cannot be unpacked.
        """
        if not self.has(name):
            raise ExportError(f"{self.source} names {printable(name)}, which must be a file inside it, and is not: add it")
        if self.archive is None:
            return self.source / name
        target = self.scratch / _normal(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not exists(target):
            self._unpack(self.root + _normal(name), target)
        return target

    def _unpack(self, member: str, target: Path) -> None:
        assert self.archive is not None
        try:
            with self.archive.open(member) as packed, target.open("wb") as file:
                shutil.copyfileobj(packed, file, 2**20)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise ExportError(f"{self.source}: {member} cannot be unpacked ({error}): get the file again") from None
        except OSError as error:
            raise ExportError(f"{self.source}: {member} cannot be unpacked: {of_system(error)}") from None

    def document(self, name: str) -> dict[str, Any]:
        """The mapping in a YAML or JSON file of the package.

        Raises:
            ExportError: it cannot be read, or is no mapping.
        """
        path = self.path(name)
        try:
            values = read_json(path) if path.suffix == ".json" else read_yaml(path)
        except DocumentError as error:
            raise ExportError(f"{self.source}: {name} {error}") from None
        if not isinstance(values, dict):
            raise ExportError(f"{self.source}: {name} must hold keys with values, got {type(values).__name__}")
        return values

    def check_digest(self, name: str, sha256: Any) -> Path:
        """Path of a file whose SHA-256 the description gives, after comparing them; None as a digest is not compared.

        Raises:
            ExportError: the file is another one.
        """
        path = self.path(name)
        if sha256 is not None:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != str(sha256).lower():
                raise ExportError(
                    f"{self.source}: {name} must have the SHA-256 {shortened(sha256)} of the description, got {found}: "
                    "it is damaged or another version, get it again"
                )
        return path


def _is_inside(name: str) -> bool:
    parts = PurePosixPath(name)
    return bool(name) and "\0" not in name and "://" not in name and not parts.is_absolute() and ".." not in parts.parts


def _normal(name: str) -> str:
    return str(PurePosixPath(name))


@contextmanager
def opened(source: Path, names: tuple[str, ...], what: str) -> Iterator[tuple[Package, str]]:
    """Yield the package at a path, and which of the names its description has.

    Args:
        source: a folder, a zip, or the description itself.
        names: possible names of the description, as suffixes of paths, best first.
        what: kind of package, for messages.

    Raises:
        ExportError: there is none.
    """
    with tempfile.TemporaryDirectory(prefix="segpipe-") as scratch:
        if is_file(source) and zipfile.is_zipfile(source):
            with _archive(source) as archive:
                root, name = _in_zip(source, archive, names, what)
                yield Package(source, root, archive, Path(scratch)), name
        else:
            folder, name = _in_folder(source, names, what)
            yield Package(folder, "", None, Path(scratch)), name


def _archive(source: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError) as error:
        raise ExportError(f"{source} cannot be read as a zip ({error}): get the file again") from None


def _in_zip(source: Path, archive: zipfile.ZipFile, names: tuple[str, ...], what: str) -> tuple[str, str]:
    """The description nearest to the top of a zip."""
    members = sorted(archive.namelist(), key=lambda member: (member.count("/"), member))
    for name in names:
        for member in members:
            if member == name or member.endswith("/" + name):
                return member.removesuffix(name), name
    raise _none(source, names, what)


def _in_folder(source: Path, names: tuple[str, ...], what: str) -> tuple[Path, str]:
    if not exists(source):
        raise ExportError(f"{what} must exist, got {source}: {correct_path(source)}")
    for name in names:
        if is_folder(source) and is_file(source / name):
            return source, name
        if is_file(source) and str(PurePosixPath(*source.resolve().parts)).endswith("/" + name):
            return source.resolve().parents[name.count("/")], name
    raise _none(source, names, what)


def _none(source: Path, names: tuple[str, ...], what: str) -> ExportError:
    return ExportError(f"{what} must hold {' or '.join(names)}, got {source}, which does not: name the folder or zip of one")
