"""Files that are there whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from segpipe.pipeline.errors import OutputError


def partial(path: Path) -> Path:
    """Name of a file that is being written: in the same folder, hidden, the same for every attempt."""
    return path.with_name(f".{path.name}.partial")


def is_partial(name: str) -> bool:
    """Whether a file's name is one of a file that was being written, or of what GDAL has put beside it."""
    return name.startswith(".") and name.endswith((".partial", ".partial.aux.xml"))


def commit(temporary: Path, path: Path) -> None:
    """Make sure a finished file is on the disk, then give it its name."""
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)


def remove(path: Path) -> None:
    """Take away what is of no use; where that cannot be done, as on a disk that is read-only by now, a later run does it."""
    with suppress(OSError):
        path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a small text file, whole or not at all."""
    with writing(path) as stream:
        stream.write(text)


@contextmanager
def writing(path: Path) -> Iterator[TextIO]:
    """A text file that has its name once the block has ended well; lines end as they are written."""
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = partial(path)
        try:
            with temporary.open("w", encoding="utf-8", newline="") as stream:
                yield stream
            commit(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an operating system's error into ours, with the path."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from None
