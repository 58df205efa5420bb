"""Grids of all kinds behind one protocol: world coordinates, spacing, and what elements measure."""

import numpy as np
import pytest
import rasterio
import rasterio.transform
from affine import Affine
from lattices import Lattice
from rasterio.crs import CRS

from segpipe.geometry.grid import METRES, BareGrid, Grid
from segpipe.geometry.raster_grid import RasterGrid, location_of, read_grid
from segpipe.geometry.voxel_grid import VoxelGrid, matrix_rows

UTM = CRS.from_epsg(32633)
TURNED = Affine.translation(5e5, 5.4e6) * Affine.rotation(20) * Affine.scale(10, -15)


def test_an_index_of_a_raster_is_the_centre_of_its_pixel():
    index = np.array([[[0, 0], [3, 4]], [[9.5, -1], [0.25, 7]]])
    rows, cols = index[..., 0].ravel().tolist(), index[..., 1].ravel().tolist()
    expected = np.stack(rasterio.transform.xy(TURNED, rows, cols), axis=-1).reshape(2, 2, 2)
    np.testing.assert_allclose(RasterGrid((10, 12), UTM, TURNED).world(index), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", [RasterGrid((4, 5)), RasterGrid((4, 5), UTM), BareGrid((4, 5, 6))])
def test_a_grid_that_says_nothing_has_no_world(grid):
    assert grid.world(np.zeros(len(grid.shape))) is None
    assert grid.measure is None
    assert grid.spacing is None
    assert grid.spacing_unknown


GRIDS: list[Grid] = [
    RasterGrid((4, 5), UTM, TURNED),
    RasterGrid((4, 5), CRS.from_epsg(4326), Affine(0.001, 0, 7, 0, -0.001, 60)),
    RasterGrid((4, 5)),
    BareGrid((3, 4, 5)),
    Lattice(),
    Lattice(slabs=False),
]


@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_keeps_the_protocol(grid):
    """One number per axis, a unit that is known, a reason where there is no spacing, sizes that broadcast against cells."""
    assert grid.unit in METRES
    assert (grid.spacing is None) == bool(grid.spacing_unknown)
    assert grid.spacing is None or len(grid.spacing) == len(grid.shape)
    if grid.measure is None:
        return
    assert len(grid.measure.cell) == len(grid.shape)
    cells = tuple(-(-n // side) for n, side in zip(grid.shape, grid.measure.cell, strict=True))
    axes = zip(grid.shape, grid.measure.cell, cells, strict=True)
    sizes = grid.measure.sizes([np.minimum(np.arange(count + 1) * side, n) for n, side, count in axes])
    assert np.broadcast_to(sizes, cells).shape == cells
    assert (sizes > 0).all()


def test_a_swath_says_that_its_mask_does_not_keep_its_place(raster, tmp_path):
    path = raster("a.tif", np.zeros((1, 4, 5), np.uint8), crs=None, transform=None)
    arrays = {"X_DATASET": "lon.tif", "X_BAND": 1, "Y_DATASET": "lat.tif", "Y_BAND": 1}
    items = "".join(f'<MDI key="{key}">{value}</MDI>' for key, value in arrays.items())
    (tmp_path / "a.tif.aux.xml").write_text(f'<PAMDataset><Metadata domain="GEOLOCATION">{items}</Metadata></PAMDataset>')
    with rasterio.open(path) as dataset:
        (note,) = location_of(read_grid(dataset)).notes
    assert note.startswith("areas are in pixels: the file is placed by geolocation arrays, which the mask does not keep")


def test_sizes_of_a_uniform_volume_are_the_product_of_its_spacing():
    measure = VoxelGrid((7, 7, 7), matrix_rows(np.diag([3.0, 0.5, 0.25, 1]))).measure
    assert (measure.unit, measure.per_unit) == ("mm3", 1)
    assert measure.sizes([np.array([0, 7])] * 3).tolist() == [[[0.375]]]


def test_the_spacing_of_a_raster_is_that_on_the_ground():
    """Web Mercator stretches by 1 / cos(latitude): 60 degrees halve its pixels, to the flattening of the ellipsoid."""
    y = 8_399_737.889818
    grid = RasterGrid((100, 100), CRS.from_epsg(3857), Affine(10, 0, 1e6, 0, -10, y + 500))
    assert grid.spacing == pytest.approx((5, 5), rel=4e-3)
    assert grid.unit == "m"
