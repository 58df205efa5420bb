"""Which cases of a map share ground, so that a sample may find the same place twice."""

from collections.abc import Iterator

import numpy as np

from segpipe.accuracy.population import Population
from segpipe.geometry.raster_grid import RasterGrid

POINTS = 20
"""Along each side of a case."""
LEAST = 1e-4
"""Share of the smaller case that two must have in common: points of the edge between neighbours differ a little."""


def overlapping(population: Population) -> list[tuple[str, str]]:
    """Names of each two cases whose grids share ground."""
    import shapely

    names = [record.case for record in population.cases]
    shapes = np.array(list(_outlines(population)), object)
    pairs = shapely.STRtree(shapes).query(shapes, predicate="intersects").T
    found = []
    for a, b in pairs:
        if a < b:
            common = shapely.intersection(shapes[a], shapes[b]).area
            if common > LEAST * min(shapes[a].area, shapes[b].area):
                found.append((names[a], names[b]))
    return sorted(found)


def _outlines(population: Population) -> Iterator[object]:
    """Outline of each case, in longitude and latitude."""
    import geopandas
    import shapely

    for record in population.cases:
        with population.open(record) as mask:
            grid = mask.grid
        assert isinstance(grid, RasterGrid)
        ring = shapely.Polygon(_edge(grid))
        crs = grid.crs.to_wkt() if grid.crs else None
        yield geopandas.GeoSeries([ring], crs=crs).to_crs("EPSG:4326").iloc[0]


def _edge(grid: RasterGrid) -> np.ndarray:
    """Points along the outer edge of a grid, in its CRS, shape ``(points, 2)``."""
    rows, cols = grid.shape
    t, none = np.linspace(0, 1, POINTS, endpoint=False), np.zeros(POINTS)
    along = np.concatenate([np.stack(side, axis=1) for side in ((none, t), (t, none + 1), (none + 1, 1 - t), (1 - t, none))])
    world = grid.world(along * (rows, cols) - 0.5)
    assert world is not None
    return world
