"""Find the mask that comes with each scene: beside its file, or in its product."""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from segpipe.errors import InputError, SourceError, of_system
from segpipe.formats.case import RASTER, SCENE, Case
from segpipe.formats.identity import HIDDEN, FolderListings, Identity, identities, unhidden, world_files
from segpipe.formats.listing import matched
from segpipe.storage.existence import is_file, is_folder, is_there
from segpipe.storage.paths import in_bucket, is_remote
from segpipe.storage.retry import is_passing
from segpipe.storage.s3 import find_objects
from segpipe.validity import CASE, Preset, ValidityMask

SUFFIXES = (".tif", ".tiff", ".jp2", ".vrt", ".img", ".png")
"""Suffixes of masks that a preset looks for."""

SHOWN = 3


@dataclass
class MaskFinder:
    """Finds masks; each object lists a folder once."""

    mask: ValidityMask
    _folders: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def find(self, case: Case) -> str:
        """Path of the validity mask of a case.

        Raises:
            SourceError: there is none, or several.
        """
        found = self._found(case)
        if len(found) != 1:
            raise SourceError(_lacking(case, self.mask, found))
        return found[0]

    def _found(self, case: Case) -> list[str]:
        preset = self.mask.preset
        if preset is None:
            return self._matching(case)
        return _in_product(case, preset) or self._of_preset(case, preset)

    def _matching(self, case: Case) -> list[str]:
        """Files that match the pattern."""
        folder, stem = _parts(case)
        if is_remote(case.path):
            return [f"{folder}/{self.mask.pattern.replace(CASE, stem)}"]  # whether it exists, opening it tells
        if glob.has_magic(self.mask.pattern):
            pattern = PurePosixPath(self.mask.pattern.replace(CASE, glob.escape(stem)))
            return sorted(path for path in _matches(folder, pattern.parts) if path.lower().endswith(SUFFIXES))
        plain = os.path.join(folder, self.mask.pattern.replace(CASE, stem))  # noqa: PTH118
        return [plain] if is_file(plain) else []

    def _of_preset(self, case: Case, preset: Preset) -> list[str]:
        """Files named after the case, or after most of its name, up to a ``_`` or ``.``, with the token behind."""
        folder, stem = _parts(case)
        there = self._tokens(folder, preset)
        cuts = [len(stem), *(match.start() for match in reversed([*re.finditer(r"[_.]", stem)]))]
        return next((there[name] for cut in cuts if (name := stem[:cut].casefold()) in there), [])

    def _tokens(self, folder: str, preset: Preset) -> dict[str, list[str]]:
        """Masks of a folder by what precedes the token."""
        if folder not in self._folders:
            token = re.compile(rf"(.+)[_.]{re.escape(preset.token)}(?:[_.].*)?", re.IGNORECASE)
            there: dict[str, list[str]] = {}
            for path in sorted(_listed(folder)):
                name = PurePosixPath(path).name
                if name.lower().endswith(SUFFIXES) and (match := token.fullmatch(name)):
                    there.setdefault(match[1].casefold(), []).append(path)
            self._folders[folder] = there
        return self._folders[folder]


def _in_product(case: Case, preset: Preset) -> list[str]:
    """The mask in a scene of many files."""
    if case.format != SCENE:
        return []
    from segpipe.formats.scenes.reading import product_of

    return [band.path for band in product_of(case).bands if band.name.casefold() == preset.token.casefold()]


def _listed(folder: str) -> Iterable[str]:
    if in_bucket(folder):
        others: list[str] = []
        try:
            found = [path for _, path in find_objects(f"{folder}/", lambda _: True, others)]
        except InputError as error:
            raise SourceError(str(error)) from error
        return [path for path in found if path.rpartition("/")[0] == folder]
    return [] if is_remote(folder) else [os.path.join(folder, name) for name in _names_in(folder)]  # noqa: PTH118


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder or ".")  # noqa: PTH208 - names alone
    except OSError as error:
        raise SourceError(f"{folder or '.'} cannot be listed: {of_system(error)}") from error


def _matches(folder: str, pattern: Sequence[str]) -> Iterator[str]:
    """Yield what matches the parts of a pattern; ``glob`` would take a folder that cannot be read for an empty one.

    Raises:
        OSError, SourceError: a folder cannot be read, or a match cannot be examined.
    """
    part, *rest = pattern
    for name in matched(_names_in(folder), part) if glob.has_magic(part) else [part]:
        path = os.path.join(folder, name)  # noqa: PTH118
        if rest and is_folder(path):
            yield from _matches(path, rest)
        elif not rest and is_there(path):
            yield path


def _parts(case: Case) -> tuple[str, str]:
    """Folder of a case's file or product, and its name without suffix."""
    folder, _, name = case.path.split("?", maxsplit=1)[0].rstrip("/").rpartition("/")
    folder = "/" if not folder and case.path.startswith("/") else folder
    if case.format == SCENE:
        return folder, re.sub(r"\.(safe|zip|tar)", "", name, flags=re.IGNORECASE)
    return folder, os.path.splitext(name)[0]  # noqa: PTH122


def _lacking(case: Case, mask: ValidityMask, found: Sequence[str]) -> str:
    if found:
        few = ", ".join(found[:SHOWN])
        return f"{case.path}: --validity must name one mask per case, and finds {few}: name it with a pattern"
    preset = mask.preset
    if preset is not None:
        where = f"{'in it or ' * (case.format == SCENE)}beside it, named after it with _{preset.token}"
        return (
            f"{case.path}: --validity {mask.pattern} needs a mask for each case, and there is none {where}: "
            "copy it there, or give a pattern"
        )
    return f"{case.path}: --validity needs a mask for each case, and {mask.pattern} names no file: copy it there"


def with_masks(cases: Sequence[Case], mask: ValidityMask) -> tuple[list[Case], int]:
    """Cases with their masks, as far as there are any, without the masks themselves; and how many of these were cases."""
    finder = MaskFinder(mask)
    found = [replace(case, mask=_path(finder, case)) for case in cases]
    masks = {case.mask for case in found}
    kept = [case for case in found if case.path not in masks]
    return kept, len(found) - len(kept)


def mask_of(case: Case, mask: ValidityMask) -> str:
    """Path of the validity mask of a case, as the search of cases found it, or else searched now.

    Raises:
        SourceError: there is none, or several.
    """
    return case.mask or MaskFinder(mask).find(case)


BESIDE = ("", ".aux.xml", ".msk", ".ovr")
"""Endings of a mask's own files, after its name."""


def without_mask(
    files: Sequence[Identity], case: Case, mask: ValidityMask, listings: FolderListings, *, remote: bool = False
) -> list[Identity] | None:
    """The files of a record without those of the mask; None if the case has another mask now, or it has changed.

    ``remote``: whether a local mask may refer to servers.

    Raises:
        OSError, SourceError: there is no mask, or it cannot be examined.
    """
    from segpipe.formats.raster.dataset_files import has_no_more

    path = mask_of(case, mask)
    beside = [*(path + ending for ending in BESIDE), *world_files(path), *listings.sidecars(path)]
    own = {listings.named(file) for file in beside} - {listings.named(file) for file in listings.sidecars(case.path)}
    files = unhidden(files, map(listings.named, beside))
    theirs = [file for file in files if file["path"] in own]
    names = [file["path"] for file in theirs]
    if listings.named(path) not in names or identities(path, names, listings) != theirs:
        return None
    known = {listings.place(file["path"]) for file in files if not file["path"].startswith(HIDDEN)}
    if not is_remote(path) and not has_no_more(known, path, listings, remote=remote):
        return None  # a sidecar file that was not there
    if mask.preset is not None and path in _in_product(case, mask.preset):
        return list(files)
    return [file for file in files if file["path"] not in own]


def _path(finder: MaskFinder, case: Case) -> str | None:
    """The mask of a case; None if its job must say why there is none.

    Raises:
        OSError, SourceError: this cannot be determined now; the mask would then be taken for a case.
    """
    if case.format not in (RASTER, SCENE) or (case.format == SCENE and finder.mask.preset is not None):
        return None  # the metadata of a product are read when it is opened
    try:
        return finder.find(case)
    except SourceError as error:
        if is_passing(error):
            raise
        return None
