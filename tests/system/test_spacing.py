"""Spacing of cases against the contract's: on the Earth, off it, and in volumes."""

import json
from typing import Any

import numpy as np
import pytest
from affine import Affine
from lattices import Lattice
from networks import contract, pixelwise, volumetric
from pyproj import Proj
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from segpipe.contract import Contract
from segpipe.errors import SourceError
from segpipe.geometry.grid import BareGrid
from segpipe.geometry.raster_grid import RasterGrid
from segpipe.pipeline.spacing import check_spacing, regridding_of

TEN = Affine(10, 0, 1000, 0, -10, 2000)
MOON = "+proj=stere +lat_0=90 +R=1737400 +units=m +no_defs"
MARS = "+proj=eqc +a=3396190 +b=3376200 +units=m +no_defs"
SITE = 'ENGCRS["site",EDATUM["site"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["metre",1]]'


def trained_on(*spacing: float, unit: str = "m", **changes: Any) -> Contract:
    values = {"spacing": list(spacing), "spacing_unit": unit, "layout": "NCDHW" if len(spacing) == 3 else "NCHW"}
    return Contract(**{**contract(), **values, **changes})


def raster_grid(crs: str | None, transform: Affine | None, shape: tuple[int, int] = (40, 50), **more: Any) -> RasterGrid:
    return RasterGrid(shape, CRS.from_user_input(crs) if crs else None, transform, **more)


def notes(grid: Any, wanted: Contract) -> list[str]:
    return check_spacing("scene", grid, wanted)


MOON_DEGREE = 1_737_400 * np.pi / 180
"""Metres of a degree of a great circle."""
TEN_DEGREES = Affine(10 / MOON_DEGREE, 0, 7, 0, -10 / MOON_DEGREE, 0.01)
"""Pixels of 10 m."""
FLATTENED = (3_376_200 / 3_396_190) ** 2
"""By how much the meridian of Mars is more curved at the equator than the equator is."""


OFF_EARTH = {
    "the pole of the Moon": (MOON, Affine(10, 0, -250, 0, -10, 200), (10, 10)),
    "the equator of Mars": (MARS, Affine(10, 0, -250, 0, -10, 200), (10 * FLATTENED, 10)),
    "Moon in degrees": ("+proj=longlat +R=1737400 +no_defs", TEN_DEGREES, (10, 10)),
    "a building site": (SITE, TEN, (10, 10)),
    "feet": ('LOCAL_CS["slide",UNIT["foot",0.3048]]', TEN, (3.048, 3.048)),
    "turned": (SITE, Affine.rotation(30) * Affine.scale(10, -15), (15, 10)),
}


@pytest.mark.parametrize("place", OFF_EARTH)
def test_pixels_off_the_earth_are_checked_too(place):
    crs, transform, (tall, wide) = OFF_EARTH[place]
    grid = raster_grid(crs, transform)
    assert grid.measure is None
    assert grid.spacing == pytest.approx((tall, wide), rel=1e-4)
    assert notes(grid, trained_on(tall, wide)) == []
    with pytest.raises(SourceError, match=f"must be {2 * tall:.4g} x {2 * wide:.4g} m within 10%.*got .* m on the ground"):
        notes(grid, trained_on(2 * tall, 2 * wide))


def test_the_distortion_of_a_map_of_the_moon_is_taken_out():
    """Oracle: PROJ's scale along the meridian, 45 degrees from the pole of the map."""
    factors = Proj(MOON).get_factors(0, 45)
    x, y = Proj(MOON)(0, 45)
    grid = raster_grid(MOON, Affine(10, 0, x - 250, 0, -10, y + 200))
    expected = 10 / factors.meridional_scale, 10 / factors.parallel_scale
    assert grid.spacing == pytest.approx(expected, rel=1e-4)
    assert expected[0] < 9
    with pytest.raises(SourceError, match="must be 10 x 10 m"):
        notes(grid, trained_on(10, 10))


POINTS = (GroundControlPoint(0, 0, 15.0, 48.0),)
UNKNOWN = {
    "no CRS": (raster_grid(None, TEN), "a geotransform and no CRS: give --crs"),
    "a bare picture": (raster_grid(None, None), "the file has no georeferencing"),
    "no transform": (raster_grid("EPSG:32633", None), "EPSG:32633, and no geotransform that places its pixels"),
    "control points": (raster_grid(None, None, gcps=POINTS), "1 control points"),
    "a defect": (raster_grid("EPSG:32633", None, defect="the geotransform must be of finite numbers"), "finite numbers"),
    "a unit that nobody knows": (raster_grid('LOCAL_CS["x",UNIT["unknown",1]]', TEN), "is of the type Engineering CRS"),
    "angles in a plane": (
        raster_grid('LOCAL_CS["x",UNIT["degree",0.0174532925199433]]', TEN),
        "x, is of the type Engineering CRS",
    ),
    "heights alone": (raster_grid("EPSG:5773", TEN), "EPSG:5773, is of the type Vertical CRS"),
    "metres as degrees": (raster_grid("EPSG:4326", TEN), "are not longitudes and latitudes"),
    "an array alone": (BareGrid((40, 50)), "an array alone has no spacing"),
    "a volume without": (Lattice(spacing=None, spacing_unknown="its header says 0"), "its header says 0"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_where_the_size_is_unknown_a_note_says_why(case):
    grid, reason = UNKNOWN[case]
    assert grid.spacing is None
    (note,) = notes(grid, trained_on(10, 10))
    assert "size not checked against the model's 10 x 10 m:" in note
    assert reason in note
    assert notes(grid, Contract(**contract())) == []


@pytest.mark.parametrize(
    ("wanted", "unit"),
    [
        ((3, 1, 0.5), "mm"),
        ((3000, 1000, 500), "um"),
        ((0.003, 0.001, 0.0005), "m"),
        ((3.02, 1.005, 0.497), "mm"),
        ((1, 0.5), "mm"),
    ],
    ids=["mm", "um", "m", "within the tolerance", "planes"],
)
def test_voxels_are_compared_axis_by_axis_in_their_own_unit(wanted, unit):
    assert notes(Lattice(), trained_on(*wanted, unit=unit)) == []


@pytest.mark.parametrize(
    ("wanted", "unit", "words"),
    [
        ((1, 1, 0.5), "mm", "voxels must be 1 x 1 x 0.5 mm within 1%, as the model was trained, got 3 x 1 x 0.5 mm"),
        ((3, 1, 0.6), "mm", "must be 3 x 1 x 0.6 mm"),
        ((3, 1, 0.5), "um", "must be 0.003 x 0.001 x 0.0005 mm"),
        ((0.5, 1), "mm", "must be 0.5 x 1 mm within 1%, as the model was trained, got 1 x 0.5 mm"),
    ],
)
def test_voxels_of_another_size_are_refused(wanted, unit, words):
    with pytest.raises(SourceError, match=words):
        notes(Lattice(), trained_on(*wanted, unit=unit))


@pytest.mark.parametrize("wanted", [(3, 1, 0.5), (1, 0.5)], ids=["volumes", "slices"])
def test_voxels_that_are_off_by_more_than_one_per_cent_are_resampled(wanted):
    """1.09 mm along each axis are 30 % of a volume."""
    off = tuple(1.09 * size for size in wanted)
    found = regridding_of("scene", Lattice(), trained_on(*off, unit="mm"), resample=False)
    assert found is not None
    assert found.factors[-len(off) :] == pytest.approx([1.09] * len(off))
    near = tuple(1.009 * size for size in wanted)
    assert regridding_of("scene", Lattice(), trained_on(*near, unit="mm"), resample=False) is None
    assert regridding_of("scene", Lattice(), trained_on(*off, unit="mm", spacing_tolerance=0.12), resample=False) is None
    assert trained_on(3, 1, 0.5, spacing_tolerance=0.1).spacing_tolerance == 0.1


@pytest.mark.parametrize(("transform", "fails"), [(TEN, False), (Affine(20, 0, 0, 0, -20, 0), True)])
def test_a_run_checks_a_scene_of_the_moon(transform, fails, raster, segpipe, tmp_path):
    scene = raster("in/a.tif", np.ones((3, 40, 50), np.uint8), crs=MOON, transform=transform)
    pixelwise(tmp_path / "m.onnx", spacing=[10, 10])
    ran = segpipe("run", "--input", scene, "--model", tmp_path / "m.onnx", "--output", tmp_path / "out")
    assert ran.returncode == (1 if fails else 0)
    if fails:
        assert (
            "pixels must be 10 x 10 m within 10%, as the model was trained, got 20 x 20 m on the ground"
            in ran.stdout + ran.stderr
        )
    else:
        notes = json.loads((tmp_path / "out" / "a.json").read_text())["notes"]
        assert not any("not checked" in note for note in notes)


@pytest.mark.parametrize("more", [(), ("--resample",)])
def test_an_image_for_a_model_of_volumes_is_refused_as_such(more, raster, segpipe, tmp_path):
    scene = raster("in/a.tif", np.ones((1, 40, 50), np.uint8))
    volumetric(tmp_path / "m.onnx", (8, 12, 10), spacing=[1, 1, 1])
    ran = segpipe("run", "-i", scene, "-m", tmp_path / "m.onnx", "-o", tmp_path / "out", *more)
    assert ran.returncode == 1
    assert "a model of volumes needs volumes, got an image of 40 x 50" in ran.stdout + ran.stderr


class Unasked:
    """A grid whose spacing takes time to find."""

    shape, unit = (40, 50), "m"

    @property
    def spacing(self):
        raise AssertionError("asked for")


def test_a_spacing_that_no_contract_has_is_not_asked_for():
    assert notes(Unasked(), Contract(**contract())) == []
    assert regridding_of("scene", Unasked(), Contract(**contract()), resample=True) is None
