"""Store in a local folder, or in a mounted folder of a file server."""

import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from segpipe.errors import OutputError
from segpipe.storage import Store, check_name
from segpipe.storage.existence import ABSENT, exists, is_folder
from segpipe.storage.files import commit, draft_name, is_utf8, partial, remove, unlinked
from segpipe.storage.paths import is_remote

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of file systems without hard links: exFAT, some FUSE, shared folders of virtual machines."""

SETTLED = 0.2

SIGNATURE = 132
"""Bytes from the start of a file within which every format has its signature; that of DICOM ends here (PS3.10, 7.1)."""

DRAFTS = ".drafts"
"""Hidden folder of the output, accessible to its owner alone: nobody else can plant a link where a draft is written."""

UNLOCKED = ".drafts-unlocked"
"""In place of ``DRAFTS`` in a folder that its writer has not locked: a run there removes ``DRAFTS`` at its end."""


@dataclass(frozen=True, slots=True)
class Folder(Store):
    """Store in a folder: a file is written under a hidden name, flushed if it must survive a power cut, and renamed."""

    root: Path
    drafts: str = DRAFTS
    """Name of the hidden folder of its drafts."""

    def __str__(self) -> str:
        return str(self.root)

    def path(self, name: str) -> str:
        return str(self.root / name)

    def _at(self, name: str) -> Path:
        return self.root / check_name(name)

    def aliases(self, name: str) -> set[str]:
        path = self.root / name
        return {str(path.absolute()), str(path.resolve())}

    def settled(self) -> "Folder":
        return Folder(self.root.absolute(), self.drafts)

    def is_inside(self, root: str) -> bool:
        return not is_remote(root) and self.root.resolve().is_relative_to(Path(root).resolve())

    def beside(self, files: Iterable[tuple[str, str]], stem: Callable[[str], str]) -> str | None:
        folder, real = self.root.resolve(), cache(os.path.realpath)  # resolve each folder once, not once per file
        for text, name in files:
            if is_remote(text):
                continue
            # plain strings: creating a Path for each of 100,000 files takes a second
            parent, file = os.path.split(os.path.realpath(text) if os.path.islink(text) else text)  # noqa: PTH114
            if os.path.join(real(parent), stem(file)) == os.path.join(folder, name):  # noqa: PTH118
                return text
        return None

    def check(self) -> None:
        # a Path raises where it may not look
        nearest = next(path for path in (self.root, *self.root.resolve().parents) if os.path.exists(path))  # noqa: PTH110
        if not is_folder(nearest):
            raise OutputError(f"the output must be a folder, and {nearest} is a file: name another with --output")
        if not is_utf8(path := str(self.root.absolute())):
            raise OutputError(f"the path of the output must be UTF-8, got {path!r}: name another with --output")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise OutputError(
                f"the output must be writable, and {nearest} is not: mend its permissions, or name another with --output"
            )

    def make(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)

    def read(self, name: str) -> bytes:
        # takes half the time of a Path
        with open(os.path.join(self.root, name), "rb", opener=_regular) as stream:  # noqa: PTH118
            return stream.read()

    def size(self, name: str) -> int | None:
        try:
            found = self._at(name).stat()
        except ValueError:
            return None
        except OSError as error:
            if error.errno in ABSENT:
                return None
            raise  # an unreachable file server may have the file
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def is_blank(self, name: str) -> bool:
        with self._at(name).open("rb", buffering=0) as stream:
            return not stream.read(SIGNATURE).strip(b"\0")

    def below(self, folder: str) -> Iterator[str]:
        return (f"{folder}/{entry.name}".lstrip("/") for entry in self._entries(folder) if entry.is_file())

    def folders(self, folder: str) -> Iterator[str]:
        return (f"{folder}/{entry.name}".lstrip("/") for entry in self._entries(folder) if entry.is_dir())

    def _entries(self, folder: str) -> "list[os.DirEntry[str]]":
        try:
            with os.scandir(self.root / folder) as entries:
                return list(entries)
        except FileNotFoundError:
            return []

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        yield self._at(name)

    def draft(self, name: str) -> Path:
        self._make_folder(self._at(name).parent)
        drafts = self.root / self.drafts
        drafts.mkdir(mode=0o700, exist_ok=True)
        _check_own(drafts)
        path = drafts / draft_name(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return unlinked(partial(path))

    def _make_folder(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        real, root = os.path.realpath(folder), os.path.realpath(self.root)
        if os.path.commonpath([real, root]) != root:
            raise OutputError(f"files of the output must lie in it, and {folder} is a link to {real}: remove the link")

    def disk(self) -> Path:
        return next(path for path in (self.root, *self.root.resolve().parents) if is_folder(path))

    def publish(self, draft: Path, name: str, *, flush: bool = True) -> None:
        commit(draft, self._at(name), flush=flush)

    def remove(self, name: str) -> None:
        self._at(name).unlink(missing_ok=True)

    def remove_folder(self, folder: str) -> None:
        path = self.root / folder
        shutil.rmtree(path, ignore_errors=True)
        if path.parent != self.root:
            with suppress(OSError):
                path.parent.rmdir()

    def sweep(self, some: re.Pattern[str] | None = None) -> None:
        """Remove the drafts left by processes that were stopped; with ``some``, only those of such a name."""
        with suppress(OSError, OutputError):
            drafts = self.root / self.drafts
            _check_own(drafts)
            if some is None:
                shutil.rmtree(drafts, ignore_errors=True)
                return
            for path in drafts.iterdir():
                if some.fullmatch(path.name):
                    remove(path)

    def tidy(self) -> None:
        """Remove the folder of drafts if it has no file: another process may write there."""
        for folder, _, _ in os.walk(self.root / self.drafts, topdown=False):
            with suppress(OSError):
                Path(folder).rmdir()

    def create(self, name: str, data: bytes) -> bool:
        path = self._at(name)
        mine = _beside(path)
        try:
            with mine.open("xb") as stream:
                stream.write(data)
            _link(mine, path)
        except FileExistsError:
            return False
        finally:
            remove(mine)
        return True

    def replace(self, name: str, was: bytes, data: bytes) -> bool:
        """Move the old file aside, and put it back if its content is not ``was``."""
        path = self._at(name)
        aside = _beside(path)
        with suppress(FileNotFoundError):
            path.rename(aside)
            if aside.read_bytes() != was:
                with suppress(FileExistsError):
                    os.link(aside, path)
            aside.unlink()
        return self.create(name, data)

    def leftovers(self, name: str) -> list[str]:
        return [path.relative_to(self.root).as_posix() for path in self.root.glob(f"{name}.????????")]

    def touch(self, name: str, data: bytes) -> None:
        del data  # whoever has taken the lock over touches it, too
        os.utime(self.root / name)

    def age(self, name: str) -> float:
        return time.time() - (self.root / name).stat().st_mtime


def _regular(path: str, flags: int) -> int:
    """Open a regular file; refuse pipes, which wait for a writer, and devices."""
    file = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(file).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # Python itself reports a folder
        os.close(file)
        raise OSError(errno.EINVAL, "it must be a regular file", path)
    return file


def _check_own(drafts: Path) -> None:
    """Check that drafts lie in a folder of this user, not behind a link or in another user's folder."""
    there = drafts.lstat()
    if not stat.S_ISDIR(there.st_mode) or there.st_uid not in (os.geteuid(), _owner_in(drafts.parent, there.st_uid)):
        raise OutputError(f"{drafts} must be a folder of the user who runs segpipe, and is not: remove it")
    if there.st_mode & 0o077:
        with suppress(OSError):  # file systems without permissions report one mode for all files
            drafts.chmod(0o700)


def _owner_in(folder: Path, found: int) -> int:
    """Owner of files that this process creates in a folder: a file server may map root to another user."""
    if found == os.geteuid():
        return found
    with tempfile.TemporaryFile(dir=folder) as probe:
        return os.fstat(probe.fileno()).st_uid


def _link(mine: Path, path: Path) -> None:
    """Create a hard link, which appears whole or not at all, on file servers too; write a copy where there are no links."""
    try:
        os.link(mine, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        data = mine.read_bytes()
        with path.open("xb") as stream:
            stream.write(data)
        time.sleep(SETTLED)  # a run that saw the file empty has removed it by now
        if not exists(path) or path.read_bytes() != data:
            raise FileExistsError from None


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}")
