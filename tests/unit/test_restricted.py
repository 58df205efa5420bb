"""A source of which only some pixels are valid: nothing else is decoded, and windows agree with the whole array."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from segpipe.contract import any_contract
from segpipe.errors import OutsideError, SourceError
from segpipe.formats.case import Case
from segpipe.formats.restricted import Restricted, restricted
from segpipe.formats.scope import scope_of
from segpipe.geometry.raster_grid import RasterGrid
from segpipe.geometry.voxel_grid import VoxelGrid
from segpipe.geometry.windows import Window
from segpipe.overrides import Overrides
from segpipe.vectors.area import Area, AreaPolygons, remember_area

SHAPE = (60, 80)
UTM = Affine(10, 0, 500_000, 0, -10, 5_400_000)
BOX = shapely.box(20, 10, 50, 40)
"""Columns 20 to 49, rows 20 to 49: y counts from the bottom."""


@dataclass
class Recorded:
    """An array that writes down which windows are decoded."""

    array: np.ndarray
    bad: np.ndarray
    decoded: list = field(default_factory=list)
    grid: object = field(default_factory=lambda: RasterGrid(SHAPE, CRS.from_epsg(32633), UTM))
    dtype = np.dtype(np.uint16)
    files, scene, separable, template, unpacked, block, notes = ("a.tif",), {}, True, None, 0, 0, ()
    closed = False

    def begin(self, window, threads=None):
        self.decoded.append(window)
        part = tuple(map(slice, window.start, window.stop))
        return lambda: (self.array[(slice(None), *part)], self.bad[part] if self.bad[part].any() else None)

    def read(self, window):
        return self.begin(window)()

    def empty(self, window):
        return False

    def memory(self, shape):
        return 7

    def near(self, place, most):
        self.place = place
        return Window((0, 0), (most, most))

    def tags(self):
        return None

    def close(self):
        self.closed = True


@pytest.fixture
def source():
    rng = np.random.default_rng(0)
    return Recorded(rng.integers(0, 999, (3, *SHAPE), dtype=np.uint16), rng.random(SHAPE) < 0.1)


class Box:
    """A limit: nothing outside of rows and columns 20 to 49 is valid."""

    files, notes, bounds = ("mask.tif",), (), Window((20, 20), (50, 50))

    def invalid(self, window):
        outside = np.ones(SHAPE, bool)
        outside[20:50, 20:50] = False
        found = outside[tuple(map(slice, window.start, window.stop))]
        return found if found.any() else None

    def memory(self, shape):
        return 5

    def close(self):
        pass


@pytest.fixture
def found(source):
    return Restricted(source, [Box()], 3)


def test_windows_are_those_of_the_whole_array(source, found):
    outside = np.ones(SHAPE, bool)
    outside[20:50, 20:50] = False
    for window in (Window((0, 0), SHAPE), Window((15, 10), (31, 47)), Window((49, 49), (60, 80))):
        part = tuple(map(slice, window.start, window.stop))
        pixels, invalid = found.read(window)
        wanted = (outside | source.bad)[part]
        assert np.array_equal(invalid, wanted)
        assert np.array_equal(pixels[:, ~wanted], source.array[(slice(None), *part)][:, ~wanted])


def test_what_lies_outside_is_not_decoded(source, found):
    for window in (Window((0, 0), (20, 80)), Window((0, 50), (60, 80)), Window((50, 0), (60, 9))):
        assert found.empty(window)
        pixels, invalid = found.read(window)
        assert pixels.shape == (3, *window.shape)
        assert pixels.dtype == source.dtype
        assert invalid.all()
    assert source.decoded == []
    assert not found.empty(Window((49, 49), (60, 80)))


def test_what_lies_inside_is_as_the_source_has_it(source, found):
    window = Window((25, 25), (30, 30))
    source.bad[:] = False
    assert found.read(window)[1] is None
    assert not found.empty(window)


def test_samples_are_taken_where_pixels_count(source, found):
    for share in (0.0, 0.5, 0.999):
        found.near((share, share), 8)
        row, col = (place * size for place, size in zip(source.place, SHAPE, strict=True))
        assert 20 <= row < 50
        assert 20 <= col < 50


def test_the_rest_is_the_sources(source, found):
    assert found.files == ("a.tif", "mask.tif")
    assert found.memory((8, 8)) == 12
    assert found.tags() is None
    found.close()
    assert source.closed


@pytest.fixture
def area():
    known = Area("aoi.gpkg", "digest-of-a-test")
    shapes = [shapely.transform(BOX, lambda xy: np.column_stack([500_000 + 10 * xy[:, 0], 5_399_400 + 10 * xy[:, 1]]))]
    remember_area(known, AreaPolygons(np.array(shapes, object), __import__("pyproj").CRS(32633)))
    return known


def opened(source, area):
    return restricted(source, Case("a", "in/a.tif"), any_contract(3), Overrides(aoi=area))


def test_an_area_makes_no_pixel_invalid_and_is_where_samples_are_taken(source, area):
    found = opened(source, area)
    _, invalid = found.read(Window((0, 0), SHAPE))
    assert np.array_equal(invalid, source.bad)
    assert not found.empty(Window((0, 0), (9, 9)))
    found.near((0.5, 0.0), 8)
    assert source.place == pytest.approx((35 / 60, 20 / 80))


def test_a_scope_is_placed_on_the_grid_of_a_case(source, area):
    scope = scope_of(area, source.grid, Case("a", "in/a.tif"))
    wanted = np.pad(np.ones((30, 30), bool), ((20, 10), (20, 30)))
    assert np.array_equal(scope.excluded(Window((0, 0), SHAPE)), ~wanted)
    assert scope.excluded(Window((25, 25), (30, 30))) is None
    assert scope.excludes(Window((0, 0), (20, 80)))
    assert not scope.excludes(Window((0, 0), (21, 21)))
    assert scope_of(None, source.grid, Case("a", "in/a.tif")) is None


def test_a_case_without_a_pixel_inside_is_outside(source, area):
    source.grid = RasterGrid(SHAPE, CRS.from_epsg(32633), UTM * Affine.translation(500, 0))
    with pytest.raises(OutsideError, match=r"in/a\.tif has no pixel inside aoi\.gpkg"):
        opened(source, area)


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        (RasterGrid(SHAPE), "the file has no georeferencing: run it without --aoi"),
        (RasterGrid(SHAPE, None, UTM), "the file has a geotransform and no CRS: give --crs"),
        (VoxelGrid((2, 60, 80), np.eye(4), "mm"), "volumes have none"),
    ],
)
def test_a_case_without_a_place_fails(source, area, grid, reason):
    source.grid = grid
    with pytest.raises(SourceError, match=f"in/a.tif: --aoi needs cases with a place on the Earth, and {reason}"):
        opened(source, area)


def test_without_limits_a_source_stays_itself(source):
    assert restricted(source, Case("a", "in/a.tif"), any_contract(3), Overrides()) is source
