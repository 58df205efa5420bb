"""GeoJSON text: against GDAL, which reads it back, at the antimeridian, and in small groups."""

import json

import geopandas
import numpy as np
import pyarrow
import pytest
import shapely

from segpipe.polygons import geojson
from segpipe.polygons.geojson import columns_of, within_a_turn, write_geojson

HOLED = shapely.Polygon([(0, 0), (9, 0), (9, 9), (0, 9)], [[(1, 1), (1, 2), (2, 2), (2, 1)], [(4, 4), (4, 6.5), (6, 6)]])
PARTS = shapely.MultiPolygon([HOLED, shapely.box(20, 0, 21.123456789, 1e-7)])
ROWS = {
    "name": pyarrow.array(['a "quoted" \\ name', "Österreich", None, "b"]),
    "count": pyarrow.array([1, 2**53, 0, -1]),
    "area": pyarrow.array([1.0, 0.1 + 0.2, 1e-12, None]),
}
SHAPES = [HOLED, PARTS, shapely.box(-1, -1, 0, 0), shapely.box(3, 3, 4, 4)]


def written(tmp_path, rows, shapes, sizes=(4,), **options):
    table = pyarrow.RecordBatch.from_pydict(rows | {"geometry": pyarrow.array(shapely.to_wkb(shapes))})
    stops = np.cumsum(sizes)
    batches = (table.slice(stop - size, size) for stop, size in zip(stops, sizes, strict=True))
    write_geojson(tmp_path / "f.geojson", list(rows), batches, on_earth=options.get("on_earth", True))
    return tmp_path / "f.geojson"


@pytest.mark.parametrize("points", [1, 7, 2**17])
def test_gdal_reads_back_what_was_written(tmp_path, monkeypatch, points):
    monkeypatch.setattr(geojson, "POINTS", points)
    path = written(tmp_path, ROWS, SHAPES, (1, 3))
    found = geopandas.read_file(path, engine="pyogrio")
    assert found["name"].astype(object).where(found["name"].notna(), None).tolist() == ROWS["name"].to_pylist()
    assert found["count"].tolist() == ROWS["count"].to_pylist()
    np.testing.assert_array_equal(found["area"], np.array([1.0, 0.1 + 0.2, 1e-12, np.nan]))
    assert shapely.equals_exact(found.geometry.to_numpy(), SHAPES, 1e-9).all()
    assert found.crs.to_epsg() == 4326
    assert json.loads(path.read_text())["features"][0]["properties"]["area"] == 1.0


def test_groups_of_rings_change_no_byte(tmp_path, monkeypatch):
    whole = written(tmp_path, ROWS, SHAPES).read_bytes()
    monkeypatch.setattr(geojson, "POINTS", 5)
    assert written(tmp_path, ROWS, SHAPES, (2, 2)).read_bytes() == whole


def test_numbers_with_a_point_stay_so(tmp_path):
    text = written(tmp_path, ROWS, SHAPES).read_text()
    assert '"area":1.0}' in text
    assert "21.123456789,0.0000001" in text or "21.123456789,1e-7" in text


def test_a_file_knows_its_columns_even_without_rows(tmp_path):
    assert columns_of(written(tmp_path, ROWS, SHAPES)) == [*ROWS]
    assert columns_of(written(tmp_path, ROWS, [None] * 4, ())) == [*ROWS]
    assert json.loads((tmp_path / "f.geojson").read_text())["features"] == []
    for text in ("", "[1]", '{"type": "FeatureCollection", "features": []}', "\x00\xff"):
        (tmp_path / "f.geojson").write_text(text)
        assert columns_of(tmp_path / "f.geojson") == []


def test_polygons_across_the_antimeridian_are_cut_there():
    across, beyond, plain = shapely.box(170, 0, 190, 5), shapely.box(-200, 0, -190, 5), shapely.box(0, 0, 1, 1)
    cut, moved, same = within_a_turn(np.array([across, beyond, plain]))
    assert cut.equals(shapely.MultiPolygon([shapely.box(170, 0, 180, 5), shapely.box(-180, 0, -170, 5)]))
    assert moved.equals(shapely.box(160, 0, 170, 5))
    assert same is plain
    rings = shapely.get_rings(shapely.get_parts([cut, moved]))
    assert shapely.is_ccw(rings).all()


def test_pixels_are_neither_rounded_nor_cut(tmp_path):
    path = written(tmp_path, {"n": pyarrow.array([1])}, [shapely.box(0.1234567890123, 0, 5000, 4)], (1,), on_earth=False)
    coordinates = json.loads(path.read_text())["features"][0]["geometry"]["coordinates"]
    assert [0.1234567890123, 0] in coordinates[0]
    assert max(x for x, _ in coordinates[0]) == 5000
