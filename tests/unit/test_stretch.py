"""Windows that are read at one go are what they are when each is read alone."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import pixelwise

from segpipe.formats.case import Case
from segpipe.formats.raster.gdal import gdal_options
from segpipe.formats.raster.source import RasterSource
from segpipe.geometry.windows import Part, Window
from segpipe.network.read import read_spec
from segpipe.pipeline.opening import open_checked
from segpipe.pipeline.read import Failed, Reading, windows_of
from segpipe.pipeline.stretch import stretches
from segpipe.pipeline.tiles import Tile, cut_tiles
from segpipe.settings import load_settings


@given(st.tuples(*[st.tuples(st.integers(0, 4), st.integers(1, 9))] * 2), st.integers(1, 3), st.integers(1, 8))
def test_stretches_are_all_windows_in_order_and_grow(axes, first, most):
    windows = Part(tuple(a for a, _ in axes), tuple(a + n for a, n in axes))
    most = max(first, most)
    found = list(stretches(windows, first, most))
    assert [index for stretch in found for index in stretch] == list(windows)
    assert all(len({index[0] for index in stretch}) == 1 for stretch in found)
    assert len(found[0]) == min(first, axes[1][1])
    for number, stretch in enumerate(found):
        at_end = stretch[-1][1] == windows.stop[1] - 1
        expected = min(first * 2**number, most)
        assert len(stretch) == expected or (at_end and len(stretch) < expected)


@pytest.mark.parametrize("shape", [(40, 50), (64, 64), (64, 300), (300, 70), (205, 333), (333, 1000)])
@pytest.mark.parametrize("nodata", ["none", "some", "columns"])
def test_tiles_are_those_that_are_read_alone(shape, nodata, raster, tmp_path, monkeypatch):
    """Far borders are mirrored, also of a case that is smaller than a tile."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(1, 60_000, (3, *shape)).astype(np.uint16)
    if nodata == "some":
        pixels[:, rng.random(shape) < 0.01] = 0
    elif nodata == "columns":
        pixels[:, :, shape[1] // 2 :] = 0
    path = str(raster("a.tif", pixels, nodata=0))
    model = pixelwise(tmp_path / "m.onnx", tile=[64, 64], overlap=[16, 16])
    spec = read_spec(load_settings(None, {"input": (path,), "model": model, "device": "cpu"}))
    spec = replace(spec, device="cpu-tensors")

    def tiles(size):
        monkeypatch.setattr("segpipe.pipeline.read.STRETCH_BYTES", size)
        with gdal_options():
            return list(cut_tiles(windows_of([Case("a", path)], Reading(spec))))

    began: list[int] = []
    begin = RasterSource.begin
    monkeypatch.setattr(
        RasterSource,
        "begin",
        lambda source, window, *threads: began.append(window.shape[1]) or begin(source, window, *threads),
    )
    alone = tiles(1)
    for size in (3 * 64 * 64 * (3 * 2 + 3), 2**26):
        began.clear()
        together = tiles(size)
        assert max(began) == shape[1] if size == 2**26 and shape[1] < 200 else max(began) > min(64, shape[1] - 1)
        assert [tile.index for tile in together] == [tile.index for tile in alone]
        for one, other in zip(alone, together, strict=True):
            assert (one.patch is None) == (other.patch is None)
            if one.patch is not None:
                np.testing.assert_array_equal(one.patch.pixels, other.patch.pixels)
                np.testing.assert_array_equal(one.patch.invalid, other.patch.invalid)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_invalid_is_nodata_of_any_band_and_what_is_not_finite(dtype, raster, tmp_path):
    """Windows of different sizes in turn: the memory in which it is sought is taken again."""
    rng = np.random.default_rng(2)
    pixels = rng.integers(1, 4, (3, 90, 110)).astype(dtype)
    if dtype == "float32":
        pixels[0, rng.random((90, 110)) < 0.1] = np.nan
        pixels[2, rng.random((90, 110)) < 0.1] = np.inf
    path = str(raster("a.tif", pixels, nodata=2))
    expected = (pixels == 2).any(axis=0) | ~np.isfinite(pixels).all(axis=0)
    spec = read_spec(load_settings(None, {"input": (path,), "model": pixelwise(tmp_path / "m.onnx"), "device": "cpu"}))
    source, _ = open_checked(Case("a", path), spec)
    assert isinstance(source, RasterSource)
    with gdal_options(), closing(source):
        begun = []
        for row, col, height, width in ((0, 0, 10, 20), (5, 5, 80, 100), (3, 90, 7, 20), (0, 0, 90, 110)):
            window = Window((row, col), (row + height, col + width))
            begun.append((window, source.begin(window)))
        for window, end in begun:  # all are decoded before the first is looked at
            found, invalid = end()
            box = tuple(slice(a, b) for a, b in zip(window.start, window.stop, strict=True))
            np.testing.assert_array_equal(found, pixels[(slice(None), *box)])
            np.testing.assert_array_equal(invalid, expected[box])


def raw_spec(path, model):
    spec = read_spec(load_settings(None, {"input": (str(path),), "model": model, "device": "cpu"}))
    return replace(spec, device="cpu-tensors")


def test_what_fails_while_windows_are_cut_costs_only_its_case(raster, tmp_path, monkeypatch):
    """It is another thread than the one that reads."""
    paths = {name: str(raster(f"{name}.tif", np.ones((3, 200, 900), np.uint8), nodata=0)) for name in "abc"}
    model = pixelwise(tmp_path / "m.onnx", tile=[64, 64], overlap=[16, 16])
    seek, sought = RasterSource._invalid, []

    def failing(source, pixels, masks):
        sought.append(source._path)
        if source._path == paths["b"] and sought.count(paths["b"]) == 2:
            raise MemoryError("no room")
        return seek(source, pixels, masks)

    monkeypatch.setattr(RasterSource, "_invalid", failing)
    with gdal_options():
        cases = [Case(name, path) for name, path in paths.items()]
        tiles = list(cut_tiles(windows_of(cases, Reading(raw_spec(paths["a"], model)))))
    ended = [(tile.case.name, str(tile.error)) for tile in tiles if isinstance(tile, Failed)]
    assert [name for name, _ in ended] == ["b"]
    assert "no room" in ended[0][1]
    counts = [sum(tile.case.name == name for tile in tiles) for name in "abc"]
    assert counts[0] == counts[2] == 76
    assert counts[1] < 10
    assert sought.count(paths["b"]) == 2  # it is read no further


def test_a_vrt_is_read_window_by_window(raster, tmp_path, monkeypatch):
    """GDAL resamples its sources request by request, and parts must be what the whole is."""
    pixels = np.random.default_rng(0).integers(1, 60_000, (3, 150, 500)).astype(np.uint16)
    path = raster("a.tif", pixels, nodata=0)
    vrt = tmp_path / "a.vrt"
    bands = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{band}">'
        f'<ComplexSource resampling="average"><SourceFilename>{path}</SourceFilename>'
        f'<SourceBand>{band}</SourceBand><SrcRect xOff="0" yOff="0" xSize="500" ySize="150"/>'
        f'<DstRect xOff="0.3" yOff="0.4" xSize="333.3" ySize="99.7"/></ComplexSource></VRTRasterBand>'
        for band in (1, 2, 3)
    )
    vrt.write_text(f'<VRTDataset rasterXSize="334" rasterYSize="100">{bands}</VRTDataset>')
    spec = raw_spec(vrt, pixelwise(tmp_path / "m.onnx", tile=[64, 64], overlap=[16, 16]))
    began: list[tuple[int, ...]] = []
    begin = RasterSource.begin
    monkeypatch.setattr(
        RasterSource, "begin", lambda source, window, *threads: began.append(window.shape) or begin(source, window, *threads)
    )
    with gdal_options():
        tiles = list(
            cut_tiles(windows_of([Case("a", str(vrt))], Reading(spec, findings=())))
        )  # somebody has looked at its values
    assert len(began) == len(tiles) > 10
    assert all(isinstance(tile, Tile) for tile in tiles)
    assert max(width for _, width in began) <= 64
