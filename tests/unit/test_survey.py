"""Where labelled points lie on a map."""

import geopandas
import numpy as np
import pytest
from rasterio.crs import CRS
from rasterio.transform import from_origin

from segpipe.accuracy.points import Labelled, Point, SampleDesign, Stratum, read_labels
from segpipe.accuracy.survey import _on_grid, design_of_survey, survey_of
from segpipe.geometry.raster_grid import RasterGrid

GRID = RasterGrid((20, 20), CRS.from_epsg(32633), from_origin(500_000, 5_400_000, 10, 10))


@pytest.mark.parametrize("index", [[3, 1, 0, 2], [10, 20, 30, 40], [1, 1, 1, 1]], ids=["other order", "gaps", "equal"])
def test_points_keep_their_places_whatever_the_index_of_their_table(tmp_path, index):
    places = [(1, 2), (3, 4), (5, 6), (7, 8)]
    xy = [GRID.transform * (col + 0.5, row + 0.5) for row, col in places]
    points = geopandas.points_from_xy(*zip(*xy, strict=True), crs=32633)
    frame = geopandas.GeoDataFrame({"reference": list("abcd")}, geometry=points, index=index)
    frame.to_parquet(tmp_path / "p.parquet", index=True)
    found = read_labels(tmp_path / "p.parquet", "reference")
    assert found.labels == ("a", "b", "c", "d")
    assert dict(_on_grid(GRID, found.frame.geometry)) == dict(enumerate(places))
    assert np.asarray(found.frame.index).tolist() == [0, 1, 2, 3]


def test_points_that_were_deleted_are_counted():
    """An interpreter who deletes rows leaves them out as surely as one who does not label them."""
    strata = [Stratum(name=name, pixels=1000, area=10.0, sampled=5) for name in "ab"]
    drawn = [
        Point(id=k + 1, stratum=k % 2, case="s", row=k, col=k, area=0.01, x=0.0, y=0.0, crs="EPSG:32633") for k in range(10)
    ]
    design = SampleDesign(map="out", identity="x", seed=0, unit="ha", strata=tuple(strata), points=tuple(drawn))
    whole = Labelled(tuple("ab" * 5), tuple(range(1, 11)))
    assert design_of_survey(survey_of(whole, design, None, simple=False)).warnings == ()
    part = Labelled(tuple("ab" * 4), tuple(range(1, 9)))
    assert design_of_survey(survey_of(part, design, None, simple=False)).warnings == (
        "not in the file: 2 of 10 points of the design: if these are hard ones, estimates are biased",
    )


@pytest.mark.parametrize("west", [0, -180, 170])
@pytest.mark.parametrize("convention", [lambda x: (x + 180) % 360 - 180, lambda x: x % 360], ids=["-180 to 180", "0 to 360"])
def test_points_are_found_whatever_meridian_longitudes_are_counted_from(west, convention):
    """Half of the points would be off a map of the whole globe, and those left would say nothing of the other half."""
    grid = RasterGrid((18, 36 if west != 170 else 4), CRS.from_epsg(4326), from_origin(west, 90, 10, 10))
    places = [(row, col) for row in (0, 7, 17) for col in range(grid.shape[1])]
    x, y = zip(*(grid.transform * (col + 0.3, row + 0.6) for row, col in places), strict=True)
    points = geopandas.points_from_xy(list(map(convention, x)), y, crs=4326)
    assert dict(_on_grid(grid, geopandas.GeoSeries(points))) == dict(enumerate(places))
