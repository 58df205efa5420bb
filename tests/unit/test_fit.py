"""Whether a graph is what its contract says; contracts themselves are found in test_contract.py and test_deepness.py."""

from pathlib import Path

import numpy as np
import pytest
from networks import contract

from segpipe.contract import parse_contract
from segpipe.errors import ContractError, ModelError
from segpipe.network.fit import check_channels, check_scaling, choose, image_of
from segpipe.network.signature import TensorSpec

PATH = Path("m.onnx")


def tensor(name="image", shape=("n", 3, "h", "w"), dtype="float32"):
    sizes = tuple(size if isinstance(size, int) else None for size in shape)
    return TensorSpec(name, np.dtype(dtype), sizes)


def agreed(**changes):
    return parse_contract({k: v for k, v in contract(3, 3, **changes).items() if v is not None}, "here")


def test_the_only_tensor_is_meant_or_the_one_that_is_named():
    logits, aux = tensor("logits"), tensor("aux")
    assert choose([logits], None, "output", PATH) is logits
    assert choose([logits, aux], "aux", "output", PATH) is aux
    with pytest.raises(ContractError, match=r'2 outputs, and the contract must say which is meant, with output = "\.\.\."'):
        choose([logits, aux], None, "output", PATH)
    with pytest.raises(ContractError, match="no output called scores: it has logits"):
        choose([logits], "scores", "output", PATH)


def test_several_inputs_need_a_contract_that_says_what_each_gets():
    with pytest.raises(ContractError, match=r"takes 2 inputs, and the contract must say what each gets, such as\n"):
        image_of([tensor("before"), tensor("after")], agreed(), PATH)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (tensor(dtype="bool"), ModelError, "must hold floats or integers"),
        (tensor(shape=("n", 3, "d", "h", "w")), ContractError, 'must have 4 axes for layout "NCHW"'),
        (tensor(shape=("n", 4, "h", "w")), ContractError, "got 3 in the contract .* and 4 in m.onnx"),
    ],
)
def test_an_input_that_is_not_the_contracts(image, error, message):
    with pytest.raises(error, match=message):
        check_channels(image, agreed(), PATH)


def test_channels_of_any_number_fit():
    check_channels(tensor(shape=("n", "c", "h", "w")), agreed(), PATH)


def test_integers_are_scaled_by_the_graph_or_not_at_all():
    plain = {"scale": 1.0, "offset": 0.0, "normalize": "none"}
    check_scaling(tensor(dtype="uint8"), agreed(**plain), PATH)
    check_scaling(tensor(), agreed(**plain, clip_percentiles=None), PATH)
    with pytest.raises(ContractError, match=r'takes uint8 pixels, .*set scaling = "graph"'):
        check_scaling(tensor(dtype="uint8"), agreed(**{**plain, "scale": 0.5}), PATH)
