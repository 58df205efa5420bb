"""Open the file of a band for what its header says, and check that a scene can be made of it."""

from collections.abc import Mapping
from dataclasses import dataclass

from rasterio.enums import MaskFlags
from rasterio.io import DatasetReader

from segpipe.errors import SourceError
from segpipe.formats.raster.confine import confined
from segpipe.formats.raster.gdal import open_raster, source_errors, stays_here
from segpipe.formats.raster.kinds import explained
from segpipe.formats.raster.origin import files_of
from segpipe.formats.raster.references import servers
from segpipe.formats.raster.scene import read_scene
from segpipe.formats.raster.sidecars import Checks
from segpipe.formats.scenes.product import BandFile, Product
from segpipe.formats.scenes.vrt import TYPES, Layer

PRODUCT_DRIVERS = ("GTiff", "JP2OpenJPEG")
"""Formats of the images of products."""

MASKS = frozenset({MaskFlags.all_valid, MaskFlags.nodata})
"""Flags of bands without a mask of their own."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What the file of a band holds."""

    layer: Layer
    files: tuple[str, ...]
    """The file, and those that GDAL reads with it."""
    tags: Mapping[str, str]
    """Metadata of the scene in the file."""
    scaled: bool
    """Whether the product or the file says how to get physical values."""


def open_band(band: BandFile, product: Product, *, remote: bool) -> Opened:
    """Read the header of a band's file.

    Raises:
        SourceError: it cannot be opened, or is no image of one band.
    """
    path = band.path
    if servers(path):
        raise SourceError(f"{path}: names in a product must not look like URLs: rename it")
    errors = source_errors(f"{path} cannot be opened", (path,))
    with explained(path), errors, confined(stays_here(path, remote=remote)), open_raster(path, remote=remote) as dataset:
        _check(dataset, path, product)
        checks = Checks(path)
        files = tuple(files_of(dataset, checks.look)) or (path,)
        checks.end(dataset, files)
        scale, offset = _factors(dataset, band)
        scaled = band.scale is not None or (scale, offset) != (1.0, 0.0)
        return Opened(_layer(dataset, band, scale, offset), files, _tags(dataset), scaled)


def _check(dataset: DatasetReader, path: str, product: Product) -> None:
    if not product.own_tags and dataset.driver not in PRODUCT_DRIVERS:
        raise SourceError(
            f"{path}: images of a product must be JPEG 2000 or GeoTIFF, got {dataset.driver}: download it again"
        )
    if dataset.count != 1:
        raise SourceError(
            f"{path}: a file must hold one band of a scene, got {dataset.count}: write each to a file of its own"
        )
    if dataset.dtypes[0] not in TYPES:
        raise SourceError(f"{path}: pixels must be integers or floats, got {dataset.dtypes[0]}")
    if dataset.gcps[0]:
        raise SourceError(f"{path}: bands of a scene must have a geotransform, got control points: warp it with gdalwarp")
    if not MASKS.issuperset(dataset.mask_flag_enums[0]):
        raise SourceError(
            f"{path}: bands of a scene must have a nodata value, got a mask: turn it into one, as with gdalwarp -dstnodata 0"
        )


def _factors(dataset: DatasetReader, band: BandFile) -> tuple[float, float]:
    """Scale and offset: of the product, of GDAL's tags, or of those that HLS writes."""
    if band.scale is not None:
        return band.scale, band.offset
    scale, offset = float(dataset.scales[0]), float(dataset.offsets[0])
    if (scale, offset) != (1.0, 0.0):
        return scale, offset
    tags = {**dataset.tags(), **dataset.tags(1)}
    try:
        return float(tags.get("scale_factor", 1)), float(tags.get("add_offset", 0))
    except ValueError:
        raise SourceError(f"{band.path}: scale_factor and add_offset must be numbers: mend its tags") from None


def _layer(dataset: DatasetReader, band: BandFile, scale: float, offset: float) -> Layer:
    own = dataset.nodatavals[0]
    return Layer(
        band.name,
        band.path,
        dataset.shape,
        dataset.transform,
        dataset.crs.to_wkt() if dataset.crs else "",
        dataset.dtypes[0],
        band.nodata if own is None else own,
        scale,
        offset,
        band.classes,
    )


def _tags(dataset: DatasetReader) -> dict[str, str]:
    found = dict(read_scene(dataset).get("", {}))
    if point := dataset.tags().get("AREA_OR_POINT"):
        found["AREA_OR_POINT"] = point
    return found
