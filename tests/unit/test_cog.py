"""Files that are assembled block by block, read back by GDAL and checked by rio-cogeo."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rio_cogeo.cogeo import cog_validate

from segpipe.formats.raster.cog import assemble

BLOCK = 64


def draft(path: Path, values: np.ndarray) -> Path:
    rows, cols = values.shape
    tiled = {
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "compress": "deflate",
        "sparse_ok": True,
        "bigtiff": "yes",
    }
    place = {"crs": "EPSG:32633", "transform": Affine(10, 0, 5e5, 0, -10, 5e6), "nodata": 255}
    with rasterio.open(path, "w", "GTiff", cols, rows, 1, dtype=values.dtype, **tiled, **place) as file:
        for row in range(0, rows, BLOCK):
            for col in range(0, cols, BLOCK):
                block = values[row : row + BLOCK, col : col + BLOCK]
                if (block != 255).any():  # others stay without bytes
                    file.write(block, 1, window=rasterio.windows.Window(col, row, block.shape[1], block.shape[0]))
    return path


@pytest.mark.parametrize("shape", [(64, 64), (300, 200), (130, 1000)])
def test_a_file_of_levels_is_a_cog_with_their_pixels_and_no_bytes_for_empty_blocks(
    shape: tuple[int, int], tmp_path: Path
) -> None:
    values = np.random.default_rng(0).integers(0, 9, shape, dtype=np.uint8)
    values[:BLOCK, BLOCK:] = 255
    levels = [values, values[::2, ::2], values[::4, ::4]]
    assemble(
        [draft(tmp_path / f"{k}.tif", np.ascontiguousarray(level)) for k, level in enumerate(levels)], tmp_path / "map.tif"
    )
    valid, errors, _ = cog_validate(tmp_path / "map.tif", strict=True)
    assert (valid, errors) == (True, [])
    for k, level in enumerate(levels):
        with rasterio.open(tmp_path / "map.tif", **({} if k == 0 else {"OVERVIEW_LEVEL": k - 1})) as file:
            assert (file.nodata, file.crs.to_epsg()) == (255, 32633)
            np.testing.assert_array_equal(file.read(1), level)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.overviews(1) == [2, 4]
        assert file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1) is not None
        assert file.get_tag_item("BLOCK_OFFSET_1_0", "TIFF", bidx=1) is None  # GDAL knows no bytes of it
