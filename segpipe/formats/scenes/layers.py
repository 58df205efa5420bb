"""Open the file of a band for what its header says, and check that a scene can be made of it."""

from collections.abc import Mapping
from dataclasses import dataclass

from rasterio.enums import MaskFlags
from rasterio.io import DatasetReader

from segpipe.errors import SourceError
from segpipe.formats.raster.confine import confined
from segpipe.formats.raster.dataset_files import files_of
from segpipe.formats.raster.gdal import open_raster, source_errors, stays_here
from segpipe.formats.raster.kinds import explained
from segpipe.formats.raster.orientation import UPRIGHT, turn_of
from segpipe.formats.raster.references import servers
from segpipe.formats.raster.scene import read_scene
from segpipe.formats.raster.sidecars import Checks, check_opened
from segpipe.formats.raster.source import PICTURE_DRIVERS
from segpipe.formats.scenes.product import BandFile, Product
from segpipe.formats.scenes.vrt import TYPES, SceneBand
from segpipe.geometry.raster_grid import read_grid

PRODUCT_DRIVERS = ("GTiff", "JP2OpenJPEG")
"""Formats of the images of products."""

MASKS = frozenset({MaskFlags.all_valid, MaskFlags.nodata})
"""Flags of bands without a mask of their own."""


@dataclass(frozen=True, slots=True)
class OpenedBand:
    """What the file of a band holds."""

    layer: SceneBand
    files: tuple[str, ...]
    """The file, and those that GDAL reads with it."""
    tags: Mapping[str, str]
    """Metadata of the scene in the file."""
    scaled: bool
    """Whether the product or the file says how to get physical values."""
    picture: bool = False
    """Whether it is a plain picture, without a place."""


def open_band(band: BandFile, product: Product, *, remote: bool) -> OpenedBand:
    """Read the header of a band's file.

    Raises:
        SourceError: it cannot be opened, or is no image of one band.
    """
    path = band.path
    if servers(path):
        raise SourceError(f"{path}: names in a product must not look like URLs: rename it")
    errors = source_errors(f"{path} cannot be opened", (path,))
    with explained(path), errors, confined(stays_here(path, remote=remote)), open_raster(path, remote=remote) as dataset:
        _check(dataset, band, product)
        checks = Checks(path)
        files = tuple(files_of(dataset, checks.look)) or (path,)
        check_opened(path, dataset, files, lambda: open_raster(path, remote=remote))
        checks.end(dataset, files)
        scale, offset = _factors(dataset, band)
        scaled = band.scale is not None or (scale, offset) != (1.0, 0.0)
        placed = read_grid(dataset).georeferenced
        if not placed:
            _check_upright(dataset, path)
        picture = dataset.driver in PICTURE_DRIVERS and not placed
        return OpenedBand(_layer(dataset, band, scale, offset), files, _tags(dataset), scaled, picture)


def _check(dataset: DatasetReader, band: BandFile, product: Product) -> None:
    path, place = band.path, band.number - 1
    if not product.own_tags and dataset.driver not in PRODUCT_DRIVERS:
        raise SourceError(
            f"{path}: images of a product must be JPEG 2000 or GeoTIFF, got {dataset.driver}: download it again"
        )
    if dataset.count != 1 and not product.parts:
        raise SourceError(
            f"{path}: a file must hold one band of a scene, got {dataset.count}: write each to a file of its own"
        )
    if dataset.dtypes[place] not in TYPES:
        raise SourceError(f"{path}: pixels must be integers or floats, got {dataset.dtypes[place]}")
    if dataset.gcps[0]:
        raise SourceError(f"{path}: bands of a scene must have a geotransform, got control points: warp it with gdalwarp")
    if not MASKS.issuperset(dataset.mask_flag_enums[place]):
        raise SourceError(
            f"{path}: bands of a scene must have a nodata value, got a mask: turn it into one, as with gdalwarp -dstnodata 0"
        )


def _check_upright(dataset: DatasetReader, path: str) -> None:
    if turn_of(dataset, path, place=False)[0].orientation != UPRIGHT:
        raise SourceError(
            f"{path}: pictures of a scene must be stored upright, got one with an orientation tag: turn its pixels, as with "
            "mogrify -auto-orient"
        )


def _factors(dataset: DatasetReader, band: BandFile) -> tuple[float, float]:
    """Scale and offset: of the product, of GDAL's tags, or of those that HLS writes."""
    if band.scale is not None:
        return band.scale, band.offset
    place = band.number - 1
    scale, offset = float(dataset.scales[place]), float(dataset.offsets[place])
    if (scale, offset) != (1.0, 0.0):
        return scale, offset
    tags = {**dataset.tags(), **dataset.tags(band.number)}
    try:
        return float(tags.get("scale_factor", 1)), float(tags.get("add_offset", 0))
    except ValueError:
        raise SourceError(f"{band.path}: scale_factor and add_offset must be numbers: mend its tags") from None


def _layer(dataset: DatasetReader, band: BandFile, scale: float, offset: float) -> SceneBand:
    own = dataset.nodatavals[band.number - 1]
    return SceneBand(
        name=band.name,
        path=band.path,
        shape=dataset.shape,
        transform=dataset.transform,
        crs=dataset.crs.to_wkt() if dataset.crs else "",
        dtype=dataset.dtypes[band.number - 1],
        nodata=band.nodata if own is None else own,
        scale=scale,
        offset=offset,
        classes=band.classes,
        number=band.number,
    )


def _tags(dataset: DatasetReader) -> dict[str, str]:
    found = dict(read_scene(dataset).get("", {}))
    if point := dataset.tags().get("AREA_OR_POINT"):
        found["AREA_OR_POINT"] = point
    return found
