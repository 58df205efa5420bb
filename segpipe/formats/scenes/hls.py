"""Products of HLS, the harmonised Landsat and Sentinel-2; their files say how pixels become physical values."""

from collections.abc import Sequence

from segpipe.formats.scenes.container import Container
from segpipe.formats.scenes.names import HLS_LANDSAT, MSI, part_of, short
from segpipe.formats.scenes.product import BandFile, Product


def read_product(folder: str, files: Sequence[str], title: str) -> Product:
    """A product by the names of its files in a folder."""
    container = Container(folder, tuple(files))
    common = MSI if title.upper().startswith("HLS.S30") else HLS_LANDSAT
    parts = [(name, part) for name in sorted(files) if (part := part_of(name)) is not None and part.is_band]
    bands = [_band(container.path(name), part.name, common.get(part.name.upper())) for name, part in parts]
    return Product(tuple(sorted(bands, key=lambda band: (not band.others, band.name))))


def _band(path: str, name: str, common: tuple[str, ...] | None) -> BandFile:
    if common is None:
        return BandFile(name, path, classes=name.lower() == "fmask")
    return BandFile(name.upper(), path, (*short(name.upper()), *common), nodata=-9999)
