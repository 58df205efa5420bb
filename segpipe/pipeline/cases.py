"""Which cases a run has: files, folders, globs, lists and GDAL paths become named cases."""

import csv
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from operator import attrgetter
from pathlib import Path, PurePosixPath

from segpipe.pipeline.errors import InputError
from segpipe.pipeline.stores.bucket import find_rasters, in_bucket, is_remote

SUFFIXES = frozenset([".tif", ".tiff", ".vrt", ".jp2", ".j2k", ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".img"])
"""What a folder is searched for. A file that is named itself may have any suffix."""

LIST_SUFFIXES = frozenset({".txt", ".csv", ".lst"})
LIST_COLUMNS = ("path", "file", "input", "image")


@dataclass(frozen=True, slots=True)
class Case:
    """One unit of input, giving one mask."""

    name: str
    """Path of the mask in the output folder, without suffix, with ``/`` between folders."""
    path: str
    """What GDAL opens."""


def find_cases(inputs: Sequence[str]) -> list[Case]:
    """All cases that the inputs name, each once, sorted by name."""
    found = [_found(text) for text in inputs]
    # one input has no need of a table, which would be larger than the cases; of several the first names a path
    cases = found[0] if len(found) == 1 else list({c.path: c for own in reversed(found) for c in reversed(own)}.values())
    cases.sort(key=attrgetter("name"))
    cases = [case for case, before in zip(cases, [None, *cases], strict=False) if case != before]  # of a list, twice
    _check_names(cases)
    return cases


def _found(text: str) -> list[Case]:
    found = list(_expand(text))
    if not found:
        raise InputError(f"no raster found in {text}: a folder is searched for {' '.join(sorted(SUFFIXES))}")
    return found


def _expand(text: str) -> Iterator[Case]:
    path = Path(text)
    if in_bucket(text):
        yield from (Case(_stem(name), found) for name, found in find_rasters(text, SUFFIXES))
    elif is_remote(text):
        yield Case(_stem(PurePosixPath(text.split("?", maxsplit=1)[0]).name), text)
    elif path.is_dir():
        yield from _rasters(path)
    elif path.is_file():
        yield from _listed(path) if path.suffix.lower() in LIST_SUFFIXES else [_below(path.parent, path)]
    elif glob.has_magic(text):
        yield from _matching(text)
    else:
        raise InputError(f"the input must exist, got {text}")


def _below(root: Path, file: Path) -> Case:
    return Case(_stem(file.relative_to(root).as_posix()), str(file))


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).suffix else name


def _rasters(root: Path) -> Iterator[Case]:
    """At any depth; with strings alone for each file, since ``Path`` keeps every name that it has seen a second time."""
    seen: set[Path] = set()
    for folder, subfolders, files in os.walk(root, onerror=_unreadable, followlinks=True):
        here = Path(folder)
        if (real := here.resolve()) in seen:  # a link back up
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        path, below = (str(here / "x")[:-1], (here.relative_to(root) / "x").as_posix()[:-1])
        for name in sorted(files):
            stem, suffix = os.path.splitext(name)  # noqa: PTH122 - no Path for each of 100,000 names
            if suffix.lower() in SUFFIXES and not name.startswith("."):
                yield Case(below + stem, path + name)


def _unreadable(error: OSError) -> None:
    raise InputError(f"the input folder cannot be read: {error.filename}: {error.strerror}")


def _matching(pattern: str) -> Iterator[Case]:
    """Files of a glob, named relative to its folders without wildcards."""
    root = _fixed(pattern)
    for match in sorted(glob.glob(pattern, recursive=True)):
        path = Path(match)
        if path.is_file() and (
            path.suffix.lower() in SUFFIXES or (not glob.has_magic(Path(pattern).suffix) and Path(pattern).suffix)
        ):
            yield _below(root, path)


def _fixed(pattern: str) -> Path:
    """The folders of a glob before its first wildcard."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts[:-1]))


def searched_root(text: str) -> str | None:
    """The folder below which an input finds files at any depth; None for a file, a list or a flat glob."""
    path = Path(text)
    if in_bucket(text) or path.is_dir():
        return text
    return str(_fixed(text)) if not is_remote(text) and glob.has_magic(text) and "**" in path.parts else None


def _listed(file: Path) -> Iterator[Case]:
    """Paths in a text or CSV file, one per line, relative to the file's folder; named by their base name."""
    for line, entry in _entries(file):
        path = entry if is_remote(entry) else str(file.parent / entry)
        if not is_remote(path) and not Path(path).is_file():
            raise InputError(f"{file} line {line}: the input must exist, got {entry}")
        yield Case(_stem(PurePosixPath(path.split("?")[0]).name), path)


def _entries(file: Path) -> Iterator[tuple[int, str]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list cannot be read: {file}: {error}") from None
    lines = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1)]
    lines = [(n, line) for n, line in lines if line and not line.startswith("#")]
    if file.suffix.lower() != ".csv":
        yield from lines
        return
    rows = [(n, next(csv.reader([line]))) for n, line in lines]
    header = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    column = next((header.index(name) for name in LIST_COLUMNS if name in header), None)
    for n, row in rows if column is None else rows[1:]:
        if len(row) <= (column or 0):
            raise InputError(f"{file} line {n}: every row must have a path in column {column}, got {len(row)} columns")
        yield n, row[column or 0].strip()


def _check_names(cases: list[Case]) -> None:
    for case, other in pairwise(cases):
        if case.name == other.name:
            raise InputError(
                f"two inputs would get one name, {case.name}: {case.path} and {other.path}: "
                "rename one, or give them in runs of their own"
            )
    for case in cases:
        if case.name == "run" or case.name.endswith(".confidence"):
            raise InputError(f"the names run and *.confidence are reserved, got {case.path}: rename it")
