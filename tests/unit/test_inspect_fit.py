"""How a model lies on a raster: windows by hand, those without a valid pixel counted one by one."""

from contextlib import closing

import numpy as np
import pytest
from inspecting import settings
from networks import local, volumetric

from segpipe.errors import SourceError
from segpipe.formats.case import Case
from segpipe.formats.raster.source import RasterSource
from segpipe.inspect.fit import fit_of
from segpipe.network.read import read_spec
from segpipe.results.run import Run


def test_windows_bands_and_memory(raster, tmp_path):
    pixels = np.full((3, 150, 100), 9, np.uint8)
    pixels[:, :70] = 0
    path, model = raster("a.tif", pixels, ["red", "green", "blue"], nodata=0), local(tmp_path / "m.onnx")
    flags = settings(path, model=model)
    spec = read_spec(flags)
    with closing(RasterSource(str(path), spec.contract, flags.overrides)) as source:
        fit = fit_of(Case("a", str(path)), source, Run(spec, flags))
    # tiles of 64 that overlap by 16 start every 48 pixels: three reach 150 - 64 = 86 with 96 > 86, two 100 - 64 = 36
    assert (fit.tile, fit.grid, fit.windows) == ([64, 64], [3, 2], 6)
    assert fit.empty_windows == 2  # rows 0 to 64 of two columns
    assert [pair["band"] for pair in fit.bands] == [1, 2, 3]
    assert [pair["channel"] for pair in fit.bands] == ["channel 1", "channel 2", "channel 3"]
    assert fit.spacing is None
    assert fit.memory_mb > 100


@pytest.mark.parametrize(("unit", "metres"), [("m", [10.0, 20.0]), ("mm", [0.01, 0.02])])
def test_spacing_is_in_metres(unit, metres, raster, tmp_path):
    path = raster("a.tif", np.full((3, 64, 64), 9, np.uint8))
    flags = settings(path, model=local(tmp_path / "m.onnx", spacing=[10, 20], spacing_unit=unit))
    spec = read_spec(flags)
    with closing(RasterSource(str(path), spec.contract, flags.overrides)) as source:
        assert fit_of(Case("a", str(path)), source, Run(spec, flags)).spacing == pytest.approx(metres)


def test_an_image_for_a_model_of_volumes_is_told_as_that(raster, tmp_path):
    path = raster("a.tif", np.full((1, 64, 64), 9, np.uint8))
    flags = settings(path, model=volumetric(tmp_path / "m.onnx", (8, 8, 8)))
    spec = read_spec(flags)
    with (
        closing(RasterSource(str(path), spec.contract, flags.overrides)) as source,
        pytest.raises(SourceError, match=r"a.tif: a model of volumes needs volumes"),
    ):
        fit_of(Case("a", str(path)), source, Run(spec, flags))
