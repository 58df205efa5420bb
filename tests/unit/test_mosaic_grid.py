"""The grid of a mosaic: that of its masks, or the one that the user names, and when one must be named."""

import tracemalloc
from collections import Counter
from typing import Any

import pytest
from affine import Affine
from fields import UTM
from pyproj import Transformer
from rasterio.crs import CRS

from segpipe.errors import OverlapError
from segpipe.geometry.lookup import common
from segpipe.geometry.raster_grid import RasterGrid, ground_of
from segpipe.geometry.reference import transformer
from segpipe.results.overlap.mosaic_grid import GridRequest, mosaic_grid


def grid(transform: Affine, crs: str = "EPSG:32633", shape: tuple[int, int] = (80, 100)) -> RasterGrid:
    return RasterGrid(shape, CRS.from_user_input(crs), transform)


def frame(*grids: RasterGrid, **wish: Any) -> tuple[Any, ...]:
    found = mosaic_grid([(f"c{k}", one) for k, one in enumerate(grids)], GridRequest(**wish))
    assert found.grid.transform is not None
    return found.grid.shape, found.grid.transform, list(found.reprojected)


def test_masks_of_one_grid_have_their_own() -> None:
    moved = UTM * Affine.translation(-30, 500)
    assert frame(grid(UTM), grid(moved)) == ((580, 130), UTM * Affine.translation(-30, 0), [])
    assert frame(grid(UTM)) == ((80, 100), UTM, [])
    assert frame(grid(UTM), grid(moved), crs="EPSG:32633", resolution=10)[0] == (580, 130)


def test_a_mask_between_pixels_is_moved() -> None:
    assert frame(grid(UTM), grid(UTM * Affine.translation(0.4, 0))) == ((80, 101), UTM, ["c1"])


def test_rounding_moves_nothing() -> None:
    """A scene of 10,980 pixels of a third of a second whose step is rounded in its file."""
    step = 1 / 10_800
    one = grid(Affine(step, 0, 15, 0, -step, 49), "EPSG:4326", (10_980, 10_980))
    other = grid(Affine(step * (1 + 1e-9), 0, 15 + 9_000 * step + 1e-9, 0, -step, 49), "EPSG:4326", (10_980, 10_980))
    assert frame(one, other)[0] == (10_980, 19_980)
    assert frame(one, other)[2] == []


def test_another_crs_needs_a_size_and_pixels_begin_at_its_multiples() -> None:
    shape, transform, moved = frame(grid(UTM), crs="EPSG:3035", resolution=20)
    assert (transform.a, transform.e, transform.c % 20, transform.f % 20) == (20, -20, 0, 0)
    assert moved == ["c0"]
    assert 40 <= shape[0] <= 50
    with pytest.raises(OverlapError, match="--crs is the CRS of no mask, so that its pixels need a size"):
        frame(grid(UTM), crs="EPSG:3035")


def test_of_two_zones_the_named_one_keeps_its_pixels() -> None:
    other = grid(Affine(10, 0, 60_053, 0, -10, 5_417_000), "EPSG:32634")
    with pytest.raises(OverlapError, match="c0 is in EPSG:32633 and c1 in EPSG:32634: name one with --crs"):
        frame(grid(UTM), other)
    _, transform, moved = frame(grid(UTM), other, crs="EPSG:32633")
    assert ((transform.c - UTM.c) % 10, (transform.f - UTM.f) % 10, moved) == (0, 0, ["c1"])
    assert frame(grid(UTM), other, crs="EPSG:32634")[2] == ["c0"]


OTHERS = [(UTM * Affine.scale(2), "20 x 20"), (UTM * Affine.rotation(5), "10 x 10"), (UTM * Affine.scale(1, -1), "10 x 10")]


@pytest.mark.parametrize(("other", "said"), OTHERS)
def test_sizes_and_directions_that_differ_are_named(other: Affine, said: str) -> None:
    with pytest.raises(OverlapError, match=f"one size and direction: those of c0 are 10 x 10, of c1 {said}"):
        frame(grid(UTM), grid(other))
    assert frame(grid(UTM), grid(other), resolution=10)[2] == ["c1"]


@pytest.mark.parametrize("starts", [(179.9, -180.0), (-180.0, 179.9), (179.9, 180.0), (359.9, 0.0)])
def test_both_sides_of_a_turn_are_close(starts: tuple[float, float]) -> None:
    grids = [grid(Affine(0.001, 0, west, 0, -0.001, 10), "EPSG:4326") for west in starts]
    shape, transform, moved = frame(*grids)
    assert (shape, moved) == ((80, 200), [])
    assert transform.c % 360 == pytest.approx(min((w % 360 for w in starts), key=lambda w: (w < 90, w)))


def test_all_the_earth_is_no_turn_too_many() -> None:
    grids = [grid(Affine(0.5, 0, west, 0, -0.5, 20), "EPSG:4326") for west in range(-180, 180, 45)]
    assert frame(*grids)[:2] == ((80, 720), Affine(0.5, 0, -180, 0, -0.5, 20))  # five degrees of the last are the first ones


@pytest.mark.parametrize(("south", "crs"), [(False, "EPSG:3413"), (True, "EPSG:3031")])
@pytest.mark.parametrize("left", [-400_000, -70_000])
def test_a_mask_around_a_pole_takes_all_longitudes_and_the_pole(south: bool, crs: str, left: float) -> None:
    """Points of the mask that are looked at leave gaps of some degrees between them, and the pole is none of them."""
    one = grid(Affine(10_000, 0, left, 0, -10_000, 395_000), crs, (80, 80))
    shape, transform, _ = frame(one, crs="EPSG:4326", resolution=0.25)
    assert (shape[1], transform.c) == (1440, -180)
    assert (transform.f - 0.25 * shape[0] if south else transform.f) == (-90 if south else 90)
    for resolution in (0.35, 0.7, 7, 100):  # which do not divide a quarter
        found = mosaic_grid([("c", one)], GridRequest("EPSG:4326", resolution)).grid
        assert ground_of(found)
        assert found.transform is not None
        assert 360 <= found.shape[1] * resolution < 360 + resolution
        assert abs(found.transform.f - resolution / 2) <= 90
    globe = grid(Affine(0.5, 0, -180, 0, -0.5, 88), "EPSG:4326", (200, 720))
    assert frame(one, globe, crs="EPSG:4326")[0][1] == 720
    assert frame(one, crs="EPSG:6933", resolution=20_000)[0][1] == 1738  # of 17,367.5 km to both sides


def test_a_grid_that_gdal_cannot_hold_is_refused() -> None:
    with pytest.raises(OverlapError, match="give --resolution"):
        frame(grid(UTM), resolution=1e-8)
    with pytest.raises(OverlapError, match="--crs must be a code such as EPSG:32633, or WKT, got nonsense"):
        frame(grid(UTM), crs="nonsense")


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:32634"])
def test_a_thousand_masks_take_no_outline_each(crs: str) -> None:
    """An outline has 70 kB; masks of one tile here, side by side."""
    one = {"shape": (24, 24)}
    grids = [grid(UTM * Affine.translation(24 * (k % 20), 24 * (k // 20)), **one) for k in range(400)]
    whole = frame(grids[0], grids[19], grids[-20], grids[-1], crs=crs, resolution=10)[:2]
    tracemalloc.start()
    try:
        found = frame(*grids, crs=crs, resolution=10)[:2]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == whole
    assert peak < 4e6


def test_a_grid_of_too_many_pixels_is_refused_with_a_size_that_fits() -> None:
    far = grid(UTM * Affine.translation(2_500_000, 1_900_000))
    said = r"may have 4,398,047 Mpx, .* got 1,900,080 x 2,500,100: give --resolution 11 or"
    with pytest.raises(OverlapError, match=said):
        frame(grid(UTM), far)
    assert frame(grid(UTM), far, resolution=11)[0] == (1_727_347, 2_272_819)


def test_masks_of_one_crs_share_the_way_to_that_of_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """PROJ takes 0.1 s to find it, where two datums have several."""
    asked, original = [], Transformer.from_crs

    def from_crs(source: Any, target: Any, **more: Any) -> Transformer:
        asked.append((source.name, target.name))
        return original(source, target, **more)

    transformer.cache_clear()
    monkeypatch.setattr(Transformer, "from_crs", from_crs)
    masks = [grid(UTM * Affine.translation(30 * k, 0)) for k in range(20)]
    frame(*masks, crs="EPSG:3035", resolution=10)
    for mask in masks:
        common(ground_of(mask), mask.shape, ground_of(grid(UTM, "EPSG:32634")), (80, 100))
    counts = Counter(asked)
    assert counts["WGS 84 / UTM zone 33N", "ETRS89-extended / LAEA Europe"] == 1
    assert counts["WGS 84 / UTM zone 33N", "WGS 84 / UTM zone 34N"] == 1
