"""Search one input: a file, folder, glob, list, URL or prefix of a bucket becomes cases, as far as names alone tell."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from segpipe.errors import InputError, correct_path, of_system
from segpipe.formats.case import EVERY_CASE, Case, CaseSelection
from segpipe.formats.listing import Listing
from segpipe.formats.path_list import LIST_SUFFIXES, entries
from segpipe.formats.registry import FORMATS, Format, by_suffix, format_of, split_suffix
from segpipe.formats.scenes.names import is_sentinel
from segpipe.formats.scenes.search import is_safe, is_scene, name_of, products_of, scene_at
from segpipe.storage.existence import is_file, is_folder
from segpipe.storage.paths import in_bucket, is_remote, plain_path
from segpipe.storage.s3 import find_objects
from segpipe.storage.urls import malformed

IN_BUCKET = (
    "a product of many files must lie on this machine, got {}: copy it here, or make one raster of its bands, such as a COG"
)


@dataclass
class Search:
    """State of a search for cases."""

    known: dict[str, Format] = field(default_factory=by_suffix)
    """Suffixes of the files that a search of a folder finds. A file that the user names may have any suffix."""
    others: list[str] = field(default_factory=list)
    """Files of folders and globs that are not taken."""
    listing: Listing = field(default_factory=Listing)
    errors: dict[Case, str] = field(default_factory=dict)
    """Errors of cases that are named but do not exist."""
    choice: CaseSelection = EVERY_CASE
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
        """Whether a folder or a file that the user names is one scene.

        Raises:
            OSError: it cannot be read.
        """
        return self.products and is_scene(path)

    def finds_scene(self, path: str) -> bool:
        """Whether a folder or a file that a search finds is one scene; False, with a problem, if it cannot be read."""
        with self.listing.noting(path):
            return self.is_scene(path)
        return False

    def is_closed(self, folder: str) -> bool:
        """Whether a folder is one scene, and so holds no other cases; its suffix decides if it cannot be read."""
        with self.listing.noting(folder):
            return self.products and is_safe(folder)
        return True

    def knows(self, name: str) -> bool:
        """Whether a file has a suffix for which a folder is searched."""
        return split_suffix(name, self.known)[1].lower() in self.known

    def case(self, name: str, path: str) -> Case:
        """The case of a file, named by its path below a root."""
        return Case(split_suffix(name, self.known)[0], path, format_of(name, self.known))

    def claim(self, family: Format, name: str, path: str) -> None:
        """Keep a file for the format that finds its cases itself, when all its files are known."""
        self.claimed.setdefault(family.name, []).append((name, path))


def expand(text: str, search: Search) -> Iterator[Case]:
    """Yield the cases of one input. What exists is taken as a path, whatever it looks like."""
    path = Path(text)
    if is_folder(text):
        yield from _rasters(path, search)
    elif is_file(text):
        yield from _listed(path, search) if path.suffix.lower() in LIST_SUFFIXES else _named(path.parent, path, search)
    elif is_remote(text) and (error := malformed(text)) is not None:
        raise InputError(error)
    elif in_bucket(text):
        found = find_objects(text, search.knows, search.others)
        found = _without_products(text, found, search) if search.products else found
        yield from (search.case(str(PurePosixPath(name)), path) for name, path in found)  # a//b becomes a/b
    elif is_remote(text):
        yield _remote(text, search)
    elif glob.has_magic(text):
        yield from _matching(text, search)
    else:
        raise InputError(f"the input must exist, got {text}: {correct_path(text)}")


def _rasters(root: Path, search: Search) -> Iterator[Case]:
    """Yield the cases at any depth of a folder."""
    for folder, files in search.listing.below(str(root), search.is_closed):
        here = Path(folder)
        path, below = plain_path(str(here / "x")[:-1]), (here.relative_to(root) / "x").as_posix()[:-1]
        if search.is_closed(folder):
            yield scene_at(below.rstrip("/") or name_of(folder), path.rstrip("/") or ".")
        if search.products:
            products, files = products_of(below, path.rstrip("/") or ".", files)  # noqa: PLW2901
            yield from products
        yield from _files(path, below, files, search)


def _files(path: str, below: str, names: Iterable[str], search: Search) -> Iterator[Case]:
    """Yield the cases among the files of one folder, which is ``below`` the one that is searched.

    It adds strings: of 100,000 files, ``Path`` would keep each name a second time.
    """
    for name in names:
        if name.startswith("."):
            continue
        if search.products and name.lower().endswith((".zip", ".tar")) and search.finds_scene(path + name):
            yield scene_at(below + name, plain_path(path + name))
            continue
        family, place = search.family(name), path + name if path else plain_path(name)
        if family is None:
            search.others.append(path + name)
        elif family.finder is not None:
            search.claim(family, below + name, place)
        else:
            yield Case(below + split_suffix(name, search.known)[0], place, family.name)


def _matching(pattern: str, search: Search) -> Iterator[Case]:
    """Yield the files of a glob, named relative to the glob's leading folders without wildcards."""
    root = fixed_root(pattern)
    suffix = Path(pattern).suffix
    any_suffix = bool(suffix) and not glob.has_magic(suffix)
    for match in sorted(search.listing.matching(str(root), Path(pattern).parts[len(root.parts) :], search.finds_scene)):
        family = search.family(os.path.basename(match))  # noqa: PTH119
        if search.finds_scene(match):
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
        if glob.has_magic(part) and not is_folder(root / part):
            break
        root /= part
    return root


def searched_root(text: str) -> str | None:
    """Folder that an input searches at any depth; None for a file, a list or a flat glob."""
    path = Path(text)
    if (here := is_folder(text)) or in_bucket(text):
        return plain_path(text) if here else text
    return str(fixed_root(text)) if not is_remote(text) and glob.has_magic(text) and "**" in path.parts else None


def _listed(file: Path, search: Search) -> Iterator[Case]:
    """Yield the cases of a list: paths in a text or CSV file, relative to its folder, named by their base names.

    A missing file fails alone, unless all are missing.
    """
    missing: dict[Case, str] = {}
    found = False
    for line, entry in entries(file):
        cases, error = _of_entry(file.parent, entry, search)
        if error is not None:
            missing.update(dict.fromkeys(cases, f"{file} line {line}: {error}"))
        found = found or error is None
        yield from cases
    if not found and missing:
        raise InputError(next(iter(missing.values())))
    search.errors.update(missing)


def _of_entry(place: Path, entry: str, search: Search) -> tuple[list[Case], str | None]:
    """The case of a line, if its format does not find it later, and why it cannot be done."""
    path = place / entry
    try:
        if is_file(path) or search.is_scene(str(path)):
            return list(_named(path.parent, path, search)), None
        folder = is_folder(path)
    except OSError as why:
        return [search.case(path.name, plain_path(str(path)))], f"{path} cannot be read: {of_system(why)}"
    if is_remote(entry):
        return [_remote(entry, search)], malformed(entry)
    error = (
        f"a list takes files, got the folder {entry}: give it to --input" if folder else f"the input must exist, got {entry}"
    )
    return [search.case(path.name, plain_path(str(path)))], error


def _named(root: Path, file: Path, search: Search) -> Iterator[Case]:
    """Yield the case of a file named by the user; nothing if its format claims it to find cases later."""
    family, path = search.family(file.name), plain_path(str(file))
    if search.is_scene(path):
        yield scene_at(file.relative_to(root).as_posix(), path)
    elif family is not None and family.finder is not None and (search.knows(file.name) or family.finder.is_one(path)):
        search.claim(family, file.relative_to(root).as_posix(), path)
    else:
        yield _below(root, file, search)


def _below(root: Path, file: Path, search: Search) -> Case:
    return search.case(file.relative_to(root).as_posix(), plain_path(str(file)))


def _remote(url: str, search: Search) -> Case:
    return search.case(PurePosixPath(url.split("?", maxsplit=1)[0]).name, url)


def _without_products(text: str, found: Iterable[tuple[str, str]], search: Search) -> Iterator[tuple[str, str]]:
    """Leave out the objects of a bucket that are files of a ``.SAFE`` folder; one line reports each folder.

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
