"""Masks that are opened one after another, by the thousand."""

import numpy as np
import rasterio

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
