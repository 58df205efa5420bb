"""The area of interest on grids of all kinds: each pixel against the polygons, at its centre in their own CRS."""

import geopandas
import numpy as np
import pytest
import rasterio.crs
import shapely
from affine import Affine
from pyproj import CRS, Transformer

from segpipe.errors import InstallationError, WorkerError, ZonesError
from segpipe.geometry.raster_grid import RasterGrid, location_of
from segpipe.geometry.windows import Window
from segpipe.vectors import area as area_module
from segpipe.vectors.area import AreaPolygons, inside, polygons_of, read_area, remember_area
from segpipe.vectors.file import Selection

SHAPE = (70, 90)


def write(path, shapes, crs="EPSG:4326"):
    geopandas.GeoDataFrame(geometry=list(shapes), crs=crs).to_file(path)
    return Selection(path, flag="--aoi")


def brute(grid, shapes, crs):
    """Whether the centre of each pixel, in the CRS of the polygons, lies in one of them; and how close to an edge it is."""
    rows, cols = np.mgrid[: grid.shape[0], : grid.shape[1]] + 0.5
    x, y = grid.transform * (cols.ravel(), rows.ravel())
    x, y = Transformer.from_crs(grid.crs.to_wkt(), crs, always_xy=True).transform(x, y)
    union = shapely.union_all(list(shapes))
    turns = (0, -360, 360) if CRS(crs).is_geographic else (0,)
    found = np.any([shapely.intersects_xy(union, x + turn, y) for turn in turns], axis=0)
    return found.reshape(grid.shape)


def covered(grid, selection):
    found, _ = read_area(selection)
    ground = location_of(grid).ground
    return inside(found, ground, grid.shape).lines.covered(Window((0, 0), grid.shape))


def grid_of(crs, transform, shape=SHAPE):
    return RasterGrid(shape, rasterio.crs.CRS.from_user_input(crs), transform)


UTM = Affine(1000, 0, 450_000, 0, -1000, 5_500_000)
GRIDS = {
    "utm": ("EPSG:32633", UTM),
    "rotated": ("EPSG:32633", UTM * Affine.rotation(31)),
    "south-up": ("EPSG:32633", Affine(1000, 0, 450_000, 0, 1000, 5_430_000)),
    "degrees": ("EPSG:4326", Affine(0.015, 0, 14.2, 0, -0.01, 49.6)),
    "mercator": ("EPSG:3857", Affine(1500, 0, 1_590_000, 0, -1500, 6_380_000)),
    "polar": ("EPSG:3035", Affine(1000, 0, 4_640_000, 0, -1000, 2_990_000)),
}
TRIANGLE = shapely.Polygon([(14.0, 49.0), (15.6, 49.1), (14.9, 49.62)])
HOLED = TRIANGLE.difference(shapely.Point(14.8, 49.25).buffer(0.1))


@pytest.mark.parametrize("name", GRIDS)
def test_pixels_whose_centre_lies_inside_count_on_any_grid(tmp_path, name):
    grid = grid_of(*GRIDS[name])
    wanted = brute(grid, [HOLED], "EPSG:4326")
    assert 0.05 < wanted.mean() < 0.95
    found = covered(grid, write(tmp_path / "a.gpkg", [HOLED]))
    assert (found != wanted).mean() < 2e-3  # where an edge passes a centre within a hundredth of a pixel


def test_long_edges_follow_the_crs_of_the_file(tmp_path):
    """A box in degrees has parallels as borders, which bend by many pixels on a map of Europe."""
    grid = grid_of("EPSG:3035", Affine(20_000, 0, 3_000_000, 0, -20_000, 4_500_000))
    box = shapely.box(-5, 48, 30, 60)
    wanted = brute(grid, [box], "EPSG:4326")
    assert (covered(grid, write(tmp_path / "a.gpkg", [box])) != wanted).sum() <= 3
    corners = Transformer.from_crs("EPSG:4326", "EPSG:3035", always_xy=True).transform(*np.transpose(box.exterior.coords))
    straight = brute(grid, [shapely.Polygon(np.transpose(corners))], "EPSG:3035")
    assert (straight != wanted).sum() > 200  # what it would be with straight edges


@pytest.mark.parametrize("west", [176.0, -184.0])
def test_across_the_antimeridian(tmp_path, west):
    grid = grid_of("EPSG:4326", Affine(0.1, 0, west, 0, -0.1, -14))
    parts = [shapely.box(178, -19, 180, -16), shapely.box(-180, -19, -179, -16)]
    wanted = brute(grid, parts, "EPSG:4326")
    assert wanted.sum() == 30 * 30
    assert np.array_equal(covered(grid, write(tmp_path / "a.gpkg", parts)), wanted)
    leaping = [shapely.Polygon([(178, -19), (-179, -19), (-179, -16), (178, -16)])]
    assert np.array_equal(covered(grid, write(tmp_path / "b.gpkg", leaping)), wanted)


def test_around_a_pole(tmp_path):
    grid = grid_of("EPSG:3413", Affine(50_000, 0, -2_000_000, 0, -50_000, 2_000_000), (80, 80))
    cap = [shapely.box(-180, 80, 180, 90)]
    wanted = brute(grid, cap, "EPSG:4326")
    assert 0.2 < wanted.mean() < 0.8
    assert np.array_equal(covered(grid, write(tmp_path / "a.gpkg", cap)), wanted)


def test_what_is_repaired_or_has_no_area_is_told(tmp_path):
    bow_tie = shapely.Polygon([(14, 49), (15, 49.5), (15, 49), (14, 49.5)])
    found, warnings = read_area(write(tmp_path / "a.geojson", [TRIANGLE, bow_tie, shapely.Point(14, 49)]))
    assert warnings[0].startswith("1 of 3 polygons: repaired: Self-intersection[")
    assert warnings[0].endswith(", first in polygon 2")
    assert warnings[1] == "1 of 3 polygons: Point instead of a polygon, first in polygon 3"
    assert len(polygons_of(found).shapes) == 2


@pytest.mark.parametrize(
    ("shapes", "crs", "message"),
    [
        ([shapely.Point(1, 2)], "EPSG:4326", "--aoi must hold polygons, and .* holds none: Point instead of a polygon"),
        ([TRIANGLE], None, "--aoi must have a CRS, and .* has none: add it"),
        ([], "EPSG:4326", "--aoi must hold polygons, and .* holds nothing: name another file or layer"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*crs.*not provided")
def test_a_file_without_an_area_is_refused(tmp_path, shapes, crs, message):
    geopandas.GeoDataFrame(geometry=shapes, crs=crs).to_file(tmp_path / "a.gpkg")
    with pytest.raises(ZonesError, match=message):
        read_area(Selection(tmp_path / "a.gpkg", flag="--aoi"))


def test_files_that_do_not_exist_or_have_several_layers_are_refused(tmp_path):
    with pytest.raises(ZonesError, match=r"--aoi must be a file of polygons, and .* does not exist: correct the path"):
        read_area(Selection(tmp_path / "none.gpkg", flag="--aoi"))
    for layer in ("one", "two"):
        geopandas.GeoDataFrame(geometry=[TRIANGLE], crs="EPSG:4326").to_file(tmp_path / "a.gpkg", layer=layer)
    with pytest.raises(ZonesError, match="has 2 layers, one, two: name one with --aoi-layer"):
        read_area(Selection(tmp_path / "a.gpkg", flag="--aoi"))
    assert read_area(Selection(tmp_path / "a.gpkg", "two", flag="--aoi"))[0].digest


def test_a_digest_is_of_polygons_and_not_of_the_file(tmp_path):
    one, _ = read_area(write(tmp_path / "a.gpkg", [TRIANGLE]))
    same, _ = read_area(write(tmp_path / "b.parquet.gpkg", [TRIANGLE]))
    other, _ = read_area(write(tmp_path / "c.gpkg", [HOLED]))
    assert one.digest == same.digest != other.digest


def test_polygons_reach_other_processes_as_they_are(tmp_path, monkeypatch):
    found, _ = read_area(write(tmp_path / "a.gpkg", [TRIANGLE, HOLED]))
    polygons = polygons_of(found)
    there = AreaPolygons.unpacked(polygons.packed())
    assert shapely.to_wkb(there.shapes).tolist() == shapely.to_wkb(polygons.shapes).tolist()
    assert there.crs == polygons.crs
    monkeypatch.setattr(area_module, "_known", {})
    with pytest.raises(WorkerError, match=r"a worker must be told the polygons of .*: run the same command again"):
        polygons_of(found)
    remember_area(found, there)
    assert polygons_of(found) is there


def test_without_the_extra_the_command_to_install_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyogrio", None)
    monkeypatch.setitem(__import__("sys").modules, "pyogrio.errors", None)
    (tmp_path / "a.gpkg").write_bytes(b"x")
    with pytest.raises(InstallationError, match="zones"):
        read_area(Selection(tmp_path / "a.gpkg", flag="--aoi"))
