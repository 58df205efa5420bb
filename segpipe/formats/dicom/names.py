"""Which files may be DICOM, by name and by first bytes; no library is needed for that."""

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from segpipe.formats.case import CaseSelection, FamilyCases

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
    """
    try:
        if not Path(path).is_file():
            return False
        with Path(path).open("rb") as stream:
            return stream.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM"
    except OSError:
        return False


def cases_of(files: Sequence[tuple[str, str]], choice: CaseSelection) -> FamilyCases:
    """The cases of some files: names below the searched folder, and paths. Without a DICOM file no header is read."""
    kept, others = list[tuple[str, str]](), list[str]()
    for name, path in files:
        if PurePosixPath(name).name.lower() == DIRECTORY:
            continue
        if has_suffix(name) or is_one(path):
            kept.append((name, path))
        else:
            others.append(path)
    if not kept:
        return FamilyCases(others=others)
    from segpipe.formats.dicom.index import find

    found = find(kept, choice)
    return FamilyCases(found.cases, found.errors, found.left_out, [*found.others, *others])
