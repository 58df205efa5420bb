"""Pixels of one grid in another: against pyproj point by point, and interpolated against exact."""

import numpy as np
import pytest
from affine import Affine
from fields import UTM
from pyproj import Transformer
from rasterio.crs import CRS

from segpipe.geometry.extents import are_apart, extent, meeting
from segpipe.geometry.ground import Ground
from segpipe.geometry.lookup import Lookup, common
from segpipe.geometry.raster_grid import RasterGrid, ground_of, stated_grid
from segpipe.geometry.windows import Window


def ground(transform: Affine, crs: str = "EPSG:32633", shape: tuple[int, int] = (200, 300)) -> Ground:
    return ground_of(RasterGrid(shape, CRS.from_user_input(crs), transform))


OTHERS = {
    "same lattice": (UTM * Affine.translation(40, -30), "EPSG:32633"),
    "shifted": (UTM * Affine.translation(40.3, -30.4), "EPSG:32633"),
    "coarser": (UTM * Affine.translation(40, 20) * Affine.scale(2.5), "EPSG:32633"),
    "south up": (UTM * Affine.translation(0, 150) * Affine.scale(1, -1), "EPSG:32633"),
    "rotated": (UTM * Affine.translation(40, 30) * Affine.rotation(20), "EPSG:32633"),
    "degrees": (Affine(1.3e-4, 0, 15.001, 0, -0.9e-4, 48.752), "EPSG:4326"),
    "next zone": (Affine(10, 0, 58_600, 0, -10, 5_417_000), "EPSG:32634"),
    "web mercator": (Affine(15, 0, 1_670_000, 0, -15, 6_235_900), "EPSG:3857"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_pixel_is_found_where_pyproj_finds_it(name: str) -> None:
    transform, crs = OTHERS[name]
    own, theirs, shape = ground(UTM), ground(transform, crs), (200, 300)
    part = Window((3, 5), (190, 280))
    rows, cols = np.meshgrid(np.arange(3, 190) + 0.5, np.arange(5, 280) + 0.5, indexing="ij")
    x, y = UTM * (cols, rows)
    x, y = Transformer.from_crs("EPSG:32633", crs, always_xy=True).transform(x, y)
    col, row = ~transform * (x, y)
    covered = (row >= 0) & (row < 200) & (col >= 0) & (col < 300)
    assert covered.mean() > 0.03
    hits = Lookup(own, theirs, shape).hits(part)
    assert hits is not None
    edge = np.minimum(*(np.abs(v - np.rint(v)) for v in (row, col))) < 1e-2  # rounding may decide there
    assert (hits.covered == covered)[~edge].all()
    index = np.arange(200 * 300).reshape(shape)
    (top, left), (bottom, right) = hits.window.start, hits.window.stop
    found = np.broadcast_to(hits.of(index[top:bottom, left:right]), part.shape)
    truth = np.floor(row) * 300 + np.floor(col)
    assert (found == truth)[covered & ~edge].all()
    reach = common(theirs, shape, own, shape)
    assert reach is not None
    at = np.argwhere(covered) + np.array(part.start)
    assert (at >= reach.start).all()
    assert (at < reach.stop).all()


def test_a_grid_beside_is_not_hit() -> None:
    own, far = ground(UTM), ground(UTM * Affine.translation(301, 0))
    assert Lookup(own, far, (200, 300)).hits(Window((0, 0), (200, 300))) is None
    assert common(far, (200, 300), own, (200, 300)) is None


def test_a_map_that_jumps_is_transformed_pixel_by_pixel() -> None:
    """Across the antimeridian of a map, interpolation would find places between the two ends."""
    own = ground(Affine(20_000, 0, 17_000_000, 0, -20_000, 2_000_000), "EPSG:3857")
    theirs = ground(Affine(1, 0, -180, 0, -1, 90), "EPSG:4326", (180, 360))
    hits = Lookup(own, theirs, (180, 360)).hits(Window((0, 0), (200, 300)))
    assert hits is not None
    lon, _ = Transformer.from_crs("EPSG:3857", "EPSG:4326", always_xy=True).transform(
        17_000_000 + 20_000 * (np.arange(300) + 0.5), np.zeros(300)
    )
    col = np.floor((lon + 180) % 360)
    assert (np.broadcast_to(hits.col, (200, 300))[0] + hits.window.start[1] == col).all()


def test_meeting_equals_comparing_all() -> None:
    draw = np.random.default_rng(0)
    least = draw.uniform(-1, 1, (300, 3)) * (1, 0.2, 0.05)
    extents = np.stack([least, least + draw.uniform(0, 0.1, (300, 3))], axis=1)
    extents[17] = np.nan
    truth = [
        [n for n in range(300) if n != k and (extents[n, 0] <= one[1]).all() and (extents[n, 1] >= one[0]).all()]
        for k, one in enumerate(extents)
    ]
    assert [near.tolist() for near in meeting(extents)] == truth
    assert sum(map(len, truth)) > 300
    assert not list(meeting(np.zeros((0, 2, 3))))
    assert [near.size for near in meeting(np.full((2, 2, 3), np.nan))] == [0, 0]


def test_few_samples_give_the_extent_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scene of 490 km near its CRS's edge: nine points an axis, with the margin, hold all 65."""
    one = ground(Affine(10, 0, 300_000, 0, -10, 8_000_000), shape=(49_000, 49_000))
    few = extent(one, (49_000, 49_000))
    monkeypatch.setattr("segpipe.geometry.extents.FEW_SAMPLES", 65)
    monkeypatch.setattr("segpipe.geometry.extents.MARGIN", 0.0)
    many = extent(one, (49_000, 49_000))
    assert (few[0] < many[0]).all()
    assert (few[1] > many[1]).all()


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326", "+proj=laea +lat_0=10 +lon_0=20 +ellps=WGS84"])
def test_a_grid_reads_back_from_its_record(crs: str) -> None:
    grid = RasterGrid((20, 30), CRS.from_user_input(crs), Affine(0.1, 0.01, 15.123456789, 0.02, -0.1, 48.7))
    again = stated_grid(grid.shape, grid.as_json())
    assert again is not None
    assert (again.shape, again.transform, again.crs) == (grid.shape, grid.transform, grid.crs)
    assert stated_grid((20, 30), {"crs": "EPSG:32633"}) is None
    assert stated_grid((20, 30), {"crs": "no CRS", "transform": [1, 0, 0, 0, 1]}) is None


@pytest.mark.parametrize(
    ("crs", "step", "beside", "apart"),
    [
        ("EPSG:32633", 10, (0, 300), True),
        ("EPSG:32633", 10, (0, 299), False),
        ("EPSG:32633", 10, (200, 299), True),
        ("EPSG:32633", 10, (199, 299), False),
        ("EPSG:32633", 10, (-200, 0), True),
        ("EPSG:32633", 10, (0, 299.9999), True),
        ("EPSG:4326", 0.001, (0, 300), True),
        ("EPSG:4326", 0.001, (0, 299), False),
    ],
)
def test_grids_side_by_side_are_apart(crs: str, step: float, beside: tuple[float, float], apart: bool) -> None:
    """Grids of 200 x 300 pixels, shifted by rows and columns."""
    start = Affine(10, 0, 400_000, 0, -10, 5_000_000) if step == 10 else Affine(step, 0, 13.7, 0, -step, 45.1)
    one, other = ground(start, crs), ground(start * Affine.translation(beside[1], beside[0]), crs)
    assert are_apart(one, (200, 300), other, (200, 300)) is apart
    assert are_apart(other, (200, 300), one, (200, 300)) is apart


def test_what_does_not_show_is_not_apart() -> None:
    """Rotated grids, other CRSs, and coordinates beyond a turn, which name a place twice."""
    far = UTM * Affine.translation(10_000, 0)
    assert are_apart(ground(UTM), (9, 9), ground(far), (9, 9))
    assert not are_apart(ground(UTM * Affine.rotation(5)), (9, 9), ground(far), (9, 9))
    assert not are_apart(ground(UTM), (9, 9), ground(far, "EPSG:32634"), (9, 9))
    west, east = Affine(1, 0, -170, 0, -1, 45), Affine(1, 0, 190, 0, -1, 45)
    assert not are_apart(ground(west, "EPSG:4326", (9, 9)), (9, 9), ground(east, "EPSG:4326", (9, 9)), (9, 9))
