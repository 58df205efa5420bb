"""Find the cases of a run: files, folders, globs, lists and GDAL paths become named cases."""

import csv
import glob
import os
import re
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path, PurePosixPath

import numpy as np

from segpipe.errors import InputError, OutputError, case_errors
from segpipe.formats import banded
from segpipe.formats.case import EVERY_CASE, BandsFrom, Channels, Choice, FamilyCases, without_path
from segpipe.formats.case import Case as Case  # noqa: PLC0414 - most of segpipe imports it from here
from segpipe.formats.channels import group
from segpipe.formats.identity import owners_of
from segpipe.formats.listing import Listing
from segpipe.formats.registry import CONFIDENCE, FORMATS, RASTER, Format, by_suffix, find_in_family, format_of, split_suffix
from segpipe.formats.scene_masks import with_masks
from segpipe.formats.scenes.names import is_sentinel
from segpipe.formats.scenes.search import is_archive, is_safe, is_safe_folder, is_scene, name_of, products_of, scene_at
from segpipe.storage import check_name
from segpipe.storage.bucket import find_objects, in_bucket, is_remote, plain_path
from segpipe.storage.ownership import OWN
from segpipe.storage.urls import malformed

NOTES = frozenset({".json", ".qml", ".prj", ".qpj", ".geojson", ".csv", ".md5", ".sha256", ".yaml", ".toml", ".html"})
"""Suffixes of files, by segpipe and others, that accompany a raster of the same name and are no images."""

USUAL = frozenset(
    {".txt", ".xml", ".pdf", ".doc", ".docx", ".xlsx", ".zip", ".tar.gz", ".log", ".mha", ".mhd", ".raw", ".bval"}
)
"""Suffixes of other files that are named although masks are not named after paths."""

PACKED = frozenset({".gz", ".bz2", ".xz", ".zst"})

NO_UID = "{} must have a UID, after which --case-name uid names its mask, and only DICOM has one: give --case-name number"

LIST_SUFFIXES = frozenset({".txt", ".csv", ".lst"})
LIST_COLUMNS = ("path", "file", "input", "image")


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that could not be done, with the reason."""

    case: Case
    error: str


@dataclass(frozen=True, slots=True)
class Found:
    """Result of the search of a run's inputs."""

    cases: list[Case]
    """Sorted by name, each name once."""
    left_out: dict[str, int]
    """Number of files in folders and globs that were not taken, by suffix, or by kind if a format knows it."""
    refused: list[Failure]
    """Inputs that cannot become a mask, whatever they contain, by the names of their masks; none is among the cases."""
    problems: list[str]
    """Folders that could not be read."""


@dataclass
class _Search:
    """State of a search for cases."""

    known: dict[str, Format] = field(default_factory=by_suffix)
    """Suffixes of the files that a search of a folder finds. A file that the user names may have any suffix."""
    others: list[str] = field(default_factory=list)
    """Files of folders and globs that are not taken."""
    listing: Listing = field(default_factory=Listing)
    errors: dict[Case, str] = field(default_factory=dict)
    """Errors of cases that are named but do not exist."""
    choice: Choice = EVERY_CASE
    claimed: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """Files that a format claims in order to find its cases itself: names below the folder, and paths, by format name."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Number of claimed files that belong to no case, by kind."""

    def family(self, name: str) -> Format | None:
        """The format of a file by its name; None for an unknown one."""
        by_name = self.known.get(split_suffix(name, self.known)[1].lower())
        return by_name or next((f for f in FORMATS.values() if f.finder is not None and f.finder.may_be(name)), None)

    @property
    def products(self) -> bool:
        """Whether products of many files are recognised."""
        return self.choice.bands is None

    def is_scene(self, path: str) -> bool:
        """Whether a folder or a file that the user names is one scene."""
        return self.products and is_scene(path)

    def claim(self, family: Format, name: str, path: str) -> None:
        self.claimed.setdefault(family.name, []).append((name, path))


def find_cases(inputs: Sequence[str], choice: Choice = EVERY_CASE) -> list[Case]:
    """All cases that the inputs name, each once, sorted by name; for commands that need every input.

    Raises:
        InputError: an input cannot be read.
    """
    found = find_input(inputs, choice)
    for problem in (*found.problems, *(failure.error for failure in found.refused)):
        raise InputError(problem)
    return found.cases


def find_input(inputs: Sequence[str], choice: Choice = EVERY_CASE) -> Found:
    """Search the inputs for cases, each once, sorted by name; report files that are left out or refused.

    Args:
        inputs: files, folders, globs, lists and URLs.
        choice: selection of series, names of cases, and grouping of channel files.

    Raises:
        InputError: an input does not exist, or contains no case.
    """
    search = _Search(choice=choice)
    found = [_found(text, search) for text in inputs]
    # a single input needs no table, which would be larger than the cases; of several inputs the first names a path
    cases = found[0] if len(found) == 1 else list({c.path: c for own in reversed(found) for c in reversed(own)}.values())
    cases.sort(key=attrgetter("name"))
    cases = [case for case, before in zip(cases, [None, *cases], strict=False) if case != before]  # listed twice
    others = count_left_out(search.others, cases)
    cases = cases if choice.channels is None else _grouped(cases, choice.channels, search)
    cases = cases if choice.bands is None else _of_bands(cases, choice.bands, search)
    if choice.validity is not None:
        cases, masks = with_masks(cases, choice.validity)
        search.left_out.update({"validity masks": masks} if masks else {})
    if choice.names == "number":
        cases = _numbered(cases, search)
    elif choice.names == "uid":
        search.errors |= {case: NO_UID.format(case.path) for case in cases if FORMATS[case.format].finder is None}
        cases = _without_uid(cases, search)
    left_out = {**others, **dict(sorted(search.left_out.items()))}
    left_out = left_out if choice.names == "path" else _without_suffixes(left_out)
    refused = list(_refused(cases, search.errors))
    names = {failure.case.name for failure in refused}
    cases = [case for case in cases if case.name not in names] if names else cases
    return Found(cases, left_out, refused, search.listing.problems)


def _found(text: str, search: _Search) -> list[Case]:
    before = len(search.listing.problems)
    found = [*_expand(text, search), *_families(search)]
    if not found and (problems := search.listing.problems[before:]):
        raise InputError(problems[0])
    if not found and is_safe_folder(text):
        raise InputError(
            f"a .SAFE folder must have the metadata of its product, MTD_MSIL1C.xml or MTD_MSIL2A.xml, and {text} holds "
            "nothing that can be read: download or unpack the product again"
        )
    if not found:
        left = {**count_left_out(search.others, []), **search.left_out}
        held = f", and this one holds {listed(left)}" if left else ""
        suffixes = " ".join(sorted(search.known))
        raise InputError(f"no raster or volume found in {text}: a folder is searched for {suffixes}{held}")
    return found


def _families(search: _Search) -> Iterator[Case]:
    """Yield the cases that formats find among the files that they claimed."""
    for name, files in search.claimed.items():
        found = FamilyCases()
        with case_errors(files[0][1]) as caught:  # an unforeseen error in one format does not end the whole search
            found = find_in_family(name, files, search.choice)
        if caught.error is not None:
            search.listing.add_problem(files[0][1], str(caught.error))
        yield from found.cases
        search.errors.update(found.errors)
        search.left_out.update(found.left_out)
        search.others += found.others
    search.claimed = {}


def _grouped(cases: list[Case], channels: Channels, search: _Search) -> list[Case]:
    """Group files with one channel each into cases.

    Raises:
        InputError: no file matches the patterns that the user gave.
    """
    one_each = [case for case in cases if FORMATS[case.format].per_channel and case not in search.errors]
    if not one_each:
        return cases
    grouped, files = group(one_each, channels), set(one_each)
    if not grouped.cases:
        raise InputError(
            f"--channels must match files of the input, got {', '.join(channels.patterns or ())} and files such as "
            f"{one_each[0].path}"
        )
    search.errors.update(grouped.errors)
    search.left_out.update(map(_suffix, grouped.others))
    return sorted([case for case in cases if case not in files] + grouped.cases, key=attrgetter("name"))


def _of_bands(cases: list[Case], rule: BandsFrom, search: _Search) -> list[Case]:
    """Group rasters with one band each into scenes.

    Raises:
        InputError: no file matches the pattern of the user.
    """
    rasters = [case for case in cases if case.format == RASTER and case not in search.errors]
    remote = next((case.path for case in rasters if is_remote(case.path)), None)
    if remote is not None:
        raise InputError(
            f"--bands-from groups files of this machine, got {remote}: bring the files here, or stack them as a COG"
        )
    grouped, files = banded.group(rasters, rule), set(rasters)
    if not grouped.cases:
        held = f" and files such as {rasters[0].path}" if rasters else ""
        wanted = ", ".join(rule.names) or "some dates"
        raise InputError(f"--bands-from must match files of the input, one for each of {wanted}, got {rule.pattern}{held}")
    search.errors.update(grouped.errors)
    search.left_out.update(map(_suffix, grouped.others))
    return sorted([case for case in cases if case not in files] + grouped.cases, key=attrgetter("name"))


def _numbered(cases: list[Case], search: _Search) -> list[Case]:
    """Number the cases from 1 in their order, so that no folder name appears in the output."""
    digits = max(4, len(str(len(cases))))
    named = [replace(case, name=f"{number:0{digits}}") for number, case in enumerate(cases, 1)]
    found = {new: old for old, new in zip(cases, named, strict=True) if old in search.errors}
    search.errors = {new: _renamed(search.errors[old], old, new) for new, old in found.items()}
    return named


def _renamed(error: str, old: Case, new: Case) -> str:
    """An error with the new name of its case in place of the old one and of its path."""
    return re.sub(rf"(?<![\w./-]){re.escape(old.name)}", lambda _: new.name, without_path(error, new))


def _without_uid(cases: list[Case], search: _Search) -> list[Case]:
    """Number the cases that are refused, so that no folder name appears in the output."""
    refused = [case for case in cases if case in search.errors]
    names = {case: replace(case, name=f"without-uid-{number:04}") for number, case in enumerate(refused, 1)}
    search.errors = {(new := names.get(case, case)): _renamed(error, case, new) for case, error in search.errors.items()}
    return sorted((names.get(case, case) for case in cases), key=attrgetter("name"))


def _refused(cases: list[Case], errors: Mapping[Case, str]) -> Iterator[Failure]:
    """Yield cases that cannot be done, one per name: where several share a name, the first stands for all."""
    for _, sharing in groupby(cases, attrgetter("name")):
        case, *others = sorted(sharing, key=attrgetter("path"))
        error = _shared(case, others) if others else errors.get(case) or _misnamed(case)
        if error is not None:
            yield Failure(case, error)


def _shared(case: Case, others: Sequence[Case]) -> str:
    more = f" and {len(others) - 1} more" * (len(others) > 1)
    return (
        f"{'two' if len(others) == 1 else len(others) + 1} inputs would get one name, {case.name}: "
        f"{case.path} and {others[0].path}{more}: rename one, or give them in runs of their own"
    )


def _misnamed(case: Case) -> str | None:
    """Why a mask cannot have this name; None if it can."""
    if case.name == "run" or case.name.endswith(CONFIDENCE):
        return f"the names run and *.confidence are reserved, got {case.path}: rename it"
    try:
        check_name(case.name)
    except OutputError as error:
        return f"{error}: rename {case.path}"
    return None


def count_left_out(others: Sequence[str], cases: Iterable[Case]) -> dict[str, int]:
    """Count files by suffix, leaving out those that belong to a case or were written by segpipe."""
    if not others:
        return {}
    # hashes: the names of 100,000 files would take more memory than everything else known about them
    known = by_suffix()
    paths = (case.path.lower() for case in cases)
    numbers = np.fromiter((hash(name) for path in paths for name in (path, split_suffix(path, known)[0])), np.int64)
    there = array("q", np.sort(numbers).tobytes())
    counts = Counter(_suffix(path) for path in set(others) if not (_is_own(path) or _belongs(path, there)))
    return dict(sorted(counts.items()))


def _without_suffixes(left_out: Mapping[str, int]) -> dict[str, int]:
    """Counts without unusual suffixes: what follows the last dot of a name may be a part of a patient's name."""
    usual, counts = {*by_suffix(), *NOTES, *USUAL, "without suffix"}, Counter[str]()
    for kind, count in left_out.items():
        counts[kind if kind in usual or " " in kind else "with another suffix"] += count
    return dict(counts)


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
    if _suffix(name) in NOTES:
        owners = [*owners, os.path.splitext(name)[0]]  # noqa: PTH122
    return (os.path.join(folder, owner) for owner in owners)  # noqa: PTH118


def _suffix(name: str) -> str:
    """The last suffix in lower case, with the one before it for packed files; ``without suffix`` if there is none."""
    stem, suffix = os.path.splitext(os.path.basename(name).lower())  # noqa: PTH119, PTH122 - Path caches names
    if suffix in PACKED:
        suffix = os.path.splitext(stem)[1] + suffix  # noqa: PTH122
    return "without suffix" if suffix in ("", ".") else suffix


def listed(left_out: Mapping[str, int]) -> str:
    """Format counts as ``3 .svs, 1 .nii.gz``."""
    return ", ".join(f"{count} {suffix}" for suffix, count in left_out.items())


def _expand(text: str, search: _Search) -> Iterator[Case]:
    """Yield the cases of one input. What exists is taken as a path, whatever it looks like."""
    path = Path(text)
    if os.path.isdir(text):  # noqa: PTH112 - accepts text of any length
        yield from _rasters(path, search)
    elif _is_file(text):
        yield from _listed(path, search) if path.suffix.lower() in LIST_SUFFIXES else _named(path.parent, path, search)
    elif is_remote(text) and (error := malformed(text)) is not None:
        raise InputError(error)
    elif in_bucket(text):
        found = find_objects(text, lambda name: _suffix_of(name, search) in search.known, search.others)
        found = _without_products(text, found, search) if search.products else found
        yield from (_case(str(PurePosixPath(name)), path, search) for name, path in found)  # a//b becomes a/b
    elif is_remote(text):
        yield _remote(text, search)
    elif glob.has_magic(text):
        yield from _matching(text, search)
    else:
        raise InputError(f"the input must exist, got {text}")


def _never(path: str) -> bool:
    del path
    return False


IN_BUCKET = (
    "a product of many files must lie on this machine, got {}: copy it here, or make one raster of its bands, such as a COG"
)


def _without_products(text: str, found: Iterable[tuple[str, str]], search: _Search) -> Iterator[tuple[str, str]]:
    """Leave out the objects of a bucket that are files of a ``.SAFE`` folder; a line tells of each folder.

    Raises:
        InputError: the user names such a folder.
    """
    if is_sentinel(PurePosixPath(text).name):
        raise InputError(IN_BUCKET.format(text))
    for name, path in found:
        product = next((str(folder) for folder in PurePosixPath(name).parents if is_sentinel(folder.name)), None)
        if product is None:
            yield name, path
        else:
            search.listing.add_problem(product, IN_BUCKET.format(f"{product} in {text}"))


def _is_file(text: str) -> bool:
    return os.path.isfile(text)  # noqa: PTH113 - accepts text of any length


def _remote(url: str, search: _Search) -> Case:
    return _case(PurePosixPath(url.split("?", maxsplit=1)[0]).name, url, search)


def _named(root: Path, file: Path, search: _Search) -> Iterator[Case]:
    """Yield the case of a file named by the user; nothing if its format claims it to find cases later."""
    family, path = search.family(file.name), plain_path(str(file))
    if search.is_scene(path):
        yield scene_at(file.relative_to(root).as_posix(), path)
    elif family is not None and family.finder is not None and (_has_suffix(file.name, search) or family.finder.is_one(path)):
        search.claim(family, file.relative_to(root).as_posix(), path)
    else:
        yield _below(root, file, search)


def _has_suffix(name: str, search: _Search) -> bool:
    return _suffix_of(name, search) in search.known


def _below(root: Path, file: Path, search: _Search) -> Case:
    return _case(file.relative_to(root).as_posix(), plain_path(str(file)), search)


def _case(name: str, path: str, search: _Search) -> Case:
    """The case of a file, named by its path below a root."""
    return Case(split_suffix(name, search.known)[0], path, format_of(name, search.known))


def _suffix_of(name: str, search: _Search) -> str:
    return split_suffix(name, search.known)[1].lower()


def _rasters(root: Path, search: _Search) -> Iterator[Case]:
    """Yield the cases at any depth of a folder; uses strings per file, since ``Path`` keeps each name a second time."""
    closed = is_safe if search.products else _never
    for folder, files in search.listing.below(str(root), closed):
        here = Path(folder)
        path, below = plain_path(str(here / "x")[:-1]), (here.relative_to(root) / "x").as_posix()[:-1]
        if closed(folder):
            yield scene_at(below.rstrip("/") or name_of(folder), path.rstrip("/") or ".")
        if search.products:
            products, files = products_of(below, path.rstrip("/") or ".", files)  # noqa: PLW2901
            yield from products
        for name in files:
            if name.startswith("."):
                continue
            if search.products and name.lower().endswith(".zip") and is_archive(path + name):
                yield scene_at(below + name, plain_path(path + name))
                continue
            family = search.family(name)  # avoids a Path for each of 100,000 names
            if family is None:
                search.others.append(path + name)
            elif family.finder is not None:
                search.claim(family, below + name, path + name if path else plain_path(name))
            else:
                stem = split_suffix(name, search.known)[0]
                yield Case(below + stem, path + name if path else plain_path(name), family.name)


def _matching(pattern: str, search: _Search) -> Iterator[Case]:
    """Yield the files of a glob, named relative to the glob's leading folders without wildcards."""
    root = fixed_root(pattern)
    suffix = Path(pattern).suffix
    any_suffix = bool(suffix) and not glob.has_magic(suffix)
    for match in sorted(search.listing.matching(str(root), Path(pattern).parts[len(root.parts) :], search.is_scene)):
        family = search.family(os.path.basename(match))  # noqa: PTH119
        if search.is_scene(match):
            yield scene_at(Path(match).relative_to(root).as_posix(), plain_path(match))
            continue
        if family is not None and family.finder is not None:
            search.claim(family, Path(match).relative_to(root).as_posix(), plain_path(match))
        elif family is not None or any_suffix:
            yield _below(root, Path(match), search)
        else:
            search.others.append(match)


def fixed_root(pattern: str) -> Path:
    """The folders of a glob before its first wildcard; an existing folder such as ``[1]`` is no wildcard."""
    root = Path()
    for part in Path(pattern).parts[:-1]:
        if glob.has_magic(part) and not (root / part).is_dir():
            break
        root /= part
    return root


def searched_root(text: str) -> str | None:
    """Folder that an input searches at any depth; None for a file, a list or a flat glob."""
    path = Path(text)
    if in_bucket(text) or os.path.isdir(text):  # noqa: PTH112
        return plain_path(text) if os.path.isdir(text) else text  # noqa: PTH112
    return str(fixed_root(text)) if not is_remote(text) and glob.has_magic(text) and "**" in path.parts else None


def _listed(file: Path, search: _Search) -> Iterator[Case]:
    """Yield the cases of a list: paths in a text or CSV file, relative to its folder, named by their base names.

    A missing file fails alone, unless all are missing.
    """
    missing: dict[Case, str] = {}
    found = False
    for line, entry in _entries(file):
        path = str(file.parent / entry)
        there = _is_file(path) or search.is_scene(path)
        named = list(_named(Path(path).parent, Path(path), search)) if there else []
        if there and not named:
            found = True
            continue
        remote = not there and is_remote(entry)
        case = _remote(entry, search) if remote else _case(Path(path).name, plain_path(path), search)
        case = named[0] if named else case
        error = malformed(entry) if remote else None if there else f"the input must exist, got {entry}"
        if error is not None:
            missing[case] = f"{file} line {line}: {error}"
        found = found or error is None
        yield case
    if not found and missing:
        raise InputError(next(iter(missing.values())))
    search.errors.update(missing)


def list_entries(path: str) -> list[str]:
    """The paths in a list, as they are written there.

    Raises:
        InputError: it cannot be read.
    """
    return [entry for _, entry in _entries(Path(path))]


def _entries(file: Path) -> Iterator[tuple[int, str]]:
    try:
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")  # file names may have undecodable bytes
    except OSError as error:
        raise InputError(f"the list cannot be read: {file}: {error.strerror}") from None
    # names may begin with # or end with spaces: a line that names a file is a path
    named = [(n, line, _is_file(str(file.parent / line))) for n, line in enumerate(text.split("\n"), 1)]
    lines = [(n, line if there else line.strip()) for n, line, there in named if there or not _is_comment(line.strip())]
    if file.suffix.lower() != ".csv":
        yield from lines
        return
    rows = [(n, _cells(file, n, line)) for n, line in lines]
    header = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    column = next((header.index(name) for name in LIST_COLUMNS if name in header), None)
    for n, row in rows if column is None else rows[1:]:
        if len(row) <= (column or 0):
            raise InputError(f"{file} line {n}: every row must have a path in column {column}, got {len(row)} columns")
        yield n, row[column or 0].strip()


def _cells(file: Path, line: int, text: str) -> list[str]:
    try:
        return next(csv.reader([text]))
    except csv.Error as error:
        raise InputError(f"{file} line {line}: every row must be CSV: {error}") from None


def _is_comment(line: str) -> bool:
    return not line or line.startswith("#")
