"""The style that a joined map takes from a mask is the one with which the mask was written."""

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from segpipe.errors import OutputError
from segpipe.formats.raster.joined import style_of
from segpipe.formats.raster.sink import raster_sink
from segpipe.formats.style import Style
from segpipe.geometry.raster_grid import RasterGrid
from segpipe.geometry.windows import Window
from segpipe.storage.folder import Folder

GRID = RasterGrid((20, 30), CRS.from_epsg(32633), Affine(10, 0, 500_000, 0, -10, 5_400_000))
COLORS = {1: (10, 20, 30, 255), 7: (40, 50, 60, 255), 255: (0, 0, 0, 0)}
NAMES = {1: "crop", 7: "a wood, or two"}
TAGS = {"SEGPIPE": "0", "MODEL_SHA256": "12", "CLASS_1": "crop", "CLASS_7": "a wood, or two"}
STYLES = [
    Style("uint8", 255, ["class"], COLORS, NAMES, TAGS, legend={1: COLORS[1], 7: COLORS[7]}),
    Style("uint16", 65535, ["class"], None, NAMES, TAGS),
    Style("uint8", 255, ["one", "two"], None, None, {"SEGPIPE": "0", "MODEL_SHA256": "12"}),
]


@pytest.mark.parametrize("style", STYLES, ids=["bytes", "words", "bands"])
def test_a_style_reads_back(style: Style, tmp_path: Path) -> None:
    sink = raster_sink(Folder(tmp_path), "a.tif", GRID, style)
    sink.write(Window((0, 0), (20, 30)), np.ones((len(style.bands), 20, 30), style.dtype))
    sink.finish()
    found = style_of(tmp_path / "a.tif")
    for key in ("dtype", "nodata", "bands", "colors", "names", "legend"):
        assert getattr(found, key) == getattr(style, key), key
    assert {**(found.tags or {}), "SEGPIPE": "0"} == style.tags


def test_a_file_that_is_no_mask_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II")
    with pytest.raises(OutputError, match="cannot be read"):
        style_of(tmp_path / "a.tif")
