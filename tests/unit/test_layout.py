"""Axes of a network's tensors, against transposed arrays; which layout a bare model most likely has."""

import numpy as np
import pytest
from networks import contract, volumetric
from pydantic import ValidationError

from segpipe.contract import Contract
from segpipe.errors import SourceError
from segpipe.geometry.layout import Layout, likely_layout
from segpipe.network.read import read_spec
from segpipe.settings import load_settings

SPATIAL = {2: (5, 7), 3: (4, 5, 7)}


@pytest.mark.parametrize("layout", Layout)
def test_an_array_goes_into_the_layout_and_back(layout):
    first = np.arange(2 * 3 * np.prod(SPATIAL[layout.ndim])).reshape(2, 3, *SPATIAL[layout.ndim])
    expected = np.moveaxis(first, 1, -1) if layout.endswith("C") else first
    own = first.transpose(layout.from_first)
    np.testing.assert_array_equal(own, expected)
    np.testing.assert_array_equal(own.transpose(layout.to_first), first)
    assert layout.shape(first.shape) == own.shape
    assert layout.channels(own.shape) == 3
    assert layout.spatial(own.shape) == SPATIAL[layout.ndim]
    assert layout.has_class_axis(own.shape)
    assert layout.has_class_axis(own.shape[:-1]) is False
    assert layout.has_class_axis((1,)) is None


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((None, 3, None, None), "NCHW"),
        ((None, None, None, 3), "NHWC"),
        ((1, 3, 64, 64), "NCHW"),
        ((1, 64, 64, 3), "NHWC"),
        ((None, None, None, None), "NCHW"),
        ((1, 1, 96, 96, 96), "NCDHW"),
        ((1, 96, 96, 96, 2), "NDHWC"),
        ((None, None, None, None, 1), "NDHWC"),
        ((None, None, None, None, None), "NCDHW"),
        ((1, 64, 64), "NCHW"),
    ],
)
def test_channels_are_the_axis_of_a_fixed_size_or_the_smaller_one(shape, layout):
    assert likely_layout(shape) == layout


def test_a_contract_is_written_as_before():
    written = Contract.model_validate(contract(3, 3, layout="NHWC")).model_dump(mode="json")
    assert (written["layout"], written["spacing_unit"]) == ("NHWC", "m")


def test_spacing_of_volumes_is_in_mm_unless_said_otherwise():
    keys = {"layout": "NCDHW", "tile": [8], "overlap": [0], "spacing": [1.0, 0.5, 0.5]}
    assert Contract.model_validate(contract(1, 2, **keys)).spacing_unit == "mm"
    assert Contract.model_validate(contract(1, 2, **keys, spacing_unit="um")).spacing_unit == "um"


@pytest.mark.parametrize("sides", ["RAS", "LPS", "SAR", "ILP", "PIR"])
def test_an_orientation_names_one_side_of_each_axis(sides):
    assert Contract.model_validate(contract(1, 2, layout="NCDHW", tile=[8], orientation=sides)).orientation == sides


@pytest.mark.parametrize("sides", ["RAR", "RLS", "RA", "RASS", "ras", "XYZ", "", "R A", "RAΣ"])
def test_anything_else_is_no_orientation(sides):
    with pytest.raises(ValidationError, match='one of S and I, such as "RAS", got'):
        Contract.model_validate(contract(1, 2, layout="NCDHW", tile=[8], orientation=sides))


def test_a_network_of_volumes_refuses_images(tmp_path):
    model = volumetric(tmp_path / "m.onnx", (8, 8, 8))
    spec = read_spec(load_settings(None, {"input": ("-",), "model": model, "device": "cpu"}))
    assert spec.tiling_of((70, 90, 50)) == spec.tiling
    with pytest.raises(SourceError, match=r'needs volumes, got an image of 200 x 300 .* layout "NCDHW": take a model of im'):
        spec.tiling_of((200, 300))
