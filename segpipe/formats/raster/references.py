"""Which files and servers a VRT leads to, and whether it may: GDAL follows every name in it.

GDAL takes attributes for elements and does not heed case, so names are looked for in all texts of a VRT, but for those that
only describe.
"""

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

from segpipe.errors import SourceError
from segpipe.formats.identity import world_files
from segpipe.formats.raster.confine import read_start

NAMING = frozenset({"sourcefilename", "sourcedataset"})
"""Elements and attributes of a VRT that name a dataset, in lower case."""

DESCRIBING = frozenset({"description", "categorynames", "colorinterp", "unittype", "gcplist", "histograms", "lut"})
"""Elements that name no file."""

LEADING = frozenset({"overviews", "geolocation", "xml:vrt"})
"""Domains of metadata in which GDAL looks for names of files."""

CONNECTION = re.compile(r'[:"?]')
"""Between the words of a subdataset's name, as in ``NETCDF:"a.nc":band1``."""

SERVER = re.compile(
    r"/vsicurl(?:_streaming)?/(?=https?://)|/vsi(s3|gs|az|adls|oss|swift|hdfs|webhdfs|curl)(?:_streaming)?(?![a-z0-9])/?([^/?]*)"
    r"|([a-z][a-z0-9+.-]*)://([^/?\"]*)",
    re.IGNORECASE,
)
"""Where a name leads to a server: GDAL's handler and the bucket, or scheme and host."""

BESIDE = (".msk", ".ovr")
"""Rasters that GDAL opens with another, whatever their format."""

HEAD, MOST = 4096, 2**28
"""Bytes in which a VRT says what it is, and more than any has."""

MARK = b"<VRTDataset"

SERVICE = re.compile(rb"<(GDAL_WMS|WMS_|WMTS|GDAL_WMTS|WCS_GDAL|GDALTileIndexDataset)")
"""What descriptions of services and of tile indexes begin with, which are for drivers that are not there."""

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
    """Servers and buckets that a name leads to; none for what is of this machine."""
    found: set[str] = set()
    if "://" not in name and "/vsi" not in name.lower():
        return found
    for handler, bucket, scheme, host in SERVER.findall(name):
        if (kind := (handler or scheme).lower()) and kind != "vrt":
            found.add(f"{kind}://{bucket or host}")
    return found


@dataclass(frozen=True, slots=True)
class _Home:
    """Where the names of a case may lead."""

    case: str
    servers: set[str]
    """None for a case of this machine."""
    anywhere: bool
    """Raw bands excepted."""


def check_references(path: str, *, remote: bool = False) -> None:
    """Let a raster lead nowhere but where it may: of this machine to this machine, of a server to that server.

    Args:
        path: of the case.
        remote: it may lead to any server, and from a server to anything; raw bands still lie beside their VRT.

    Raises:
        SourceError: a VRT, or what GDAL reads with the raster, leads elsewhere; a raw band comes from elsewhere; or what it
            leads to is no regular file.
    """
    home, seen, left = _Home(path, servers(path), remote), set[str](), [_inner(path)]
    while left:
        file = left.pop()
        if file not in seen:
            seen.add(file)
            _check_regular(file)
            left += _followed(file, home)


def _check_regular(file: str) -> None:
    """Refuse pipes, sockets and devices: to open a pipe can block for ever, and GDAL opens sidecars without being asked."""
    for name in (file, *(file + end for end in (*BESIDE, ".aux.xml", ".aux")), *world_files(file)):
        if _exists(name) and not _is_file(name) and not os.path.isdir(name):  # noqa: PTH112 - however long
            raise SourceError(SPECIAL.format(name))


def _exists(name: str) -> bool:
    return not name.startswith("/vsi") and os.path.exists(name)  # noqa: PTH110 - however long


def _inner(name: str) -> str:
    """The file behind a ``vrt://`` name."""
    return name.removeprefix("vrt://").partition("?")[0] if name.startswith("vrt://") else name


def _followed(file: str, home: _Home) -> list[str]:
    """Files that GDAL may open with one, once all its names have been looked at."""
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
    """What a VRT names, and one that stands in it as a text."""
    _check_raw(file, root)
    within = [text for _, text, _ in words_of(root) if MARK.decode() in text]
    names = [name for text in within for name in _names_in(file, _parsed(file, text.encode()), home)]
    return [*names, *_named(file, root, home)]


def _is_file(name: str) -> bool:
    return bool(read_start(name, 1)) if name.startswith("/vsi") else os.path.isfile(name)  # noqa: PTH113 - however long


def _text(file: str, *, whole: bool = False) -> bytes:
    """All of a VRT, or with ``whole`` of any file; the head of another, nothing where there is none."""
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
    """The root of an XML text, also of one that does not tell its encoding: GDAL takes names of files as they are."""
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
    """Files of this machine, or VRTs of a server, that a VRT names.

    Raises:
        SourceError: it names what it may not.
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
    """A VRT that one on a server names, to look into, too."""
    place = name if servers(name) else f"{file.rpartition('/')[0]}/{name}"
    if (not servers(name) and (not relative or name.startswith("/"))) or ".." in PurePosixPath(place).parts:
        raise SourceError(AWAY.format(home.case, "", name))
    return [place] if place.lower().endswith(".vrt") else []


def words_of(root: ET.Element) -> Iterator[tuple[str, str, bool]]:
    """Every text of a VRT that may name a file: what it belongs to, in lower case, and whether it is relative to the VRT.

    CRSs count as far as GDAL would ask a server for them.
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
    """Whether a name is relative to its VRT, as an attribute or an element below says."""
    told = {key.casefold(): value for key, value in element.attrib.items()}
    told |= {child.tag.casefold(): child.text or "" for child in element}
    value = told.get("relativetovrt")
    return default if value is None else value.strip().casefold() not in ("0", "no", "false", "off")


def _places(file: str, name: str) -> list[str]:
    """Where a file may lie that a VRT names, or of which it names a part."""
    if not any(letter.isalpha() for letter in name) or len(name) > HEAD:
        return []
    words = [_inner(name), *parts_of(name.removeprefix(":::BASE:::"))]
    folder = os.path.dirname(file)  # noqa: PTH120
    return list(dict.fromkeys(os.path.join(start, word) for word in words if word for start in (folder, "")))  # noqa: PTH118


def parts_of(name: str) -> list[str]:
    """A name, and what may be the file in it where it is that of a subdataset."""
    cuts = [0, *(match.end() for match in CONNECTION.finditer(name)), len(name) + 1]
    return [name, *(name[a : b - 1] for a, b in pairwise(cuts)), *(name[a:] for a in cuts[1:-1])]


def _check_raw(file: str, root: ET.Element) -> None:
    """GDAL of 3.12 and later has an option for this, which says the same of a name; links count here, too."""
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
    """Without ``..``, and with links resolved of a file that the operating system finds."""
    return os.path.normpath(name) if name.startswith("/vsi") or servers(name) else os.path.realpath(name)
