"""Recognise products by the names of their files, and bands by their names."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

MEND = "download the product again"
"""Mend of products that are damaged or incomplete."""

SAFE = ".safe"
TAR = ".tar"
"""Suffix of the archive of a product of Landsat, in lower case."""

SENTINEL = re.compile(r"S2[A-Z]_(?:MSI|OPER_|USER_)", re.IGNORECASE)
"""Beginning of the name of a product of Sentinel-2."""

_LANDSAT = re.compile(
    r"(L[A-Z]\d\d_L\w{3}_\d{6}_\d{8}_\d{8}_02_(?:RT|[TA][12]))_"
    r"((?:SR_|ST_)?B\d{1,2}(?:_VCID_[12])?|QA_PIXEL|QA_RADSAT|SR_QA_AEROSOL|SR_ATMOS_OPACITY|SR_CLOUD_QA"
    r"|ST_(?:ATRAN|CDIST|DRAD|EMIS|EMSD|TRAD|URAD|QA)|[SV][AZ]A|MTL|ANG|GCP|VER|thumb_\w+|(?:S[RT]_)?stac)\.(\w+)",
    re.IGNORECASE,
)
"""Product, part and suffix of a file of Landsat Collection 2."""

_HLS = re.compile(r"(HLS\.[SL]30\.T\w{5}\.\d{7}T\d{6}\.v\d+\.\d+)\.(B\w\w|Fmask|[SV][AZ]A|cmr|jpg)\.?(\w*)", re.IGNORECASE)

NOT_BANDS = frozenset({"MTL", "ANG", "GCP", "VER"})

RASTERS = ("tif", "tiff")

MSI = {
    "B01": ("coastal",),
    "B02": ("blue",),
    "B03": ("green",),
    "B04": ("red",),
    "B05": ("rededge1", "rededge071"),
    "B06": ("rededge2", "rededge075"),
    "B07": ("rededge3", "rededge078"),
    "B08": ("nir",),
    "B8A": ("nir08", "narrownir", "nirnarrow", "rededge4"),
    "B09": ("nir09", "watervapour"),
    "B10": ("cirrus",),
    "B11": ("swir16", "swir1"),
    "B12": ("swir22", "swir2"),
}
"""Bands of Sentinel-2 and their common names, as in STAC's extension for electro-optical data and in older catalogues."""

_OLI = {
    "1": ("coastal",),
    "2": ("blue",),
    "3": ("green",),
    "4": ("red",),
    "5": ("nir", "nir08"),
    "6": ("swir16", "swir1"),
    "7": ("swir22", "swir2"),
    "8": ("pan",),
    "9": ("cirrus",),
    "10": ("lwir11", "tir1"),
    "11": ("lwir12", "tir2"),
}
_TM = {
    "1": ("blue",),
    "2": ("green",),
    "3": ("red",),
    "4": ("nir", "nir08"),
    "5": ("swir16", "swir1"),
    "6": ("lwir", "tir"),
    "7": ("swir22", "swir2"),
    "8": ("pan",),
}
LANDSAT = {"C": _OLI, "O": _OLI, "E": _TM, "T": _TM}
"""Common names of the bands of Landsat by the letter of the sensor: OLI and TIRS, OLI, ETM+, TM. The bands of MSS (M) differ
between satellites, and have none."""

HLS_LANDSAT = {
    "B01": ("coastal",),
    "B02": ("blue",),
    "B03": ("green",),
    "B04": ("red",),
    "B05": ("nir", "nir08", "narrownir", "nirnarrow"),
    "B06": ("swir16", "swir1"),
    "B07": ("swir22", "swir2"),
    "B09": ("cirrus",),
    "B10": ("lwir11", "tir1"),
    "B11": ("lwir12", "tir2"),
}
"""Bands of HLS L30, which are not those of Sentinel-2 from B05 on."""

SPELLINGS = {
    "nearinfrared": "nir",
    "coastalaerosol": "coastal",
    "panchromatic": "pan",
    "aerosol": "coastal",
    "rededge071": "rededge1",
}


_PRODUCT = re.compile(
    r"L[A-Z]\d\d_L\w{3}_\d{6}_\d{8}_\d{8}_02_(?:RT|[TA][12])|HLS\.[SL]30\.T\w{5}\.\d{7}T\d{6}\.v\d+\.\d+", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class ProductFile:
    """A file of a product, by its name."""

    product: str
    name: str
    """What it holds: ``SR_B4``, ``QA_PIXEL``, ``MTL``."""
    suffix: str
    family: str
    """``landsat`` or ``hls``."""

    @property
    def is_band(self) -> bool:
        """Whether the file holds pixels of a band."""
        return self.suffix.lower() in RASTERS and self.name.upper() not in NOT_BANDS


def part_of(name: str) -> ProductFile | None:
    """The part of a product that a file is by its name; None for other files."""
    if name[:1] not in "LlHh":
        return None
    for family, expression in (("landsat", _LANDSAT), ("hls", _HLS)):
        if match := expression.fullmatch(name):
            return ProductFile(match[1], match[2], match[3], family)
    return None


def is_sentinel(name: str) -> bool:
    """Whether a folder or a zip archive is a product of Sentinel-2 by its name."""
    return SENTINEL.match(name) is not None and name.lower().endswith((SAFE, ".zip"))


def product_name(name: str) -> str:
    """
    >>> product_name("S2A_MSIL2A_X.SAFE.zip"), product_name("S2A_MSIL2A_X.SAFE"), product_name("a.zip")
    ('S2A_MSIL2A_X', 'S2A_MSIL2A_X', 'a')
    >>> product_name("LC08_L2SP_X.tar")
    'LC08_L2SP_X'
    """
    for suffix in (".zip", TAR, SAFE):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return name


@dataclass
class Parts:
    """The files of a folder that are parts of one product."""

    family: str
    files: list[str] = field(default_factory=list)
    bands: int = 0


def products_in(names: Iterable[str]) -> tuple[dict[str, Parts], list[str]]:
    """The products among the files of a folder, and the other files. A file alone is no product, but an image."""
    found: dict[str, Parts] = {}
    others = []
    for name in names:
        if (part := part_of(name)) is None:
            others.append(name)
            continue
        parts = found.setdefault(part.product, Parts(part.family))
        parts.files.append(name)
        parts.bands += part.is_band
    lonely = [product for product, parts in found.items() if len(parts.files) < 2 or not parts.bands]
    others += [name for product in lonely for name in found.pop(product).files]
    return found, sorted(others) if lonely else others


def plain(name: str) -> str:
    """A name of a band for comparison: letters and digits, with one spelling for each colour.

    >>> plain("Red Edge 1"), plain("SR_B4"), plain("NIR")
    ('rededge1', 'srb4', 'nir')
    """
    folded = "".join(letter for letter in name.casefold() if letter.isalnum())
    return SPELLINGS.get(folded, folded)


def short(name: str) -> tuple[str, ...]:
    """The name of a band without its zero.

    >>> short("B04"), short("B12")
    (('B4',), ())
    """
    return (f"B{name[2:]}",) if name.startswith("B0") else ()


def is_product(name: str) -> bool:
    """Whether a folder has the name of a product of Landsat or HLS."""
    return _PRODUCT.fullmatch(name) is not None


def landsat_names(product: str, number: int) -> tuple[str, ...]:
    """Common names of a band of a product of Landsat.

    >>> landsat_names("LC08_L2SP_X", 5)[0], landsat_names("LT05_L2SP_X", 5)[0], landsat_names("LM05_L1TP_X", 4)
    ('nir', 'swir16', ())
    """
    sensor = "O" if product[2:4] in ("08", "09") else product[1:2].upper()
    return LANDSAT.get(sensor, {}).get(str(number), ())
