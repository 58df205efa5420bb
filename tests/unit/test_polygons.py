"""Polygons as references: each pixel against the polygons themselves, at its centre in longitude and latitude."""

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from pyproj import Transformer
from rasterio.crs import CRS

from segpipe.accuracy.polygons import read_polygons
from segpipe.geometry.raster_grid import RasterGrid
from segpipe.geometry.windows import Window

CLASSES = {0: "water", 1: "wheat", 2: "maize"}
UTM = CRS.from_epsg(32633)
PLACE = Affine(1000, 0, 450_000, 0, -1000, 5_500_000)


def labels(tmp_path, shapes, grid, kinds=None, crs="EPSG:4326"):
    """Labels of all pixels of a grid, read in two windows; -1 in no polygon; and the warnings."""
    kinds = kinds or [1] * len(shapes)
    geopandas.GeoDataFrame({"kind": kinds}, geometry=shapes, crs=crs).to_file(tmp_path / "f.gpkg")
    found = read_polygons(tmp_path / "f.gpkg", "kind", CLASSES, mapped=False)
    rows, cols = grid.shape
    with found.on(grid) as reference:
        parts = [reference.read(Window((a, 0), (b, cols))) for a, b in ((0, 7), (7, rows))]
    return np.concatenate([np.where(valid, values, -1) for values, valid in parts]), found.problems


def centres(grid, crs="EPSG:4326"):
    rows, cols = np.mgrid[: grid.shape[0], : grid.shape[1]] + 0.5
    return Transformer.from_crs(grid.crs.to_wkt(), crs, always_xy=True).transform(*(grid.transform * (cols, rows)))


@pytest.mark.parametrize("transform", [PLACE, PLACE * Affine.rotation(30)], ids=["north-up", "rotated"])
def test_long_edges_are_straight_in_the_crs_of_the_polygons(tmp_path, transform):
    grid = RasterGrid((120, 140), UTM, transform)
    north = shapely.Polygon([(5, 49.2), (25, 49.2), (25, 60), (5, 60)])  # a chord of UTM is kilometres off its parallel
    found, _ = labels(tmp_path, [north], grid)
    wanted = shapely.contains_xy(north, *centres(grid))
    assert 0.1 < wanted.mean() < 0.9
    np.testing.assert_array_equal(found == 1, wanted)


@pytest.mark.parametrize("written", [2, 2.0, "2"])
def test_a_class_may_be_named_by_a_number_of_any_type(tmp_path, written):
    """As codes of land cover are: the name of a class goes before the id of another."""
    geopandas.GeoDataFrame({"kind": [written]}, geometry=[shapely.box(5, 45, 6, 46)], crs=4326).to_file(tmp_path / "f.gpkg")
    found = read_polygons(tmp_path / "f.gpkg", "kind", {1: "2", 2: "3"}, mapped=False)
    assert found.values.tolist() == [1]


def test_a_huge_box_covers_a_scene_inside(tmp_path):
    found, _ = labels(tmp_path, [shapely.box(-60, 0, 100, 80)], RasterGrid((30, 40), UTM, PLACE))
    assert (found == 1).all()


def test_an_edge_over_more_than_half_a_turn_is_told(tmp_path):
    _, problems = labels(tmp_path, [shapely.box(-170, -80, 170, 80)], RasterGrid((30, 40), UTM, PLACE))
    assert problems == ("polygon 1: crosses the antimeridian: long edges taken the short way",)


def test_a_repaired_polygon_is_its_surface(tmp_path):
    """A square with a spike of no width, which is a line once repaired."""
    spike = shapely.Polygon([(455_000, 5_495_000), (455_000, 5_490_000), (460_000, 5_490_000), (460_000, 5_495_000),
                             (480_000, 5_495_000), (460_000, 5_495_000)])  # fmt: skip
    found, problems = labels(tmp_path, [spike], RasterGrid((30, 40), UTM, PLACE), crs="EPSG:32633")
    wanted = np.full((30, 40), -1)
    wanted[5:10, 5:10] = 1
    np.testing.assert_array_equal(found, wanted)
    assert problems[0].startswith("polygon 1: repaired: ")


def test_the_last_polygon_of_the_file_counts(tmp_path):
    boxes = [shapely.box(440_000, 5_400_000, 600_000, 5_600_000), shapely.box(455_000, 5_490_000, 460_000, 5_495_000)]
    for order, inside in ((boxes, 2), (boxes[::-1], 1)):
        kinds = [1, 2] if inside == 2 else [2, 1]
        found, _ = labels(tmp_path, order, RasterGrid((30, 40), UTM, PLACE), kinds, crs="EPSG:32633")
        assert (found[5:10, 5:10] == inside).all()
        assert (found == 1).sum() == 1200 - 25 * (inside == 2)


def test_a_scene_across_the_antimeridian_takes_polygons_of_both_sides(tmp_path):
    grid = RasterGrid((40, 60), CRS.from_epsg(32601), Affine(10_000, 0, 200_000, 0, -10_000, 7_000_000))
    sides = [shapely.box(170, 55, 180, 70), shapely.box(-180, 55, -170, 70)]
    found, _ = labels(tmp_path, sides, grid, [1, 2])
    lon, _ = centres(grid)
    assert 0 < (lon > 0).mean() < 1
    wanted = np.select([shapely.contains_xy(side, *centres(grid)) for side in sides], [1, 2], -1)
    np.testing.assert_array_equal(found, wanted)
