"""Compare the files of products with the checksums that come with them: CRC-32 in archives, digests in ``manifest.safe``."""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from segpipe.errors import SourceError
from segpipe.formats.raster.tiff import verify_files
from segpipe.formats.scenes.container import MOST_BYTES
from segpipe.formats.scenes.document import elements, parsed
from segpipe.formats.scenes.names import MEND, SAFE
from segpipe.storage.existence import is_file
from segpipe.storage.files import reading_errors

ZIP, TAR = "/vsizip/", "/vsitar/"

ALGORITHMS = {"MD5": "md5", "SHA3-256": "sha3_256", "SHA-256": "sha256"}
"""Names of algorithms in manifests of Sentinel-2, and those of hashlib."""

AT_ONCE = 2**22
"""Bytes per read."""


def verify_products(files: Sequence[str]) -> list[str]:
    """Compare files with their checksums; return a note for each file without one.

    Raises:
        SourceError: a file is damaged.
    """
    digests = cache(_digests)
    return [note for file in files for note in _verified(file, digests)]


def _verified(file: str, digests: Callable[[str], Mapping[str, tuple[str, str]]]) -> list[str]:
    if file.startswith(ZIP):
        _verify_member(file)
        return []
    if file.startswith(TAR):
        return [f"{file} is not verified: a tar archive has no checksums of its members: unpack it"]
    manifest = _manifest(file)
    found = None if manifest is None else digests(manifest).get(os.path.relpath(file, os.path.dirname(manifest)))  # noqa: PTH120
    if found is None:
        return verify_files([file])
    algorithm, wanted = found
    if _digest(file, algorithm) != wanted:
        raise SourceError(f"{file} is damaged: its {algorithm.upper()} is not that of {manifest}: {MEND}")
    return []


def _verify_member(file: str) -> None:
    """Read a member of an archive to its end, where its CRC-32 is compared."""
    place = file.removeprefix(ZIP)
    end = place.lower().index(".zip/") + len(".zip")
    try:
        with reading_errors(file, SourceError):
            while not is_file(place[:end]):  # a folder may be called so, too
                end = place.lower().index(".zip/", end) + len(".zip")
            with zipfile.ZipFile(place[:end]) as archive, archive.open(place[end + 1 :]) as member:
                while member.read(AT_ONCE):
                    pass
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise SourceError(f"{file} is damaged: {error}: {MEND}") from error


def _manifest(file: str) -> str | None:
    """The manifest of the product that holds a file; None if there is none."""
    folder = next((parent for parent in Path(file).parents if parent.name.lower().endswith(SAFE)), None)
    manifest = None if folder is None else folder / "manifest.safe"
    with reading_errors(manifest or file, SourceError):
        return None if manifest is None or not is_file(manifest) else str(manifest)


def _digests(manifest: str) -> dict[str, tuple[str, str]]:
    """Algorithm and digest of each file that a manifest names, by its path below the product."""
    with reading_errors(manifest, SourceError), Path(manifest).open("rb") as stream:
        data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise SourceError(f"{manifest} must be metadata of at most {MOST_BYTES:,} bytes, and is longer: {MEND}")
    found = {}
    for stream_of in elements(parsed(manifest, data), "byteStream"):
        place = next(elements(stream_of, "fileLocation"), None)
        digest = next(elements(stream_of, "checksum"), None)
        if place is not None and digest is not None and (name := ALGORITHMS.get(digest.get("checksumName", ""))):
            path = os.path.normpath(place.get("href", ""))
            found[path] = (name, (digest.text or "").strip().lower())
    return found


def _digest(file: str, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with reading_errors(file, SourceError), Path(file).open("rb") as stream:
        while data := stream.read(AT_ONCE):
            digest.update(data)
    return digest.hexdigest()
