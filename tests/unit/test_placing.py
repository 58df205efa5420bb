"""Polygons in the pixels of a grid: those of many vertices that hold it are not intersected with it again and again."""

from typing import Any

import numpy as np
import pytest
import shapely
from affine import Affine
from pyproj import CRS

from segpipe.geometry.ground import Ground
from segpipe.geometry.raster_grid import RasterGrid, ground_of, parse_crs
from segpipe.vectors.placing import place

CIRCLE = shapely.Point(15, 48).buffer(1, quad_segs=2000)
SHAPE = (80, 100)


def grid_at(x: float, y: float) -> Ground:
    """Of 80 by 100 pixels of 0.001 degrees, from its upper left corner."""
    return ground_of(RasterGrid(SHAPE, parse_crs("EPSG:4326"), Affine(0.001, 0, x, 0, -0.001, y)))


@pytest.mark.parametrize(
    ("ground", "polygon", "intersected"),
    [
        (grid_at(15, 48), CIRCLE, 0),
        (grid_at(15.95, 48), CIRCLE, 1),  # across its border
        (grid_at(15, 48), CIRCLE.difference(shapely.Point(15.05, 47.97).buffer(0.01, quad_segs=500)), 1),  # with a hole
        (grid_at(15, 48), shapely.box(14, 47, 16, 49), 1),  # of few vertices
    ],
    ids=["around", "border", "hole", "few"],
)
def test_a_polygon_of_many_vertices_around_a_grid_is_not_intersected(
    ground: Ground, polygon: Any, intersected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def intersection(shapes: Any, other: Any) -> Any:
        nonlocal asked
        asked += len(shapes)
        return original(shapes, other)

    original = shapely.intersection
    monkeypatch.setattr(shapely, "intersection", intersection)
    placed = place(np.array([polygon]), CRS.from_epsg(4326), ground, SHAPE)
    assert asked == intersected
    t = ground.transform
    moved = shapely.transform(polygon, lambda xy: np.column_stack([(xy[:, 0] - t.c) / t.a, 80 + (xy[:, 1] - t.f) / t.a]))
    truth = original(moved, shapely.box(0, 0, 100, 80))
    found = shapely.union_all(original(placed.shapes, shapely.box(0, 0, 100, 80)))
    assert shapely.area(shapely.symmetric_difference(found, truth)) < 1e-6
    assert shapely.area(truth) > 3000
    assert placed.share[0] == pytest.approx(shapely.area(placed.shapes)[0] * 1e-6 / polygon.area)
