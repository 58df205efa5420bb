"""Masks say what was meant to whoever opens them: GDAL's own view of a finished file, as a VRT, against its input's."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from networks import pixelwise
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from segpipe.errors import OutputError
from segpipe.formats.raster.gdal import gdal_options
from segpipe.formats.raster.readback import lost, same_crs, same_transform
from segpipe.formats.raster.sink import UNUSED, RasterSink, raster_sink
from segpipe.formats.style import Style, palette
from segpipe.geometry.raster_grid import RasterGrid
from segpipe.geometry.windows import Window
from segpipe.storage.folder import Folder

AFFINE = """DERIVEDPROJCRS["site",BASEPROJCRS["UTM 33N",BASEGEOGCRS["WGS 84",DATUM["World Geodetic System 1984",
ELLIPSOID["WGS 84",6378137,298.257223563]]],CONVERSION["UTM 33N",METHOD["Transverse Mercator"],
PARAMETER["Latitude of natural origin",0,ANGLEUNIT["degree",0.0174532925199433]],
PARAMETER["Longitude of natural origin",15,ANGLEUNIT["degree",0.0174532925199433]],
PARAMETER["Scale factor at natural origin",0.9996],PARAMETER["False easting",500000],PARAMETER["False northing",0]]],
DERIVINGCONVERSION["Affine",METHOD["Affine parametric transformation",ID["EPSG",9624]],
PARAMETER["A0",10,LENGTHUNIT["metre",1],ID["EPSG",8623]],PARAMETER["A1",1,SCALEUNIT["coefficient",1],ID["EPSG",8624]],
PARAMETER["A2",0,SCALEUNIT["coefficient",1],ID["EPSG",8625]],PARAMETER["B0",20,LENGTHUNIT["metre",1],ID["EPSG",8639]],
PARAMETER["B1",0,SCALEUNIT["coefficient",1],ID["EPSG",8640]],PARAMETER["B2",1,SCALEUNIT["coefficient",1],ID["EPSG",8641]]],
CS[Cartesian,2],AXIS["x",east,ORDER[1]],AXIS["y",north,ORDER[2]],LENGTHUNIT["metre",1]]"""
SITE = 'ENGCRS["site",EDATUM["site datum"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["foot",0.3048]]'
SYSTEMS = {
    "projected 3D": "EPSG:32633+4979",
    "Web Mercator 3D": "EPSG:3857+4979",
    "geographic 3D": "EPSG:4979",
    "geocentric": "EPSG:4978",
    "geocentric ITRF": "EPSG:7789",
    "compound": "EPSG:32633+5773",
    "compound code": "EPSG:7415",
    "compound in feet": "EPSG:6349",
    "compound US feet": "EPSG:2263+6360",
    "compound geographic": "EPSG:9518",
    "vertical only": "EPSG:5773",
    "Equal Earth": "EPSG:8857",
    "rotated pole": "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +R=6371229 +no_defs",
    "derived": AFFINE,
    "engineering": SITE,
    "local": 'LOCAL_CS["slide",UNIT["metre",1]]',
    "bound": "+proj=tmerc +lon_0=9 +k=1 +x_0=3500000 +ellps=bessel +towgs84=598.1,73.7,418.2,0.202,0.045,-2.455,6.7",
    "own ellipsoid": "+proj=tmerc +lat_0=0 +lon_0=9 +k=1 +a=6370000 +rf=300.5 +units=m",
    "own ellipsoid in degrees": "+proj=longlat +a=6370000 +rf=300.5",
    "Europa": "+proj=eqc +R=1560800",
    "Moon": "+proj=longlat +R=1737400",
    "Moon polar": "+proj=stere +lat_0=-90 +R=1737400",
    "Moon by code": "IAU_2015:30100",
    "Mars by code": "IAU_2015:49910",
    "ESRI Albers": "ESRI:102003",
    "ESRI Mollweide": "ESRI:54009",
    "ESRI 102039": "ESRI:102039",
    "longitude first": "OGC:CRS84",
    "longitudes to 360": "+proj=longlat +lon_wrap=180 +datum=WGS84",
    "Paris": "EPSG:4807",
    "prime meridian": "+proj=longlat +pm=paris +ellps=clrk80",
    "geostationary": "+proj=geos +h=35785831 +lon_0=0 +sweep=y",
    "geostationary x": "+proj=geos +h=35786023 +lon_0=-75 +sweep=x +ellps=GRS80",
    "perspective": "+proj=nsper +h=3000000 +lat_0=10",
    "sinusoidal": "+proj=sinu +R=6371007.181",
    "Goode": "+proj=igh",
    "Winkel Tripel": "+proj=wintri",
    "Eckert IV": "+proj=eck4",
    "cube": "+proj=qsc +lat_0=90",
    "Google": "+proj=merc +a=6378137 +b=6378137 +units=m +nadgrids=@null +wktext",
    "Krovak": "EPSG:5514",
    "Krovak south": "EPSG:2065",
    "Switzerland": "EPSG:2056",
    "Malaysia": "EPSG:3375",
    "New Zealand, northing first": "EPSG:2193",
    "New Zealand map grid": "EPSG:27200",
    "South Africa": "EPSG:2053",
    "Arctic": "EPSG:3413",
    "US feet": "EPSG:2263",
    "grads": "EPSG:27572",
    "Guam": "EPSG:3993",
    "kilometres": "+proj=utm +zone=33 +units=km",
    "axes west and south": "+proj=tmerc +lon_0=29 +axis=wsu +ellps=WGS84",
}
NAMES = {0: "background", 1: "Wald & Wiese <jung>", 4: 'Äcker "süd"'}
LEGEND = {value: palette(position) for position, value in enumerate(NAMES)}
STYLE = Style(
    "uint8", 255, ["class"], colors={**LEGEND, 255: (0, 0, 0, 0)}, names=NAMES, legend=LEGEND, tags={"SEGPIPE": "0"}
)
SHAPE = (40, 31)


def vrt(path: Path, wkt: str, transform: str = "500000,10,0,5400000,0,-10") -> Path:
    """A raster whose CRS is any: GDAL keeps the text."""
    with rasterio.open(path.with_suffix(".tif"), "w", driver="GTiff", width=31, height=40, count=1, dtype="uint8") as base:
        base.write(np.arange(40 * 31, dtype=np.uint16).reshape(1, *SHAPE).astype(np.uint8) % 3)
    path.write_text(
        f'<VRTDataset rasterXSize="31" rasterYSize="40"><SRS>{escape(wkt)}</SRS><GeoTransform>{transform}</GeoTransform>'
        f'<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename relativeToVRT="1">{path.stem}.tif'
        "</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    return path


def as_gdal_sees(path: Path) -> ElementTree.Element:
    """Oracle: all that GDAL makes of a file and what lies beside it, as it writes it into a VRT."""
    copy = path.with_name("oracle.vrt")
    rasterio.shutil.copy(path, copy, driver="VRT")
    return ElementTree.parse(copy).getroot()


def crs_of(root: ElementTree.Element) -> tuple[pyproj.CRS, str | None]:
    """The CRS that GDAL sees, and which of its axes the data's are."""
    found = root.find("SRS")
    assert found is not None
    return pyproj.CRS.from_wkt(str(found.text)), found.get("dataAxisToSRSAxisMapping")


def write(folder: Path, grid: RasterGrid, style: Style = STYLE, name: str = "a.tif") -> list[str]:
    with gdal_options():
        sink = raster_sink(Folder(folder), name, grid, style)
        sink.write(Window((0, 0), SHAPE), np.zeros((len(style.bands), *SHAPE), style.dtype))
        return sink.finish()


def wkt_of(text: str) -> str:
    return text if "[" in text else str(pyproj.CRS.from_user_input(text).to_wkt("WKT2_2019"))


@pytest.mark.parametrize("held", [2**22, 0], ids=["held", "drafted"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_any_crs_is_kept(system, held, monkeypatch, tmp_path):
    monkeypatch.setattr("segpipe.formats.raster.sink.HELD_BYTES", held)
    source = vrt(tmp_path / "in.vrt", wkt_of(SYSTEMS[system]))
    with rasterio.open(source) as dataset:
        grid = RasterGrid(SHAPE, dataset.crs, dataset.transform)
    for style in (STYLE, Style("uint8", 255, ["confidence"], scale=1 / 254)):
        names = write(tmp_path, grid, style)
        (expected, axes), (found, found_axes) = crs_of(as_gdal_sees(source)), crs_of(as_gdal_sees(tmp_path / "a.tif"))
        assert found.equals(expected)
        assert found_axes == axes
        assert sorted(names) == sorted(p.name for p in tmp_path.glob("a.tif*"))
        for name in names:
            (tmp_path / name).unlink()


def test_what_geotiff_holds_needs_no_sidecar(tmp_path):
    grid = RasterGrid(SHAPE, CRS.from_epsg(32633), Affine(10, 0, 5e5, 0, -10, 5.4e6))
    assert write(tmp_path, grid, Style("uint8", 255, ["confidence"])) == ["a.tif"]
    write(tmp_path, grid)
    assert ElementTree.parse(tmp_path / "a.tif.aux.xml").find("SRS") is None


def table_of(root: ElementTree.Element) -> tuple[list[tuple[str, int, int]], list[list[str]]]:
    """Columns (name, GDALRATFieldType, GDALRATFieldUsage) and rows of the attribute table of band 1."""
    table = root.find("VRTRasterBand/GDALRasterAttributeTable")
    assert table is not None
    assert table.get("tableType") == "thematic"
    columns = [tuple(c.findtext(key, "") for key in ("Name", "Type", "Usage")) for c in table.iter("FieldDefn")]
    rows = [[cell.text or "" for cell in row.iter("F")] for row in table.iter("Row")]
    return [(name, int(kind), int(usage)) for name, kind, usage in columns], rows


INTEGER, STRING = 0, 2
NAME, MIN_MAX, RED, GREEN, BLUE, ALPHA = 2, 5, 6, 7, 8, 9


@pytest.mark.parametrize("system", ["EPSG:32633", "EPSG:32633+4979"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_gdal_sees_a_row_per_class(dtype, system, tmp_path):
    """A raster attribute table by the numbers of gdal.h, beside the names of the categories and the colour table."""
    style = STYLE if dtype == "uint8" else Style(dtype, 65535, ["class"], names=NAMES, legend=LEGEND)
    write(tmp_path, RasterGrid(SHAPE, CRS.from_user_input(system), Affine(10, 0, 5e5, 0, -10, 5.4e6)), style)
    root = as_gdal_sees(tmp_path / "a.tif")
    columns, rows = table_of(root)
    kinds = [(INTEGER, MIN_MAX), (STRING, NAME), (INTEGER, RED), (INTEGER, GREEN), (INTEGER, BLUE), (INTEGER, ALPHA)]
    assert [column[1:] for column in columns] == kinds
    assert rows == [[str(value), NAMES[value], *map(str, LEGEND[value])] for value in NAMES]
    assert [c.text or "" for c in root.iter("Category")] == [NAMES.get(value, "") for value in range(5)]
    entries = [tuple(int(e.get(f"c{i}", "-1")) for i in (1, 2, 3, 4)) for e in root.iter("Entry")]
    assert [entries[value] for value in NAMES] == list(LEGEND.values()) if dtype == "uint8" else not entries


def test_control_points_keep_their_crs(tmp_path):
    points = tuple(GroundControlPoint(r, c, 15 + c / 7, 48 - r / 9, 12.5) for r, c in [(0, 0), (0, 30), (40, 0), (39.5, 31)])
    crs = CRS.from_user_input(SYSTEMS["projected 3D"])
    write(tmp_path, RasterGrid(SHAPE, gcps=points, gcps_crs=crs))
    found = as_gdal_sees(tmp_path / "a.tif").find("GCPList")
    assert found is not None
    assert pyproj.CRS.from_wkt(found.get("Projection", "")).equals(pyproj.CRS.from_wkt(crs.to_wkt(version="WKT2_2019")))
    numbers = [[float(point.get(key, "nan")) for key in ("Line", "Pixel", "X", "Y", "Z")] for point in found]
    np.testing.assert_allclose(numbers, [[p.row, p.col, p.x, p.y, p.z] for p in points], rtol=1e-12)


@pytest.mark.parametrize("system", ["projected 3D", "rotated pole", "compound code"])
def test_a_run_keeps_the_crs_of_mask_and_confidence(system, run_serial, tmp_path):
    (tmp_path / "in").mkdir()
    source = vrt(tmp_path / "in" / "a.vrt", wkt_of(SYSTEMS[system]))
    out = run_serial(source, pixelwise(tmp_path / "m.onnx", channels=1), confidence=True)
    record = json.loads((out / "a.json").read_text())
    assert {*record["outputs"]} >= {
        "a.tif",
        "a.tif.aux.xml",
        "a.confidence.tif",
    }  # more if the file itself keeps no such CRS
    for name in ("a.tif", "a.confidence.tif"):
        with rasterio.open(source) as expected, rasterio.open(out / name) as found:
            assert (found.crs, found.transform) == (expected.crs, expected.transform)


@pytest.mark.parametrize("held", [2**22, 0], ids=["held", "drafted"])
@pytest.mark.parametrize("what", ["colours", "band descriptions", "nodata", "scale", "transform"])
def test_what_is_lost_fails_the_case(what, held, monkeypatch, tmp_path):
    """A GDAL that forgets one thing: nothing has its name then, and nothing hidden is left."""
    monkeypatch.setattr("segpipe.formats.raster.sink.HELD_BYTES", held)
    describe = RasterSink._describe

    def forgetful(sink: Any) -> None:
        describe(sink)
        dataset = sink._dataset
        if what == "colours":
            dataset.write_colormap(1, {0: (1, 2, 3, 255)})
        elif what == "band descriptions":
            dataset.descriptions = ["other"]
        elif what == "nodata":
            dataset.nodata = 254
            dataset.write_colormap(1, UNUSED | dict(STYLE.colors or {}))
        elif what == "scale":
            dataset.scales = [2.0]
        else:
            dataset.update_tags(AREA_OR_POINT="Point")
            dataset.transform = Affine(10, 0, 7e5, 0, -10, 5.4e6)

    monkeypatch.setattr(RasterSink, "_describe", forgetful)
    if what in ("transform", "band descriptions", "scale"):  # else the sidecar would keep it
        monkeypatch.setattr("segpipe.formats.raster.sink.sidecar", lambda style, grid=None: None)
    grid = RasterGrid(SHAPE, CRS.from_epsg(32633), Affine(10, 0, 5e5, 0, -10, 5.4e6))
    with pytest.raises(OutputError, match=f"a.tif cannot be written: GDAL does not keep its {what}"):
        write(tmp_path, grid)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("found", "meant", "same"),
    [
        ("EPSG:4326", "EPSG:4258", False),
        ("EPSG:32633", "EPSG:32634", False),
        ("EPSG:32633", "+proj=utm +zone=33 +datum=WGS84", True),
        ("EPSG:2263", "EPSG:32118", False),  # US feet and metres
        (None, "EPSG:4326", False),
        (None, None, True),
    ],
)
def test_equal_crss(found, meant, same):
    first, second = (text and CRS.from_user_input(text) for text in (found, meant))
    assert same_crs(first, second) is same
    assert same_crs(second, first) is same


def test_equal_transforms():
    here = Affine(0.1, 0, 5e5 + 1 / 3, 0, -0.1, 5.4e6 + 1 / 7)
    assert same_transform(here * Affine.translation(1e-8, 0), here, (10_000, 10_000))
    assert not same_transform(here * Affine.translation(1e-3, 0), here, (10_000, 10_000))
    assert not same_transform(here * Affine.scale(1 + 1e-7), here, (10_000, 10_000))
    assert not same_transform(Affine(np.nan, 0, 0, 0, 1, 0), here, (10, 10))


def test_every_attribute_is_looked_at(tmp_path):
    """Of two files that differ in everything, each thing is named."""
    write(tmp_path, RasterGrid(SHAPE, CRS.from_epsg(32633), Affine(10, 0, 5e5, 0, -10, 5.4e6)))
    points = (GroundControlPoint(0, 0, 1, 2, 3),)
    crs = CRS.from_epsg(3035)
    other = RasterGrid((2, 3), crs, Affine(1, 0, 0, 0, -1, 0), gcps=points, gcps_crs=crs)
    style = Style("uint16", 65535, ["x", "y"], colors={0: (9, 9, 9, 255)}, tags={"SEGPIPE": "1"}, scale=0.5)
    with rasterio.open(tmp_path / "a.tif") as dataset:
        gone = lost(dataset, other, style)
    place = {"CRS", "transform", "control points"}
    assert set(gone) == place | {"size", "type", "nodata", "tags", "colours", "band descriptions", "scale"}
