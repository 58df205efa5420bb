"""List folders: every file once, however many links lead to it, and a problem for each folder that cannot be read."""

import fnmatch
import glob
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from os.path import join  # of 100,000 names: a Path for each takes a second

from segpipe.errors import of_system
from segpipe.storage.existence import ABSENT, is_folder, is_there
from segpipe.storage.retry import persistently

RETRIES = 1
"""Retries per folder; more would delay every folder while a file server is down."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A folder by the path that led to it, and by its real path without links."""

    path: str
    real: str

    @classmethod
    def at(cls, path: str) -> "_Place":
        return cls(path, os.path.realpath(path))

    def __truediv__(self, name: str) -> "_Place":
        path = join(self.path, name)  # noqa: PTH118
        return _Place(path, os.path.realpath(path) if os.path.islink(path) else join(self.real, name))  # noqa: PTH114, PTH118


@dataclass
class Listing:
    """Lists folders at any depth; an unreadable folder costs only its own content."""

    _problems: dict[str, str] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        """One line for each folder or file that could not be read."""
        return list(self._problems.values())

    def add_problem(self, place: str, problem: str) -> None:
        """Note why the content of a place is left out."""
        self._problems[place] = problem

    @contextmanager
    def noting(self, place: str) -> Iterator[None]:
        """Turn an ``OSError`` into the problem of a place."""
        try:
            yield
        except OSError as error:
            self.add_problem(place, UNREADABLE.format(place, of_system(error)))

    def below(self, root: str, closed: Callable[[str], bool] = lambda _: False) -> Iterator[tuple[str, list[str]]]:
        """Yield every visible folder from ``root`` down, once, with the sorted names of its files.

        Args:
            root: the first folder.
            closed: whether a folder is yielded without its files, and nothing below it.
        """
        seen: set[str] = set()
        left = [_Place.at(root)]
        while left:
            here = left.pop()
            if here.real in seen:  # a link back up
                continue
            seen.add(here.real)
            folders, files = ([], []) if closed(here.path) else self._read(here.path)
            yield here.path, files
            left += [here / name for name in reversed(matched(folders, "*"))]

    def matching(self, root: str, pattern: Sequence[str], closed: Callable[[str], bool] = lambda _: False) -> Iterator[str]:
        """Yield the files below ``root``, and the folders for which ``closed`` is true, that match the parts of a pattern.

        They come in no order, with the rules of ``glob``.

        A folder is searched once for what follows a ``**``: with links that lead back up ``glob`` finds a file forty times,
        and with two of them in one folder it does not end.
        """
        seen: set[tuple[str, int]] = set()
        left = [(_Place.at(root), tuple(pattern))]
        while left:
            here, (part, *rest) = left.pop()
            if part == "**":
                if (key := (here.real, len(rest))) in seen:
                    continue
                seen.add(key)
                if rest:
                    left.append((here, tuple(rest)))
                inside = self._folders(here.path, "*")
                if not rest:  # such a folder is yielded itself
                    inside = [name for name in inside if not closed(join(here.path, name))]  # noqa: PTH118
                left += [(here / name, ("**", *rest)) for name in inside]
            elif rest:
                left += [(here / name, tuple(rest)) for name in self._folders(here.path, part)]
            if not rest:
                yield from (join(here.path, name) for name in self._files(here.path, part))  # noqa: PTH118
                folders = (join(here.path, name) for name in self._folders(here.path, part))  # noqa: PTH118
                yield from filter(closed, folders)

    def _folders(self, folder: str, part: str) -> list[str]:
        if glob.has_magic(part):
            return matched(self._read(folder)[0], part)
        with self.noting(path := join(folder, part)):  # noqa: PTH118
            return [part] if is_folder(path) else []
        return []

    def _files(self, folder: str, part: str) -> list[str]:
        if glob.has_magic(part):
            return matched(self._read(folder)[1], part)
        with self.noting(path := join(folder, part)):  # noqa: PTH118
            return [part] if is_there(path) and not is_folder(path) else []
        return []

    def _read(self, folder: str) -> tuple[list[str], list[str]]:
        """Sorted names of the folders and of all other entries of a folder; none if it cannot be read to its end, because an
        incomplete series would pass for a shorter volume."""
        folders, files = list[str](), list[str]()
        with self.noting(folder):
            for entry in persistently(partial(_entries, folder), RETRIES):
                (folders if self._is_folder(entry) else files).append(entry.name)
            return sorted(folders), sorted(files)
        return [], []

    def _is_folder(self, entry: "os.DirEntry[str]") -> bool:
        """Whether an entry is a folder; False, with a problem, if unknown: opening it as a file fails its case or series."""
        with self.noting(entry.path):
            return _is_folder(entry)
        return False


UNREADABLE = (
    "a part of the input cannot be read, and its cases are left out: {}: {}; "
    "run the same command again, or take it away first"
)


def _entries(folder: str) -> "list[os.DirEntry[str]]":
    with os.scandir(folder or ".") as entries:
        return list(entries)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        return False  # opening it reports the reason


def matched(names: Sequence[str], pattern: str) -> list[str]:
    """Names that match a pattern; hidden ones only if the pattern begins with a dot."""
    return [name for name in fnmatch.filter(names, pattern) if pattern.startswith(".") or not name.startswith(".")]
