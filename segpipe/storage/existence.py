"""Whether a path exists; raises an error if that cannot be determined, where ``os.path`` answers no."""

import errno
import os
import stat
from pathlib import Path

ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EBADF, errno.ENAMETOOLONG})
"""Errors that mean that nothing exists; any other, such as that of an unreachable file server, leaves the question open."""


def is_file(path: str | Path) -> bool:
    """Whether a path, of any length, leads to a regular file.

    Raises:
        OSError: this cannot be determined.
    """
    return stat.S_ISREG(_mode(path))


def is_folder(path: str | Path) -> bool:
    """Whether a path, of any length, leads to a folder.

    Raises:
        OSError: this cannot be determined.
    """
    return stat.S_ISDIR(_mode(path))


def exists(path: str | Path) -> bool:
    """Whether a path, of any length, leads to anything.

    Raises:
        OSError: this cannot be determined.
    """
    return _mode(path) != 0


def is_there(path: str | Path) -> bool:
    """Whether a path leads to anything, or is a broken link.

    Raises:
        OSError: this cannot be determined.
    """
    return _mode(path, links=False) != 0


def real_path(path: str) -> str:
    """The path without links, ``..`` and the current folder, whether or not anything exists there.

    Raises:
        OSError: a part of the path cannot be examined; ``os.path.realpath`` would take it for no link.
    """
    try:
        return os.path.realpath(path, strict=True)
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        return os.path.realpath(path)


def is_link(path: str) -> bool:
    """Whether a path is a link.

    Raises:
        OSError: this cannot be determined.
    """
    return stat.S_ISLNK(_mode(path, links=False))


def is_taken(path: Path) -> bool:
    """Whether a file that will be written would replace anything; a link that leads nowhere is nothing.

    Raises:
        OSError: this cannot be determined, or the name is too long.
    """
    try:
        path.stat()
    except OSError as error:
        if error.errno not in ABSENT - {errno.ENAMETOOLONG}:
            raise
        return False
    return True


def files_below(folder: Path) -> list[Path]:
    """Sorted paths of all files below a folder, at any depth; empty if the folder does not exist. Links are not followed.

    Raises:
        OSError: a folder cannot be read; ``Path.rglob`` would skip it.
    """
    return sorted(Path(place, name) for place, _, names in os.walk(folder, onerror=_unless_absent) for name in names)


def _unless_absent(error: OSError) -> None:
    if error.errno not in ABSENT:
        raise error


def _mode(path: str | Path, *, links: bool = True) -> int:
    """Type and permissions of a path, after links unless ``links`` is False; 0 if nothing exists."""
    try:
        return os.stat(path, follow_symlinks=links).st_mode  # noqa: PTH116 - a Path refuses long text
    except ValueError:  # a NUL
        return 0
    except OSError as error:
        if error.errno in ABSENT:
            return 0
        raise
