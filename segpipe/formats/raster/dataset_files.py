"""List the files that a dataset's pixels, validity and georeferencing come from."""

import os
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

import rasterio
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from segpipe.formats.identity import HIDDEN, FolderListings, Identity, asked_names, identities, unhidden, world_files
from segpipe.formats.raster.gdal import any_name, gdal_options, open_raster, source_errors
from segpipe.formats.raster.gdal_readers import pinned
from segpipe.formats.raster.references import NAMING, parts_of, words_of
from segpipe.messages.url_secrets import is_redacted, without_secrets
from segpipe.storage.existence import files_below, is_file, is_folder
from segpipe.storage.paths import is_remote

SURE = (".msk", ".aux.xml", ".ovr")
"""Suffixes of files that belong to a raster even if GDAL makes nothing of them; so do world files."""

STORES = frozenset({".zarray", ".zgroup", "zarr.json", "hdr.adf"})
"""Files by which a folder is a raster: Zarr's, and those of Esri's binary grids."""

HEADERS = (".hdr", ".HDR", ".rdc", ".sgrd", ".blw", ".prj")
"""Suffixes of files that describe raw pixels or grids: of ENVI and Esri, Idrisi, SAGA. The accepted formats have none."""

METADATA = (".dim", ".xml", ".safe", ".til")
"""Suffixes of files that name the images of a product: DIMAP's, Sentinel's, RADARSAT's, TerraSAR-X's, DigitalGlobe's."""

PLAIN = frozenset({".tif", ".tiff", ".jp2", ".j2k", ".png", ".jpg", ".jpeg", ".webp", ".bmp"})
"""Suffixes of rasters for which GDAL reads a ``.txt`` or ``.xml`` only for the sensors below."""

PARTNERS = {".txt": (".rpc",), ".xml": (".imd", ".rpb")}
"""Files of the same stem without which GDAL does not read these: KOMPSAT's and DigitalGlobe's."""

SENSORS = (b"<isd", b"<MSP_ROOT")
"""Marks in the head of XML files that GDAL reads on their own: DigitalGlobe's and those of Resurs-DK1."""

HEAD = 4096
"""Bytes in which an XML file can be recognised."""

Look = Callable[[str, BufferedReader], None]
"""Called with the path and the stream of each file that is opened."""


def files_of(dataset: DatasetReader, look: Look | None = None) -> list[str]:
    """All files of an open dataset: those that GDAL lists, and for a VRT its sources with their sidecars.

    GDAL omits the sources of a VRT's mask, sources that are subdatasets, the sources of nested VRTs, the world file of a
    BMP, and any file, even the dataset's own, whose ``stat`` fails at that moment.

    Args:
        dataset: the file.
        look: called for files that are opened here: a VRT and its sources, which can be thousands.
    """
    name, own = str(dataset.name), own_files(dataset)
    sure = [] if is_remote(name) else [name, *(name + end for end in SURE), *world_files(name)]
    found = list(dict.fromkeys([*own, *filter(_is_file, sure)]))
    if dataset.driver != "VRT":
        return found
    listings = FolderListings()
    found = [file for file in found if _is_file(file)]  # the others are names of subdatasets
    for file in _sources(name, found, look):
        found += [file, *listings.sidecars(file)]
    return list(dict.fromkeys(found))


def own_files(dataset: DatasetReader) -> list[str]:
    """Files of a dataset as GDAL lists them; where rasterio cannot decode their names, all that GDAL may have read."""
    try:
        return list(dataset.files)
    except UnicodeDecodeError:
        path = str(dataset.name)
        there = [path, *FolderListings().sidecars(path)]
        return [path, *(file for file in there[1:] if _may_be_read(file, path, there))]


def _is_file(name: str) -> bool:
    return is_remote(name) or is_file(name)


def _sources(vrt: str, listed: Iterable[str], look: Look | None) -> Iterator[str]:
    """Yield the sources of a VRT and of every VRT among them, each once."""
    seen, left = {vrt}, [*_named(vrt, look), *(file for file in listed if file != vrt)]
    while left:
        file = left.pop(0)
        if file not in seen:
            seen.add(file)
            yield file
            left += _named(file, look)


def _named(vrt: str, look: Look | None) -> list[str]:
    """Local files that a VRT names; none where it is not a VRT, or not local."""
    if is_remote(vrt) or not is_file(vrt):
        return []
    with Path(vrt).open("rb") as stream:
        if look is not None:
            look(vrt, stream)
        head = stream.read(HEAD)
        if b"<VRTDataset" not in head:
            return []
        text = head + stream.read()
    try:
        root = ET.fromstring(text)
    except ET.ParseError:
        return []  # GDAL's parser accepts more, and GDAL lists what it opens
    folder = str(Path(vrt).parent)
    words = ((name, folder if relative else "") for key, name, relative in words_of(root) if key in NAMING)
    return [file for name, start in words for file in (*_files(name, start), *_images(name, start))]


def _files(name: str, start: str) -> list[str]:
    """The file that a source names, or of which it names a part; both if both exist; of a folder all files in it."""
    places = (os.path.join(start, word) for word in parts_of(name) if word)  # noqa: PTH118 - keeps a leading ./
    return [file for place in places for file in (_with_headers(place) if is_file(place) else _files_in(place))]


def _images(name: str, start: str) -> list[str]:
    """The files that GDAL reads if a source is, or names a part of, the metadata file of a product."""
    for part in parts_of(name):
        place = os.path.join(start, part)  # noqa: PTH118
        if part.lower().endswith(METADATA) and is_file(place):
            with suppress(RasterioError), rasterio.open(any_name(name.replace(part, place))) as product:
                return own_files(product)
    return []


def _with_headers(file: str) -> list[str]:
    """A source, and the files of its stem that describe it, where its format has such."""
    stem, suffix = os.path.splitext(file)  # noqa: PTH122 - a VRT may have thousands
    if suffix.lower() in PLAIN | {".vrt"}:
        return [file]
    return [file, *(name for end in HEADERS for name in (stem + end, file + end) if name != file and is_file(name))]


def _files_in(place: str) -> list[str]:
    """The files of a folder that GDAL reads as a raster, where a chunk may change and nothing else; none of another."""
    if not is_folder(place) or STORES.isdisjoint(os.listdir(place)):  # noqa: PTH208 - only names are needed
        return []
    return [str(file) for file in files_below(Path(place))]


def is_same_input(
    place: str, files: Sequence[Identity], path: str, listings: FolderListings, *, remote: bool = False
) -> bool:
    """Whether the files that would be read for a case now are the unchanged files of its record.

    Every file of the record must be unchanged. If there is another file beside them that GDAL might read, GDAL is asked.

    Args:
        place: path of the input in the record.
        files: files of the input in the record.
        path: path of the case now.
        listings: recent listings of folders, shared between cases.
        remote: whether a local case may refer to servers.

    Raises:
        OSError, SourceError: the files cannot be examined.
    """
    if without_secrets(place) != listings.place(path):
        return False
    files = _unhidden(files, path, listings, remote=remote)
    files = [{**file, "path": without_secrets(file["path"])} for file in files]  # earlier versions stored some
    names = [file["path"] for file in files]
    if is_redacted(path):
        return True  # status takes the path from a record, which omits the token, so that the server cannot be asked
    if not names or files != identities(path, _asked(names, path, remote), listings):
        return False
    known = {listings.place(name) for name in names}
    near = {listings.place(file) for file in (listings.named(path), *listings.sidecars(path))}
    return (known <= near and not _more(known, path, listings)) or _asks_for(known, path, listings, remote)


def has_no_more(known: AbstractSet[str], path: str, listings: FolderListings, *, remote: bool) -> bool:
    """Whether GDAL reads no file with a raster besides known ones; GDAL is asked if there is one that it may read."""
    return not _more(known, path, listings) or _asks_for(known, path, listings, remote)


def _more(known: AbstractSet[str], path: str, listings: FolderListings) -> bool:
    """Whether a file that is not known lies beside a raster, and GDAL may read it."""
    there = [listings.named(path), *listings.sidecars(path)]
    near = {listings.place(file): file for file in there}
    return any(_may_be_read(near[place], path, there) for place in near.keys() - known)


def _asks_for(known: AbstractSet[str], path: str, listings: FolderListings, remote: bool) -> bool:
    """Whether all files that GDAL reads now are known."""
    return {listings.place(listings.named(file)) for file in files_now(path, remote=remote)} <= known


def _unhidden(files: Sequence[Identity], path: str, listings: FolderListings, *, remote: bool) -> list[Identity]:
    """Files of a record by their paths; GDAL is asked only if there are others than those beside the raster."""
    found = unhidden(files, map(listings.named, [path, *listings.sidecars(path)]))
    if any(str(file["path"]).startswith(HIDDEN) for file in found):
        found = unhidden(found, map(listings.named, files_now(path, remote=remote)))
    return found


def _asked(names: Sequence[str], path: str, remote: bool) -> list[str]:
    """Names of a record, with the secrets that were cut from them restored from tonight's case."""
    if not any(map(is_redacted, names)):
        return list(names)
    real = {without_secrets(name): name for name in asked_names([path])}
    if any(is_redacted(name) and name not in real for name in names):
        real |= {without_secrets(name): name for name in asked_names(files_now(path, remote=remote))}
    return [real.get(name, name) for name in names]


def _may_be_read(file: str, path: str, there: Sequence[str]) -> bool:
    """Whether GDAL may read a file together with the raster of its name; not the labels of a data set."""
    stem, suffix = os.path.splitext(file)  # noqa: PTH122 - called for 100,000 files
    own, kind = os.path.splitext(path)  # noqa: PTH122
    partners = PARTNERS.get(suffix.lower())
    if partners is None or kind.lower() not in PLAIN or os.path.basename(stem).lower() != os.path.basename(own).lower():  # noqa: PTH119
        return True
    if any(other.lower().endswith(partners) for other in there):
        return True
    return suffix.lower() == ".xml" and (is_remote(file) or _is_of_a_sensor(file))


def _is_of_a_sensor(file: str) -> bool:
    """Whether an XML file is sensor metadata; True if it cannot be read."""
    try:
        with Path(file).open("rb") as stream:
            head = stream.read(HEAD)
    except OSError:
        return True
    return any(mark in head for mark in SENSORS)


def files_now(path: str, *, remote: bool = False) -> list[str]:
    """All files that a case would be read from now.

    Raises:
        SourceError: it cannot be opened.
    """
    with gdal_options():
        return pinned(lambda: _files_now(path, remote))


def _files_now(path: str, remote: bool) -> list[str]:
    with source_errors(f"{path} cannot be opened", (path,)), open_raster(path, remote=remote) as dataset:
        return files_of(dataset)
