"""Polygons of a mask: places, areas, classes, minimum and simplification, on grids of all kinds."""

from typing import Any

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from fields import UTM, ArrayMask
from rasterio.features import shapes

from segpipe.errors import InputError, OutputError, SettingsError
from segpipe.geometry.cells import Cells
from segpipe.geometry.raster_grid import location_of
from segpipe.polygons import case as module
from segpipe.polygons import simplified
from segpipe.polygons.case import CaseMask, Unwritten, features_of
from segpipe.polygons.placement import Placement
from segpipe.polygons.rule import Minimum, Rule, chosen

CLASSES = ((0, "water"), (2, "forest"), (5, "maize"))
LON_LAT = pyproj.CRS("EPSG:4326")


def case(labels: Any, transform: Affine = UTM, crs: Any = "EPSG:32633", **more: Any) -> CaseMask:
    mask = ArrayMask(labels, transform, crs)
    place = Placement(mask.grid.shape, location_of(mask.grid).ground, more.pop("target", None))
    return CaseMask("mask.tif", mask, more.pop("classes", CLASSES), 255, place, **more)


def random_labels(shape: tuple[int, int] = (60, 50), seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    small = draw.choice([0, 2, 5, 255], -(-np.array(shape) // 4))
    labels = np.repeat(np.repeat(small, 4, 0), 4, 1)[: shape[0], : shape[1]].astype(np.uint8)
    noise = draw.random(labels.shape) < 0.1
    labels[noise] = draw.choice([0, 2, 5, 255], int(noise.sum()))
    return labels


def collected(one: CaseMask, rule: Rule | None = None) -> tuple[Any, dict[str, np.ndarray], Unwritten]:
    left = Unwritten()
    found = list(features_of(one, rule or Rule(), left))
    columns = {
        key: np.concatenate([np.zeros(0), *(getattr(part.table, key) for part in found)])
        for key in ("kind", "pixels", "area", "confidence")
    }
    return np.concatenate([np.zeros(0, object), *(part.shapes for part in found)]), columns, left


GRIDS = {
    "utm": (UTM, "EPSG:32633"),
    "rotated": (Affine.translation(500_000, 5_400_000) @ Affine.rotation(30) @ Affine.scale(10, -10), "EPSG:32633"),
    "mirrored": (Affine(10, 0, 500_000, 0, 10, 5_400_000), "EPSG:32633"),
    "degrees": (Affine(1e-4, 0, 15, 0, -1e-4, 48), "EPSG:4326"),
    "web mercator": (Affine(10, 0, 1_700_000, 0, -10, 6_100_000), "EPSG:3857"),
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("eight", [False, True])
def test_shapes_are_those_of_rasterio_and_areas_those_of_the_pixels(
    grid: str, eight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STRIP", 350)
    labels, (transform, crs) = random_labels(), GRIDS[grid]
    one = case(labels, transform, crs)
    found, columns, _ = collected(one, Rule(corners_connect=eight))
    options = {"mask": labels != 255, "connectivity": 8 if eight else 4, "transform": transform}
    wanted = [(shapely.make_valid(shapely.geometry.shape(shape)), value) for shape, value in shapes(labels, **options)]
    assert len(found) == len(wanted)
    assert shapely.is_valid(found).all()
    assert shapely.is_ccw(shapely.get_exterior_ring(shapely.get_parts(found))).all()
    own = sorted(shapely.to_wkb(shapely.normalize(found)))
    assert own == sorted(shapely.to_wkb(shapely.normalize(shapely.from_wkb(_as_made([w for w, _ in wanted], eight)))))
    ground = one.placement.ground
    assert ground is not None
    areas = Cells.of(ground, labels.shape, 4).of_elements((0, 0), labels.shape)
    sizes = np.broadcast_to(areas, labels.shape)
    for kind, (number, _) in enumerate(CLASSES, 1):
        assert columns["area"][columns["kind"] == kind].sum() == pytest.approx(sizes[labels == number].sum(), rel=1e-12)
        assert columns["pixels"][columns["kind"] == kind].sum() == (labels == number).sum()


def _as_made(shapes_: list[Any], eight: bool) -> Any:
    """Polygons whose holes may touch their borders, as multipolygons where they are of several."""
    parts = [shapely.multipolygons(list(np.atleast_1d(shapely.get_parts(s)))) if eight else s for s in shapes_]
    return shapely.to_wkb(np.array(parts, object))


def test_a_point_of_polygons_lies_in_the_class_of_its_pixel_in_another_crs() -> None:
    """Moved into degrees, polygons still share all borders."""
    labels = random_labels((150, 130))
    found, columns, _ = collected(case(labels, target=LON_LAT))
    assert shapely.is_valid(found).all()
    assert shapely.coverage_is_valid(found)
    to_degrees = pyproj.Transformer.from_crs("EPSG:32633", LON_LAT, always_xy=True)
    rows, cols = (axis.ravel() for axis in np.indices(labels.shape))
    x, y = to_degrees.transform(*(UTM * (cols + 0.5, rows + 0.5)))
    point, hit = shapely.STRtree(found).query(shapely.points(x, y), predicate="within")
    assert len(point) == (labels != 255).sum()
    ids = np.array([number for number, _ in CLASSES])
    assert (ids[columns["kind"][hit].astype(int) - 1] == labels.ravel()[point]).all()


def test_long_edges_follow_their_curve_in_another_crs() -> None:
    labels = np.zeros((3000, 3000), np.uint8)
    (shape,), *_ = collected(case(labels, target=LON_LAT))
    assert len(shape.exterior.coords) > 100
    back = pyproj.Transformer.from_crs(LON_LAT, "EPSG:32633", always_xy=True)
    middles = shapely.get_coordinates(shape.exterior)
    middles = (middles[1:] + middles[:-1]) / 2
    column, row = ~UTM * back.transform(*middles.T)
    off = np.minimum(np.minimum(abs(column), abs(column - 3000)), np.minimum(abs(row), abs(row - 3000)))
    assert off.max() < 0.011


def test_longitudes_go_on_across_the_antimeridian() -> None:
    one = case(np.zeros((20, 2000), np.uint8), Affine(1000, 0, 17_900_000, 0, -1000, 0), "EPSG:3832", target=LON_LAT)
    (shape,), *_ = collected(one)
    west, _, east, _ = shape.bounds
    assert east - west == pytest.approx(2000 * 1000 / 111_319.49, rel=1e-3)


def test_small_regions_are_left_out_and_counted() -> None:
    labels = random_labels()
    everything, columns, none = collected(case(labels))
    large, kept, left = collected(case(labels), Rule(minimum=Minimum.of("5px")))
    assert none.number == 0
    assert len(large) == (columns["pixels"] >= 5).sum() == len(everything) - left.number
    assert kept["pixels"].sum() + left.pixels == columns["pixels"].sum()
    for text in ("0.05ha", "500m2", "500 m²"):
        _, kept, _ = collected(case(labels), Rule(minimum=Minimum.of(text)))
        assert kept["area"].min() >= 500
        assert len(kept["area"]) == (columns["area"] >= 500).sum()


def test_only_chosen_classes() -> None:
    labels = random_labels()
    assert chosen(None, CLASSES) is None
    assert chosen("Maize, 0", CLASSES) == {5, 0}
    assert chosen("a, b", ((1, "a, b"), (2, "b"))) == {1}
    _, columns, _ = collected(case(labels), Rule(classes=chosen("maize,0", CLASSES)))
    assert {*columns["kind"]} == {1, 3}
    for text in ("wheat", "", "1"):
        with pytest.raises(
            SettingsError, match="--classes must name classes of the masks, water, forest, maize, or their ids"
        ):
            chosen(text, CLASSES)
    for text in ("5", "ha", "-1ha", "5 acres", "1e3m2"):
        with pytest.raises(SettingsError, match=r"--min-area must be an area with its unit, such as 0\.5ha"):
            Minimum.of(text)


def test_mean_confidence() -> None:
    labels = np.array([[0, 0, 2], [255, 0, 2]], np.uint8)
    sure = ArrayMask([[254, 127, 10], [255, 0, 20]])
    _, columns, _ = collected(case(labels, confidence=sure))
    assert dict(zip(columns["kind"], columns["confidence"], strict=True)) == {1: 381, 2: 30}


@pytest.mark.parametrize("count", [1, 3])
def test_independent_classes_have_polygons_of_their_own(count: int) -> None:
    bands = np.random.default_rng(0).integers(0, 2, (count, 20, 30)).astype(np.uint8)
    bands[:, 0] = 255
    found, columns, _ = collected(case(bands, classes=CLASSES[:count]))
    assert shapely.is_valid(found).all()
    for band in range(count):
        assert columns["pixels"][columns["kind"] == band + 1].sum() == (bands[band] == 1).sum()


def test_without_ground_coordinates_are_pixels() -> None:
    mask = ArrayMask([[0, 0], [2, 0]])
    plain = CaseMask("photo.png", mask, CLASSES, None, Placement((2, 2)))
    found, columns, _ = collected(plain)
    assert found[1].equals(shapely.box(0, 1, 1, 2))
    assert shapely.is_ccw(shapely.get_exterior_ring(found)).all()
    assert not columns["area"].any()


def test_a_label_that_is_no_class_is_refused() -> None:
    labels = random_labels()
    labels[40, 3] = 7
    with pytest.raises(
        OutputError, match=r"mask.tif must hold the labels of its classes, and row 40 has another: run again"
    ):
        collected(case(labels))


@pytest.mark.parametrize("grid", GRIDS)
def test_simplified_polygons_keep_their_borders_in_common(grid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STRIP", 350)
    draw = np.random.default_rng(0)
    row, col = np.indices((90, 80))
    labels = np.array([0, 2, 5], np.uint8)[((row + 2 * col + 6 * np.sin(row / 5)) // 40).astype(int) % 3]
    labels[draw.random(labels.shape) < 0.01] = 255
    one = case(labels, *GRIDS[grid])
    full, columns, _ = collected(one)
    found, same, _ = collected(one, Rule(simplify=30))
    assert shapely.is_valid(found).all()
    assert shapely.coverage_is_valid(found)
    assert shapely.get_num_coordinates(found).sum() < 0.6 * shapely.get_num_coordinates(full).sum()
    assert shapely.area(found).sum() == pytest.approx(shapely.area(full).sum(), rel=0.02)
    assert (same["area"] == columns["area"]).all()  # that of the pixels
    metres = 1.0 if grid != "degrees" else 1 / 111_000
    assert shapely.hausdorff_distance(found, full).max() < 60 * metres / (0.65 if grid == "web mercator" else 1)


def test_too_many_vertices_are_not_simplified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simplified, "MOST_VERTICES", 100)
    with pytest.raises(
        InputError, match=r"--simplify takes at most 100 vertices of a case, and mask.tif has more: leave out"
    ):
        collected(case(random_labels()), Rule(simplify=30))


def test_a_place_that_the_target_does_not_have_is_refused() -> None:
    polar = pyproj.CRS("+proj=gnom +lat_0=-90")
    with pytest.raises(InputError, match=r"all polygons must have a place in .*, and some have none: name another CRS"):
        collected(case(random_labels(), target=polar))


POLE = (Affine(500, 0, -7_000, 0, -500, 20_000), "EPSG:3413")
"""Rows and columns around the north pole, which lies near an edge of them."""
LINE = (Affine(0.01, 0, 179.5, 0, -0.01, 50), "EPSG:4326")
"""Across the antimeridian."""
TORN = {
    "one around a pole": (np.zeros((80, 80), np.uint8), POLE, "EPSG:4326"),
    "some beside a pole": (2 * (np.indices((80, 80)).sum(axis=0) % 2).astype(np.uint8), POLE, "EPSG:4326"),
    "on a map that ends before the pole": (2 * (np.indices((80, 80)).sum(axis=0) % 2).astype(np.uint8), POLE, "EPSG:3857"),
    "on a map that ends at the line": (2 * (np.indices((60, 95)).sum(axis=0) % 2).astype(np.uint8), LINE, "EPSG:6933"),
}


@pytest.mark.parametrize("name", TORN)
@pytest.mark.parametrize("rule", [Rule(), Rule(simplify=1)])
def test_polygons_that_run_across_the_map_are_refused(name: str, rule: Rule) -> None:
    """Valid as they may be, they would cover ground that is not theirs, and leave out some of their own."""
    labels, place, target = TORN[name]
    assert shapely.is_valid(collected(case(labels, *place))[0]).all()
    with pytest.raises(
        InputError, match=r"within the map of .* go on at its other edge, or around a pole: name another CRS"
    ):
        collected(case(labels, *place, target=pyproj.CRS(target)), rule)


@pytest.mark.parametrize("target", ["EPSG:4326", "EPSG:3338"])
def test_polygons_across_the_antimeridian_are_whole_where_the_map_goes_on(target: str) -> None:
    found = collected(case(random_labels((60, 95)), *LINE, target=pyproj.CRS(target)))[0]
    west, _, east, _ = shapely.total_bounds(found)
    assert east - west < (1 if target == "EPSG:4326" else 90_000)
