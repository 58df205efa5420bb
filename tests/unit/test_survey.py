"""Where labelled points lie on a map."""

import geopandas
import numpy as np
import pytest
from rasterio.crs import CRS
from rasterio.transform import from_origin

from segpipe.accuracy.points import read_labels
from segpipe.accuracy.survey import _on_grid
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
