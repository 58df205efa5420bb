"""Threads that decode: more where the model waits for tiles, and the same pixels with any number."""

import time
from contextlib import closing
from threading import Semaphore

import numpy as np
import pytest
import rasterio
from networks import pixelwise

from segpipe.formats.case import Case
from segpipe.formats.raster.gdal import decoders, gdal_options
from segpipe.network.read import read_spec
from segpipe.pipeline.ahead import ahead
from segpipe.pipeline.read import LATE, Decoders, Reading, windows_of
from segpipe.pipeline.tiles import cut_tiles
from segpipe.settings import load_settings

FORMATS = {
    "deflate.tif": {"compress": "deflate", "tiled": True, "blockxsize": 128, "blockysize": 128},
    "strips.tif": {"compress": "lzw", "blockysize": 7},
    "jpeg2000.jp2": {"driver": "JP2OpenJPEG", "reversible": "YES", "quality": 100},
}


def test_they_double_where_reading_is_late():
    decoders = Decoders(1, 6)
    counts = []
    for _ in range(4):
        for _ in range(LATE + 1):
            decoders.note(True)
        counts.append(decoders.count)
    assert counts == [2, 4, 6, 6]


@pytest.mark.parametrize("between", ["in time", "another case"])
def test_being_late_now_and_then_does_not_count(between):
    decoders = Decoders(1, 6)
    for _ in range(5):
        for _ in range(LATE):
            decoders.note(True)
        decoders.note(False) if between == "in time" else decoders.begin()
    assert decoders.count == 1


def test_a_queue_tells_who_is_late():
    late, taken = [], Semaphore(1)
    items = ahead((i for i in range(6) if taken.acquire()), 3, late=late.append)
    assert [i for i in items if taken.release() is None] == [0, 1, 2, 3, 4, 5]
    assert late == [True] * 6
    late.clear()
    for i in ahead(range(40), 3, late=late.append):
        while len(late) < min(i + 5, 40):  # three wait, and the next is in hand
            time.sleep(0.001)
    assert late.count(True) <= 2  # the first ones, before anything waits


@pytest.mark.parametrize("name", FORMATS)
def test_pixels_are_the_same_with_more(name, raster, tmp_path):
    pixels = np.random.default_rng(0).integers(1, 255, (3, 700, 900), dtype=np.uint8)
    pixels[:, 100:300, 200:400] = 0
    path = str(raster(name, pixels, nodata=0, **FORMATS[name]))
    model = pixelwise(tmp_path / "m.onnx", tile=[128, 128], overlap=[64, 64])
    spec = read_spec(load_settings(None, {"input": (path,), "model": model, "device": "cpu"}))

    def tiles(decoders):
        def within():
            with gdal_options(decoders.count):
                yield from cut_tiles(windows_of([Case("case", path)], Reading(spec, decoders=decoders)))

        # as for a model that always waits
        with closing(ahead(within(), 3, late=lambda _: decoders.note(True))) as got:
            return [(tile.index, tile.patch) for tile in got]

    alone, several = Decoders(1, 1), Decoders(1, 4)
    for (index, expected), (i, found) in zip(tiles(alone), tiles(several), strict=True):
        assert index == i
        assert (expected is None) == (found is None)
        if expected is not None:
            assert np.array_equal(expected.pixels, found.pixels)
            assert np.array_equal(expected.invalid, found.invalid)
    assert several.count == 4


def test_threads_that_a_script_around_names_in_words_are_none():
    with rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS"):
        assert decoders() is None
    with rasterio.Env(GDAL_NUM_THREADS=3):
        assert decoders() == 3
