"""Find the files and servers that a VRT refers to, and check that it may: GDAL follows every name in it.

GDAL accepts attributes for elements and ignores case, so all texts of a VRT are searched for names, except those that only
describe.
"""

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

from segpipe.errors import SourceError
from segpipe.formats.identity import world_files
from segpipe.formats.raster.confine import read_start
from segpipe.storage.existence import exists, is_file, is_folder

NAMING = frozenset({"sourcefilename", "sourcedataset"})
"""Elements and attributes of a VRT that name a dataset, in lower case."""

DESCRIBING = frozenset({"description", "categorynames", "colorinterp", "unittype", "gcplist", "histograms", "lut"})
"""Elements that name no file."""

LEADING = frozenset({"overviews", "geolocation", "xml:vrt"})
"""Metadata domains in which GDAL looks for file names."""

CONNECTION = re.compile(r'[:"?]')
"""Separators in the name of a subdataset, as in ``NETCDF:"a.nc":band1``."""

SERVER = re.compile(
    r"/vsicurl(?:_streaming)?/(?=https?://)|/vsi(s3|gs|az|adls|oss|swift|hdfs|webhdfs|curl)(?:_streaming)?(?![a-z0-9])/?([^/?]*)"
    r"|([a-z][a-z0-9+.-]*)://([^/?\"]*)",
    re.IGNORECASE,
)
"""A reference to a server in a name: GDAL's handler and bucket, or scheme and host."""

BESIDE = (".msk", ".ovr")
"""Suffixes of rasters that GDAL opens with any raster."""

HEAD, MOST = 4096, 2**28
"""Bytes in which a VRT can be recognised, and an upper bound of its size."""

MARK = b"<VRTDataset"

SERVICE = re.compile(rb"<(GDAL_WMS|WMS_|WMTS|GDAL_WMTS|WCS_GDAL|GDALTileIndexDataset)")
"""Beginnings of descriptions of services and tile indexes, whose drivers are not registered."""

REMOTE = (
    "{}: {} on this machine must read local files only, and this one refers to {}: download that, or, if you trust the "
    "file, allow it to ask servers: segpipe run and inspect take --allow-remote-sources"
)
AWAY = (
    "{0}: a VRT on a server must read from that server only, and this one refers to {2}: move both to one place, or, if you "
    "trust the VRT, allow it to read anything: segpipe run and inspect take --allow-remote-sources"
)
SPECIAL = "{}: an input must be a regular file, and it is a pipe, a socket or a device: take it away"
RAW = "{}: raw bands of a VRT must come from a file beside or below it, got {}: bring the file there"


def servers(name: str) -> set[str]:
    """Servers and buckets that a name refers to; empty for a local name."""
    found: set[str] = set()
    if "://" not in name and "/vsi" not in name.lower():
        return found
    for handler, bucket, scheme, host in SERVER.findall(name):
        if (kind := (handler or scheme).lower()) and kind != "vrt":
            found.add(f"{kind}://{bucket or host}")
    return found


@dataclass(frozen=True, slots=True)
class _Home:
    """Limits of the places to which names in a case may refer."""

    case: str
    servers: set[str]
    """Empty for a local case."""
    anywhere: bool
    """Whether names may refer to anything, except for raw bands."""


def check_references(path: str, *, remote: bool = False) -> None:
    """Check what a raster refers to: a local one may refer to this machine only, one on a server to that server only.

    Args:
        path: path of the case.
        remote: allow references to any server, and from a server to anything; raw bands must still lie beside their VRT.

    Raises:
        SourceError: a VRT, or a file that GDAL reads with the raster, refers to something else; a raw band lies elsewhere;
            or a referenced file is not a regular file.
    """
    home, seen, left = _Home(path, servers(path), remote), set[str](), [_inner(path)]
    while left:
        file = left.pop()
        if file not in seen:
            seen.add(file)
            _check_regular(file)
            left += _followed(file, home)


def _check_regular(file: str) -> None:
    """Refuse pipes, sockets and devices: opening a pipe may block forever, and GDAL opens sidecars by itself."""
    for name in (file, *(file + end for end in (*BESIDE, ".aux.xml", ".aux")), *world_files(file)):
        if _exists(name) and not _is_file(name) and not _asked(is_folder, name):
            raise SourceError(SPECIAL.format(name))


def _exists(name: str) -> bool:
    return not name.startswith("/vsi") and _asked(exists, name)


def _asked(question: Callable[[str], bool], name: str) -> bool:
    """Ask about a local path; False for paths that GDAL may not open either.

    Raises:
        OSError: this cannot be determined.
    """
    try:
        return question(name)
    except PermissionError:
        return False


def _inner(name: str) -> str:
    """The file behind a ``vrt://`` name."""
    return name.removeprefix("vrt://").partition("?")[0] if name.startswith("vrt://") else name


def _followed(file: str, home: _Home) -> list[str]:
    """Files that GDAL may open together with a file, after all names in it were checked."""
    names = []
    if not home.servers:
        names = [name for end in BESIDE if _is_file(name := file + end)]
        if _is_file(sidecar := f"{file}.aux.xml"):
            leading = filter(_is_leading, _parsed(sidecar, _text(sidecar, whole=True)).iter())
            names += [name for element in leading for name in _named(sidecar, element, home)]
    text = _text(file)
    if not home.anywhere and SERVICE.match(text):
        rule = AWAY if home.servers else REMOTE
        raise SourceError(
            rule.format(home.case, "a raster" if file == home.case else file, "a service or an index of tiles")
        )
    return [*names, *_names_in(file, _parsed(file, text), home)] if MARK in text[:HEAD] else names


def _names_in(file: str, root: ET.Element, home: _Home) -> list[str]:
    """Files that a VRT names, including a VRT that it contains as text."""
    _check_raw(file, root)
    within = [text for _, text, _ in words_of(root) if MARK.decode() in text]
    names = [name for text in within for name in _names_in(file, _parsed(file, text.encode()), home)]
    return [*names, *_named(file, root, home)]


def _is_file(name: str) -> bool:
    return bool(read_start(name, 1)) if name.startswith("/vsi") else _asked(is_file, name)


def _text(file: str, *, whole: bool = False) -> bytes:
    """All of a VRT, or with ``whole`` of any file; else the head of the file, or nothing if it does not exist."""
    if file.startswith("/vsi") or servers(file):
        name = _gdal_name(file)
        head = read_start(name, HEAD)
        return read_start(name, MOST) if whole or MARK in head else head
    if not _is_file(file):
        return b""
    with Path(file).open("rb") as stream:
        head = stream.read(HEAD)
        return head + stream.read(MOST) if whole or MARK in head else head


def _gdal_name(name: str) -> str:
    if name.startswith("s3://"):
        return f"/vsis3/{name.removeprefix('s3://')}"
    return f"/vsicurl/{name}" if name.startswith(("http://", "https://")) else name


def _parsed(file: str, text: bytes) -> ET.Element:
    try:
        return parse_xml(text)
    except ET.ParseError as error:
        raise SourceError(f"{file} is not well-formed XML, {error}: mend it or take it away") from error


def parse_xml(text: bytes) -> ET.Element:
    """Root of an XML text, even if it does not declare its encoding: GDAL uses file names as they are."""
    try:
        return ET.fromstring(text)
    except ET.ParseError:
        if b"encoding=" not in text[:HEAD]:
            with suppress(ET.ParseError):
                return ET.fromstring(text.decode("latin-1"))
        raise


def _is_leading(element: ET.Element) -> bool:
    domain = next((value for key, value in element.attrib.items() if key.casefold() == "domain"), "")
    return element.tag.casefold() == "metadata" and domain.casefold() in LEADING


def _named(file: str, root: ET.Element, home: _Home) -> list[str]:
    """Local files, or VRTs on a server, that a VRT names.

    Raises:
        SourceError: it names something that it may not.
    """
    found = []
    for key, text, relative in words_of(root):
        if not home.anywhere and (foreign := servers(text) - home.servers):
            rule = AWAY if home.servers else REMOTE
            raise SourceError(rule.format(home.case, "a VRT" if file == home.case else file, _short(foreign, text)))
        if not home.servers:
            found += [place for place in _places(file, text) if not servers(place) and (_is_file(place) or _exists(place))]
        elif key in NAMING and not home.anywhere:
            found += _on_server(file, text, home, relative=relative)
    return found


def _short(foreign: set[str], text: str) -> str:
    return next((server for server in sorted(foreign) if not server.endswith("://")), text[:60])


def _on_server(file: str, name: str, home: _Home, *, relative: bool) -> list[str]:
    """The VRT on the same server that a VRT names, to be checked as well."""
    place = name if servers(name) else f"{file.rpartition('/')[0]}/{name}"
    if (not servers(name) and (not relative or name.startswith("/"))) or ".." in PurePosixPath(place).parts:
        raise SourceError(AWAY.format(home.case, "", name))
    return [place] if place.lower().endswith(".vrt") else []


def words_of(root: ET.Element) -> Iterator[tuple[str, str, bool]]:
    """Yield every text of a VRT that may name a file: key in lower case, text, and whether it is relative to the VRT.

    CRSs are included only where GDAL would request them from a server.
    """
    key = root.tag.casefold()
    if key in DESCRIBING or (key == "metadata" and not _is_leading(root)):
        return
    relative = is_relative(root, default=False)
    for own, text in ((key, root.text), *((name.casefold(), value) for name, value in root.attrib.items())):
        word = (text or "").strip()
        if word and not (own.endswith("srs") and not SERVER.match(word)):
            yield own, word, relative
    for child in root:
        yield from words_of(child)
        if (child.tail or "").strip():
            yield key, (child.tail or "").strip(), relative


def is_relative(element: ET.Element, *, default: bool) -> bool:
    """Whether a name is relative to its VRT: GDAL takes the first attribute or child, in any case."""
    value = next(iter(_values(element, "relativetovrt")), None)
    return default if value is None else value.casefold() not in ("0", "no", "false", "off")


def _places(file: str, name: str) -> list[str]:
    """Candidate paths of a file that a VRT names, or of which it names a part."""
    if not any(letter.isalpha() for letter in name) or len(name) > HEAD:
        return []
    words = [_inner(name), *parts_of(name.removeprefix(":::BASE:::"))]
    folder = os.path.dirname(file)  # noqa: PTH120
    return list(dict.fromkeys(os.path.join(start, word) for word in words if word for start in (folder, "")))  # noqa: PTH118


def parts_of(name: str) -> list[str]:
    """A name, and the parts of it that may be the file if it names a subdataset."""
    cuts = [0, *(match.end() for match in CONNECTION.finditer(name)), len(name) + 1]
    return [name, *(name[a : b - 1] for a, b in pairwise(cuts)), *(name[a:] for a in cuts[1:-1])]


def _check_raw(file: str, root: ET.Element) -> None:
    """Refuse raw bands that lie elsewhere. GDAL 3.12 has an option for this; here links are resolved as well."""
    folder = os.path.dirname(_real(file))  # noqa: PTH120
    for band in root.iter():
        kinds = {value.casefold() for value in _values(band, "subclass")}
        if "vrtrawrasterband" not in kinds:
            continue
        for source in (child for child in band if child.tag.casefold() == "sourcefilename"):
            _check_below(file, folder, source)
        if any(key.casefold() == "sourcefilename" for key in band.attrib):
            raise SourceError(RAW.format(file, "a name as an attribute"))


def _values(element: ET.Element, name: str) -> list[str]:
    own = [value for key, value in element.attrib.items() if key.casefold() == name]
    return own + [child.text or "" for child in element if child.tag.casefold() == name]


def _check_below(file: str, folder: str, source: ET.Element) -> None:
    name = (source.text or "").strip()
    start = folder if is_relative(source, default=True) else ""
    place = _real(os.path.join(start, name))  # noqa: PTH118
    if not f"{place}/".startswith(f"{folder}/"):
        raise SourceError(RAW.format(file, name))


def _real(name: str) -> str:
    """Normalise a path: remove ``..``, and resolve the links of a local file."""
    return os.path.normpath(name) if name.startswith("/vsi") or servers(name) else os.path.realpath(name)
