"""Regions, corners and rings against rasterio.features.shapes, for any cut into strips."""

from typing import Any

import numpy as np
import pytest
import shapely
from rasterio.features import shapes

from segpipe.polygons.corners import Nodes
from segpipe.polygons.regions import MaskRegions, MaskRows, roots
from segpipe.polygons.rings import ranked, rings_of

Found = list[tuple[Any, ...]]


def drawn(values: np.ndarray, rows: int, *, eight: bool = False, nodes: Nodes | None = None) -> Found:
    """Shape, class, first pixel, last row and pixels of each feature, of a mask that comes in strips."""
    regions, found = MaskRegions(values.shape, corners_connect=eight, nodes=nodes), []
    for top in range(0, len(values), rows):
        part = values[top : top + rows]
        done = regions.add(MaskRows(part, np.ones(part.shape)))
        rings = rings_of(done.corners, values.shape)
        points = np.stack([rings.col, -rings.row], axis=1).astype(float)  # a map with north up
        count = np.bincount(rings.region, minlength=len(done.feature))
        parts = shapely.from_ragged_array(
            shapely.GeometryType.POLYGON, points, (rings.start, np.append(0, np.cumsum(count)))
        )
        assert shapely.is_ccw(shapely.get_exterior_ring(parts)).all()
        table = done.table
        for k, row in enumerate(zip(table.kind, table.first, table.last, table.pixels, table.area, strict=True)):
            own = parts[done.feature == k]
            assert eight or len(own) == 1
            shape = shapely.MultiPolygon(list(own)) if eight else own[0]
            assert shape.area == row[3] == row[4]
            found.append((shape, *map(int, row)))
    assert shapely.is_valid([one[0] for one in found]).all()
    return found


def expected(values: np.ndarray, *, eight: bool) -> list[tuple[Any, int]]:
    found = shapes(values, mask=values > 0, connectivity=8 if eight else 4)
    whole = ((shapely.make_valid(shapely.geometry.shape(shape)), int(kind)) for shape, kind in found)
    return [(shapely.transform(shape, lambda xy: xy * [1, -1]), kind) for shape, kind in whole]


def assert_equal(found: Found, wanted: list[tuple[Any, int]]) -> None:
    """The same sets of shapes."""
    assert len(found) == len(wanted)
    rest = list(wanted)
    for shape, kind, *_ in found:
        hits = [k for k, (other, own) in enumerate(rest) if own == kind and shape.equals(other)]
        assert len(hits) == 1, shape.wkt
        rest.pop(hits[0])


@pytest.mark.parametrize("eight", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_random_maps_give_the_shapes_of_rasterio(seed: int, eight: bool) -> None:
    draw = np.random.default_rng(seed)
    for _ in range(6):
        values = draw.integers(0, draw.integers(2, 5), draw.integers(1, 14, 2)).astype(np.uint8)
        assert_equal(drawn(values, 100, eight=eight), expected(values, eight=eight))


@pytest.mark.parametrize("eight", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_strips_and_vertices_on_straight_borders_change_nothing_else(seed: int, eight: bool) -> None:
    draw = np.random.default_rng(seed)
    values = draw.integers(0, 3, (17, 11)).astype(np.uint8)
    whole = drawn(values, 100, eight=eight)
    for rows in (1, 2, 3, 8):
        found = drawn(values, rows, eight=eight)
        assert [one[1:] for one in found] == [one[1:] for one in whole]
        assert all(shapely.equals_exact(one[0], other[0]) for one, other in zip(found, whole, strict=True))
        for nodes in (Nodes(), Nodes(2)):
            more = drawn(values, rows, eight=eight, nodes=nodes)
            assert [one[1:] for one in more] == [one[1:] for one in whole]
            assert all(one[0].equals(other[0]) for one, other in zip(more, whole, strict=True))


def test_with_nodes_neighbours_have_the_same_vertices() -> None:
    """Else GEOS takes no coverage."""
    values = np.random.default_rng(0).integers(1, 5, (40, 30)).astype(np.uint8)
    assert shapely.coverage_is_valid([one[0] for one in drawn(values, 7, nodes=Nodes())])
    assert not shapely.coverage_is_valid([one[0] for one in drawn(values, 7)])
    dense = np.concatenate(
        [shapely.get_coordinates(one[0]) for one in drawn(np.ones((40, 30), np.uint8), 7, nodes=Nodes(8))]
    )
    assert len(dense) == 1 + 2 * (40 // 8 + 1) + 2 * (30 // 8 + 1) - 2  # corners at 0 and 40 are of the lattice already


def spiral(size: int) -> np.ndarray:
    values = np.zeros((size, size), np.uint8)
    row, col, step = 0, 0, (0, 1)
    values[0, 0] = 1
    for length in [size - 1] + [n for n in range(size - 1, 0, -2) for _ in range(2)]:
        for _ in range(length):
            row, col = row + step[0], col + step[1]
            values[row, col] = 1
        step = (step[1], -step[0])
    return values


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_a_spiral_over_many_strips_is_one_polygon(rows: int) -> None:
    values = spiral(41)
    found = drawn(values, rows)
    assert len(found) == 1
    assert_equal(found, expected(values, eight=False))
    assert_equal(drawn(1 + values, rows), expected(1 + values, eight=False))  # with what lies between its arms


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_holes_within_holes(rows: int) -> None:
    row, col = np.indices((21, 21))
    values = (1 + np.maximum(abs(row - 10), abs(col - 10)) % 2).astype(np.uint8)
    found = drawn(values, rows)
    assert sorted(len(one[0].interiors) for one in found) == [0, *[1] * 10]
    assert_equal(found, expected(values, eight=False))


@pytest.mark.parametrize("rows", [1, 2, 100])
@pytest.mark.parametrize("flip", [False, True])
def test_a_region_that_touches_itself_at_a_corner_stays_valid(rows: int, flip: bool) -> None:
    """Its hole touches its outer border there; GDAL's border would run through the point twice."""
    values = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], np.uint8)
    values = values[:, ::-1].copy() if flip else values
    ((shape, *_),) = drawn(values, rows)
    assert len(shape.interiors) == 1
    assert len(shape.exterior.coords) - 1 == 6
    ((both, *_),) = drawn(np.eye(3, dtype=np.uint8), rows, eight=True)
    assert [part.area for part in both.geoms] == [1, 1, 1]
    assert len(drawn(np.eye(3, dtype=np.uint8), rows)) == 3


def test_features_come_by_their_last_row_then_by_their_first_pixel() -> None:
    values = np.array([[1, 2, 3], [1, 0, 3], [1, 4, 0]], np.uint8)
    assert [one[1:4] for one in drawn(values, 1)] == [(2, 1, 0), (3, 2, 1), (1, 0, 2), (4, 7, 2)]


def test_nothing_and_one_pixel() -> None:
    assert drawn(np.zeros((5, 4), np.uint8), 2) == []
    ((shape, *row),) = drawn(np.array([[7]], np.uint16), 1)
    assert shape.equals(shapely.box(0, -1, 1, 0))
    assert row == [7, 0, 0, 1, 1]


def test_ranks_in_cycles_and_roots_of_pairs() -> None:
    draw = np.random.default_rng(0)
    after = draw.permutation(200)
    least, rank = ranked(after)
    for start in np.unique(least):
        at, steps = start, 0
        while steps == 0 or at != start:
            assert (least[at], rank[at]) == (start, steps)
            at, steps = after[at], steps + 1
    chain = np.stack([np.arange(99), np.arange(1, 100)], axis=1)
    assert not roots(100, draw.permutation(chain)).any()
    assert roots(4, np.array([[3, 1], [2, 3]])).tolist() == [0, 1, 1, 1]
