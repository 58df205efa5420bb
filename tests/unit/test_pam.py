"""GDAL's sidecar: GDAL itself reads back what a mask's format has no place for."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC
from rasterio.transform import Affine

from segpipe.formats.raster.pam import sidecar
from segpipe.formats.style import Style
from segpipe.geometry.raster_grid import RasterGrid
from segpipe.storage.ownership import is_own_sidecar

ROTATED_POLE = CRS.from_wkt(
    'GEOGCRS["rotated",BASEGEOGCRS["s",DATUM["d",ELLIPSOID["s",6371229,0]]],'
    'DERIVINGCONVERSION["c",METHOD["PROJ ob_tran o_proj=longlat"],PARAMETER["o_lon_p",0,ANGLEUNIT["degree",0.0174532925]],'
    'PARAMETER["o_lat_p",39.25,ANGLEUNIT["degree",0.0174532925]],PARAMETER["lon_0",18,ANGLEUNIT["degree",0.0174532925]]],'
    'CS[ellipsoidal,2],AXIS["longitude",east,ORDER[1]],AXIS["latitude",north,ORDER[2]],ANGLEUNIT["degree",0.0174532925]]'
)
NAMES = {0: "grass", 2: "<water & ice>"}
STYLE = Style("uint8", 255, ["class"], names=NAMES, legend={0: (0, 99, 0, 255), 2: (0, 0, 9, 255)})


@pytest.fixture
def plain(tmp_path):
    """A PNG that says nothing of its own, and where its sidecar belongs."""
    path = tmp_path / "a.png"
    with rasterio.open(path, "w", driver="PNG", width=5, height=4, count=1, dtype="uint8") as dataset:
        dataset.write(np.zeros((1, 4, 5), np.uint8))
    return path, tmp_path / "a.png.aux.xml"


def test_a_place_is_read_back(plain):
    path, beside = plain
    grid = RasterGrid((4, 5), crs=ROTATED_POLE, transform=Affine(0.1, 0.01, -5, 0.02, -0.1, 1 / 3))
    beside.write_bytes(sidecar(STYLE, grid))
    with rasterio.open(path) as dataset:
        assert dataset.transform == grid.transform
        assert dataset.crs == ROTATED_POLE
        assert dataset.descriptions == ("class",)


def test_control_points_are_read_back(plain):
    path, beside = plain
    places = ((0, 0), (0, 5), (4, 0))
    points = tuple(GroundControlPoint(row, col, 16 + col, 48 - row, 7.5, id=f"p{row}") for row, col in places)
    beside.write_bytes(sidecar(STYLE, RasterGrid((4, 5), gcps=points, gcps_crs=CRS.from_epsg(4326))))
    with rasterio.open(path) as dataset:
        found, crs = dataset.gcps
    assert crs == CRS.from_epsg(4326)
    assert [(p.row, p.col, p.x, p.y, p.z, p.id) for p in found] == [(p.row, p.col, p.x, p.y, p.z, p.id) for p in points]


def test_polynomials_of_a_sensor_are_read_back(plain):
    path, beside = plain
    line, sample = ([k + 0.5 for k in range(20)] for _ in range(2))
    rpcs = RPC(150, 48, 2.5, 3, sample[::-1], line, 0.1, 500, 15.5, 4.25, [1.0] * 20, sample, 0.2, 600, 1.5, 2.5)
    beside.write_bytes(sidecar(STYLE, RasterGrid((4, 5), rpcs=rpcs)))
    with rasterio.open(path) as dataset:
        assert dataset.rpcs.to_dict() == rpcs.to_dict()


def test_classes_have_a_name_for_each_value_and_a_row_each(plain):
    root = ET.fromstring(sidecar(STYLE))
    assert [e.text for e in root.iter("Category")] == ["grass", None, "<water & ice>"]
    rows = [[cell.text for cell in row] for row in root.iter("Row")]
    assert rows == [["0", "grass", "0", "99", "0", "255"], ["2", "<water & ice>", "0", "0", "9", "255"]]


def test_metadata_of_the_scene_keep_their_domain(plain):
    path, beside = plain
    style = Style("uint8", 255, ["class"], scene={"": {"ignored": "x"}, "IMAGERY": {"CLOUDCOVER": "3"}})
    beside.write_bytes(sidecar(style))
    with rasterio.open(path) as dataset:
        assert dataset.tags(ns="IMAGERY") == {"CLOUDCOVER": "3"}
        assert "ignored" not in dataset.tags()


def test_it_says_who_wrote_it_and_is_none_where_there_is_nothing_to_say():
    assert is_own_sidecar(sidecar(STYLE))
    assert sidecar(Style("uint8", 255, ["class"])) is None
