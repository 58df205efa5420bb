"""What is looked at of a case: few blocks, evenly spread, the same whatever else is read."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from networks import contract, pixelwise

from segpipe.contract import parse_contract
from segpipe.formats.case import Case
from segpipe.formats.raster.gdal import gdal_options
from segpipe.formats.raster.source import RasterSource
from segpipe.formats.registry import open_case
from segpipe.formats.samples import BOXES, LOOKED_AT, TAKEN, sampled, side, thinned
from segpipe.formats.unusual.pixel_check import PixelCheck
from segpipe.formats.unusual.values import Finding
from segpipe.geometry.grid import BareGrid
from segpipe.geometry.windows import Window
from segpipe.overrides import AS_STORED
from segpipe.pipeline.findings import findings_of

Raster = Callable[..., Path]


class Watched:
    """A source that remembers what is read of it."""

    def __init__(self, source: RasterSource) -> None:
        self._source, self.windows = source, list[Window]()
        self.near, self.dtype, self.grid = source.near, source.dtype, source.grid

    def empty(self, window: Window) -> bool:
        return self._source.empty(window)

    def read(self, window: Window):
        self.windows.append(window)
        return self._source.read(window)


def looked(path: Path, channels: int = 1) -> tuple[np.ndarray, list[Window]]:
    terms = parse_contract(contract(channels, 2), "test")
    with gdal_options(), closing(RasterSource(str(path), terms, AS_STORED)) as source:
        watched = Watched(source)
        return sampled(watched), watched.windows


def numbered(rows: int, cols: int) -> np.ndarray:
    """Every pixel another, so that a sample says where it was taken."""
    return np.arange(1, rows * cols + 1, dtype=np.uint32).reshape(1, rows, cols)


TILES = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}


@pytest.mark.parametrize("layout", [TILES, {"blockysize": 1}, {"blockysize": 64}, {"blockysize": 1300}], ids=str)
def test_few_boxes_spread_over_the_case(layout, raster: Raster):
    path = raster("in.tif", numbered(1300, 1700), nodata=0, **layout)
    sample, windows = looked(path)
    assert len(windows) == BOXES
    assert all(n <= side(2) == 256 for window in windows for n in window.shape)
    assert 64 * BOXES <= sample.shape[1] <= BOXES * TAKEN * 1.1
    rows, cols = np.unravel_index(sample[0] - 1, (1300, 1700))
    assert (rows.min() < 500, rows.max() > 800) == (True, True)
    assert (cols.min() < 700, cols.max() > 1000) == (True, True)
    assert len(np.unique(cols)) > 100  # and does not follow some columns


def test_box_lies_in_one_block(raster: Raster):
    path = raster("in.tif", numbered(1300, 1700), **TILES)
    _, windows = looked(path)
    for window in windows:
        (a, b), (c, d) = window.start, window.stop
        assert (a // 256, b // 256) == ((c - 1) // 256, (d - 1) // 256)


def test_picture_is_looked_at_where_decoding_begins(raster: Raster):
    path = raster("in.png", (numbered(900, 1100) % 251).astype(np.uint8))
    _, windows = looked(path)
    assert {window.start[0] for window in windows} == {0}
    assert len({window.start[1] for window in windows}) == BOXES


def test_nodata_is_passed_over(raster: Raster):
    pixels = np.zeros((1, 3000, 3000), np.uint16)
    pixels[:, 2000:, 2000:] = 7  # a ninth of it
    sample, windows = looked(raster("in.tif", pixels, nodata=0, **TILES))
    assert set(sample.ravel()) == {7}
    assert sample.shape[1] > 2 * TAKEN
    assert len(windows) <= LOOKED_AT


def test_nothing_valid_is_an_empty_sample(raster: Raster):
    sample, windows = looked(raster("in.tif", np.zeros((2, 3000, 3000), np.uint8), nodata=0, **TILES), 2)
    assert sample.shape[1] == 0
    assert len(windows) <= LOOKED_AT


def test_same_sample_each_time_and_beside_other_reads(raster: Raster):
    path = raster("in.tif", numbered(700, 900), nodata=0, **TILES)
    terms = parse_contract(contract(1, 2), "test")
    first, _ = looked(path)
    with gdal_options(), closing(RasterSource(str(path), terms, AS_STORED)) as source:
        before, _ = source.read(Window((100, 200), (600, 700)))
        np.testing.assert_array_equal(sampled(source), first)
        after, _ = source.read(Window((100, 200), (600, 700)))
    np.testing.assert_array_equal(before, after)


def test_case_smaller_than_a_box(raster: Raster):
    sample, windows = looked(raster("in.tif", numbered(9, 20), nodata=0))
    assert windows == [Window((0, 0), (9, 20))]
    assert sorted(sample[0]) == list(range(1, 181))


class Blocks:
    """A volume in blocks, none of which is decoded: its voxels are their own numbers."""

    dtype = np.dtype(np.int64)

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.grid, self.windows = BareGrid(shape), list[Window]()

    def near(self, place: tuple[float, ...], most: int) -> Window:
        axes = zip(place, self.grid.shape, strict=True)
        start = tuple(min(int(share * n), max(0, n - most)) for share, n in axes)
        return Window(start, tuple(min(n, a + most) for a, n in zip(start, self.grid.shape, strict=True)))

    def empty(self, window: Window) -> bool:
        del window
        return False

    def read(self, window: Window):
        self.windows.append(window)
        axes = [range(a, b) for a, b in zip(window.start, window.stop, strict=True)]
        return np.ravel_multi_index(np.meshgrid(*axes, indexing="ij"), self.grid.shape)[None], None


@pytest.mark.parametrize("shape", [(600, 500, 400), (30, 2000, 900), (70, 90, 50)])
def test_boxes_of_a_volume_are_as_large_and_spread_over_all_three_axes(shape):
    source = Blocks(shape)
    sample = sampled(source)
    places = np.unravel_index(sample[0], shape)
    assert len(source.windows) == BOXES
    assert all(window.size <= 256**2 for window in source.windows)
    assert 1000 * BOXES <= sample.shape[1] <= BOXES * TAKEN * 1.1
    for along, size in zip(places, shape, strict=True):
        assert np.ptp(along) > 0.5 * size
        assert len(np.unique(along)) > min(20, size // 2)


def test_thinned_keeps_valid_pixels_alone():
    pixels = np.arange(2 * 256 * 256, dtype=np.float32).reshape(2, 256, 256)
    invalid = np.ones((256, 256), bool)
    invalid[3, 5:80] = False  # too few to be met by steps
    np.testing.assert_array_equal(thinned(pixels, invalid), pixels[:, 3, 5:80])
    assert thinned(pixels, None).shape == (2, 1009)
    assert thinned(pixels, np.ones_like(invalid)).shape == (2, 0)


@pytest.mark.parametrize("size", [500, 900])
def test_tile_does_not_change_the_sample(size, raster: Raster, run_serial, tmp_path, monkeypatch):
    """A case that is one window is judged by the same pixels as one of many, and as a dry run judges it."""
    path = raster("in.tif", numbered(size, size), nodata=0, **TILES)
    seen: list[np.ndarray] = []

    def keep(_pixel_check: PixelCheck, pixels: np.ndarray, scaling: object, tags: object, *, axes: int) -> list[Finding]:
        assert axes == 2
        seen.append(pixels)
        return []

    monkeypatch.setattr(PixelCheck, "__call__", keep)
    model, terms = pixelwise(tmp_path / "m.onnx", 1), parse_contract(contract(1, 3), "test")
    for tile in (64, 256, 1024):
        for options in ({"tile": (tile, tile)}, {"tile": (tile, tile), "parts": 3}):
            run_serial(path, model, output=tmp_path / f"{len(seen)}", overlap=(0, 0), **options)
    with gdal_options(), closing(open_case(Case("in", str(path)), terms)) as source:
        findings_of(source, terms)  # as a dry run and inspect look
    assert len(seen) >= 7
    for pixels in seen[1:]:
        np.testing.assert_array_equal(pixels, seen[0])
    assert seen[0].shape[1] >= 1000
