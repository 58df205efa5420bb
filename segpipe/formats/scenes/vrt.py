"""One VRT of the bands of a scene, on the finest grid of them, as text.

Each band is a VRT of its own within, so that its nodata value counts before it is interpolated: GDAL would mix 0 into pixels
beside it otherwise. GDAL interpolates between the centres of pixels, and aligns grids at the edges of pixels.
"""

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from affine import Affine

from segpipe.errors import SourceError
from segpipe.overrides import BandResampling

SNAP = 1e-6
"""Share of a pixel below which edges lie on one another."""

TYPES = {
    "uint8": "Byte",
    "int8": "Int8",
    "uint16": "UInt16",
    "int16": "Int16",
    "uint32": "UInt32",
    "int32": "Int32",
    "uint64": "UInt64",
    "int64": "Int64",
    "float32": "Float32",
    "float64": "Float64",
}
"""GDAL's names of NumPy's types."""


@dataclass(frozen=True, slots=True)
class SceneBand:
    """A band of a scene as its file holds it."""

    name: str
    path: str
    shape: tuple[int, int]
    """Rows and columns."""
    transform: Affine
    crs: str
    """WKT; empty if there is none."""
    dtype: str
    nodata: float | None
    scale: float = 1.0
    offset: float = 0.0
    classes: bool = False
    """Whether it is never interpolated."""
    number: int = 1
    """Of the band in its file."""

    @property
    def pixel(self) -> float:
        """Area of a pixel in units of the CRS."""
        return abs(float(self.transform.determinant))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a layer lies on the grid of a scene, in its pixels."""

    col: float
    row: float
    cols: float
    rows: float

    def attributes(self) -> dict[str, str]:
        values = {"xOff": self.col, "yOff": self.row, "xSize": self.cols, "ySize": self.rows}
        return {key: repr(value) for key, value in values.items()}


def finest(layers: Sequence[SceneBand]) -> SceneBand:
    """The layer whose grid is that of the scene: the first of those with the smallest pixels."""
    return min(layers, key=lambda layer: layer.pixel)


def on_grid(layer: SceneBand, grid: SceneBand) -> bool:
    """Whether pixels of two layers have the same places, so that none is resampled."""
    return layer.shape == grid.shape and layer.transform.almost_equals(grid.transform, precision=SNAP * grid.pixel**0.5)


def vrt_of(
    layers: Sequence[SceneBand], resampling: BandResampling, tags: Mapping[str, str], size: tuple[int, int] | None = None
) -> str:
    """A VRT of some layers, in their order.

    Args:
        layers: at least one.
        resampling: how layers are read that have coarser pixels than the finest.
        tags: metadata of the scene.
        size: rows and columns of a reduced view; None: the finest grid.

    Raises:
        SourceError: the layers do not share a CRS, or do not cover the same ground.
    """
    grid = finest(layers)
    places = [_place_of(layer, grid) for layer in layers]
    rows, cols = size or grid.shape
    down, across = rows / grid.shape[0], cols / grid.shape[1]
    root = ET.Element("VRTDataset", rasterXSize=str(cols), rasterYSize=str(rows))
    if grid.crs:
        ET.SubElement(root, "SRS").text = grid.crs
    if not grid.transform.is_identity:
        transform = grid.transform * Affine.scale(1 / across, 1 / down)
        ET.SubElement(root, "GeoTransform").text = ", ".join(map(repr, transform.to_gdal()))
    metadata = ET.SubElement(root, "Metadata")
    for key, value in tags.items():
        ET.SubElement(metadata, "MDI", key=key).text = value
    for number, (layer, place) in enumerate(zip(layers, places, strict=True), 1):
        target = _Place(place.col * across, place.row * down, place.cols * across, place.rows * down)
        nearest = size is not None or layer.classes or on_grid(layer, grid)
        root.append(_band(number, layer, target, "nearest" if nearest else resampling))
    return ET.tostring(root, encoding="unicode")


def _place_of(layer: SceneBand, grid: SceneBand) -> _Place:
    both = f"{layer.path} and {grid.path}"
    mend = "bring them to one grid with gdalwarp"
    if layer.crs != grid.crs:
        raise SourceError(f"{both}: bands of a scene must have one CRS: {mend}")
    to_grid = ~grid.transform * layer.transform
    rows, cols = layer.shape
    if max(abs(to_grid.b) * cols, abs(to_grid.d) * rows) > SNAP or min(to_grid.a, to_grid.e) <= 0:
        raise SourceError(f"{both}: rows and columns of the bands of a scene must run in the same directions: {mend}")
    place = _Place(*map(_snapped, (to_grid.c, to_grid.f, to_grid.a * cols, to_grid.e * rows)))
    short = max(
        *((place.col / to_grid.a), (grid.shape[1] - place.col - place.cols) / to_grid.a),
        *((place.row / to_grid.e), (grid.shape[0] - place.row - place.rows) / to_grid.e),
    )
    if short > (SNAP if layer.nodata is None else 1 + SNAP):
        raise SourceError(
            f"{both}: bands of a scene must cover the same ground, got one that ends {short:.3g} of its pixels before the "
            f"other: {mend}"
        )
    return place


def _snapped(value: float) -> float:
    return float(round(value)) if abs(value - round(value)) < SNAP else value


def _band(number: int, layer: SceneBand, place: _Place, resampling: BandResampling) -> ET.Element:
    band = _bare_band(number, layer)
    ET.SubElement(band, "Description").text = layer.name
    ET.SubElement(band, "Offset").text = repr(layer.offset)
    ET.SubElement(band, "Scale").text = repr(layer.scale)
    source = ET.SubElement(band, "SimpleSource", resampling=resampling)
    inside = ET.Element("VRTDataset", rasterXSize=str(layer.shape[1]), rasterYSize=str(layer.shape[0]))
    inside.append(own := _bare_band(1, layer))
    _name(ET.SubElement(own, "SimpleSource"), layer.path, layer.number)
    _name(source, ET.tostring(inside, encoding="unicode"), 1)
    ET.SubElement(source, "SrcRect", xOff="0", yOff="0", xSize=str(layer.shape[1]), ySize=str(layer.shape[0]))
    ET.SubElement(source, "DstRect", place.attributes())
    return band


def _bare_band(number: int, layer: SceneBand) -> ET.Element:
    band = ET.Element("VRTRasterBand", dataType=TYPES[layer.dtype], band=str(number))
    if layer.nodata is not None:
        ET.SubElement(band, "NoDataValue").text = repr(layer.nodata)
    return band


def _name(source: ET.Element, name: str, band: int) -> None:
    ET.SubElement(source, "SourceFilename", relativeToVRT="0", shared="0").text = name
    ET.SubElement(source, "SourceBand").text = str(band)
