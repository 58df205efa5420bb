"""Identity of inputs, which changes with their content: path, size and time, and the same for sidecar files."""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from segpipe.errors import SourceError, of_system
from segpipe.messages.printable import and_more
from segpipe.messages.url_secrets import is_redacted, without_secrets
from segpipe.storage.existence import exists, is_file, is_link, real_path
from segpipe.storage.paths import canonical, in_bucket, is_remote, plain_path
from segpipe.storage.s3 import objects_near
from segpipe.storage.web import on_web, plain_url, state_of

Identity = dict[str, Any]
"""``path`` and, as far as they are known, ``size`` with ``mtime_ns``, ``modified`` or ``etag``."""

ARCHIVES = ("/vsizip/", "/vsitar/", "/vsigzip/", "/vsi7z/", "/vsirar/")

SIDECAR = re.compile(
    r"""(
      \.aux\.xml | \.aux | \.msk | \.ovr                      # statistics and nodata, masks, overviews
    | \.wld | \.[a-z0-9]{1,5}w | \.tab                        # georeferencing
    | _rpc\.txt | \.rpb | \.rpc | \.imd | \.pvl | \.pass      # sensor models
    | _metadata\.(txt|xml) | \.txt | \.xml | \.eph | \.att
    | \.ige | \.rrd | \.rde                                   # pixels and overviews of HFA
    )$""",
    re.VERBOSE,
)
"""Endings, in lower case, of sidecar files that GDAL reads by itself with a raster of the same stem."""

BESIDE_ALL = frozenset({"metadata.dim", "summary.txt"})
"""Sidecar files that GDAL reads with any raster of a folder."""

ANY, SENSOR = "", "img:"
"""Keys for these, and for files whose names differ from an image's only in the first letters."""

NO_STATE = "only the path tells {} from another state of it: a later run takes it as unchanged; --overwrite does it again"


HIDDEN = "sha256:"
"""Beginning of a path that a record hides."""


class FolderListings:
    """Identify files and their sidecars. Each object lists and resolves a folder once in its life."""

    def __init__(self) -> None:
        self._real: dict[str, str] = {}
        self._sidecars: dict[str, dict[str, list[str]]] = {}
        self._objects: tuple[str, dict[str, Identity]] = ("", {})

    def place(self, path: str) -> str:
        """Canonical path of a file: links, ``..`` and the current folder are resolved.

        Raises:
            SourceError: a part of the path cannot be examined.
        """
        if not is_remote(path):
            return self._resolved(path)
        archive = _archive(path) if path.startswith(ARCHIVES) else None
        if archive is None:
            return without_secrets(_written(path))
        kind, inside = path.split("/", 2)[1], path.split(archive.name, 1)[1]
        return f"/{kind}/{self._resolved(str(archive))}{inside}"

    def _resolved(self, path: str) -> str:
        folder, name = os.path.split(path)
        try:
            if folder not in self._real:
                self._real[folder] = real_path(folder)
            whole = os.path.join(self._real[folder], name)  # noqa: PTH118 - a Path for each of 100,000 files takes a second
            return real_path(whole) if is_link(whole) else whole
        except OSError as error:
            raise SourceError(f"{path} cannot be examined: {of_system(error)}") from error

    def named(self, path: str) -> str:
        """Path of a file in records; for a path into an archive, the archive."""
        archive = _archive(path) if path.startswith(ARCHIVES) else None
        return _written(path if archive is None else str(archive))

    def identity(self, path: str) -> Identity:
        """Identity of one file; the path alone for one that is missing or has no state. URLs are stored without secrets.

        Raises:
            OSError: a server cannot be reached at present.
        """
        if in_bucket(path):
            name = canonical(path)
            return self._near(name).get(name, {"path": name})
        if on_web(path):
            return {"path": without_secrets(plain_url(path)), **state_of(path)}
        file = self.named(path)
        if is_remote(file) or not exists(file):
            return {"path": without_secrets(file)}
        stat = os.stat(file)  # noqa: PTH116
        return {"path": file, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}

    def _near(self, name: str) -> dict[str, Identity]:
        """Identities of an object and its sidecars; those of the last object are cached."""
        stem = str(PurePosixPath(name).with_suffix(""))
        if self._objects[0] != stem:
            self._objects = stem, objects_near(name)
        return self._objects[1]

    def sidecars(self, path: str) -> list[str]:
        """Files beside a raster that GDAL may read with it."""
        name = PurePosixPath(path).name
        if in_bucket(path):
            near = self._near(canonical(path))
            return [found for found in near if not _names(name).isdisjoint(owners_of(PurePosixPath(found).name))]
        if is_remote(path):
            return []
        folder = os.path.dirname(path)  # noqa: PTH120
        there = self._listed(folder)
        return [os.path.join(folder, found) for owner in _names(name) for found in there.get(owner, ())]  # noqa: PTH118

    def _listed(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._sidecars:
            there: dict[str, list[str]] = {}
            for name in sorted(os.listdir(folder or ".")):  # noqa: PTH208 - only names are needed
                for owner in owners_of(name):
                    there.setdefault(owner, []).append(name)
            self._sidecars[folder] = there
        return self._sidecars[folder]


def owners_of(sidecar: str) -> list[str]:
    """Names or stems, in lower case, of the rasters that a file belongs to by its name; empty unless it is a sidecar."""
    name = sidecar.lower()
    if name in BESIDE_ALL:
        return [ANY]
    if name.startswith(("hdr", "rpc", "dim")) and name.endswith((".txt", ".xml")):  # Pléiades, ALOS
        return [SENSOR + name[3:-4].lstrip("_-")]
    owners = [name.removesuffix("mtl.txt")] if name.endswith("_mtl.txt") else []  # Landsat, for all bands
    while (stem := SIDECAR.sub("", name)) != name:
        owners.append(name := stem)
    return owners


def _names(raster: str) -> set[str]:
    """Keys that ``owners_of`` gives for sidecars of a raster."""
    name = raster.lower()
    stem = os.path.splitext(name)[0]  # noqa: PTH122
    scene = f"{stem.rpartition('_')[0] or stem}_"
    return {ANY, name, stem, scene, f"{stem}_", *(SENSOR + stem[cut:].lstrip("_-") for cut in (3, 6))}


def world_files(file: str) -> list[str]:
    """Names of the world files of a raster."""
    suffix = Path(file).suffix
    stem, kind = file.removesuffix(suffix), suffix.removeprefix(".").lower()
    ends = (f"{kind[:1]}{kind[-1:]}w", f"{kind}w", "wld")
    return [f"{stem}.{end}" for low in ends for end in (low, low.upper())]  # the spellings that GDAL tries


def identities(path: str, files: Iterable[str], listings: FolderListings | None = None) -> list[Identity]:
    """Identities of all files that a case's pixels come from, sorted by path.

    Raises:
        SourceError: a server cannot be reached.
    """
    listings = listings or FolderListings()
    try:
        found = [listings.identity(file) for file in asked_names(files)]
    except OSError as error:
        raise SourceError(f"{error.filename or path} cannot be examined: {of_system(error)}") from error
    return list({one["path"]: one for one in found}.values())


def are_same_files(place: str, files: Sequence[Identity], path: str, listings: FolderListings, remote: bool = False) -> bool:
    """Whether every file of a case is unchanged since its record was written; for formats without sidecar files.

    Args:
        place: path of the case in the record.
        files: files of the case in the record.
        path: path of the case now.
        listings: recent listings of folders, shared between cases.
        remote: whether a local case may refer to servers; not used, since files of these formats refer to no others.

    Raises:
        OSError, SourceError: the files cannot be examined.
    """
    del remote
    if not files or without_secrets(place) != listings.place(path):
        return False
    if is_redacted(path):
        return True  # status takes the path from a record, which omits the token, so that the server cannot be asked
    names = {without_secrets(name): name for name in asked_names([path])}
    return list(files) == identities(path, [names.get(one := str(file["path"]), one) for file in files], listings)


def hidden_path(path: str) -> str:
    """A path that cannot be read, but compared; a guess of it can be confirmed."""
    return f"{HIDDEN}{hashlib.sha256(os.fsencode(path)).hexdigest()}"


def hidden(file: Identity) -> Identity:
    """The identity of a file without its path, in which a patient may be named."""
    return file | {"path": hidden_path(str(file["path"]))}


def unhidden(files: Sequence[Identity], names: Iterable[str]) -> list[Identity]:
    """Identities with the paths among ``names`` that they hide; others stay hidden."""
    if not any(str(file["path"]).startswith(HIDDEN) for file in files):
        return list(files)
    known = {hidden_path(name): name for name in map(without_secrets, names)}
    found = [file | {"path": known.get(str(file["path"]), file["path"])} for file in files]
    return sorted(found, key=lambda file: str(file["path"]))


def asked_names(files: Iterable[str]) -> list[str]:
    """Names by which files are looked up, each once, in the order of their names in a record."""
    return sorted({_written(file) for file in files}, key=lambda name: (without_secrets(name), name))


def no_state(files: Iterable[Identity]) -> list[str]:
    """A note on files for which no later run can detect a change."""
    names = [file["path"] for file in files if len(file) == 1]
    return [NO_STATE.format(and_more(names, 1))] if names else []


def _archive(path: str) -> Path | None:
    """The local archive that a path leads into; None if there is none."""
    inside = Path("/" + path.split("/", 2)[2].lstrip("/"))
    relative = Path(path.split("/", 2)[2])
    return next((p for start in (relative, inside) for p in (start, *start.parents) if is_file(p)), None)


def _written(path: str) -> str:
    """Path as in a record: absolute, but with links unresolved, which may lead elsewhere on another machine."""
    if not is_remote(path):
        return plain_path(str(Path(path).absolute()))
    return plain_url(canonical(path))
