"""Models in the forms that people have, each through a run with `crop`, against ONNX Runtime on the same windows."""

import numpy as np
import pytest
import rasterio
from model_forms import FORMS, Form, make, of_windows
from networks import Network, contract, toml

from segpipe.errors import ContractError, SettingsError

SIZE = (150, 203)
TILE, OVERLAP, ALIGN = (64, 64), (16, 16), (4, 4)


@pytest.fixture
def pixels():
    return np.random.default_rng(5).integers(0, 256, (3, *SIZE), dtype=np.uint8)


@pytest.fixture
def source(raster, pixels):
    return raster("in/a.tif", pixels)


def described(model, form, **changes):
    """Write the contract of a form beside its model."""
    values = {"layout": form.layout, "output_layout": form.out_layout, "tile": [*TILE], "overlap": [*OVERLAP], "align": 4}
    raw = {"scale": 1.0, "scaling": "graph"} if form.inside is not None else {}
    values = contract(3, form.classes, **values | raw | changes)
    model.with_suffix(".toml").write_text(toml(values))
    return model


def mask(out):
    with rasterio.open(out / "a.tif") as dataset:
        return dataset.read(1)


def scaled(window):
    return window.astype(np.float32) * np.float32(1 / 255)


def stored(window):
    return window


@pytest.mark.parametrize("name", FORMS)
def test_labels_are_those_of_onnx_runtime(name, pixels, source, tmp_path, run_serial):
    form = FORMS[name]
    tile = TILE if isinstance(form.sizes[0], str) else tuple(form.sizes)
    model = described(make(tmp_path / "m.onnx", form), form, tile=[*tile], **form.keys)
    with rasterio.open(run_serial(source, model, blend="crop") / "a.tif") as dataset:
        found = dataset.read()
    scale = scaled if form.inside is None else stored
    truth = form.labels(of_windows(model, pixels, form, tile=tile, overlap=OVERLAP, align=ALIGN, scale=scale))
    assert len(np.unique(truth)) > 1
    assert (found == truth).mean() >= 0.9999


def test_parts_change_no_byte_of_a_mixture(source, tmp_path, run_serial):
    form = FORMS["uint8, channels last in, first out"]
    model = described(make(tmp_path / "m.onnx", form), form)
    one = run_serial(source, model, output=tmp_path / "one")
    for parts in (2, 7):
        other = run_serial(source, model, output=tmp_path / f"{parts}", parts=parts)
        assert (one / "a.tif").read_bytes() == (other / "a.tif").read_bytes()


def test_the_axes_of_the_output_are_named_if_they_are_others(source, tmp_path, run_serial):
    form = FORMS["channels last in, first out"]
    model = described(make(tmp_path / "m.onnx", form), form, output_layout=None)
    with pytest.raises(ContractError, match=r'are NCHW, and the contract says NHWC: add output_layout = "NCHW"'):
        run_serial(source, model)


@pytest.mark.parametrize("tile", [65, 75, 76])
def test_a_fixed_tile_need_not_be_a_multiple_of_align(tile, raster, tmp_path, run_serial):
    """As 513, 300 and 518 with an align of 32, which the contract does not name."""
    pixels = np.random.default_rng(3).integers(0, 256, (3, 200, 170), dtype=np.uint8)
    form = Form(sizes=(tile, tile))
    model = described(make(tmp_path / "m.onnx", form), form, tile=None, overlap=[16, 16], align=None)
    out = run_serial(raster("in/a.tif", pixels), model, blend="crop")
    truth = of_windows(model, pixels, form, tile=(tile, tile), overlap=(16, 16), align=(32, 32), scale=scaled)
    assert (mask(out) == truth.argmax(axis=0)).mean() >= 0.9999
    two = run_serial(raster("in/a.tif", pixels), model, blend="crop", output=tmp_path / "two", parts=2)
    assert (out / "a.tif").read_bytes() == (two / "a.tif").read_bytes()


def test_a_free_tile_is_a_multiple_or_one_more(source, tmp_path, run_serial):
    form = Form()
    model = described(make(tmp_path / "m.onnx", form), form, align=32, overlap=[0, 0])
    run_serial(source, model, tile=65)
    with pytest.raises(SettingsError, match=r"tile must be a multiple of align, .*got tile 70 and align 32: take --tile 64"):
        run_serial(source, model, tile=70, output=tmp_path / "other")


ODD = [(65, "align_corners", True), (75, "half_pixel", False), (66, "half_pixel", False), (68, "half_pixel", False)]


@pytest.mark.parametrize(("tile", "named", "aligned"), ODD)
def test_coarser_grids_are_brought_to_the_pixels_as_torch_does(tile, named, aligned, raster, tmp_path, run_serial):
    """65 to 17 is (n - 1) / s + 1; 75 to 19 and 66 to 17 are n / s rounded up; 68 to 17 is n / s."""
    import torch

    pixels = np.random.default_rng(3).integers(0, 256, (3, tile, tile), dtype=np.uint8)
    form = Form(sizes=(tile, tile), stride=4)
    model = described(make(tmp_path / "m.onnx", form), form, tile=None, overlap=[16, 16], align=4)
    out = run_serial(raster("in/a.tif", pixels), model)
    coarse = of_coarse(model, pixels)
    assert coarse.shape[-1] == -(-tile // 4)
    like = {"mode": "bilinear", "align_corners": aligned}
    truth = torch.nn.functional.interpolate(torch.from_numpy(coarse), size=(tile, tile), **like)[0].argmax(0).numpy()
    assert (mask(out) == truth).mean() >= 0.9999
    changed = described(model, form, tile=None, overlap=[16, 16], align=4, upsampling=named)
    same = run_serial(raster("in/a.tif", pixels), changed, output=tmp_path / "named")
    np.testing.assert_array_equal(mask(out), mask(same))
    other = "half_pixel" if aligned else "align_corners"
    described(model, form, tile=None, overlap=[16, 16], align=4, upsampling=other)
    moved = mask(run_serial(raster("in/a.tif", pixels), model, output=tmp_path / "other"))
    like = {"mode": "bilinear", "align_corners": not aligned}
    truth = torch.nn.functional.interpolate(torch.from_numpy(coarse), size=(tile, tile), **like)[0].argmax(0).numpy()
    assert (moved == truth).mean() >= 0.9999
    assert (moved != mask(out)).any()


@pytest.mark.parametrize(("tile", "size"), [(65, 16), (75, 18), (67, 16)])
def test_a_grid_that_pools_round_down_is_brought_to_the_pixels_as_torch_does(tile, size, raster, tmp_path, run_serial):
    import torch

    pixels = np.random.default_rng(3).integers(0, 256, (3, tile, tile), dtype=np.uint8)
    net = Network(3).conv(3, 6, 3).add("Relu")
    for _ in range(2):
        net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    values = contract(3, 4, tile=[tile, tile], overlap=[16, 16], align=4)
    shape, out_shape = (1, tile, tile), (1, 4, size, size)
    model = net.conv(6, 4, 3).save(tmp_path / "m.onnx", values, classes=4, shape=shape, out_shape=out_shape)
    out = run_serial(raster("in/a.tif", pixels), model)
    coarse = of_coarse(model, pixels)
    assert coarse.shape[-1] == size
    like = {"mode": "bilinear", "align_corners": False}
    truth = torch.nn.functional.interpolate(torch.from_numpy(coarse), size=(tile, tile), **like)[0].argmax(0).numpy()
    assert (mask(out) == truth).mean() >= 0.9999


def of_coarse(model, pixels):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": scaled(pixels)[None]})[0]
