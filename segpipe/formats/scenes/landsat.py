"""Products of Landsat Collection 2, levels 1 and 2: their bands, and the factors of their MTL file.

Physical values are ``pixel * MULT + ADD`` with the product's own factors (Landsat 8-9 Collection 2 Level 2 Science Product
Guide, section 5; Level 1 Data Format Control Book): reflectance of the surface or of the top of the atmosphere, the latter
not divided by the sine of the sun's elevation, and temperature in K.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from segpipe.errors import SourceError
from segpipe.formats.scenes.container import Container, container_at
from segpipe.formats.scenes.document import number, parsed
from segpipe.formats.scenes.names import MEND, ProductFile, landsat_names, part_of
from segpipe.formats.scenes.product import BandFile, Product
from segpipe.storage.documents import DocumentError, parse_json

Groups = Mapping[str, Mapping[str, str]]
"""Values of the metadata by group and key."""

MTL = ("txt", "xml", "json")
"""Forms of the MTL file, of equal content."""

OPTICAL, THERMAL, LEVEL1 = (
    "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS",
    "LEVEL2_SURFACE_TEMPERATURE_PARAMETERS",
    "LEVEL1_RADIOMETRIC_RESCALING",
)

SCENE = ("DATE_ACQUIRED", "SCENE_CENTER_TIME", "SPACECRAFT_ID", "SENSOR_ID", "CLOUD_COVER", "LANDSAT_PRODUCT_ID")

NONE = "NULL"
"""Value of what a product does not have."""

LINE = re.compile(r"\s*(\w+)\s*=\s*(.*?)\s*")

NOT_CORRECTED = (
    "reflectance of the top of the atmosphere is not divided by the sine of the sun's elevation, {}, as the product's "
    "factors leave it"
)


def read_product(folder: str, files: Sequence[str], title: str) -> Product:
    """A product by the names of its files in a folder, or in a tar archive, where its directory says them.

    Raises:
        SourceError: its metadata or its archive are damaged.
    """
    container = Container(folder, tuple(files)) if files else container_at(folder)
    parts = [(name, part) for name in sorted(container.names) if (part := part_of(name)) is not None]
    mtl = next((name for form in MTL for name, part in parts if _is_mtl(part, form)), None)
    groups = {} if mtl is None else _groups(f"{folder}/{mtl}", container.read(mtl))
    bands = tuple(
        _band(title, container.path(name), part, groups) for name, part in sorted(parts, key=_place) if part.is_band
    )
    level1 = title[5:7].upper() == "L1"
    return Product(
        bands,
        metadata=() if mtl is None else (container.path(mtl),),
        scene=_scene(groups),
        notes=tuple([NOT_CORRECTED.format(sun)] if level1 and (sun := _value(groups, "SUN_ELEVATION")) else ()),
        unscaled=None if mtl is not None else f"{title} is incomplete: its metadata, {title}_MTL.txt, are missing: {MEND}",
    )


def _is_mtl(part: ProductFile, form: str) -> bool:
    return part.name.upper() == "MTL" and part.suffix.lower() == form


def _place(item: tuple[str, ProductFile]) -> tuple[bool, int, str]:
    """Bands in the order of their numbers, then the others."""
    digits = re.search(r"(?:^|_)B(\d+)", item[1].name.upper())
    return digits is None, int(digits[1]) if digits else 0, item[1].name


def _band(title: str, path: str, part: ProductFile, groups: Groups) -> BandFile:
    name = part.name.upper()
    match = re.fullmatch(r"((?:SR_|ST_)?)B(\d{1,2})((?:_VCID_[12])?)", name)
    if match is None:
        return BandFile(name, path, classes=name.startswith("QA_") or name.endswith(("_QA", "_AEROSOL")))
    prefix, digits, gain = match.groups()
    others = (f"B{int(digits)}{gain}", *landsat_names(title, int(digits)))
    scale, offset = _factors(title, prefix, f"{int(digits)}{gain}", groups)
    return BandFile(name, path, others, scale=scale, offset=offset, nodata=0)


def _factors(title: str, prefix: str, digits: str, groups: Groups) -> tuple[float | None, float]:
    """Factor and sum of a band; none where the metadata have none."""
    wanted = {
        "SR_": [(OPTICAL, "REFLECTANCE", digits)],
        "ST_": [(THERMAL, "TEMPERATURE", f"ST_B{digits}")],
        "": [(LEVEL1, "REFLECTANCE", digits), (LEVEL1, "RADIANCE", digits)],
    }[prefix]
    for group, kind, band in wanted:
        values = groups.get(group, {})
        if (scale := values.get(f"{kind}_MULT_BAND_{band}", NONE)) != NONE:
            sum_name = f"{kind}_ADD_BAND_{band}"
            return number(title, f"{kind}_MULT_BAND_{band}", scale), number(title, sum_name, values.get(sum_name))
    return None, 0.0


def _value(groups: Groups, key: str) -> str | None:
    return next((values[key] for values in groups.values() if key in values), None)


def _scene(groups: Groups) -> dict[str, str]:
    return {key: value for key in SCENE if (value := _value(groups, key)) is not None}


def _groups(place: str, data: bytes) -> Groups:
    suffix = PurePosixPath(place).suffix.lower()
    if suffix == ".xml":
        return _of_xml(parsed(place, data))
    if suffix == ".json":
        return _of_json(place, data)
    return _of_text(data)


def _of_text(data: bytes) -> Groups:
    """Groups of an MTL file of text: ``GROUP = NAME``, then ``KEY = VALUE``, with quotes around words."""
    groups: dict[str, dict[str, str]] = {}
    inside = ""
    for line in data.decode("utf-8", "replace").splitlines():
        if (match := LINE.fullmatch(line)) is None:
            continue
        key, value = match.groups()
        if key == "GROUP":
            inside = value
        elif key != "END_GROUP":
            groups.setdefault(inside, {})[key] = value.strip('"')
    return groups


def _of_xml(root: ET.Element) -> Groups:
    return {group.tag: {one.tag: (one.text or "").strip() for one in group} for group in root}


def _of_json(place: str, data: bytes) -> Groups:
    try:
        values = parse_json(data)
    except DocumentError as error:
        raise SourceError(f"{place} must be JSON: {error}: {MEND}") from error
    top = next(iter(values.values()), None) if isinstance(values, dict) and len(values) == 1 else values
    if not isinstance(top, dict):
        raise SourceError(f"{place} must hold groups of values: {MEND}")
    return {group: {k: str(v) for k, v in own.items()} for group, own in top.items() if isinstance(own, dict)}
