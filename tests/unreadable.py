"""Files and folders that a file server does not answer for."""

import errno
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

ASKING = ("stat", "scandir", "listdir", "open")
"""Functions of ``os`` that ask for a path."""


def fail(patch: pytest.MonkeyPatch, path: Path, *names: str, number: int = errno.EIO) -> None:
    """Let these functions of ``os`` fail for a path, however it is written; without names, all that ask for it."""
    for name in names or ASKING:
        patch.setattr(os, name, _failing(getattr(os, name), path, number))


def fail_to_open(patch: pytest.MonkeyPatch, path: Path, number: int = errno.EIO) -> None:
    """Let a ``Path`` fail to be opened."""
    patch.setattr(Path, "open", _failing(Path.open, path, number))


def _failing(asked: Callable[..., Any], path: Path, number: int) -> Callable[..., Any]:
    wanted = os.path.abspath(path)  # noqa: PTH100 - a Path would ask for it

    @wraps(asked)
    def answer(place: Any = ".", *more: Any, **options: Any) -> Any:
        if not isinstance(place, int) and os.path.abspath(os.fsdecode(place)) == wanted:  # noqa: PTH100
            raise OSError(number, os.strerror(number), str(place))
        return asked(place, *more, **options)

    return answer
