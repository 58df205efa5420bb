"""Scenes that share ground, anywhere on the Earth; what is right is plain from where they lie."""

from itertools import combinations

import pytest
from affine import Affine
from rasterio.crs import CRS

from segpipe.accuracy import overlaps
from segpipe.accuracy.overlaps import sharing
from segpipe.geometry.raster_grid import RasterGrid


def grid(crs, left, top, step, shape=(200, 300)):
    return RasterGrid(shape, CRS.from_epsg(crs), Affine(step, 0, left, 0, -step, top))


DATE_LINE = grid(32601, 280_000, 7_000_000, 500)  # 150 km wide; longitude 180 is near x = 348 km
POLES = {3413: grid(3413, -150_000, 100_000, 1000), 3031: grid(3031, -150_000, 100_000, 1000)}


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        (DATE_LINE, grid(32601, 380_000, 6_980_000, 500), True),
        (DATE_LINE, grid(32601, 430_000, 7_000_000, 500), False),
        (DATE_LINE, grid(32660, 600_000, 7_000_000, 500), True),
        (DATE_LINE, grid(4326, 179, 63, 0.01), True),
        (DATE_LINE, grid(4326, -179, 63, 0.01), True),
        (DATE_LINE, grid(4326, -172, 63, 0.01), False),
        (DATE_LINE, grid(32633, 150_000, 7_000_000, 500), False),
        (POLES[3413], grid(3413, 0, 0, 1000), True),
        (POLES[3413], grid(3413, 150_000, 100_000, 1000), False),
        (POLES[3413], grid(3995, -150_000, 100_000, 1000), True),
        (POLES[3413], grid(4326, -180, 90, 1.2, (10, 300)), True),
        (POLES[3413], grid(4326, -180, 80, 1.2, (10, 300)), False),
        (POLES[3031], grid(3031, -100_000, 100_000, 1000), True),
        (POLES[3031], POLES[3413], False),
        (grid(32633, 500_000, 5_400_000, 10), grid(32633, 502_990, 5_400_000, 10), True),  # one column of 300
        (grid(32633, 500_000, 5_400_000, 10), grid(32633, 503_000, 5_400_000, 10), False),
        (grid(32633, 500_000, 5_400_000, 10), grid(32633, 500_500, 5_399_500, 1), True),  # inside
        (grid(32633, 500_000, 5_400_000, 10, (20_000, 20_000)), grid(32633, 600_000, 5_300_000, 1, (50, 50)), True),
    ],
)  # fmt: skip
def test_grids_share_ground_or_do_not(one, other, shared):
    assert list(sharing([one, other])) == ([(0, 1)] if shared else [])
    assert list(sharing([other, one])) == ([(0, 1)] if shared else [])


def test_grids_of_a_time_series_are_compared_once(monkeypatch):
    """Of a hundred dates on two grids, and one scene beside them, each two grids that meet are compared once."""
    counted, share = [], overlaps._share
    monkeypatch.setattr(overlaps, "_share", lambda *pair: counted.append(pair) or share(*pair))
    at = [500_000, 500_500] * 50
    grids = [*(grid(32633, x, 5_400_000, 10) for x in at), grid(32633, 503_010, 5_400_000, 10)]
    truth = {*combinations(range(100), 2), *((k, 100) for k in range(1, 100, 2))}
    assert set(sharing(grids)) == truth
    assert len(counted) <= 2 * 6  # ordered pairs of three grids, both ways
