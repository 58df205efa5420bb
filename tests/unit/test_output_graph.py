"""What comes behind a network: the same numbers as torch gives, and a message where the shape fits no contract."""

import numpy as np
import onnxruntime
import pytest
import torch
from networks import local

from segpipe.errors import ContractError, ModelError
from segpipe.network.coarser import CoarserGrid
from segpipe.network.output_graph import Steps, output_graph, output_graph_for
from segpipe.network.read import read_spec
from segpipe.settings import load_settings


def run(model, scores):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"scores": scores})[0]


@pytest.mark.parametrize("activation", ["none", "softmax", "sigmoid"])
@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("last", [False, True])
def test_the_numbers_are_torch_s(last, factor, activation):
    given = np.random.default_rng(0).normal(size=(2, 3, 5, 6)).astype(np.float16)
    expected = torch.from_numpy(given).float()
    if factor > 1:
        expected = torch.nn.functional.interpolate(expected, scale_factor=factor, mode="bilinear", align_corners=False)
    expected = {"none": lambda t: t, "softmax": lambda t: t.softmax(1), "sigmoid": torch.sigmoid}[activation](expected)
    scores = np.moveaxis(given, 1, -1) if last else given
    placed = None if factor == 1 else CoarserGrid((5 * factor, 6 * factor), "half_pixel", factor)
    found = run(output_graph(Steps(4, channels_last=last, placed=placed, activation=activation)), scores.astype(np.float32))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_volumes_are_upsampled_along_three_axes():
    given = np.random.default_rng(0).normal(size=(1, 2, 3, 4, 5)).astype(np.float32)
    like = {"mode": "trilinear", "align_corners": False}
    expected = torch.nn.functional.interpolate(torch.from_numpy(given), scale_factor=2, **like)
    np.testing.assert_allclose(
        run(output_graph(Steps(5, placed=CoarserGrid((6, 8, 10), "half_pixel", 2))), given), expected.numpy(), atol=1e-6
    )


@pytest.mark.parametrize(("centres", "aligned"), [("align_corners", True), ("half_pixel", False)])
@pytest.mark.parametrize(("size", "tile"), [((9, 9), (33, 33)), ((5, 6), (18, 23)), ((38, 38), (75, 75))])
def test_odd_grids_are_upsampled_as_torch_does(size, tile, centres, aligned):
    given = np.random.default_rng(0).normal(size=(2, 3, *size)).astype(np.float32)
    like = {"mode": "bilinear", "align_corners": aligned}
    expected = torch.nn.functional.interpolate(torch.from_numpy(given), size=tile, **like)
    found = run(output_graph(Steps(4, placed=CoarserGrid(tile, centres))), given)
    np.testing.assert_allclose(found, expected.numpy(), atol=5e-5)


def test_labels_take_the_nearest_pixel():
    given = np.random.default_rng(0).integers(0, 9, (1, 1, 5, 6)).astype(np.float32)
    found = run(output_graph(Steps(4, placed=CoarserGrid((15, 18), "half_pixel", 3), nearest=True)), given)
    np.testing.assert_array_equal(found, given.repeat(3, 2).repeat(3, 3))


def test_scores_without_a_class_axis_get_one():
    given = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
    np.testing.assert_array_equal(run(output_graph(Steps(3, flat=True)), given), given[:, None])


@pytest.fixture
def spec(tmp_path):
    model = local(tmp_path / "m.onnx", classes=3)
    return read_spec(load_settings(None, {"input": ("a.tif",), "model": model, "device": "cpu", "batch": 2}))


def test_scores_at_full_size_need_nothing(spec):
    assert output_graph_for(spec, (2, 3, 64, 64)) is None
    assert output_graph_for(spec, (2, 3, 16, 16)) is not None


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        ((1, 3, 64, 64), ModelError, "scores for each of 2 tiles"),
        ((2, 4, 64, 64), ContractError, "gives 4 scores per pixel.*needs 3"),
        ((2, 64, 64), ContractError, "gives 1 scores per pixel"),
        ((2, 3), ModelError, "must be class scores per pixel"),
        ((2, 3, 64, 32), ModelError, "the input's size, or one pixel per stride, rounded up or down, got 64 x 32"),
        ((2, 3, 60, 60), ModelError, "the middle of the tile"),
    ],
)
def test_a_shape_that_fits_nothing_is_named(shape, kind, message, spec):
    with pytest.raises(kind, match=message):
        output_graph_for(spec, shape)
