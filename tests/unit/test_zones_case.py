"""What lies in polygons over a mask: by hand, by brute force, and against the areas of the whole."""

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from fields import UTM, ArrayMask, fields, on_map, square
from networks import contract
from rasterio.crs import CRS

from segpipe.contract import parse_contract
from segpipe.geometry.raster_grid import NoGroundError
from segpipe.geometry.windows import Window
from segpipe.results.areas import Areas
from segpipe.results.statistics import Box
from segpipe.results.zones.case import measured
from segpipe.results.zones.table import ZoneTotals

CLASSES = ((0, "water"), (1, "wheat"), (2, "maize"))
LABELS = [[0, 1, 2], [1, 1, 255], [0, 0, 2]]


def found_in(tmp_path, mask, shapes, crs="EPSG:32633", classes=CLASSES):
    return measured(mask, classes, 255, fields(tmp_path, shapes, crs))


def areas_of(mask, labels, classes=CLASSES):
    """Hectares of each class and of nodata, as in ``areas.csv``."""
    task, activation = ("multilabel", "sigmoid") if mask.bands > 1 else ("multiclass", "softmax")
    listed = [{"id": number, "name": name} for number, name in classes]
    values = contract(1, len(classes), task=task, activation=activation, classes=listed)
    areas = Areas(mask.grid, parse_contract(values, "test"))
    labels = np.asarray(labels, np.uint8)
    areas.add(Box(Window((0, 0), labels.shape[-2:]), labels.reshape(-1, *labels.shape[-2:])))
    return [row["area"] for row in areas.rows()]


def test_three_by_three_by_hand(tmp_path):
    """Whole pixels, halves and quarters; a pixel is 100 m² in the projection, a little more on the ground."""
    mask = ArrayMask(LABELS)
    shapes = [square(UTM, 0, 0, 3, 3), square(UTM, 0, 0, 1.5, 1), square(UTM, 1.5, 0.5, 3, 2), square(UTM, 0, 2, 2, 3)]
    found = found_in(tmp_path, mask, shapes)
    (pixel,) = np.unique(mask.grid.measure.sizes([np.array([0, 3])] * 2))
    assert found.index.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(
        found.classes / pixel, [[3, 3, 2], [1, 0.5, 0], [0, 0.25 + 0.5, 0.5], [2, 0, 0]], rtol=1e-7, atol=1e-9
    )
    np.testing.assert_allclose(found.seen / pixel, [8, 1.5, 1.25, 2], rtol=1e-7)
    np.testing.assert_allclose(found.unseen / pixel, [1, 0, 1, 0], rtol=1e-7)
    np.testing.assert_allclose(found.pixels, [9, 1.5, 2.25, 2], rtol=1e-12)
    np.testing.assert_allclose(found.within, 1, rtol=1e-12)


def test_independent_classes_have_a_band_each(tmp_path):
    bands = np.array([[[1, 1, 255]] * 3, [[0, 1, 255]] * 3], np.uint8)
    mask = ArrayMask(bands)
    found = found_in(tmp_path, mask, [square(UTM, 0, 0, 3, 3)], classes=((0, "roof"), (1, "tree")))
    hectares = areas_of(mask, bands, ((0, "roof"), (1, "tree")))
    np.testing.assert_allclose([*found.classes[0] / 1e4, found.unseen[0] / 1e4], hectares, rtol=1e-9)
    np.testing.assert_allclose(found.seen[0], 2 * found.unseen[0])


def test_one_independent_class_is_a_band_of_zeros_and_ones(tmp_path):
    found = found_in(tmp_path, ArrayMask([[1, 0, 255]] * 3), [square(UTM, 0, 0, 3, 3)], classes=((7, "tree"),))
    np.testing.assert_allclose(found.classes[0, 0] * 2, found.seen[0])
    np.testing.assert_allclose(found.pixels, 9)


def test_a_hole_is_no_part_of_a_zone(tmp_path):
    outer, inner = square(UTM, 0, 0, 3, 3), square(UTM, 1, 1, 2, 2)
    for ring in (inner.exterior.coords, inner.exterior.coords[::-1]):
        found = found_in(tmp_path, ArrayMask(LABELS), [shapely.Polygon(outer.exterior.coords, [ring])])
        np.testing.assert_allclose(found.pixels, 8)
        np.testing.assert_allclose(found.classes[0] / found.classes[0, 2] * 2, [3, 2, 2], rtol=1e-6)


GRIDS = {
    "utm": ("EPSG:32633", UTM),
    "mercator": ("EPSG:3857", Affine(16, 0, 1_700_000, 0, -16, 6_250_000)),
    "degrees": ("EPSG:4326", Affine(1e-4, 0, 15.0, 0, -1e-4, 48.7)),
    "rotated": ("EPSG:32633", Affine.translation(500_000, 5_400_000) * Affine.rotation(27) * Affine.scale(10, -12)),
    "sheared": ("EPSG:3035", Affine(10, 3, 4_600_000, 2, -9, 2_900_000)),
    "south-up": ("EPSG:32633", Affine(10, 0, 500_000, 0, 10, 5_390_000)),
    "mirrored": ("EPSG:32633", Affine(-10, 0, 505_000, 0, -10, 5_400_000)),
    "degrees rotated": ("EPSG:4326", Affine.translation(15, 48.7) * Affine.rotation(10) * Affine.scale(1e-4, -1e-4)),
}


def noise(shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.choice(np.array([0, 1, 2, 255], np.uint8), shape, p=[0.4, 0.3, 0.2, 0.1])


def tiling(transform, shape, seed=0):
    """Polygons that cover a grid without gaps: crooked quadrilaterals, the outermost of which end at its edges."""
    rng = np.random.default_rng(seed)
    rows, cols = np.linspace(0, shape[0], 9), np.linspace(0, shape[1], 9)
    y, x = np.meshgrid(rows, cols, indexing="ij")
    x[:, 1:-1] += rng.uniform(-8, 8, x[:, 1:-1].shape)
    y[1:-1, :] += rng.uniform(-8, 8, y[1:-1, :].shape)
    points = np.stack([x, y], -1)
    return [
        on_map(transform, *(tuple(points[i + a, j + b]) for a, b in ((0, 0), (0, 1), (1, 1), (1, 0))))
        for i in range(8)
        for j in range(8)
    ]


@pytest.mark.parametrize("name", GRIDS)
def test_zones_that_tile_a_case_add_up_to_its_areas(name, tmp_path):
    crs, transform = GRIDS[name]
    labels = noise((303, 412))
    mask = ArrayMask(labels, transform, crs)
    found = found_in(tmp_path, mask, tiling(transform, labels.shape), crs)
    sums = [*found.classes.sum(axis=0), found.unseen.sum()]
    np.testing.assert_allclose(np.array(sums) / 1e4, areas_of(mask, labels), rtol=1e-9)
    np.testing.assert_allclose(found.within, 1, rtol=1e-9)


@pytest.mark.parametrize("name", ["utm", "rotated", "sheared", "south-up", "mirrored"])
def test_coverage_is_that_of_many_points_in_each_pixel(name, tmp_path):
    """Against brute force: 25 x 25 points in each pixel, each of which lies in the polygon or not."""
    crs, transform = GRIDS[name]
    labels = noise((40, 50), 3)
    ring = [(12.3, 3.1), (44.9, 9.7), (30.2, 20.5), (41.0, 37.3), (8.4, 29.8), (20.1, 17.7)]
    shape = on_map(transform, *ring)
    found = found_in(tmp_path, ArrayMask(labels, transform, crs), [shape], crs)
    fine = 25
    axes = [(np.arange(size * fine) + 0.5) / fine for size in labels.shape]
    row, col = np.meshgrid(*axes, indexing="ij")
    inside = shapely.contains_xy(shape, *(transform * (col.ravel(), row.ravel()))).reshape(row.shape)
    share = inside.reshape(40, fine, 50, fine).mean(axis=(1, 3))
    brute = np.array([share[labels == label].sum() for label in (0, 1, 2, 255)])
    ours = np.array([*found.classes[0], found.unseen[0]])
    np.testing.assert_allclose(ours / ours.sum(), brute / brute.sum(), atol=5e-4)
    np.testing.assert_allclose(found.pixels[0], share.sum(), rtol=5e-4)
    np.testing.assert_allclose(found.pixels[0], shapely.Polygon(ring).area, rtol=1e-9)


def test_the_same_fields_over_three_crs_agree_within_the_pixel_effect(tmp_path):
    """The scene is a function of the place; its versions in UTM, 3857 and 4326 sample it on their own grids."""
    to_utm = {crs: pyproj.Transformer.from_crs(crs, "EPSG:32633", always_xy=True) for crs in ("EPSG:3857", "EPSG:4326")}
    x0, y0, side = 500_000.0, 5_400_000.0, 3000.0
    shapes = [shapely.Point(x0 + x, y0 - y).buffer(r) for x, y, r in ((900, 900, 500), (2000, 1100, 600), (1500, 2200, 650))]

    def scene(x, y):
        return (np.floor((x - x0) / 400) + np.floor((y0 - y) / 300)).astype(int) % 3

    results = []
    for crs, pixel in (("EPSG:32633", 10.0), ("EPSG:3857", 12.0), ("EPSG:4326", 1e-4)):
        corners = np.array([(x0 - 100, y0 + 100), (x0 + side, y0 + 100), (x0 + side, y0 - side), (x0 - 100, y0 - side)])
        if crs in to_utm:
            corners = np.column_stack(to_utm[crs].transform(*corners.T, direction="INVERSE"))
        (west, south), (east, north) = corners.min(axis=0), corners.max(axis=0)
        transform = Affine(pixel, 0, west, 0, -pixel, north)
        shape = (int((north - south) / pixel) + 1, int((east - west) / pixel) + 1)
        row, col = np.meshgrid(np.arange(shape[0]) + 0.5, np.arange(shape[1]) + 0.5, indexing="ij")
        x, y = transform * (col, row)
        x, y = to_utm[crs].transform(x, y) if crs in to_utm else (x, y)
        results.append(found_in(tmp_path, ArrayMask(scene(x, y), transform, crs), shapes).classes)
    for other in results[1:]:
        np.testing.assert_allclose(other.sum(axis=1), results[0].sum(axis=1), rtol=2e-4)  # the polygons' areas
        np.testing.assert_allclose(other, results[0], rtol=0.02)  # a row of pixels along edges of blocks of 300 m


def test_long_straight_edges_of_degrees_are_curves_in_the_scene(tmp_path):
    """A parallel is no straight line of UTM: a box of 2 degrees, which is filled, must be the zone between its parallels."""
    transform = Affine(100, 0, 420_000, 0, -100, 5_450_000)
    mask = ArrayMask(np.zeros((1500, 1700)), transform, "EPSG:32633")
    found = found_in(tmp_path, mask, [shapely.box(14.2, 48.2, 15.8, 48.8)], "EPSG:4326", ((0, "all"), (1, "none")))
    degrees = ArrayMask(np.zeros((60, 160)), Affine(0.01, 0, 14.2, 0, -0.01, 48.8), "EPSG:4326")
    np.testing.assert_allclose(
        found.seen[0], areas_of(degrees, np.zeros((60, 160)), ((0, "a"), (1, "b")))[0] * 1e4, rtol=2e-6
    )


def test_zones_beyond_a_case_are_clipped(tmp_path):
    labels = np.zeros((30, 30))
    mask = ArrayMask(labels)
    shapes = [square(UTM, -10, -10, 10, 10), square(UTM, 100, 100, 110, 110), square(UTM, -1e5, -1e5, 1e5, 1e5)]
    found = found_in(tmp_path, mask, shapes)
    assert found.index.tolist() == [0, 2]
    np.testing.assert_allclose(found.pixels, [100, 900], rtol=1e-12)
    np.testing.assert_allclose(found.within, [0.25, 900 / 4e10], rtol=1e-9)


ACROSS = [
    pytest.param([shapely.box(179.995, -18.01, 180, -18), shapely.box(-180, -18.01, -179.99, -18)], 1.0, id="cut in two"),
    pytest.param([shapely.box(179.995, -18.01, 180.01, -18)], 1.0, id="beyond 180"),
    pytest.param([shapely.box(-180.005, -18.01, -179.99, -18)], 1.0, id="beyond -180"),
    pytest.param(
        [shapely.Polygon([(179.995, -18.01), (-179.99, -18.01), (-179.99, -18), (179.995, -18)])], 1.0, id="the short way"
    ),
]


@pytest.mark.parametrize("grid", ["utm", "mercator", "degrees east", "degrees west"])
@pytest.mark.parametrize(("parts", "within"), ACROSS)
def test_a_zone_across_the_antimeridian_is_whole(parts, within, grid, tmp_path):
    """All ways to write it, over all ways in which a scene can lie there."""
    crs, transform = {
        "utm": ("EPSG:32701", Affine(20, 0, 180_000, 0, -20, 8_012_000)),
        "mercator": ("EPSG:3857", Affine(20, 0, 20_036_000, 0, -20, -2_036_000)),
        "degrees east": ("EPSG:4326", Affine(2e-4, 0, 179.98, 0, -2e-4, -17.99)),
        "degrees west": ("EPSG:4326", Affine(2e-4, 0, -180.02, 0, -2e-4, -17.99)),
    }[grid]
    mask = ArrayMask(np.zeros((300, 300)), transform, crs)
    shape = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
    found = found_in(tmp_path, mask, [shape], "EPSG:4326")
    truth = abs(
        pyproj.Geod(ellps="WGS84").geometry_area_perimeter(shapely.box(179.995, -18.01, 180.01, -18).segmentize(1e-3))[0]
    )
    np.testing.assert_allclose(found.seen, truth * within, rtol=2e-4)
    np.testing.assert_allclose(found.within, 1, rtol=1e-6)


def test_a_grid_of_the_globe_takes_zones_up_to_its_edges(tmp_path):
    mask = ArrayMask(np.zeros((180, 360)), Affine(1, 0, -180, 0, -1, 90), "EPSG:4326")
    shapes = [shapely.box(-180, -90, 180, 90), shapely.box(170, 0, 180, 10), shapely.box(175, 0, 185, 10)]
    found = found_in(tmp_path, mask, shapes, "EPSG:4326")
    np.testing.assert_allclose(found.pixels, [64_800, 100, 100], rtol=1e-9)
    np.testing.assert_allclose(found.seen[0], 5.1006562172e14, rtol=1e-9)


def test_a_grid_over_a_pole_takes_zones_in_degrees(tmp_path):
    mask = ArrayMask(np.zeros((400, 400)), Affine(1000, 0, -200_000, 0, -1000, 200_000), "EPSG:3995")
    found = found_in(tmp_path, mask, [shapely.box(-180, 89, 180, 90), shapely.box(100, 89, 110, 89.9)], "EPSG:4326")
    zone = ArrayMask(np.zeros((10, 360)), Affine(1, 0, -180, 0, -0.1, 90), "EPSG:4326")
    cap = areas_of(zone, np.zeros((10, 360)))[0] * 1e4
    np.testing.assert_allclose(found.seen[0], cap, rtol=1e-4)
    np.testing.assert_allclose(found.within, 1, rtol=1e-6)


def test_a_case_without_ground_has_no_zones(tmp_path):
    mask = ArrayMask(LABELS)
    mask.grid = type(mask.grid)((3, 3))
    with pytest.raises(NoGroundError, match="no georeferencing"):
        found_in(tmp_path, mask, [square(UTM, 0, 0, 1, 1)])


def test_a_grid_keeps_its_own_crs_when_zones_have_heights(tmp_path):
    """A compound CRS is as good as its horizontal part."""
    mask = ArrayMask(LABELS, crs=CRS.from_user_input("EPSG:32633+5773"))
    found = found_in(tmp_path, mask, [square(UTM, 0, 0, 3, 3)])
    np.testing.assert_allclose(found.pixels, 9)


def test_zones_beyond_the_limb_of_a_geostationary_grid_are_lost_and_the_others_count(tmp_path):
    """A vertex behind the Earth has no coordinates in the grid, at a corner as within a ring."""
    crs = "+proj=geos +h=35785831 +lon_0=0 +sweep=y +ellps=WGS84"
    mask = ArrayMask(np.zeros((110, 110)), Affine(100_000, 0, -5_500_000, 0, -100_000, 5_500_000), crs)
    shapes = [shapely.box(60, -10, 100, 10), shapely.box(-5, -5, 5, 5), shapely.box(70, 40, 85, 60)]
    found = found_in(tmp_path, mask, shapes, "EPSG:4326")
    assert found.lost.tolist() == [0, 2]
    assert found.index.tolist() == [1]
    degrees = ArrayMask(np.zeros((10, 10)), Affine(1, 0, -5, 0, -1, 5), "EPSG:4326")
    np.testing.assert_allclose(found.seen[0], areas_of(degrees, np.zeros((10, 10)))[0] * 1e4, rtol=1e-3)


TOUCHED = {
    "two cells": shapely.MultiPolygon(
        [shapely.box(510_100, 5_399_950, 510_150, 5_400_000), shapely.box(510_200, 5_399_950, 510_250, 5_400_000)]
    ),
    "concave": shapely.box(510_100, 5_399_900, 510_250, 5_400_000)
    - shapely.box(510_100, 5_399_960, 510_200, 5_400_000)
    - shapely.box(510_150, 5_399_900, 510_250, 5_399_950),
}
"""The grid ends at 510000; polygons are clipped at 510200, on which one edge of each lies from outside."""


@pytest.mark.parametrize("name", TOUCHED)
def test_a_zone_whose_edge_lies_on_the_clip_box_is_measured(name, tmp_path):
    """What an intersection leaves of such an edge is a line, and no part of a polygon."""
    mask = ArrayMask(np.zeros((100, 1000)))
    inside = square(UTM, 0, 0, 10, 10)
    found = found_in(tmp_path, mask, [TOUCHED[name].union(inside), inside])
    np.testing.assert_allclose(found.pixels, [100, 100], rtol=1e-12)
    share = 10_000 / (10_000 + TOUCHED[name].area)
    np.testing.assert_allclose(found.within, [share, 1], rtol=1e-9)


GLOBE = (np.zeros((40, 360), np.uint8), Affine(1, 0, -180, 0, -1, 90), "EPSG:4326")
"""From the north pole to 50 degrees, from line to line."""
PACIFIC = (np.zeros((40, 360), np.uint8), Affine(1, 0, 0, 0, -1, 90), "EPSG:4326")
ARCTIC = (np.zeros((100, 100), np.uint8), Affine(50_000, 0, -2_500_000, 0, -50_000, 2_500_000), "EPSG:3413")
POLE = shapely.Point(300_000, 100_000).buffer(1_500_000)
LINE = shapely.Point(*pyproj.Transformer.from_crs(4326, 3413, always_xy=True).transform(178, 70)).buffer(400_000)


@pytest.mark.parametrize(
    ("mask", "shape", "crs"),
    [(GLOBE, POLE, 3413), (PACIFIC, POLE, 3413), (GLOBE, LINE, 3413), (ARCTIC, POLE, 3031)],
    ids=["around a pole", "around a pole, from 0", "across the line", "around the other pole"],
)
def test_a_zone_that_would_run_across_the_map_is_lost_and_others_count(mask, shape, crs, tmp_path):
    """A ring around a pole is none on a map of longitudes and latitudes; that of the other pole is turned inside out."""
    labels, transform, own = mask
    moved = pyproj.Transformer.from_crs(own, crs, always_xy=True).transform
    other = shapely.transform(square(transform, 20, 20, 30, 28), moved, interleaved=False)
    found = found_in(tmp_path, ArrayMask(labels, transform, own), [shape, other], f"EPSG:{crs}")
    assert (found.index.tolist(), found.lost.tolist()) == ([1], [0])


@pytest.mark.parametrize(("mask", "shape"), [(ARCTIC, POLE), (ARCTIC, LINE), (PACIFIC, LINE)])
def test_a_zone_in_the_far_north_is_that_of_its_points(mask, shape, tmp_path):
    labels, transform, own = mask
    found = found_in(tmp_path, ArrayMask(labels, transform, own), [shape], "EPSG:3413")
    rows, cols = (np.mgrid[: 5 * labels.shape[0], : 5 * labels.shape[1]] + 0.5) / 5
    xy = pyproj.Transformer.from_crs(own, 3413, always_xy=True).transform(*(transform * (cols, rows)))
    assert found.lost.tolist() == []
    assert found.pixels[0] == pytest.approx(shapely.contains_xy(shape, *xy).sum() / 25, rel=2e-3)


def test_a_polygon_along_the_edges_of_one_pixel_is_not_smaller_than_it(tmp_path):
    """In degrees, edges are not exact: ``segpipe polygons`` writes such polygons."""
    degrees = Affine(1.2345e-4, 0, 16.123456789, 0, -0.9876e-4, 48.76543211)
    mask = ArrayMask(np.zeros((9, 9)), degrees, "EPSG:4326")
    shapes = [square(degrees, k, k, k + 1, k + 1) for k in range(9)] + [square(degrees, 2, 2, 2.9, 3)]
    zones = fields(tmp_path, shapes, "EPSG:4326")
    totals = ZoneTotals.empty(zones, CLASSES)
    totals.add(measured(mask, CLASSES, 255, zones))
    assert totals.pixels[:9].min() < 1
    assert [totals.problems(k) for k in range(len(zones))] == [[]] * 9 + [["smaller than a pixel"]]
