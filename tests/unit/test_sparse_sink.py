"""Maps of which little has data: the pixels, overviews and properties of GDAL's own COG of them, without its cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from fields import UTM
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.io import DatasetReader
from rio_cogeo.cogeo import cog_validate

from segpipe.errors import OutputError
from segpipe.formats.raster import sparse_sink
from segpipe.formats.raster.gdal import gdal_options
from segpipe.formats.raster.sink import DraftSink, RasterSink
from segpipe.formats.raster.sparse_sink import SparseSink, map_sink
from segpipe.formats.raster.tiff import directories
from segpipe.formats.style import Style
from segpipe.geometry.raster_grid import RasterGrid
from segpipe.geometry.windows import Window
from segpipe.storage.folder import DRAFTS, Folder

EAST = CRS.from_epsg(32633)
CLASSES = Style(
    "uint8",
    255,
    ["class"],
    {0: (1, 2, 3, 255), 7: (9, 8, 7, 255), 255: (0, 0, 0, 0)},
    {0: "a", 7: "b"},
    {"SEGPIPE": "x & y"},
)
STYLES = {
    "classes": CLASSES,
    "bands": Style("uint8", 255, ["a", "b", "c"], tags={"SEGPIPE": "x"}),
    "many": Style("uint16", 65535, ["class"], names={0: "a"}),
}
TILE = 512

Blocks = Mapping[tuple[int, int], NDArray[Any]]


def labelled(shape: tuple[int, int], style: Style, places: list[tuple[int, int]]) -> Blocks:
    """Random labels of some tiles, with holes, by row and column of the tile."""
    rng, found = np.random.default_rng(5), {}
    for row, col in places:
        sides = [min(TILE, side - TILE * k) for side, k in zip(shape, (row, col), strict=True)]
        found[row, col] = rng.choice([0, 7, style.nodata], (len(style.bands), *sides)).astype(style.dtype)
    return found


def write(sink: RasterSink, shape: tuple[int, int], blocks: Blocks) -> list[str]:
    for window in Window.whole(shape).blocks((TILE, TILE)):
        place = window.start[0] // TILE, window.start[1] // TILE
        if place in blocks:
            sink.write(window, blocks[place])
        else:
            sink.leave(window)
    return sink.finish()


def as_gdal_sees(path: Path) -> str:
    """All that GDAL makes of a file and its sidecar, as it writes it into a VRT."""
    copy = path.with_name("oracle.vrt")
    rasterio.shutil.copy(path, copy, driver="VRT")
    root = ElementTree.parse(copy).getroot()
    copy.unlink()
    return ElementTree.tostring(root, encoding="unicode")


def levels(path: Path) -> list[tuple[NDArray[Any], dict[str, Any]]]:
    """Pixels and properties of a raster and of its overviews."""

    def facts(dataset: DatasetReader) -> tuple[NDArray[Any], dict[str, Any]]:
        kinds = {"interpretation": dataset.colorinterp, "dtypes": dataset.dtypes, "nodata": dataset.nodatavals}
        palette = dataset.colormap(1) if "palette" in str(dataset.colorinterp) else None
        return dataset.read(), {**kinds, "palette": palette, "blocks": dataset.block_shapes}

    with rasterio.open(path) as dataset:
        found, count = [facts(dataset)], len(dataset.overviews(1))
    for level in range(count):
        with rasterio.open(path, overview_level=level) as overview:
            found.append(facts(overview))
    return found


@pytest.mark.parametrize("kind", STYLES)
@pytest.mark.parametrize("shape", [(2048, 1024), (1536, 2600)], ids=str)
def test_a_sparse_map_is_that_of_gdal(kind: str, shape: tuple[int, int], tmp_path: Path) -> None:
    style, grid = STYLES[kind], RasterGrid(shape, EAST, UTM, area_or_point="Area")
    blocks = labelled(shape, style, [(0, 0), ((shape[0] - 1) // TILE, (shape[1] - 1) // TILE)])
    found = {}
    for sink in (DraftSink, SparseSink):
        folder = tmp_path / sink.__name__
        folder.mkdir()
        with gdal_options():
            names = write(sink(Folder(folder), "map.tif", grid, style, 1), shape, blocks)
        assert sorted(names) == sorted(path.name for path in folder.iterdir() if path.is_file())
        assert list((folder / DRAFTS).iterdir()) == []
        found[sink] = folder / "map.tif"
    (gdal, own), file = found.values(), found[SparseSink]
    assert as_gdal_sees(own) == as_gdal_sees(gdal)
    for (expected, kinds), (pixels, others) in zip(levels(gdal), levels(own), strict=True):
        np.testing.assert_array_equal(pixels, expected)
        assert kinds == others
    assert cog_validate(own, strict=True) == cog_validate(gdal, strict=True)
    with file.open("rb") as stream:
        assert int((next(directories(stream)).blocks[1] > 0).sum()) == 2
    with rasterio.open(file) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


def test_a_large_sparse_map_is_a_valid_cog(tmp_path: Path) -> None:
    shape = (40_000, 30_000)
    blocks = labelled(shape, CLASSES, [(3, 4), (70, 58)])
    with gdal_options():
        sink = SparseSink(Folder(tmp_path), "map.tif", RasterGrid(shape, EAST, UTM), CLASSES, 1)
        for (row, col), labels in blocks.items():
            start = row * TILE, col * TILE
            sink.write(Window(start, (start[0] + labels.shape[1], start[1] + labels.shape[2])), labels)
        left = shape[0] * shape[1] - sum(labels[0].size for labels in blocks.values())
        sink.leave(Window((0, 0), (1, left)))
        sink.finish()
    assert cog_validate(tmp_path / "map.tif", strict=True) == (True, [], [])
    assert (tmp_path / "map.tif").stat().st_size < 400_000
    with rasterio.open(tmp_path / "map.tif") as dataset:
        for (row, col), labels in blocks.items():
            place = rasterio.windows.Window(col * TILE, row * TILE, labels.shape[2], labels.shape[1])
            np.testing.assert_array_equal(dataset.read(window=place), labels)
        assert (dataset.read(1, window=rasterio.windows.Window(0, 20_000, 30_000, 600)) == 255).all()


@pytest.mark.parametrize("shape", [(1, 5001), (1030, 2601)], ids=str)
def test_overviews_have_every_second_pixel_of_sides_that_are_odd(shape: tuple[int, int], tmp_path: Path) -> None:
    blocks = labelled(shape, CLASSES, [(k // 6, k % 6) for k in range(18) if k // 6 * TILE < shape[0]])
    with gdal_options():
        write(SparseSink(Folder(tmp_path), "map.tif", RasterGrid(shape, EAST, UTM), CLASSES, 1), shape, blocks)
    (whole, _), *overviews = levels(tmp_path / "map.tif")
    assert overviews[-1][0].shape[-1] <= 512
    for level, (pixels, _) in enumerate(overviews, 1):
        np.testing.assert_array_equal(pixels, whole[:, :: 2**level, :: 2**level])


def test_a_sparse_map_without_data_is_empty(tmp_path: Path) -> None:
    shape = (1500, 700)
    with gdal_options():
        write(SparseSink(Folder(tmp_path), "map.tif", RasterGrid(shape, EAST, UTM), CLASSES, 1), shape, {})
    assert all((pixels == 255).all() for pixels, _ in levels(tmp_path / "map.tif"))
    assert (tmp_path / "map.tif").stat().st_size < 8000


@pytest.mark.parametrize("kind", [DraftSink, SparseSink])
def test_no_draft_is_left_where_gdal_writes_a_sidecar_for_its_crs(kind: type[RasterSink], tmp_path: Path) -> None:
    rotated = CRS.from_user_input("+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +R=6371229 +no_defs")
    with gdal_options():
        write(kind(Folder(tmp_path), "map.tif", RasterGrid((600, 700), rotated, UTM), CLASSES, 1), (600, 700), {})
    assert list((tmp_path / DRAFTS).iterdir()) == []
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert dataset.crs.to_wkt() == rotated.to_wkt()


def test_a_block_that_is_not_on_the_disk_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a block of nodata in place of labels, as after a lost write."""
    shape, assemble = (600, 1100), sparse_sink.assemble
    blocks = labelled(shape, CLASSES, [(0, 0), (1, 2)])

    def without_last_block(drafts: list[Path], target: Path) -> None:
        with rasterio.open(drafts[0], "r+") as draft:
            draft.write(np.full((1, 88, 76), 255, np.uint8), window=rasterio.windows.Window(1024, 512, 76, 88))
        assemble(drafts, target)

    monkeypatch.setattr(sparse_sink, "assemble", without_last_block)
    with gdal_options(), pytest.raises(OutputError, match=r"map\.tif cannot be written: not all of it has reached the disk"):
        write(SparseSink(Folder(tmp_path), "map.tif", RasterGrid(shape, EAST, UTM), CLASSES, 1), shape, blocks)
    assert [path.name for path in tmp_path.iterdir()] == [DRAFTS]
    assert list((tmp_path / DRAFTS).iterdir()) == []


def test_only_large_maps_with_little_data_are_sparse(tmp_path: Path) -> None:
    kinds = []
    for side, share in ((40_000, 0.1), (40_000, 0.6), (2_000, 0.1)):
        sink = map_sink(Folder(tmp_path), "map.tif", RasterGrid((side, side), EAST, UTM), CLASSES, share)
        kinds.append(type(sink) is SparseSink)
        sink.discard()
    assert kinds == [True, False, False]
