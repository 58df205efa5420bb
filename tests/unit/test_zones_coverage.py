"""Coverage of pixels by polygons: against GEOS pixel by pixel, exactextract, and areas."""

import numpy as np
import pytest
import shapely

from segpipe.results.zones.coverage import Boxes, Edges, coverage

ROWS, COLS = 24, 31


def covered(shapes, rows=ROWS, cols=COLS):
    """Coverage of all pixels of a grid, shape ``(polygons, rows, cols)``."""
    ones = np.ones(len(shapes), np.int64)
    boxes = Boxes(0 * ones, 0 * ones, rows * ones, cols * ones)
    return coverage(Edges.of(np.asarray(shapes), rows), boxes).reshape(len(shapes), rows, cols + 1)[:, :, :-1]


def brute(shape, rows=ROWS, cols=COLS):
    """Area of the intersection with each pixel, by GEOS."""
    row, col = np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")
    pixels = shapely.box(col, rows - row - 1, col + 1, rows - row)
    return shapely.area(shapely.intersection(pixels, shape))


def star(seed, corners=17):
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radius = rng.uniform(2, 14, corners)
    return shapely.Polygon(np.stack([15 + radius * np.cos(angle), 12 + radius * np.sin(angle)], -1))


PLAIN = shapely.box(3.25, 4.5, 20.75, 17)
BY_HAND = {
    "box": PLAIN,
    "clockwise": shapely.Polygon(PLAIN.exterior.coords[::-1]),
    "pixel borders": shapely.box(3, 4, 9, 11),
    "within a pixel": shapely.box(3.2, 4.1, 3.3, 4.9),
    "diagonal": shapely.Polygon([(2, 2), (12, 12), (22, 2)]),
    "through corners": shapely.Polygon([(2, 2), (12, 12), (2, 12)]),
    "flat": shapely.Polygon([(0, 5), (31, 5.001), (31, 5.002)]),
    "upright": shapely.Polygon([(5, 0), (5.001, 24), (5.002, 24)]),
    "hole": PLAIN.difference(shapely.box(8.1, 7.3, 12.9, 12.5)),
    "hole at the border": shapely.Polygon(PLAIN.exterior.coords, [[(3.25, 10), (9, 8), (9, 12)]]),
    "parts": shapely.MultiPolygon([shapely.box(1.5, 1.5, 3, 3), shapely.box(3, 3, 8.2, 9.9)]),
    "beyond": shapely.box(-50.5, -3, 4.5, 100),
    "around": shapely.box(-50, -50, 100, 100),
    "slanted beyond": shapely.Polygon([(-40, 30), (60, 20), (70, -10), (-5, 3)]),
    "to the left": shapely.box(-10, 3, -2, 9),
    "to the right": shapely.box(40, 3, 50, 9),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_shapes_against_geos(name):
    np.testing.assert_allclose(covered([BY_HAND[name]])[0], brute(BY_HAND[name]), atol=1e-12)


def test_random_polygons_against_geos():
    shapes = [star(seed) for seed in range(12)] + [star(99).difference(star(98)), star(97).union(shapely.box(28, 1, 40, 5))]
    for shape, found in zip(shapes, covered(shapes), strict=True):
        np.testing.assert_allclose(found, brute(shape), atol=2e-9)
        np.testing.assert_allclose(found.sum(), shapely.area(shape & shapely.box(0, 0, COLS, ROWS)), rtol=1e-9)


def test_polygons_that_tile_a_grid_cover_each_pixel_once():
    points = np.random.default_rng(4).uniform(0, 30, (40, 2))
    pieces = shapely.intersection(
        shapely.get_parts(shapely.voronoi_polygons(shapely.multipoints(points), extend_to=shapely.box(-9, -9, 40, 40))),
        shapely.box(0, 0, COLS, ROWS),
    )
    np.testing.assert_allclose(covered(pieces).sum(axis=0), 1, atol=1e-9)


def test_exactextract_gives_the_same_to_its_24_bits():
    from exactextract import exact_extract
    from exactextract.raster import NumPyRasterSource

    shapes = [star(seed) for seed in range(5)]
    source = NumPyRasterSource(np.arange(ROWS * COLS, dtype=np.int32).reshape(ROWS, COLS), 0, 0, COLS, ROWS)
    features = [{"type": "Feature", "geometry": shape.__geo_interface__, "properties": {}} for shape in shapes]
    for shape, row in zip(covered(shapes), exact_extract(source, features, ["values", "coverage"]), strict=True):
        theirs = np.zeros(ROWS * COLS)
        theirs[row["properties"]["values"]] = row["properties"]["coverage"]
        np.testing.assert_allclose(shape.ravel(), theirs, atol=1e-6)
