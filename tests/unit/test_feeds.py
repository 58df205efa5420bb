"""What each input of a network gets, against indexing by hand; and graphs that do not fit their contract."""

import numpy as np
import onnx
import pytest
import torch
from networks import contract
from several import FORMS, several

from segpipe.contract import parse_contract
from segpipe.errors import ContractError, ModelError
from segpipe.network.feeds import feeds_of
from segpipe.network.read import read_spec
from segpipe.network.signature import TensorSpec
from segpipe.settings import load_settings

F32 = np.dtype(np.float32)


def spec_of(path, **settings):
    return read_spec(load_settings(None, {"input": ("-",), "model": path, "device": "cpu"} | settings))


@pytest.mark.parametrize("form", FORMS)
def test_each_input_gets_its_own(form, tmp_path):
    spec = spec_of(several(tmp_path / "m.onnx", form))
    batch = np.random.default_rng(0).normal(size=(1, FORMS[form].channels, 5, 7)).astype(np.float32)
    wanted, given = FORMS[form].feed(batch[0]), spec.given(batch)
    assert given.keys() == wanted.keys()
    for feed in spec.feeds:
        np.testing.assert_array_equal(given[feed.name], wanted[feed.name])
        assert given[feed.name].flags.c_contiguous
        assert feed.shape(batch.shape) == given[feed.name].shape
        if feed.value is None:  # the same on a device
            own = feed.picked(torch.from_numpy(batch)).permute(feed.order)
            np.testing.assert_array_equal(own.numpy(), wanted[feed.name])


@pytest.mark.parametrize(
    ("axes", "by_hand"),
    [
        ("NTHWC", lambda x: x.reshape(2, 3, 2, 4, 5).transpose(0, 1, 3, 4, 2)),
        ("NHWTC", lambda x: x.reshape(2, 3, 2, 4, 5).transpose(0, 3, 4, 1, 2)),
        ("NHWC", lambda x: x.transpose(0, 2, 3, 1)),
        ("NWHC", lambda x: x.transpose(0, 3, 2, 1)),
    ],
)
def test_axes_may_have_any_order(axes, by_hand):
    dates = {"dates": 3} if "T" in axes else {}
    own = parse_contract(contract(6, 3, inputs={"x": {"channels": ":", "axes": axes, **dates}}), "c.toml")
    tensor = TensorSpec("x", F32, (None,) * len(axes))
    (feed,) = feeds_of(own, tensor, [tensor], "m.onnx")
    batch = np.random.default_rng(0).normal(size=(2, 6, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(feed.given(batch), by_hand(batch))


@pytest.mark.parametrize(
    ("shape", "value", "of_three"),
    [
        ((None, 2), [1, 2], [[1, 2]] * 3),
        ((None, 2), [[1, 2]], [[1, 2]] * 3),
        ((None, 2), 7, [[7, 7]] * 3),
        ((1, 2), [1, 2], [[1, 2]] * 3),
        ((1, 2), [[1, 2]], [[1, 2]]),
        ((), 7, 7),
        ((2,), [1, 2], [1, 2]),
        ((2,), 7, [7, 7]),
        ((None,), 7, [7, 7, 7]),
        ((None, None, 2), [[1, 2], [3, 4]], [[[1, 2], [3, 4]]] * 3),
    ],
)
def test_constants_have_the_shape_of_the_graph(shape, value, of_three):
    own = parse_contract(contract(3, 3, inputs={"x": {"channels": ":"}, "c": {"value": value}}), "c.toml")
    tensors = [TensorSpec("x", F32, (None, 3, None, None)), TensorSpec("c", np.dtype(np.int64), shape)]
    _, feed = feeds_of(own, tensors[0], tensors, "m.onnx")
    np.testing.assert_array_equal(feed.constant(3), np.array(of_three, np.int64))
    assert feed.constant(3).dtype == np.int64


def refused(path, match, error=ContractError, **settings):
    with pytest.raises(error, match=match):
        spec_of(path, **settings)


BOTH = {"before": {"channels": "0:3"}, "after": {"channels": "3:6"}}
SERIES = {"image": {"channels": ":", "axes": "NTCHW"}}

REFUSED = {
    "no such input": (
        "two images",
        BOTH | {"x": {"value": 1}},
        r"has no input called x: it has before \(\?, 3, \?, \?\), after",
    ),
    "one without": ("two images", {"before": {"channels": ":"}}, r"say nothing of after .*give it channels, or a value"),
    "channels": (
        "two images",
        {"before": {"channels": "0:2"}, "after": {"channels": "2:6"}},
        r"got 2 for the input before and 3",
    ),
    "value of another shape": (
        "image and constants",
        FORMS["image and constants"].inputs | {"date": {"value": [1, 2, 3]}},
        r"value of the input date must have the shape \(\?, 2\) or \(2\), got \(3\)",
    ),
    "no axes of dates": ("dates before channels", {"image": {"channels": ":"}}, r'give it axes = "NTCHW" or "NCTHW"'),
    "too many axes": (
        "two images",
        BOTH | {"after": {"channels": "3:6", "axes": "NTCHW"}},
        r"give it axes of as many letters",
    ),
    "other dates": ("dates before channels", {"image": SERIES["image"] | {"dates": 2}}, r"must be the model's 3, got 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_graphs_that_do_not_fit_are_refused(case, tmp_path):
    form, inputs, match = REFUSED[case]
    refused(several(tmp_path / "m.onnx", form, inputs=inputs), match)


def test_several_inputs_without_a_word_of_them_are_refused_with_the_lines_to_write(tmp_path):
    refused(
        several(tmp_path / "m.onnx", "two images", inputs=None),
        r'takes 2 inputs, and the contract must say what each gets, such as\ninputs."before" = \{ channels = "0:3" \}',
    )


def reshaped(path, sizes, dtype=None):
    proto = onnx.load(path)
    value = proto.graph.input[1].type.tensor_type
    for dim, size in zip(value.shape.dim, sizes, strict=True):
        dim.dim_value = size
    value.elem_type = dtype or value.elem_type
    onnx.save(proto, path)
    return path


def test_inputs_of_other_sizes_or_types_are_refused(tmp_path):
    small = reshaped(several(tmp_path / "a.onnx", "two images"), (1, 3, 32, 32))
    first = onnx.load(small)
    for dim, size in zip(first.graph.input[0].type.tensor_type.shape.dim, (1, 3, 64, 64), strict=True):
        dim.dim_value = size
    onnx.save(first, small)
    refused(small, r"must have one batch and one tile, got 64 and 32 along H")
    other = reshaped(several(tmp_path / "b.onnx", "two images"), (1, 3, 64, 64), onnx.TensorProto.DOUBLE)
    refused(other, r"must hold one type, got float32 in before and float64 in after", ModelError)


def test_sizes_that_one_input_fixes_are_the_models(tmp_path):
    spec = spec_of(reshaped(several(tmp_path / "m.onnx", "two images"), (2, 3, 64, 64)))
    assert (spec.batch, spec.batch_is_fixed, spec.tiling.tile) == (2, True, (64, 64))


def test_open_dates_are_those_of_the_channels_or_must_be_said(tmp_path):
    inputs = {"image": {"channels": ":", "axes": "NCTHW"}}
    model = several(tmp_path / "m.onnx", "channels before dates", inputs=inputs)
    assert spec_of(model).feeds[0].dates == 3
    own = parse_contract(contract(6, 3, inputs=inputs), "c.toml")
    tensor = TensorSpec("image", F32, (None,) * 5)
    with pytest.raises(ContractError, match=r"leaves the number of dates of image .* open, .* dates = 3"):
        feeds_of(own, tensor, [tensor], "m.onnx")
