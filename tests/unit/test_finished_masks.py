"""Masks that are opened one after another, by the thousand."""

from contextlib import nullcontext

import numpy as np
import pytest
import rasterio
from rasterio.errors import RasterioIOError

from segpipe.errors import OutputError
from segpipe.formats.raster import mask
from segpipe.geometry.windows import Window


def test_memory_is_given_back_from_time_to_time(tmp_path, monkeypatch):
    """The C library would keep a block of each, in about every second process."""
    path, given = tmp_path / "a.tif", []
    with rasterio.open(path, "w", driver="GTiff", width=5, height=4, count=1, dtype="uint8", crs="EPSG:32633") as made:
        made.write(np.full((1, 4, 5), 7, np.uint8))
    monkeypatch.setattr(mask, "TIDY", 4)
    monkeypatch.setattr(mask, "return_freed_memory", lambda: given.append(1))
    for _ in range(12):
        with mask.open_mask(path) as one:
            assert (one.read(Window((0, 0), (4, 5))) == 7).all()
    assert len(given) == 3


@pytest.mark.parametrize("name", ["open_raster", "raster_window"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_fault_that_has_passed_is_no_damage_of_a_mask(name, times, raster, monkeypatch):
    """GDAL does not pass on the number of an error: totals and zones would be missing for one fault of a file server."""
    path = raster("a.tif", np.arange(72, dtype=np.uint8).reshape(1, 8, 9))
    asked, calls = getattr(mask, name), []

    def faulty(*words):
        calls.append(words)
        if len(calls) <= times:
            raise RasterioIOError("Cannot read TIFF header")
        return asked(*words)

    monkeypatch.setattr(mask, name, faulty)
    window = Window((2, 3), (6, 8))
    ending = nullcontext() if times == 1 else pytest.raises(OutputError, match=r"a.tif cannot be read: Cannot read")
    with ending, mask.open_mask(path) as opened:
        np.testing.assert_array_equal(opened.read(window), np.arange(72).reshape(8, 9)[2:6, 3:8])
    assert len(calls) == 2
