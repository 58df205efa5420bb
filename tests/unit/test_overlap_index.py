"""The index of a mosaic, as other programs read it: GeoPackage by pyogrio; test_mosaic.py has what GDAL draws from it."""

import errno
from pathlib import Path

import pyogrio
import pytest
import shapely
from affine import Affine
from fields import UTM
from rasterio.crs import CRS

from segpipe.geometry.raster_grid import RasterGrid
from segpipe.results.overlap import index
from segpipe.results.overlap.index import IndexedMask, is_possible, write_index

FRAME = RasterGrid((80, 200), CRS.from_epsg(32633), UTM)
ZONE_34 = RasterGrid((80, 100), CRS.from_epsg(32634), Affine(10, 0, 60_053, 0, -10, 5_417_000))
KIND = {"BAND_COUNT": "1", "DATA_TYPE": "Byte", "NODATA": "255"}
ENTRIES = [
    IndexedMask("a & <b>", "out/a & <b>.tif", RasterGrid((80, 100), FRAME.crs, UTM), "2023-06-15T10:00:31+00:00"),
    IndexedMask("ü\udcff", "out/ü\udcff.tif", ZONE_34),
]


def test_other_programs_read_it(tmp_path: Path) -> None:
    path = tmp_path / "m.gti.gpkg"
    write_index(path, ENTRIES[:1], FRAME, KIND)
    frame = pyogrio.read_dataframe(path)
    assert frame.crs.to_epsg() == 32633
    assert frame.drop(columns="geometry").to_dict("records") == [
        {"location": "out/a & <b>.tif", "name": "a & <b>", "position": 0, "acquired": "2023-06-15T10:00:31+00:00"}
    ]
    assert frame.geometry[0].equals(shapely.box(500_000, 5_399_200, 501_000, 5_400_000))
    found = pyogrio.read_info(path)
    assert found["layer_metadata"]["GEOTRANSFORM"] == "500000.0,10.0,0.0,5400000.0,0.0,-10.0"
    assert found["layer_metadata"]["SORT_FIELD_ASC"] == "NO"  # drawn last, on top: the one that counts first
    assert tuple(found["total_bounds"]) == pytest.approx((500_000, 5_399_200, 502_000, 5_400_000))


def test_a_full_disk_is_an_error_of_the_operating_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "TABLES", f"PRAGMA max_page_count = 3; {index.TABLES}")
    with pytest.raises(OSError, match="No space left on device") as full:
        write_index(tmp_path / "m.gti.gpkg", ENTRIES, FRAME, KIND)
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, str(tmp_path / "m.gti.gpkg"))
    with pytest.raises(OSError, match="unable to open database file"):
        write_index(tmp_path / "nowhere" / "m.gti.gpkg", ENTRIES, FRAME, KIND)


def test_the_same_masks_give_the_same_bytes_whatever_their_names(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_index(tmp_path / name, ENTRIES, FRAME, KIND)
    data = (tmp_path / "a").read_bytes()
    assert data == (tmp_path / "b").read_bytes()
    assert "out/ü".encode() + b"\xff.tif" in data
    assert b"segpipe" in data


def test_outlines_in_another_crs_follow_the_ground(tmp_path: Path) -> None:
    path = tmp_path / "m.gti.gpkg"
    write_index(path, [IndexedMask("b", "b.tif", ZONE_34)], FRAME, KIND)
    outline = pyogrio.read_dataframe(path).geometry[0]
    assert outline.is_valid
    assert outline.area == pytest.approx(80 * 100 * 100, rel=0.01)
    assert len(outline.exterior.coords) > 200


def test_only_grids_with_north_up_have_one() -> None:
    assert is_possible(FRAME)
    for transform in (UTM * Affine.rotation(1), UTM * Affine.scale(1, -1), UTM * Affine.scale(-1, 1), None):
        assert not is_possible(RasterGrid((80, 100), FRAME.crs, transform))
