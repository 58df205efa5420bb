"""Areas against pyproj's geodesic polygons, PROJ's own areal scale factor, and cases done by hand."""

import csv
import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from lattices import Lattice, Slabs
from networks import contract, pixelwise
from numpy.typing import NDArray
from pyproj import Geod, Proj, Transformer
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from segpipe.contract import Contract
from segpipe.formats.case import Case
from segpipe.formats.registry import FORMATS
from segpipe.geometry.raster_grid import RasterGrid
from segpipe.geometry.windows import Window
from segpipe.results.areas import Areas
from segpipe.results.statistics import Box
from segpipe.results.tables import area_columns, write_areas
from segpipe.storage.folder import Folder

WGS84 = Geod(ellps="WGS84")
UTM_CORNER = (500_000, 5_400_000)
GEOS = "+proj=geos +h=35785831 +lon_0=0 +sweep=y +ellps=WGS84 +units=m +no_defs"
FOOT = 1200 / 3937


def table_of(labels: NDArray[Any], grid: RasterGrid, cuts: Any = None, **changes: Any) -> dict[str, dict[str, Any]]:
    """Rows by class name, the labels added window by window."""
    areas = Areas(grid, Contract(**{**contract(), **changes}))
    for rows, cols in cuts or [((0, labels.shape[-2]), (0, labels.shape[-1]))]:
        window = Window((rows[0], cols[0]), (rows[1], cols[1]))
        areas.add(Box(window, labels[..., slice(*rows), slice(*cols)]))
    return {row["class_name"]: row for row in areas.rows()}


def named(count: int) -> list[dict[str, Any]]:
    return [{"id": i, "name": f"class{i}"} for i in range(count)]


def grid_of(shape: tuple[int, ...], crs: str | None, transform: Affine | None) -> RasterGrid:
    return RasterGrid(shape, CRS.from_user_input(crs) if crs else None, transform)


def hectares(shape: tuple[int, ...], crs: str, transform: Affine) -> float:
    """Area of a raster that is class 0 all over."""
    area = table_of(np.zeros(shape, np.uint8), grid_of(shape, crs, transform), classes=named(1))["class0"]["area"]
    assert area is not None
    return float(area)


def geodesic_hectares(shape: tuple[int, ...], crs: str, transform: Affine, *, points: int = 2000) -> float:
    """Oracle: the outline of a raster with dense edges, as a polygon of geodesics on the CRS's own ellipsoid."""
    along = np.linspace(0, 1, points, endpoint=False)
    zero, one = np.zeros(points), np.ones(points)
    cols = np.concatenate([along, one, 1 - along, zero]) * shape[1]
    rows = np.concatenate([zero, along, one, 1 - along]) * shape[0]
    x, y = transform * (cols, rows)
    source = pyproj.CRS(crs)
    geod = source.get_geod()
    lonlat = pyproj.CRS.from_dict({"proj": "longlat", "a": geod.a, "rf": 1 / geod.f, "no_defs": True})
    # no datum shift: the same ellipsoid on both sides
    lon, lat = Transformer.from_crs(source, lonlat, always_xy=True, accuracy=-1).transform(x, y)
    area, _ = geod.polygon_area_perimeter(lon, lat)
    return abs(area) / 1e4


@pytest.mark.parametrize("pixels", [1, 10, 60])
@pytest.mark.parametrize("south", [0, 45, 80, -46, 89])
def test_a_degree_square_has_its_geodesic_area(south, pixels):
    transform = Affine(1 / pixels, 0, 7, 0, -1 / pixels, south + 1)
    expected = geodesic_hectares((pixels, pixels), "EPSG:4326", transform, points=20_000)
    assert hectares((pixels, pixels), "EPSG:4326", transform) == pytest.approx(expected, rel=1e-6)


def test_the_globe_has_the_area_of_the_ellipsoid():
    a, e2 = WGS84.a, WGS84.es
    e = math.sqrt(e2)
    whole = 2 * math.pi * a**2 * (1 + (1 - e2) / e * math.atanh(e))
    assert hectares((180, 360), "EPSG:4326", Affine(1, 0, -180, 0, -1, 90)) == pytest.approx(whole / 1e4, rel=1e-9)


def test_the_globe_of_a_model_of_the_climate_is_a_sphere():
    radius = 6_371_229
    found = hectares((180, 360), f"+proj=longlat +R={radius} +no_defs", Affine(1, 0, 0, 0, -1, 90))
    assert found == pytest.approx(4 * math.pi * radius**2 / 1e4, rel=1e-9)


@pytest.mark.parametrize(("lon", "lat"), [(15.2, 48.1), (12.1, 67.0), (17.5, -33.0)])
def test_the_same_ground_has_one_area_in_every_crs(lon, lat):
    tall, wide = 0.02, 0.02 / math.cos(math.radians(lat))
    angle = np.linspace(0, 2 * math.pi, 5000, endpoint=False)
    outline, _ = WGS84.polygon_area_perimeter(lon + wide * np.cos(angle), lat + tall * np.sin(angle))
    for crs in ("EPSG:32633", "EPSG:3857", "EPSG:4326"):
        to_lonlat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
        corners = [lon + s * wide for s in (-1.1, 1.1)], [lat + s * tall for s in (-1.1, 1.1)]
        corner_lon, corner_lat = (v.ravel() for v in np.meshgrid(*corners))
        x, y = to_lonlat.transform(corner_lon, corner_lat, direction="INVERSE")
        rows = cols = 500
        transform = Affine((x.max() - x.min()) / cols, 0, x.min(), 0, (y.min() - y.max()) / rows, y.max())
        centres = transform * tuple(v + 0.5 for v in np.meshgrid(np.arange(cols), np.arange(rows)))
        pixel_lon, pixel_lat = to_lonlat.transform(*centres)
        inside = ((pixel_lon - lon) / wide) ** 2 + ((pixel_lat - lat) / tall) ** 2 <= 1
        table = table_of(inside.astype(np.uint8), grid_of((rows, cols), crs, transform), classes=named(2))
        assert table["class1"]["area"] == pytest.approx(abs(outline) / 1e4, rel=1e-3)


def test_three_by_three_by_hand():
    """Pixels of 100 m in an equal-area CRS: one hectare each."""
    labels = np.array([[0, 0, 1], [0, 1, 1], [255, 2, 2]], np.uint8)
    table = table_of(labels, grid_of((3, 3), "EPSG:6933", Affine(100, 0, 1e6, 0, -100, 5e6)), classes=named(4))
    assert {name: (r["class_id"], r["pixels"], r["unit"], r["share"]) for name, r in table.items()} == {
        "class0": (0, 3, "ha", 0.375),
        "class1": (1, 3, "ha", 0.375),
        "class2": (2, 2, "ha", 0.25),
        "class3": (3, 0, "ha", 0.0),
        "nodata": (None, 1, "ha", None),
    }
    assert [r["area"] for r in table.values()] == pytest.approx([3, 3, 2, 0, 1], rel=1e-6)


PROJECTED = [
    ("EPSG:32633", 15, 48, 1.0),
    ("EPSG:32633", 18.5, 10, 1.0),
    ("EPSG:32633", 12.2, 82, 1.0),
    ("EPSG:32733", 15, -33, 1.0),
    ("EPSG:3413", -40, 75, 1.0),
    ("EPSG:2154", 2, 43, 1.0),
    ("EPSG:2263", -73.9, 40.7, FOOT),
    ("EPSG:27700", -3, 56, 1.0),
    ("EPSG:27572", 2.5, 46, 1.0),  # on a geographic CRS in grads from Paris
    ("EPSG:28992", 5.5, 52, 1.0),  # oblique stereographic on Bessel
    ("EPSG:32633+5773", 15, 48, 1.0),
    ("EPSG:3035", 12, 62, 1.0),
    ("EPSG:6933", 100, -50, 1.0),
]


@pytest.mark.parametrize(("crs", "lon", "lat", "metres"), PROJECTED)
def test_projected_pixels_are_divided_by_proj_s_areal_scale(crs, lon, lat, metres):
    flat = pyproj.CRS(crs.split("+")[0])
    geod = flat.get_geod()
    lonlat = pyproj.CRS.from_dict({"proj": "longlat", "a": geod.a, "rf": 1 / geod.f, "no_defs": True})
    x, y = Transformer.from_crs(lonlat, flat, always_xy=True).transform(lon, lat)
    size = 10 / metres
    transform = Affine(size, 0, x - 8 * size, 0, -size, y + 8 * size)
    lon, lat = Transformer.from_crs(flat, lonlat, always_xy=True).transform(x, y)
    scale = Proj(flat).get_factors(lon, lat).areal_scale
    assert hectares((16, 16), crs, transform) == pytest.approx(16 * 16 * 100 / scale / 1e4, rel=1e-6)


@pytest.mark.parametrize(
    ("crs", "x", "y"), [("EPSG:6933", 1.2e6, 6e6), ("EPSG:3035", 4.3e6, 3.2e6), ("EPSG:3035", 6e6, 5e6)]
)
def test_an_equal_area_crs_gives_the_nominal_area(crs, x, y):
    assert hectares((700, 900), crs, Affine(30, 0, x, 0, -30, y)) == pytest.approx(700 * 900 * 0.09, rel=1e-6)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:3857", Affine(30, 0, 1.5e6, 0, -30, 8.4e6)),
        ("EPSG:3857", Affine(3000, 0, 1.5e6, 0, -3000, 9.9e6)),
        ("EPSG:32633", Affine(60, 0, 2e5, 0, -60, 7e6)),
        ("EPSG:4807", Affine(0.001, 0, 0.4, 0, -0.001, 54)),
        ("EPSG:4326+5773", Affine(0.01, 0, 7, 0, -0.01, 60)),
        ("EPSG:4326", Affine(0.001, 0.0005, 7, 0.0004, -0.001, 60)),
        ("EPSG:4326", Affine(0, 0.001, 179.95, 0.002, 0, 60)),
        ("EPSG:4326", Affine(0.01, 0, 179, 0, 0.01, 60)),
        ("EPSG:32601", Affine(30, 0, 146_021, 0, -30, 6e6)),
        ("EPSG:3413", Affine(10, 0, -750, 0, -10, 850)),
        ("EPSG:3031", Affine(500, 0, -42_500, 0, -500, 37_500)),
        (GEOS, Affine(3000, 0, -1e5, 0, -3000, 1e5)),
        (GEOS, Affine(3000, 0, 2e6, 0, -3000, 3.5e6)),
    ],
)
def test_a_raster_has_the_area_of_its_geodesic_outline(crs, transform):
    shape = 150, 170
    if crs == "EPSG:4807":  # by hand: grads are 0.9 degrees, the ellipsoid is Clarke 1880 IGN
        degrees = Affine(*(0.9 * v for v in transform[:6]))
        expected = geodesic_hectares(shape, "+proj=longlat +a=6378249.2 +b=6356515", degrees)
    else:
        expected = geodesic_hectares(shape, crs.split("+5773")[0], transform)
    assert hectares(shape, crs, transform) == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize(
    "turned",
    [
        Affine.rotation(30) * Affine.scale(20, -20),
        Affine.scale(20, -20) * Affine.shear(25, 0),
        Affine.rotation(-110) * Affine.shear(10, 20) * Affine.scale(10, 25),
        Affine.scale(-20, 30),
    ],
    ids=["rotated", "sheared", "both", "mirrored"],
)
@pytest.mark.parametrize(("crs", "x", "y", "error"), [("EPSG:3035", 4.3e6, 3.2e6, 1e-6), ("EPSG:32633", 5e5, 5.4e6, 1e-6)])
def test_turned_grids_count_by_their_determinant(crs, x, y, error, turned):
    transform = Affine.translation(x, y) * turned
    scale = 1.0 if crs == "EPSG:3035" else 0.9996**2
    expected = 64 * 64 * abs(turned.determinant) / scale / 1e4
    assert hectares((64, 64), crs, transform) == pytest.approx(expected, rel=error)


PLACES = {
    "utm": ("EPSG:32633", Affine(10, 0, *UTM_CORNER[:1], 0, -10, UTM_CORNER[1])),
    "degrees": ("EPSG:4326", Affine(0.001, 0, 7, 0, -0.001, 60)),
    "nowhere": (None, None),
}


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_tables_do_not_depend_on_windows(place, data):
    labels = np.random.default_rng(1).choice(np.array([0, 1, 2, 255], np.uint8), (290, 270))
    labels[:, 130:140] = 255
    bounds = [[0, *sorted(data.draw(st.sets(st.integers(1, n - 1), max_size=6))), n] for n in labels.shape]
    cuts = list(itertools.product(*map(itertools.pairwise, bounds)))
    shuffled = data.draw(st.permutations(cuts))
    grid = grid_of(labels.shape, *PLACES[place])
    assert table_of(labels, grid, shuffled) == table_of(labels, grid)


@pytest.mark.parametrize("place", ["utm", "degrees"])
def test_classes_and_nodata_sum_to_the_footprint(place):
    crs, transform = PLACES[place]
    labels = np.random.default_rng(2).choice(np.array([0, 1, 2, 255], np.uint8), (310, 330))
    table = table_of(labels, grid_of(labels.shape, crs, transform))
    total = sum(row["area"] for row in table.values())
    assert total == pytest.approx(geodesic_hectares(labels.shape, crs, transform), rel=1e-6)
    assert sum(row["pixels"] for row in table.values()) == labels.size
    assert sum(row["share"] for row in table.values() if row["share"] is not None) == pytest.approx(1, abs=2e-6)


METRES = Affine(10, 0, 1000, 0, -10, 2000)
GCP_GRID = RasterGrid((4, 4), None, None, gcps=(GroundControlPoint(0, 0, 15.0, 48.0),), gcps_crs=CRS.from_epsg(4326))


@pytest.mark.parametrize(
    "grid",
    [
        RasterGrid((4, 4)),
        RasterGrid((4, 4), None, METRES),
        GCP_GRID,
        grid_of((4, 4), "+proj=longlat +R=1560800 +no_defs", Affine(0.1, 0, 7, 0, -0.1, 45)),
        grid_of((4, 4), "+proj=stere +lat_0=90 +R=1737400 +units=m +no_defs", METRES),
        grid_of((4, 4), "+proj=eqc +a=3396190 +b=3376200 +units=m +no_defs", METRES),
        grid_of((4, 4), 'LOCAL_CS["slide",UNIT["metre",1]]', METRES),
        grid_of((4, 4), "EPSG:32633", None),
    ],
    ids=["bare", "no CRS", "GCPs", "Europa", "Moon", "Mars", "engineering", "no transform"],
)
def test_off_the_earth_pixels_are_counted_only(grid):
    labels = np.repeat(np.array([[0], [1], [1], [255]], np.uint8), 4, axis=1)
    assert grid.measure is None
    rows = table_of(labels, grid, classes=named(2)).values()
    assert [(r["pixels"], r["area"], r["unit"]) for r in rows] == [(4, None, "px"), (8, None, "px"), (4, None, "px")]
    assert [r["share"] for r in rows] == [pytest.approx(1 / 3, abs=1e-6), pytest.approx(2 / 3, abs=1e-6), None]


def test_pixels_beyond_the_limb_have_no_area():
    """A full disk of Meteosat at 24 km; inside 80 % of its scan angle lies a cap of the sphere, to its flattening."""
    side, size = 464, 24_000.0
    grid = grid_of((side, side), GEOS, Affine(size, 0, -side / 2 * size, 0, -size, side / 2 * size))
    row, col = np.meshgrid(*[np.arange(side) + 0.5 - side / 2] * 2, indexing="ij")
    radius, distance = 6371e3, 6371e3 + 35785831.0
    scan = np.hypot(row, col) * size / 35785831.0
    limb = math.asin(radius / distance)
    areas = grid.measure.pixel_areas(row + side / 2, col + side / 2)
    assert np.isfinite(areas).all()
    assert (areas >= 0).all()
    assert (areas[scan > 1.01 * limb] == 0).all()
    assert (areas[scan < 0.98 * limb] > 0.9 * size**2).all()
    earth = math.asin(distance / radius * math.sin(0.8 * limb)) - 0.8 * limb
    assert areas[scan < 0.8 * limb].sum() == pytest.approx(2 * math.pi * radius**2 * (1 - math.cos(earth)), rel=0.01)
    table = table_of(np.zeros((side, side), np.uint8), grid, classes=named(1))
    assert table["class0"]["area"] == pytest.approx(areas.sum() / 1e4, rel=1e-9)


HECTARE = "EPSG:6933", Affine(100, 0, 1e6, 0, -100, 5e6)


@pytest.mark.parametrize(
    ("ids", "dtype", "nodata"),
    [([3, 7, 200], np.uint8, 255), ([200, 3, 7], np.uint8, 255), ([1, 300, 65534], np.uint16, 65535), ([0], np.uint8, 255)],
)
def test_class_ids_need_not_count_from_zero(ids, dtype, nodata):
    values = [*sorted(ids), nodata]
    labels = np.random.default_rng(3).choice(np.array(values, dtype), (40, 50))
    classes = [{"id": i, "name": f"c{i}", "index": k} for k, i in enumerate(ids)]
    table = table_of(labels, grid_of(labels.shape, *HECTARE), classes=classes)
    assert [(r["class_id"], r["class_name"]) for r in table.values()] == [
        *((i, f"c{i}") for i in sorted(ids)),
        (None, "nodata"),
    ]
    assert [r["pixels"] for r in table.values()] == [int((labels == v).sum()) for v in values]
    assert [r["area"] for r in table.values()] == pytest.approx([r["pixels"] for r in table.values()], rel=1e-6)


def test_all_254_classes_and_more_are_counted():
    labels = np.arange(300, dtype=np.uint16).reshape(15, 20)
    table = table_of(labels, grid_of(labels.shape, *HECTARE), classes=[{"id": i, "name": f"c{i}"} for i in range(299)])
    assert {r["pixels"] for r in table.values()} == {1}
    assert table["nodata"]["pixels"] == 1  # 299 is no class


@given(data=st.data())
def test_counts_are_those_of_every_pixel_put_into_its_cell(data):
    """Cells of one row, of more rows than a byte counts, and of one pixel; few classes and many."""
    crs, pixel = data.draw(
        st.sampled_from([("EPSG:32633", 0.5), ("EPSG:32633", 200), ("EPSG:32633", 2000), ("EPSG:4326", 1e-4)])
    )
    shape = data.draw(st.tuples(st.integers(1, 600), st.integers(1, 600)))
    classes, ids = data.draw(st.sampled_from([(3, None), (40, None), (3, [2, 9, 200])]))
    origin = (15, 48) if crs == "EPSG:4326" else UTM_CORNER
    start = [data.draw(st.integers(0, n - 1)) for n in shape]
    stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True)]
    named_ = [{"id": i, "name": f"c{i}", "index": k} for k, i in enumerate(ids)] if ids else named(classes)
    areas = Areas(
        grid_of(shape, crs, Affine(pixel, 0, origin[0], 0, -pixel, origin[1])), Contract(**{**contract(), "classes": named_})
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    values = np.array([entry["id"] for entry in named_] + [255], np.uint8)
    positions = rng.integers(0, len(values), [b - a for a, b in zip(start, stop, strict=True)])
    if data.draw(st.booleans()):
        positions[:] = positions[0, 0]  # a whole cell of one class
    areas.add(Box(Window(tuple(start), tuple(stop)), values[positions][None]))
    expected = np.zeros_like(areas.state["counts"])
    rows, cols = (np.arange(a, b) // side for a, b, side in zip(start, stop, areas._cells.side, strict=True))
    np.add.at(expected[0], (rows[:, None], cols[None], positions), 1)
    np.testing.assert_array_equal(areas.state["counts"], expected)


def volume_counts(labels: NDArray[Any], ids: list[int]) -> list[tuple[int, float]]:
    """Oracle: voxels of each id, and their mm3 plane by plane."""
    sizes = np.array([Slabs(labels.shape).size(k) for k in range(len(labels))])
    return [(int((labels == k).sum()), float(((labels == k).sum(axis=(1, 2)) * sizes).sum())) for k in ids]


@given(data=st.data())
def test_voxels_are_counted_box_by_box_as_those_of_the_whole_volume(data):
    """A lattice whose planes differ in thickness; few classes and many; boxes in any order, counted by two jobs."""
    shape = data.draw(st.tuples(*(st.integers(1, n) for n in (300, 20, 30))))
    classes, ids = data.draw(st.sampled_from([(3, None), (40, None), (3, [2, 9, 200])]))
    named_ = [{"id": i, "name": f"c{i}", "index": k} for k, i in enumerate(ids)] if ids else named(classes)
    values = [entry["id"] for entry in named_] + [255]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    labels = rng.choice(np.array(values, np.uint8), shape)
    bounds = [[0, *sorted(data.draw(st.sets(st.integers(0, n), max_size=3)) - {0, n}), n] for n in shape]
    boxes = [Window(*map(tuple, zip(*cut, strict=True))) for cut in itertools.product(*map(itertools.pairwise, bounds))]
    jobs = [Areas(Lattice(shape), Contract(**{**contract(), "classes": named_})) for _ in range(2)]
    for k, box in enumerate(data.draw(st.permutations(boxes))):
        where = tuple(slice(a, b) for a, b in zip(box.start, box.stop, strict=True))
        jobs[k % 2].add(Box(box, labels[None, *where]))
    jobs[0].merge({name: array.copy() for name, array in jobs[1].state.items()})
    rows, expected = jobs[0].rows(), volume_counts(labels, values)
    assert [r["pixels"] for r in rows] == [pixels for pixels, _ in expected]
    assert [r["area"] for r in rows] == pytest.approx([volume for _, volume in expected], rel=1e-9)
    assert [r["ml"] for r in rows] == pytest.approx([volume / 1000 for _, volume in expected], rel=1e-9)
    assert {r["unit"] for r in rows} == {"mm3"}
    assert jobs[0].valid() == (sum(p for p, _ in expected[:-1]), pytest.approx(sum(v for _, v in expected[:-1]), rel=1e-9))


def test_five_by_two_by_three_voxels_by_hand():
    """Planes of 0.25 mm3 a voxel, and one of 0.5."""
    labels = np.zeros((5, 2, 3), np.uint8)
    labels[4, 0, :2] = 1
    labels[0, 1, 1:] = 255
    areas = Areas(Lattice(labels.shape), Contract(**{**contract(), "classes": named(2)}))
    areas.add(Box(Window((0, 0, 0), labels.shape), labels[None]))
    found = [(r["class_name"], r["pixels"], r["area"], r["unit"], r["ml"], r["share"]) for r in areas.rows()]
    assert found == [
        ("class0", 26, 7.5, "mm3", 0.0075, 0.882353),
        ("class1", 2, 1.0, "mm3", 0.001, 0.117647),
        ("nodata", 2, 0.5, "mm3", 0.0005, None),
    ]


def test_voxels_of_unknown_size_are_counted_only():
    labels = np.zeros((5, 2, 3), np.uint8)
    areas = Areas(Lattice(labels.shape, slabs=False), Contract(**{**contract(), "classes": named(1)}))
    areas.add(Box(Window((0, 0, 0), labels.shape), labels[None]))
    assert areas.rows()[0] == {
        "class_id": 0,
        "class_name": "class0",
        "pixels": 30,
        "area": None,
        "unit": "px",
        "share": 1.0,
    }


def test_multilabel_volumes_count_each_class():
    labels = np.random.default_rng(5).integers(0, 2, (2, 9, 11, 13), dtype=np.uint8)
    labels[:, 3, 4] = 255
    changes = {"task": "multilabel", "activation": "sigmoid", "classes": named(2)}
    areas = Areas(Lattice(labels.shape[1:]), Contract(**{**contract(), **changes}))
    areas.add(Box(Window((0, 0, 0), labels.shape[1:]), labels))
    expected = [volume_counts(labels[0], [1])[0], volume_counts(labels[1], [1])[0], volume_counts(labels[0], [255])[0]]
    assert [(r["pixels"], r["area"]) for r in areas.rows()] == expected


def test_multilabel_classes_overlap():
    labels = np.zeros((2, 4, 5), np.uint8)
    labels[0, :3] = 1
    labels[1, 2:] = 1
    labels[:, :, 4] = 255
    changes = {
        "task": "multilabel",
        "activation": "sigmoid",
        "classes": [{"id": 3, "name": "a", "index": 0}, {"id": 9, "name": "b", "index": 1}],
    }
    table = table_of(labels, grid_of((4, 5), *HECTARE), **changes)
    found = {name: (r["class_id"], r["pixels"], round(r["area"], 6), r["share"]) for name, r in table.items()}
    assert found == {"a": (3, 12, 12.0, 0.75), "b": (9, 8, 8.0, 0.5), "nodata": (None, 4, 4.0, None)}


def test_nothing_valid_has_no_share():
    table = table_of(np.full((3, 3), 255, np.uint8), grid_of((3, 3), *HECTARE), classes=named(2))
    assert [r["share"] for r in table.values()] == [None, None, None]
    assert [r["pixels"] for r in table.values()] == [0, 0, 9]


def test_the_table_of_a_run_is_that_of_its_mask(raster, run_serial, tmp_path):
    pixels = np.random.default_rng(4).integers(1, 255, (3, 150, 170), dtype=np.uint8)
    pixels[:, 20:60, 30:90] = 0
    transform = Affine(0.01, 0, 7, 0, -0.01, 60)
    source = raster("in/a.tif", pixels, nodata=0, crs="EPSG:4326", transform=transform)
    out = run_serial(source, pixelwise(tmp_path / "m.onnx"))
    with rasterio.open(out / "a.tif") as dataset:
        mask = dataset.read(1)
    per_row = [geodesic_hectares((1, 1), "EPSG:4326", transform * Affine.translation(0, r)) for r in range(150)]
    with (out / "areas.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["class_name"] for row in rows] == ["class0", "class1", "class2", "nodata"]
    valid = np.dot((mask != 255).sum(axis=1), per_row)
    for row, value in zip(rows, (0, 1, 2, 255), strict=True):
        expected = np.dot((mask == value).sum(axis=1), per_row)
        assert (row["case"], row["unit"], int(row["pixels"])) == ("a", "ha", int((mask == value).sum()))
        assert float(row["area"]) == pytest.approx(expected, rel=1e-6)
        assert row["share"] == "" if value == 255 else float(row["share"]) == pytest.approx(expected / valid, abs=1e-6)


@pytest.mark.parametrize("volumes", [False, True])
def test_only_a_run_with_volumes_has_millilitres(volumes, raster, run_serial, tmp_path, monkeypatch):
    """Oracle: the table of the same rasters without a volume, and an empty field behind each of its lines."""
    pixelwise(tmp_path / "m.onnx")
    raster("in/a.tif", np.full((3, 20, 30), 7, np.uint8))
    out = run_serial(tmp_path / "in", tmp_path / "m.onnx")
    before = (out / "areas.csv").read_text()
    cases = [Case("a", "in/a.tif")]
    if volumes:
        record = json.loads((out / "a.json").read_text())
        rows = [{**row, "area": 2500.0, "unit": "mm3", "ml": 2.5} for row in record["statistics"]["areas"]]
        (out / "v.json").write_text(json.dumps(record | {"case": "v", "outputs": [], "statistics": {"areas": rows}}))
        monkeypatch.setitem(FORMATS, "slabs", replace(FORMATS["raster"], name="slabs", area_columns=("ml",)))
        cases.append(Case("v", "in/v.slabs", "slabs"))
    write_areas(Folder(out), cases, area_columns(cases))
    found = (out / "areas.csv").read_text()
    if not volumes:
        assert found == before
        return
    header, *rows = before.splitlines()
    assert found.splitlines()[: len(rows) + 1] == [f"{header},ml", *(f"{row}," for row in rows)]
    assert [row.split(",")[-4:-2] + row.split(",")[-1:] for row in found.splitlines()[len(rows) + 1 :]] == [
        ["2500.0", "mm3", "2.5"]
    ] * len(rows)
