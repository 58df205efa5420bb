"""GDAL's cache: a block is decoded once, however wide its file."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from networks import contract as values
from networks import pixelwise

from segpipe.contract import Contract
from segpipe.formats.cache import Cache
from segpipe.formats.case import Case
from segpipe.formats.raster import gdal
from segpipe.formats.raster.gdal import CACHE_MB, MOST_CACHE_MB, BlockCache, cache_bytes, gdal_options
from segpipe.formats.raster.source import RasterSource
from segpipe.network.read import read_spec
from segpipe.overrides import Overrides
from segpipe.pipeline.opening import open_checked
from segpipe.pipeline.read import Reading, windows_of
from segpipe.pipeline.tiles import Tile, cut_tiles
from segpipe.settings import load_settings

TILED = {"tiled": True, "blockxsize": 128, "blockysize": 128}
STRIPS = {"tiled": False, "blockysize": 1}


@pytest.mark.parametrize(
    ("profile", "shape", "expected"),
    [
        # a window of 100 rows touches two rows of blocks of 128, and all 5 blocks of their width
        ({**TILED, "interleave": "band"}, (100, 600), 256 * 640 * 3),
        # the third band's blocks are decoded with the others'; two are used
        ({**TILED, "interleave": "pixel"}, (100, 600), 256 * 640 * 4),
        # as wide as a part: up to 3 blocks
        ({**TILED, "interleave": "band"}, (100, 200), 256 * 384 * 3),
        # never more than there are
        ({**TILED, "interleave": "band"}, (400, 600), 384 * 640 * 3),
        ({**STRIPS, "interleave": "band"}, (100, 200), 101 * 600 * 3),
    ],
)
def test_memory_is_the_blocks_of_a_row_of_windows(profile, shape, expected, raster):
    path = raster("s.tif", np.ones((4, 300, 600), np.uint8), photometric="MINISBLACK", **profile)
    with (
        gdal_options(),
        closing(RasterSource(str(path), Contract.model_validate(values(3)), Overrides((1, 2, 4)))) as source,
    ):
        assert source.memory(shape) == expected


def test_the_cache_has_bounds():
    assert cache_bytes(0) == CACHE_MB * 2**20
    assert cache_bytes(256 * 2**20) == 288 * 2**20
    assert cache_bytes(2**40) == MOST_CACHE_MB * 2**20


@pytest.mark.parametrize("blocks", [0, MOST_CACHE_MB * 2**20, 2**40])
def test_a_cache_takes_what_its_library_keeps_and_says_what_it_cannot(blocks):
    assert BlockCache().size(blocks) == cache_bytes(blocks)
    assert bool(BlockCache().notes(blocks)) == (blocks > MOST_CACHE_MB * 2**20)
    assert (Cache().size(blocks), Cache().notes(blocks)) == (blocks, [])


def bytes_read() -> int:
    """By this process, from files and whatever else."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"])


@pytest.fixture
def small_cache():
    """One that starts at 1 MB, as if nothing had been read in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gdal, "CACHE_MB", 1)
        patch.setattr(gdal, "_cache", 0)
        yield
    gdal._cache = 0
    gdal.grow_cache()


@pytest.mark.parametrize("layout", [TILED, STRIPS], ids=["tiled", "strips"])
@pytest.mark.parametrize(("most", "low", "high"), [(1024, 1.0, 1.2), (1, 2.0, 1000)], ids=["as needed", "too small"])
def test_a_block_is_read_once(layout, most, low, high, small_cache, monkeypatch, raster, tmp_path):
    monkeypatch.setattr(gdal, "MOST_CACHE_MB", most)
    pixels = np.random.default_rng(0).integers(1, 255, (3, 256, 8000), dtype=np.uint8)
    path = raster("wide.tif", pixels, compress="deflate", interleave="pixel", **layout)
    model = pixelwise(tmp_path / "m.onnx", tile=[128, 128], overlap=[64, 64])
    spec = read_spec(load_settings(None, {"input": (str(path),), "model": model, "device": "cpu"}))
    before = bytes_read()
    with gdal_options():
        tiles = list(cut_tiles(windows_of([Case("wide", str(path))], Reading(spec))))
    assert all(isinstance(tile, Tile) for tile in tiles)
    assert low <= (bytes_read() - before) / path.stat().st_size <= high


def test_a_file_that_no_cache_holds_is_told_of(monkeypatch, raster, tmp_path):
    monkeypatch.setattr("segpipe.formats.raster.gdal.MOST_CACHE_MB", 1)
    path = raster("wide.tif", np.ones((3, 256, 8000), np.uint8), **STRIPS)
    model = pixelwise(tmp_path / "m.onnx", tile=[128, 128], overlap=[64, 64])
    spec = read_spec(load_settings(None, {"input": (str(path),), "model": model, "device": "cpu"}))
    with gdal_options():
        source, info = open_checked(Case("wide", str(path)), spec)
        source.close()
    assert info.notes == (
        "a row of windows touches blocks of 3 MB, of which 1 MB stay decoded: blocks are read again and again. "
        "Make it a file in tiles with gdal_translate -of COG",
    )
