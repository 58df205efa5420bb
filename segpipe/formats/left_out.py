"""Files of folders and globs that a search does not take: how many there are of each kind."""

import os
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from segpipe.formats.case import Case
from segpipe.formats.identity import owners_of
from segpipe.formats.registry import by_suffix, split_suffix
from segpipe.storage.ownership import OWN

NOTES = frozenset({".json", ".qml", ".prj", ".qpj", ".geojson", ".csv", ".md5", ".sha256", ".yaml", ".toml", ".html"})
"""Suffixes of files, by segpipe and others, that accompany a raster of the same name and are no images."""

USUAL = frozenset(
    {".txt", ".xml", ".pdf", ".doc", ".docx", ".xlsx", ".zip", ".tar.gz", ".log", ".mha", ".mhd", ".raw", ".bval"}
)
"""Suffixes of other files that are named although masks are not named after paths."""

PACKED = frozenset({".gz", ".bz2", ".xz", ".zst"})


def count_left_out(others: Sequence[str], cases: Iterable[Case]) -> dict[str, int]:
    """Count files by suffix, leaving out those that belong to a case or were written by segpipe."""
    if not others:
        return {}
    # hashes: the names of 100,000 files would take more memory than everything else known about them
    known = by_suffix()
    paths = (case.path.lower() for case in cases)
    numbers = np.fromiter((hash(name) for path in paths for name in (path, split_suffix(path, known)[0])), np.int64)
    there = array("q", np.sort(numbers).tobytes())
    counts = Counter(suffix_of(path) for path in set(others) if not (_is_own(path) or _belongs(path, there)))
    return dict(sorted(counts.items()))


def without_unusual(left_out: Mapping[str, int]) -> dict[str, int]:
    """Counts without unusual suffixes: what follows the last dot of a name may be a part of a patient's name."""
    usual, counts = {*by_suffix(), *NOTES, *USUAL, "without suffix"}, Counter[str]()
    for kind, count in left_out.items():
        counts[kind if kind in usual or " " in kind else "with another suffix"] += count
    return dict(counts)


def listed(left_out: Mapping[str, int]) -> str:
    """Format counts as ``3 .svs, 1 .nii.gz``."""
    return ", ".join(f"{count} {suffix}" for suffix, count in left_out.items())


def _is_own(path: str) -> bool:
    return os.path.basename(path) in OWN  # noqa: PTH119


def _belongs(path: str, there: "array[int]") -> bool:
    """Whether a file's owner is among the sorted hashes ``there``."""
    found = ((number, bisect_left(there, number)) for number in map(hash, _owners(path)))
    return any(at < len(there) and there[at] == number for number, at in found)


def _owners(path: str) -> Iterator[str]:
    """Yield the rasters, in lower case and some without suffix, that a file would belong to by its name."""
    folder, name = os.path.split(path.lower())
    owners = owners_of(name)
    if suffix_of(name) in NOTES:
        owners = [*owners, os.path.splitext(name)[0]]  # noqa: PTH122
    return (os.path.join(folder, owner) for owner in owners)  # noqa: PTH118


def suffix_of(name: str) -> str:
    """The last suffix in lower case, with the one before it for packed files; ``without suffix`` if there is none."""
    stem, suffix = os.path.splitext(os.path.basename(name).lower())  # noqa: PTH119, PTH122 - Path caches names
    if suffix in PACKED:
        suffix = os.path.splitext(stem)[1] + suffix  # noqa: PTH122
    return "without suffix" if suffix in ("", ".") else suffix
