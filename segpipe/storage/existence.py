"""Whether a path exists; where that stays open, an error says so, and ``os.path`` would answer no."""

import errno
import os
import stat
from pathlib import Path

ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EBADF, errno.ENAMETOOLONG})
"""Errors that mean that nothing exists; any other, as of a file server that does not answer, leaves that open."""


def is_file(path: str | Path) -> bool:
    """Whether a path, of any length, leads to a regular file.

    Raises:
        OSError: that stays open.
    """
    return stat.S_ISREG(_mode(path))


def is_folder(path: str | Path) -> bool:
    """Whether a path, of any length, leads to a folder.

    Raises:
        OSError: that stays open.
    """
    return stat.S_ISDIR(_mode(path))


def exists(path: str | Path) -> bool:
    """Whether a path, of any length, leads to anything.

    Raises:
        OSError: that stays open.
    """
    return _mode(path) != 0


def is_there(path: str | Path) -> bool:
    """Whether a path leads to anything, or is a link that leads nowhere.

    Raises:
        OSError: that stays open.
    """
    return _mode(path, links=False) != 0


def files_below(folder: Path) -> list[Path]:
    """All that is no folder at any depth of a folder, sorted; nothing where there is none. No link is followed.

    Raises:
        OSError: a folder cannot be read, which ``Path.rglob`` passes over.
    """
    return sorted(Path(place, name) for place, _, names in os.walk(folder, onerror=_unless_absent) for name in names)


def _unless_absent(error: OSError) -> None:
    if error.errno not in ABSENT:
        raise error


def _mode(path: str | Path, *, links: bool = True) -> int:
    """Type and permissions, of what a link leads to unless ``links`` is False; 0 where nothing exists."""
    try:
        return os.stat(path, follow_symlinks=links).st_mode  # noqa: PTH116 - a Path refuses long text
    except ValueError:  # a NUL
        return 0
    except OSError as error:
        if error.errno in ABSENT:
            return 0
        raise
