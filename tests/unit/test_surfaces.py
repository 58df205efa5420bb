"""Polygons are repaired as a person would, and each repair is named."""

import numpy as np
import pytest
import shapely
from pyproj import CRS

from segpipe.vectors.surfaces import all_empty, digest_of, repaired, surfaces

SQUARE = shapely.box(0, 0, 2, 2)
BOW_TIE = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
MIXED = shapely.GeometryCollection([SQUARE, shapely.Point(5, 5)])


@pytest.mark.parametrize(
    ("shape", "area", "problem"),
    [
        (SQUARE, 4.0, None),
        (BOW_TIE, 2.0, "repaired: Self-intersection"),
        (shapely.Point(0, 0), 0.0, "Point instead of a polygon"),
        (MIXED, 4.0, "GeometryCollection: only its polygons count"),
        (shapely.Polygon(), 0.0, "empty geometry"),
        (None, 0.0, "no geometry"),
    ],
)
def test_a_shape_keeps_its_surface_and_names_its_problem(shape, area, problem):
    (found,), ((*problems,),) = repaired(np.array([shape], object), CRS(32633))
    assert found.area == area
    assert found.is_valid
    assert [text.partition("[")[0] for text in problems] == ([] if problem is None else [problem])


@pytest.mark.parametrize("kind", [shapely.Polygon, lambda ring: shapely.MultiPolygon([shapely.Polygon(ring)])])
def test_a_ring_across_the_antimeridian_takes_the_short_way(kind):
    ring = kind([(179, 0), (-179, 0), (-179, 1), (179, 1)])
    (found,), ((problem,),) = repaired(np.array([ring], object), CRS(4326))
    assert found.bounds == (179, 0, 181, 1)
    assert problem.startswith("crosses the antimeridian")


def test_what_has_no_surface_is_empty():
    assert all_empty(surfaces(np.array([shapely.Point(0, 0), shapely.Polygon()])))
    assert not all_empty(surfaces(np.array([MIXED])))


def test_a_digest_is_of_shapes_and_crs():
    one = np.array([SQUARE])
    assert digest_of(one, CRS(4326)) == digest_of(one.copy(), CRS(4326))
    assert len({digest_of(one, CRS(4326)), digest_of(one, CRS(32633)), digest_of(np.array([BOW_TIE]), CRS(4326))}) == 3
