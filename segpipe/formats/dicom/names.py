"""Which files may be DICOM, by name and by first bytes; no library is needed for that."""

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from segpipe.errors import of_system
from segpipe.formats.case import Case, CaseSelection, FamilyCases
from segpipe.storage.existence import is_file
from segpipe.storage.retry import Patience

NAME = "dicom"

SUFFIXES = (".dcm", ".dicom", ".ima")

LAST_NUMBER = re.compile(r"\.\d+")
"""Matches the apparent suffix of a file named after its UID."""

PREAMBLE = 128

DIRECTORY = "dicomdir"
"""The table of contents of a medium, which is no image."""


def has_suffix(name: str) -> bool:
    """Whether a file should be DICOM by its name."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122


def may_be(name: str) -> bool:
    """Whether a file may be DICOM by its name: a usual suffix, none, or the last number of a UID."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
    return suffix in SUFFIXES or suffix in ("", ".") or LAST_NUMBER.fullmatch(suffix) is not None


def is_one(path: str) -> bool:
    """Whether a file has the letters DICM where DICOM files have them (PS3.10, section 7.1).

    Devices and pipes, which may keep a reader waiting for ever, are not opened.

    Raises:
        OSError: the file cannot be read.
    """
    if not is_file(path):
        return False
    with Path(path).open("rb") as stream:
        return stream.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM"


Unread = tuple[Case, str]
"""An unreadable file that may be a slice, as a case of its own, and the reason."""


def plain_name(name: str) -> str:
    """A file's name without its DICOM suffix; the last number of a UID is not a suffix."""
    stem, _ = os.path.splitext(name)  # noqa: PTH122
    return stem if has_suffix(name) else name


def unread_file(name: str, path: str, error: OSError) -> Unread:
    """A file that may be a slice and cannot be read; ``name`` is its name below the searched folder."""
    return Case(plain_name(name), path, NAME), f"{path} cannot be read, and may be a slice of a series: {of_system(error)}"


def cases_of(files: Sequence[tuple[str, str]], choice: CaseSelection) -> FamilyCases:
    """The cases of some files: names below the searched folder, and paths. Without a DICOM file no header is read."""
    kept, others, unread = list[tuple[str, str]](), list[tuple[str, str]](), list[Unread]()
    patience = Patience()
    for name, path in files:
        if PurePosixPath(name).name.lower() == DIRECTORY:
            continue
        try:
            (kept if has_suffix(name) or patience.read(partial(is_one, path)) else others).append((name, path))
        except OSError as error:
            unread.append(unread_file(name, path, error))
    left = [path for _, path in others]
    if not kept:
        return FamilyCases([case for case, _ in unread], dict(unread), others=left)
    from segpipe.formats.dicom.index import find

    found = find(kept, choice, unread)
    return FamilyCases(found.cases, found.errors, found.left_out, [*found.others, *left])
