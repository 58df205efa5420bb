"""Places that are none: no hectares, and a note that says why; honest ones beside them keep theirs."""

import csv
import json
import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from networks import pixelwise
from pyproj import CRS, Transformer
from pyproj.database import query_crs_info
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning
from rasterio.rpc import RPC
from rasterio.transform import from_origin
from test_areas import GEOS, geodesic_hectares, grid_of, hectares

from segpipe.errors import SettingsError
from segpipe.geometry.location import EARTH_AREA
from segpipe.geometry.raster_grid import location_of
from segpipe.geometry.reference import AreaOfUse
from segpipe.settings import load_settings
from segpipe.storage.folder import Folder

UTM, DEGREES, MERCATOR = "EPSG:32633", "EPSG:4326", "EPSG:3857"
METRES = from_origin(500_000, 5_400_000, 10, 10)
SIDE = (100, 100)
ROTATED = "+proj=ob_tran +o_proj=longlat +o_lat_p=39.25 +o_lon_p=0 +lon_0=18 +R=6371229 +no_defs"
SINUSOIDAL = "+proj=sinu +R=6371007.181 +units=m +no_defs"
ENGINEERING = 'ENGCRS["site",EDATUM["site"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["metre",1]]'

NOWHERE = {
    "degrees without a transform": (DEGREES, None, "has a CRS, EPSG:4326, and no geotransform"),
    "UTM without a transform": (UTM, None, "has a CRS, EPSG:32633, and no geotransform"),
    "rows that count upwards": (UTM, Affine(1, 0, 0, 0, -1, 0), "no geotransform"),
    "a transform without a CRS": (None, METRES, "a geotransform and no CRS: give --crs"),
    "metres as degrees": (DEGREES, METRES, "500000 to 501000, 5399000 to 5400000 are not longitudes and latitudes"),
    "metres as degrees in grads": ("EPSG:4807", METRES, "are not longitudes and latitudes"),
    "metres as degrees in space": ("EPSG:4979", METRES, "are not longitudes and latitudes"),
    "axes the wrong way round": (DEGREES, from_origin(48, 121, 0.01, 0.01), "are not longitudes and latitudes"),
    "two pixels beyond a pole": (DEGREES, from_origin(0, 92, 1, 1), "are not longitudes and latitudes"),
    "two turns": (DEGREES, from_origin(-360, 80, 7.2, 1), "are not longitudes and latitudes"),
    "degrees as metres": (
        UTM,
        from_origin(15, 48, 1e-4, 1e-4),
        "look like degrees, and its CRS, EPSG:32633, counts in metre",
    ),
    "degrees as metres, coarse": (UTM, from_origin(10, 60, 0.25, 0.25), "look like degrees"),
    "degrees as feet": ("EPSG:2263", from_origin(-74, 41, 1e-4, 1e-4), "look like degrees.*US survey foot"),
    "degrees as Mercator": (MERCATOR, from_origin(15, 48, 1e-4, 1e-4), "look like degrees"),
    "geocentric": ("EPSG:4978", METRES, "EPSG:4978, is of the type Geocentric CRS, which has no longitudes and latitudes"),
    "heights alone": ("EPSG:5773", METRES, "EPSG:5773, is of the type Vertical CRS"),
    "a building site": (ENGINEERING, METRES, "site, is of the type Engineering CRS"),
    "local": ('LOCAL_CS["slide",UNIT["metre",1]]', METRES, "slide, is of the type Engineering CRS"),
    "the Moon": (
        "+proj=longlat +R=1737400 +no_defs",
        from_origin(7, 45, 0.1, 0.1),
        "a body with a radius of 1,737 km, not of the Earth",
    ),
    "outside the projection": (UTM, from_origin(1e9, 1e9, 10, 10), "are nowhere on Earth in its CRS, EPSG:32633"),
    "turns away in Mercator": (MERCATOR, from_origin(5e8, 6e6, 10, 10), "are nowhere on Earth"),
    "beyond Lambert's disk": ("EPSG:3035", from_origin(9e7, 3e6, 10, 10), "are nowhere on Earth"),
    "beside a map of the world": (SINUSOIDAL, from_origin(1.8e7, 8e6, 463, 463), "are nowhere on Earth"),
    "beyond the limb": (GEOS, from_origin(7e6, 7e6, 3000, 3000), "are nowhere on Earth"),
}


@pytest.mark.parametrize("name", NOWHERE)
def test_no_place_is_a_note_and_no_ground(name):
    crs, transform, words = NOWHERE[name]
    place = location_of(grid_of(SIDE, crs, transform))
    assert place.ground is None
    (note,) = place.notes
    assert note.startswith("areas are in pixels: ")
    assert re.search(words, note)


HONEST = {
    "UTM": (UTM, METRES),
    "UTM beside its zone": (UTM, from_origin(100_000, 5_400_000, 10, 10)),
    "south of the equator": ("EPSG:32733", from_origin(500_000, 6_000_000, 10, 10)),
    "across the date line": (DEGREES, from_origin(179.5, 10, 0.01, 0.01)),
    "0 to 360": (DEGREES, from_origin(200, 10, 0.5, 0.1)),
    "across the date line in UTM": ("EPSG:32601", Affine(30, 0, 146_021, 0, -30, 6e6)),
    "across the date line in Mercator": (MERCATOR, from_origin(20_037_008, 6e6, 10, 10)),
    "a turn to the west in Mercator": (MERCATOR, from_origin(-20_040_000, 6e6, 10, 10)),
    "a pole": ("EPSG:3413", from_origin(-500, 500, 10, 10)),
    "feet": ("EPSG:2263", from_origin(980_000, 200_000, 3, 3)),
    "heights beside": ("EPSG:32633+5773", METRES),
    "heights in it": ("EPSG:32633+4979", METRES),
    "space": ("EPSG:4979", from_origin(15, 48, 0.001, 0.001)),
    "axes north and east": ("EPSG:2193", from_origin(1_600_000, 5_400_000, 10, 10)),
    "west and south": ("EPSG:2053", Affine(10, 0, -20_000, 0, 10, 3_600_000)),
    "a shifted datum": (
        "+proj=tmerc +lat_0=48 +lon_0=15 +ellps=bessel +towgs84=577,90,463,5,1,5,2 +no_defs",
        from_origin(0, 0, 2, 2),
    ),
    "a field's own origin": ("+proj=tmerc +lat_0=48 +lon_0=15 +datum=WGS84 +no_defs", from_origin(-1, 1, 0.02, 0.02)),
    "Null Island": (MERCATOR, from_origin(-50, 50, 1, 1)),
    "Krovak": ("EPSG:5514", from_origin(-700_000, -1_050_000, 10, 10)),
    "New Zealand's old grid": ("EPSG:27200", from_origin(2_500_000, 6_000_000, 10, 10)),
    "Equal Earth": ("EPSG:8857", from_origin(1.1e6, 5.5e6, 500, 500)),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_places_keep_their_hectares(name):
    crs, transform = HONEST[name]
    place = location_of(grid_of(SIDE, crs, transform))
    assert place.notes == ()
    flat = (
        crs.split("+")[0]
        if crs.startswith("EPSG") and crs != "EPSG:4979"
        else crs.replace("+towgs84=577,90,463,5,1,5,2", "")
    )
    flat = DEGREES if crs == "EPSG:4979" else flat
    assert hectares(SIDE, crs, transform) == pytest.approx(geodesic_hectares(SIDE, flat, transform), rel=2e-6)


def test_an_equal_area_projection_of_a_sphere_keeps_its_pixels():
    """A tile of MODIS."""
    transform = from_origin(1.1e6, 5.5e6, 463.3127, 463.3127)
    assert hectares(SIDE, SINUSOIDAL, transform) == pytest.approx(463.3127**2, rel=2e-6)
    assert location_of(grid_of(SIDE, SINUSOIDAL, transform)).notes == ()


def test_a_rotated_pole_has_the_area_of_its_geodesics():
    """The field's model grids: coordinates are those of a pole elsewhere, on a sphere, where areas do not change."""
    transform = from_origin(-5, 5, 0.05, 0.05)
    r = 6371229.0
    zone = 2 * math.radians(5) * r**2 * (math.sin(math.radians(5)) - 0)
    assert hectares((100, 200), ROTATED, transform) == pytest.approx(zone * 1e-4, rel=1e-5)
    assert location_of(grid_of((100, 200), ROTATED, transform)).notes == ()


FOREIGN = {
    "MODIS": (SINUSOIDAL, "SR-ORG", "6974", from_origin(1.1e6, 5.5e6, 463.3127, 463.3127)),
    "its maker's": ("+proj=tmerc +lat_0=48 +lon_0=15 +datum=WGS84 +no_defs", "ACME", "1", from_origin(0, 0, 10, 10)),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_code_that_proj_does_not_hold_takes_no_hectares_away(name):
    text, authority, code, transform = FOREIGN[name]
    wkt = CRS(text).to_wkt("WKT1_GDAL")
    coded = f'{wkt[:-1]},AUTHORITY["{authority}","{code}"]]'
    assert location_of(grid_of(SIDE, coded, transform)).notes == ()
    assert hectares(SIDE, coded, transform) == pytest.approx(hectares(SIDE, text, transform), rel=1e-12)
    lost = location_of(grid_of(SIDE, coded, from_origin(9e8, 9e8, 10, 10)))
    assert lost.ground is None
    assert f"are nowhere on Earth in its CRS, {authority}:{code}" in lost.notes[0]


def test_a_crs_is_looked_up_once_for_all_its_grids(monkeypatch):
    """A tile that is small and all on the Earth takes a look at a few points, and no new objects of PROJ's."""
    places = [location_of(grid_of((256, 256), MERCATOR, from_origin(1e6 + 2560 * i, 6e6, 10, 10))) for i in range(3)]
    monkeypatch.setattr(Transformer, "from_crs", None)
    monkeypatch.setattr(CRS, "from_authority", None)
    monkeypatch.setattr(CRS, "from_user_input", None)
    places.append(location_of(grid_of((256, 256), MERCATOR, from_origin(2e6, 6e6, 10, 10))))
    assert len({id(place.ground.reference) for place in places}) == 1
    assert not any(place.notes for place in places)


def test_a_small_grid_with_a_corner_beyond_the_limb_says_so():
    limb = 5_430_000  # of the full disk, along its equator, in m of its projection
    (note,) = location_of(grid_of((40, 40), GEOS, from_origin(limb - 60_000, 60_000, 3000, 3000))).notes
    assert re.search("about [0-9]+% of the grid lies off the Earth", note)


WORLD = EARTH_AREA / 1e4


@pytest.mark.parametrize(
    ("shape", "transform", "times"),
    [
        ((180, 360), from_origin(-180, 90, 1, 1), 1),
        ((181, 360), from_origin(-180.5, 90.5, 1, 1), 1),
        ((180, 360), from_origin(0, 90, 1, 1), 1),
        ((181, 361), from_origin(-180.5, 90.5, 1, 1), 361 / 360),
        ((360, 720), Affine(0.50000001, 0, -180, 0, -0.50000001, 90), 1),
    ],
    ids=["cells", "points", "0 to 360", "points, both ends", "rounded"],
)
def test_grids_of_the_world(shape, transform, times):
    """Grids of points reach half a pixel beyond the poles."""
    place = location_of(grid_of(shape, DEGREES, transform))
    assert hectares(shape, DEGREES, transform) == pytest.approx(WORLD * times, rel=1e-4)
    assert len(place.notes) == (times > 1)
    assert all("wider than a turn" in note for note in place.notes)


@pytest.mark.parametrize("crs", [SINUSOIDAL, "ESRI:54009", "EPSG:8857", "EPSG:6933", MERCATOR])
def test_maps_of_the_world_cover_the_earth_once(crs):
    """Corners of the sheet that lie beside the map have no area, though some projections invert them."""
    to_map = Transformer.from_crs(DEGREES if "R=" not in crs else CRS(crs).geodetic_crs, crs, always_xy=True)
    lon, lat = np.meshgrid(np.linspace(-180, 180, 721), np.linspace(-85, 85, 341))
    x, y = to_map.transform(lon, lat)
    size = float(np.ptp(x) / 720)
    rows = round(float(np.ptp(y)) / size)
    transform = from_origin(x.min(), y.max(), size, np.ptp(y) / rows)
    geod = CRS(crs).get_geod()
    degree = pole_to_pole(geod)
    assert hectares((rows, 720), crs, transform) == pytest.approx(360 * degree / 1e4, rel=0.02)
    notes = location_of(grid_of((rows, 720), crs, transform)).notes
    assert bool(notes) == (crs not in ("EPSG:6933", MERCATOR))
    assert all("of the grid lies off the Earth" in note for note in notes)


def pole_to_pole(geod: Any) -> float:
    """Area in m² of a degree of longitude between 85 degrees north and south."""
    lat = np.concatenate([np.linspace(-85, 85, 5000), np.linspace(85, -85, 5000)])
    lon = np.repeat([0.0, 1.0], 5000)
    area, _ = geod.polygon_area_perimeter(lon, lat)
    return abs(float(area))


def test_a_sheet_larger_than_the_earth_is_no_place():
    place = location_of(grid_of((1000, 4000), MERCATOR, from_origin(-4e7, 2e7, 2e4, 4e4)))
    assert place.ground is None
    assert "times the Earth" in place.notes[0]


def test_far_from_where_a_crs_is_for():
    """Metres of New York's zone read as its feet lie in the Atlantic: the area is as wrong as the CRS, so that is said."""
    place = location_of(grid_of(SIDE, "EPSG:32118", from_origin(980_000, 200_000, 3, 3)))
    assert place.ground is not None
    assert "lies far outside the area of use of its CRS, EPSG:32118" in place.notes[0]
    assert location_of(grid_of(SIDE, "EPSG:25833", from_origin(100_000, 7e6, 10, 10))).notes == ()  # as Norway uses it


def run(source: Path, tmp_path: Path, run_serial: Any, **settings: Any) -> tuple[dict[str, Any], list[dict[str, str]], Path]:
    """Record, table and mask of a one-case run; JSON must be JSON."""
    out = run_serial(source, pixelwise(tmp_path / "m.onnx", 1), **settings)
    record = json.loads((out / f"{source.stem}.json").read_text(), parse_constant=pytest.fail)
    json.loads((out / "run.json").read_text(), parse_constant=pytest.fail)
    with (out / "areas.csv").open() as stream:
        return record, list(csv.DictReader(stream)), out / record["outputs"][0]


def band() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 255, (1, 60, 70), dtype=np.uint8)


TRANSFORMS = {
    "zeros": ("0, 0, 0, 0, 0, 0", "must give pixels a width and a height, got 0, 0, 0, 0, 0, 0"),
    "no height": ("5e5, 10, 0, 5.4e6, 0, 0", "must give pixels a width and a height"),
    "one diagonal": ("5e5, 10, 10, 5.4e6, 10, 10", "must give pixels a width and a height"),
    "NaN": ("5e5, nan, 0, 5.4e6, 0, -10", "must be of finite numbers, got 500000, nan"),
    "infinite": ("inf, 10, 0, 5.4e6, 0, -10", "must be of finite numbers, got inf"),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_vrt_with_a_broken_transform(name, raster, run_serial, tmp_path):
    values, words = TRANSFORMS[name]
    inner = raster("inner.tif", band())
    (tmp_path / "a.vrt").write_text(
        f'<VRTDataset rasterXSize="70" rasterYSize="60"><SRS>EPSG:32633</SRS><GeoTransform>{values}</GeoTransform>'
        f'<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename relativeToVRT="1">{inner.name}'
        "</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    record, rows, mask = run(tmp_path / "a.vrt", tmp_path, run_serial)
    assert {row["unit"] for row in rows} == {"px"}
    assert {row["area"] for row in rows} == {""}
    assert any(words in note for note in record["notes"])
    with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning), rasterio.open(mask) as dataset:
        assert dataset.transform.is_identity
        assert dataset.crs.to_epsg() == 32633


def test_metres_as_degrees_end_to_end(raster, run_serial, tmp_path):
    """The mask keeps what the input says, wrong as it is."""
    record, rows, mask = run(raster("a.tif", band(), crs=DEGREES), tmp_path, run_serial)
    assert {row["unit"] for row in rows} == {"px"}
    assert any("are not longitudes and latitudes" in note for note in record["notes"])
    with rasterio.open(mask) as dataset:
        assert (dataset.crs.to_epsg(), dataset.transform) == (4326, METRES)


def test_control_points_and_rpcs_are_kept_beside_a_crs_without_a_transform(raster, run_serial, tmp_path):
    points = [GroundControlPoint(r, c, 15 + c / 1e3, 48 - r / 1e3) for r, c in ((0, 0), (0, 69), (59, 0), (59, 69))]
    centre = {
        "lat_off": 48.0,
        "lat_scale": 0.1,
        "long_off": 15.0,
        "long_scale": 0.1,
        "height_off": 0.0,
        "height_scale": 500.0,
    }
    pixel = {"line_off": 30.0, "line_scale": 30.0, "samp_off": 35.0, "samp_scale": 35.0, "err_bias": None, "err_rand": None}
    names = ("line_num_coeff", "line_den_coeff", "samp_num_coeff", "samp_den_coeff")
    rpcs = RPC(**centre, **pixel, **{name: [1.0] + [0.0] * 19 for name in names})
    with_rpcs = raster("rpc.tif", band(), transform=None, rpcs=rpcs)
    for source in (raster("gcp.tif", band(), crs=DEGREES, transform=None, gcps=points), with_rpcs):
        record, rows, mask = run(source, tmp_path, run_serial, output=tmp_path / source.stem)
        assert {row["unit"] for row in rows} == {"px"}
        kind = "4 control points" if source.stem == "gcp" else "RPCs"
        assert any(f"placed by {kind}, which the mask keeps" in note for note in record["notes"])
        with rasterio.open(mask) as dataset, rasterio.open(source) as original:
            assert len(dataset.gcps[0]) == len(original.gcps[0]) == (4 if source.stem == "gcp" else 0)
            assert (dataset.rpcs is None) == (original.rpcs is None) == (source.stem == "gcp")


def test_inspect_and_a_dry_run_say_it(raster, segpipe, tmp_path):
    source = raster("a.tif", band(), crs="EPSG:4978")
    model = pixelwise(tmp_path / "m.onnx", 1)
    words = "is of the type Geocentric CRS, which has no longitudes and latitudes"
    facts = json.loads(segpipe("inspect", source, "--json").stdout)
    assert words in facts["notes"][0]
    assert words in " ".join(segpipe("inspect", source, env=None).stdout.split())
    assert words in json.loads(segpipe("inspect", source, "--json", "--model", model).stdout)["notes"][0]
    dry = segpipe("run", "-i", source, "-m", model, "--dry-run")
    assert re.search(f"note  a: areas are in pixels: its CRS, .*{words}", dry.stdout)
    assert words in segpipe("run", "-i", source, "-m", model, "--executor", "serial").stderr


def test_pictures_are_expected_to_have_no_place(raster, run_serial, tmp_path):
    record, rows, _ = run(raster("a.png", band()), tmp_path, run_serial)
    assert (record["notes"], {row["unit"] for row in rows}) == ([], {"px"})


def test_a_projection_that_proj_does_not_have_is_no_place():
    """Lambert Conic Conformal (West Orientated)."""
    place = location_of(grid_of(SIDE, "EPSG:2221", METRES))
    assert place.ground is None
    assert "PROJ cannot convert its CRS, EPSG:2221, to longitudes and latitudes" in place.notes[0]


def test_projections_lead_back_to_where_they_are_for():
    """The check of points beside a map takes no honest one away: where each of some CRSs is for."""
    known = query_crs_info("EPSG", "PROJECTED_CRS")
    known = [info for info in known if "West Orientated" not in info.projection_method_name]
    for k in np.random.default_rng(0).choice(len(known), 60, replace=False):
        use = AreaOfUse(*known[k].area_of_use.bounds)
        lon, lat = use.west + ((use.east - use.west) % 360) * 0.4, use.south + (use.north - use.south) * 0.6
        crs = CRS.from_epsg(known[k].code)
        x, y = Transformer.from_crs(DEGREES, crs, always_xy=True).transform((lon + 180) % 360 - 180, lat)
        size = 10 / crs.axis_info[0].unit_conversion_factor
        place = location_of(grid_of((8, 8), f"EPSG:{known[k].code}", from_origin(x, y, size, size)))
        assert (place.notes, place.ground is None) == ((), False), known[k]


def areas(out: Path) -> float:
    with (out / "areas.csv").open() as stream:
        return sum(float(row["area"]) for row in csv.DictReader(stream))


def test_crs_for_a_file_that_has_none(raster, segpipe, tmp_path):
    """A world file and no CRS, as pictures of drones have it: GeoTIFF and PNG. Recorded; another one is another case."""
    pixels = band()
    raster("in/a.tif", pixels, crs=None)
    raster("in/b.png", pixels, transform=None)
    (tmp_path / "in/b.pgw").write_text("10\n0\n0\n-10\n500005\n5399995\n")
    pixelwise(tmp_path / "m.onnx", 1)
    command = ("run", "-i", "in", "-m", "m.onnx", "-o", "out", "--executor", "serial")
    assert "a geotransform and no CRS: give --crs" in segpipe(*command).stderr
    done = segpipe(*command, "--crs", UTM)
    assert done.returncode == 0, done.stderr
    assert areas(tmp_path / "out") == pytest.approx(2 * geodesic_hectares((60, 70), UTM, METRES), rel=2e-6)
    for name in ("a", "b"):
        record = json.loads((tmp_path / f"out/{name}.json").read_text())
        assert record["settings"]["crs"] == UTM
        assert f"the CRS is {UTM} by --crs; the file says none" in record["notes"]
        with rasterio.open(tmp_path / f"out/{name}.tif") as dataset:
            assert (dataset.crs.to_epsg(), dataset.transform) == (32633, METRES)
    assert segpipe(*command, "--crs", UTM).stdout.count("skipped  ") == 2
    assert segpipe(*command, "--crs", "EPSG:32634").stdout.count("skipped  ") == 0
    facts = json.loads(segpipe("inspect", "in/a.tif", "--crs", UTM, "--json").stdout)
    assert (facts["crs"], facts["pixel_size"]) == (UTM, pytest.approx([10, 10], rel=1e-3))


def test_crs_for_files_whose_own_is_wrong(raster, run_serial, tmp_path):
    points = [GroundControlPoint(r, c, 500_000 + c, 5_400_000 - r) for r, c in ((0, 0), (0, 69), (59, 0), (59, 69))]
    wrong = raster("wrong.tif", band(), crs=DEGREES)
    record, rows, mask = run(wrong, tmp_path, run_serial, crs=CRS(UTM).to_wkt(), output=tmp_path / "o1")
    assert {row["unit"] for row in rows} == {"ha"}
    assert any("by --crs; the file says EPSG:4326" in note for note in record["notes"])
    with rasterio.open(mask) as dataset:
        assert dataset.crs.to_epsg() == 32633
    record, _, mask = run(
        raster("gcp.tif", band(), crs=DEGREES, transform=None, gcps=points),
        tmp_path,
        run_serial,
        crs=UTM,
        output=tmp_path / "o2",
    )
    with rasterio.open(mask) as dataset:
        assert dataset.gcps[1].to_epsg() == 32633
    record, rows, _ = run(raster("no.png", band()), tmp_path, run_serial, crs=UTM, output=tmp_path / "o3")
    assert (record["outputs"], {row["unit"] for row in rows}) == (["no.png"], {"px"})
    assert record["notes"] == ["--crs has no effect: the file has neither a geotransform nor control points"]
    same = raster("same.tif", band())
    record, _, _ = run(same, tmp_path, run_serial, crs=UTM, output=tmp_path / "o4")
    assert record["notes"] == []


def test_a_crs_must_be_one():
    with pytest.raises(SettingsError, match=r"crs: .*must be a code such as EPSG:32633, or WKT, got EPSG:99999999"):
        load_settings(None, {"input": "x", "model": "m.onnx", "crs": "EPSG:99999999"})


def test_numbers_that_json_lacks_are_no_settings(tmp_path):
    (tmp_path / "c.toml").write_text('input = "x"\nmodel = "m.onnx"\nmemory = inf\n')
    with pytest.raises(SettingsError, match=r"memory.*finite"):
        load_settings(tmp_path / "c.toml", {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        Folder(tmp_path).write_json("x.json", {"area": math.nan})


@pytest.mark.slow
@pytest.mark.shared_data
def test_masks_of_real_rasters_lie_where_their_inputs_do(shared, segpipe, tmp_path):
    """CRS and transform as GDAL reads them from both, or a note why not; hectares as geodesics have them, or a note."""
    pixelwise(tmp_path / "m.onnx", 1, tile=[256, 256])
    options = ("--bands", "1", "--executor", "serial", "--unusual-values", "allow")
    segpipe("run", "-i", shared / "geotiff", "-m", "m.onnx", "-o", "out", *options)
    done = json.loads((tmp_path / "out/run.json").read_text())["done"]
    assert len(done) >= 30
    placed = [check_place(json.loads((tmp_path / f"out/{name}.json").read_text()), tmp_path / "out") for name in done]
    assert sum(placed) >= 15


def check_place(record: dict[str, Any], out: Path) -> bool:
    """Whether the case has hectares; else its record says why, unless it is a picture."""
    with (
        warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
        rasterio.open(record["input"]["path"]) as source,
        rasterio.open(out / record["outputs"][0]) as mask,
    ):
        assert mask.crs == source.crs, record
        assert mask.transform.almost_equals(source.transform), record
        assert [(p.row, p.col, p.x, p.y) for p in mask.gcps[0]] == [(p.row, p.col, p.x, p.y) for p in source.gcps[0]]
        placed = record["valid"]["unit"] == "ha"
        assert placed or mask.driver == "PNG" or any("areas are in pixels" in note for note in record["notes"]), record
        if placed:
            total = math.fsum(row["area"] for row in record["statistics"]["areas"])
            outline = geodesic_hectares(source.shape, source.crs.to_wkt(), source.transform)
            noted = any("lies off the Earth" in note for note in record["notes"])
            assert noted or source.name.endswith("world.byte.tif") or total == pytest.approx(outline, rel=1e-5), record
        return placed
