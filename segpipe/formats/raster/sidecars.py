"""Check the files beside a raster that define validity and georeferencing: GDAL silently ignores damaged ones."""

import errno
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Sequence
from io import BufferedReader
from itertools import chain
from pathlib import Path

import rasterio
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from segpipe.errors import SourceError
from segpipe.formats.identity import SIDECAR, world_files
from segpipe.formats.raster.dataset_files import own_files
from segpipe.formats.raster.gdal import any_name
from segpipe.formats.raster.references import parse_xml
from segpipe.formats.raster.tiff import NOT_WHOLE, check_tags, is_number, is_whole
from segpipe.formats.raster.validity import WIDE
from segpipe.storage.existence import exists, is_file
from segpipe.storage.paths import is_remote

NO_FILE = frozenset({MaskFlags.all_valid, MaskFlags.nodata, MaskFlags.alpha})
"""Flags of bands whose mask is not a file."""

PARAMETERS, WORLD_BYTES = 6, 4096
"""Numbers in a world file, and an upper bound of its size."""

MEND = "mend it or take it away"


class Checks:
    """Checks that a local raster and its sidecars are whole, where GDAL would not report it; each file is opened once.

    Raises:
        SourceError: GDAL would use a part of a file, or ignore it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._wanted = not is_remote(path) and is_file(path)
        self._seen: set[str] = set()

    def look(self, file: str, stream: BufferedReader) -> None:
        """Check a file that the caller has just opened."""
        if self._wanted and file not in self._seen and not file.endswith(".ovr"):
            self._seen.add(file)
            _check_file(file, stream)

    def end(self, dataset: DatasetReader, files: Iterable[str]) -> None:
        """Check the files that were not opened yet, and how GDAL has used them."""
        if not self._wanted:
            return
        path = self._path
        here = {file for file in {path, *files} if not is_remote(file) and is_file(file)}
        for file in here - self._seen:
            with Path(file).open("rb") as stream:
                self.look(file, stream)
        _check_mask(dataset, path)
        _check_wide(dataset, here & {path, f"{path}.aux.xml"})
        if dataset.driver != "VRT":
            _check_world_file(dataset, path)
            return
        for source in sorted(here - {path}):
            if not SIDECAR.search(source.lower()) and not here.isdisjoint({f"{source}.msk", *world_files(source)}):
                _check_source(source)


def facts(dataset: DatasetReader) -> str:
    """All metadata of a dataset that may come from a sidecar file."""
    points, crs = dataset.gcps
    bands = (dataset.nodatavals, dataset.mask_flag_enums, dataset.colorinterp, dataset.scales, dataset.offsets)
    place = (dataset.crs, tuple(dataset.transform), crs, [(p.row, p.col, p.x, p.y, p.z) for p in points], dataset.rpcs)
    texts = (_text(lambda: dataset.descriptions), _text(dataset.tags))
    return repr((*bands, *place, *texts))


def _text(read: Callable[[], object]) -> object:
    """Tags and descriptions of a dataset, or the error of rasterio if they are not UTF-8, which is no fault of reading."""
    try:
        return read()
    except UnicodeDecodeError as error:
        return str(error)


def check_opened(path: str, dataset: DatasetReader, files: Sequence[str], again: Callable[[], DatasetReader]) -> str:
    """Open a dataset that has sidecar files again and compare its metadata; returns them, or an empty text without sidecars.

    Args:
        path: the dataset.
        dataset: the dataset, open.
        files: the dataset and its sidecar files.
        again: opens the dataset again.

    Raises:
        SourceError: as ``check_same``.
        OSError: as ``_check_listable``.
    """
    _check_listable(path)
    if len(files) < 2 or dataset.driver == "VRT" or is_remote(path):  # GDAL opens the sources of a VRT when they are read
        return ""
    found = facts(dataset)
    with again() as other:
        check_same(path, found, facts(other))
    return found


def _check_listable(path: str) -> None:
    """Check that the folder of a local file can be listed: otherwise GDAL takes it for empty, and ignores sidecar files.

    If the folder does not even open, because its files may be read but not listed, GDAL asks for each sidecar file instead.

    Raises:
        OSError: the folder opens, and cannot be listed.
    """
    if is_remote(path) or not is_file(path):
        return
    try:
        listing = os.scandir(Path(path).parent)
    except OSError:
        return
    with listing:
        next(listing, None)


def check_same(path: str, before: str, now: str) -> None:
    """Check that a dataset has the same metadata in both openings.

    GDAL silently ignores a sidecar file that it cannot read, and loses nodata values, masks or georeferencing.

    Raises:
        SourceError: the metadata differ; a retry may succeed.
    """
    if before != now:
        fault = OSError(errno.EIO, "a file beside it could be read in only one of two tries")
        raise SourceError(f"{path}: {fault.strerror}: check the disk, and run the same command again") from fault


def _check_source(path: str) -> None:
    """Check the source of a VRT; opened only if there is something to compare, and ignored if it does not open."""
    if not exists(f"{path}.msk") and not _bad_world_files(path):
        return
    try:
        dataset = rasterio.open(any_name(path))
    except RasterioError:
        return
    with dataset:
        _check_mask(dataset, path)
        if dataset.driver != "VRT":
            _check_world_file(dataset, path)


def _check_file(file: str, stream: BufferedReader) -> None:
    """Check a file by the format of its beginning."""
    if os.pread(stream.fileno(), 2, 0) in (b"II", b"MM"):
        check_tags(file, stream)
    elif file.lower().endswith((".aux.xml", ".vrt")):
        _check_xml(file)


def _check_mask(dataset: DatasetReader, path: str) -> None:
    """Check that GDAL uses a ``.msk`` file: the flags of some band must show it."""
    mask = f"{path}.msk"
    used = any(NO_FILE.isdisjoint(flags) for flags in dataset.mask_flag_enums)
    if exists(mask) and not used:
        raise SourceError(f"{mask} must be a raster of the size of {path} that masks it, and GDAL cannot use it: {MEND}")


def _check_xml(file: str) -> None:
    """Check that XML is well formed, and has numbers where GDAL expects them: GDAL uses whatever it can parse."""
    try:
        with open(file, "rb") as stream:  # noqa: PTH123 - like ElementTree
            root = parse_xml(stream.read())
    except ET.ParseError as error:
        raise SourceError(f"{file} is not well-formed XML, {error}: {MEND}") from error
    values = _nodata_texts(root)
    values += chain.from_iterable((e.text or "").split(",") for e in root.iter("GeoTransform"))
    bad = next((text for text in values if not is_number(text.strip())), None)
    if bad is not None:
        raise SourceError(f"{file}: nodata values and geotransforms must be numbers, got {bad!r}: {MEND}")


def _nodata_texts(root: ET.Element) -> list[str]:
    return [e.text for e in root.iter("NoDataValue") if e.text and e.text.strip()]  # an empty element declares none


def _check_wide(dataset: DatasetReader, files: Iterable[str]) -> None:
    """Check nodata values in XML where all bands are 64-bit integers: GDAL takes the first digits."""
    if not {*dataset.dtypes} <= {*WIDE}:
        return
    for file in files:
        if file.lower().endswith((".aux.xml", ".vrt")):
            texts = _nodata_texts(parse_xml(Path(file).read_bytes()))
            if (bad := next((text for text in texts if not is_whole(text.strip())), None)) is not None:
                raise SourceError(f"{file}: {NOT_WHOLE.format(bad)}")


def _check_world_file(dataset: DatasetReader, path: str) -> None:
    """Check a world file that GDAL has used, or any if it found no georeferencing."""
    for file in _bad_world_files(path):
        if file in own_files(dataset) or (dataset.transform.is_identity and not dataset.gcps[0]):
            raise SourceError(f"{file} must be a world file, six numbers on lines of their own: {MEND}")


def _bad_world_files(path: str) -> list[str]:
    return [file for file in world_files(path) if is_file(file) and not _is_world_file(file)]


def _is_world_file(file: str) -> bool:
    """Whether a file has six lines that begin with a number; words may follow. Other software writes ``.wld`` files, too: a
    text whose first line has no number passes.
    """
    with Path(file).open(errors="replace") as stream:
        text = stream.read(WORLD_BYTES)
    numbers = [is_number(line.split()[0].replace(",", ".")) for line in text.split("\n") if line.strip()]
    return (len(numbers) >= PARAMETERS and all(numbers[:PARAMETERS])) or (file.endswith(".wld") and not any(numbers[:1]))
