"""Products of Sentinel-2, levels 1C and 2A: their bands, quantification and offsets.

Reflectance is ``(pixel + offset) / quantification`` (Sentinel-2 Products Specification Document, 4.9.10). Products of
processing baseline 04.00 and later have an offset of -1000 for each band; earlier ones have none.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass

from segpipe.errors import SourceError
from segpipe.formats.scenes.container import Container, container_at
from segpipe.formats.scenes.document import elements, number, parsed, text_of
from segpipe.formats.scenes.names import MEND, MSI, short
from segpipe.formats.scenes.product import BandFile, Product

METADATA = re.compile(r"MTD_MSIL(1C|2A)\.xml|S2._(?:OPER|USER)_(?:MTD|PRD)_.*\.xml", re.IGNORECASE)

IMAGE = re.compile(
    r"GRANULE/([^/]+)/IMG_DATA/(?:R\d\dm/)?[^/]*_(B\d\d|B8A|AOT|WVP|SCL)(?:_(\d\d)m)?\.(?:jp2|tiff?)", re.IGNORECASE
)
"""Granule, band and resolution; the latter in level 2A."""

BAND_IDS = tuple(MSI)
"""Bands in the order of the numbers that the metadata give them."""

FINEST = {"B02": 10, "B03": 10, "B04": 10, "B08": 10, "AOT": 10, "WVP": 10, "B01": 60, "B09": 60, "B10": 60}
"""Pixel size of a band in m; 20 for the others."""

QUANTIFICATION = {"AOT": "AOT_QUANTIFICATION_VALUE", "WVP": "WVP_QUANTIFICATION_VALUE"}

SCENE = (
    "PRODUCT_URI",
    "PROCESSING_BASELINE",
    "PRODUCT_START_TIME",
    "SPACECRAFT_NAME",
    "Cloud_Coverage_Assessment",
    "PRODUCT_TYPE",
)

SHIFTED = (
    "stored pixels contain an offset of {}, as in all products since processing baseline 04.00, and the contract's pixel = "
    '"stored" leaves it in: right for a model that was trained on such products; else set pixel = "physical", or offset = '
    "{:g}, in the contract"
)


@dataclass(frozen=True, slots=True)
class _Found:
    """An image of a band."""

    name: str
    granule: str
    band: str
    size: int | None
    """Pixel size by the file's name."""


def read_product(path: str) -> Product:
    """The product in a folder or an archive.

    Raises:
        SourceError: it is damaged or incomplete, or has several granules.
    """
    container = container_at(path)
    images = _images(container)
    name = _metadata(container)
    place = f"{path}: {name}"
    root = parsed(place, container.read(name))
    values = _quantifications(place, root)
    offsets = _offsets(place, root)
    bands = tuple(_band(container, image, values, offsets) for image in images)
    container.check([image.name for image in images])
    return Product(
        bands,
        metadata=(container.path(name),),
        scene={name: text for name in SCENE if (text := text_of(root, name))},
        stored_notes=tuple(_shifted(offsets, values)),
    )


def _images(container: Container) -> list[_Found]:
    """The finest image of each band.

    Raises:
        SourceError: there is none, or there are several granules.
    """
    matches = [(name, match) for name in container.names if (match := IMAGE.fullmatch(name))]
    found = [_Found(name, m[1], m[2].upper(), int(m[3]) if m[3] else None) for name, m in matches]
    granules = sorted({image.granule for image in found})
    if len(granules) > 1:
        raise SourceError(
            f"{container.root}: a product must have one granule, got {len(granules)}, {granules[0]} and {granules[1]}: give "
            "the images of each granule, in a folder of their own, with --bands-from"
        )
    if not found:
        raise SourceError(
            f"{container.root} is incomplete: it has no images GRANULE/*/IMG_DATA/**/*_B??.jp2 among its "
            f"{len(container.names)} files: {MEND}"
        )
    found.sort(key=lambda image: (image.size or 0, image.name))
    order = [*MSI, "AOT", "WVP", "SCL"]
    finest = {image.band: image for image in reversed(found)}
    return sorted(finest.values(), key=lambda image: order.index(image.band) if image.band in order else len(order))


def _coarse(image: _Found) -> str | None:
    """A note on a band of which the product has no image of the sensor's resolution."""
    own = FINEST.get(image.band, 20)
    if image.size is None or image.size <= own:
        return None
    return f"{image.band} is read at {image.size} m: the product has no image of it at {own} m"


def _metadata(container: Container) -> str:
    """Name of the product's metadata."""
    found = sorted(name for name in container.names if "/" not in name and METADATA.fullmatch(name))
    if not found:
        raise SourceError(
            f"{container.root} is incomplete: its metadata, MTD_MSIL1C.xml or MTD_MSIL2A.xml, are missing: {MEND}"
        )
    return found[0]


def _quantifications(place: str, root: ET.Element) -> Mapping[str, float]:
    """The value of 1 in stored pixels, by band; ``""`` for all bands of reflectance."""
    found = {"": text_of(root, "BOA_QUANTIFICATION_VALUE", "QUANTIFICATION_VALUE")}
    found |= {band: text_of(root, name) for band, name in QUANTIFICATION.items()}
    values = {band: number(place, "the quantification value", text) for band, text in found.items() if text is not None}
    bad = next((value for value in values.values() if value <= 0), None)
    if bad is not None or "" not in values:
        raise SourceError(f"{place} must have a positive QUANTIFICATION_VALUE, got {bad}: {MEND}")
    return values


def _offsets(place: str, root: ET.Element) -> dict[str, float]:
    """What is added to the stored pixels of each band before the division; empty before baseline 04.00."""
    names = dict(enumerate(BAND_IDS))
    for element in elements(root, "Spectral_Information"):
        key, band = element.get("bandId", ""), element.get("physicalBand", "")
        if key.isdecimal() and (match := re.fullmatch(r"B(\d{1,2})(A?)", band)):
            names[int(key)] = f"B{match[1]}A" if match[2] else f"B{match[1]:0>2}"
    found = {}
    for tag in ("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET"):
        for element in elements(root, tag):
            key = element.get("band_id", "")
            if not key.isdecimal() or int(key) not in names:
                raise SourceError(f"{place}: {tag} must name a band by its number, got band_id={key[:40]!r}: {MEND}")
            found[names[int(key)]] = number(place, tag, element.text)
    return found


def _band(container: Container, image: _Found, values: Mapping[str, float], offsets: Mapping[str, float]) -> BandFile:
    optical = image.band in MSI
    one = values.get("" if optical else image.band)
    offset = offsets.get(image.band, 0.0) / one if one and optical else 0.0
    if optical and offsets and image.band not in offsets:
        raise SourceError(f"{container.root}: its metadata have an offset for some bands but not for {image.band}: {MEND}")
    return BandFile(
        image.band,
        container.path(image.name),
        (*short(image.band), *MSI.get(image.band, ())),
        scale=1 / one if one else 1.0,
        offset=offset,
        nodata=0,
        classes=image.band == "SCL",
        note=_coarse(image),
    )


def _shifted(offsets: Mapping[str, float], values: Mapping[str, float]) -> list[str]:
    shifts = sorted({-offset for offset in offsets.values()})
    return [SHIFTED.format(", ".join(f"{shift:g}" for shift in shifts), -shifts[0] / values[""])] if any(shifts) else []
