"""Inputs of a network in a contract: which channels each takes, and what is refused."""

import json

import pytest
from networks import contract
from pydantic import ValidationError

from segpipe.contract import Contract, parse_contract
from segpipe.contract.inputs import positions
from segpipe.errors import ContractError

NAMES = ["red", "green", "blue", "red", "green", "dem"]


def terms(inputs, channels=6, **changes):
    return parse_contract(contract(channels, 3, inputs=inputs, **changes), "c.toml")


@pytest.mark.parametrize(
    ("channels", "given", "wanted"),
    [
        (6, "0:3", (0, 1, 2)),
        (6, " 3 : 6 ", (3, 4, 5)),
        (6, ":", (0, 1, 2, 3, 4, 5)),
        (6, [5, 0], (5, 0)),
        (NAMES, ["dem", "blue"], (5, 2)),
        (NAMES, ["dem", 0], (5, 0)),
    ],
)
def test_channels_are_names_positions_or_a_slice(channels, given, wanted):
    rest = {"other": {"channels": ":"}}
    own = terms({"image": {"channels": given}, **rest}, channels)
    assert positions("image", own.inputs["image"], own.channels) == wanted


IMAGE = {"image": {"channels": ":"}}

REFUSED = {
    "no such name": ({"image": {"channels": ["nir"]}}, NAMES, r"must be of the contract's channels, got nir, which has red"),
    "names of none": ({"image": {"channels": ["nir"]}}, 6, r"got nir, which has only their number"),
    "two of a name": (
        {"image": {"channels": ["red"]}},
        NAMES,
        r"2 channels are called red: give their positions, or a slice",
    ),
    "beyond": ({"image": {"channels": [6]}}, 6, r"must be 0 to 5, got 6: they are counted from 0"),
    "slice beyond": ({"image": {"channels": "0:7"}}, 6, r'within the 6 channels such as "0:6", .* got "0:7"'),
    "no slice": ({"image": {"channels": "red"}}, NAMES, r'got "red"'),
    "a number": ({"image": {"channels": 3}}, 6, r"must be a list of names or of positions from 0, or a slice"),
    "idle": ({"image": {"channels": "0:5"}}, NAMES, r"none takes dem: leave it out of channels, or give it to an input"),
    "idle by number": ({"image": {"channels": "0:5"}}, 6, r"none takes 5: leave it out"),
    "constants alone": ({"date": {"value": 1}}, 6, r"must have one that takes channels, got constants only"),
    "both": ({"image": {"channels": ":", "value": 1}}, 6, r"has channels, or a value where it is constant, got both"),
    "neither": ({"image": {}}, 6, r"got neither"),
    "dates of a value": ({**IMAGE, "d": {"value": 1, "dates": 2}}, 6, r"axes and dates are for an input of channels"),
    "no number": ({**IMAGE, "d": {"value": "x"}}, 6, r"must be a number, or lists of numbers of one length"),
    "no value yet": ({**IMAGE, "d": {"value": []}}, 6, r"must be a finite number, or lists of 1 to 100,000"),
    "not finite": ({**IMAGE, "d": {"value": [float("nan")]}}, 6, r"finite"),
    "ragged": ({**IMAGE, "d": {"value": [[1], [1, 2]]}}, 6, r"lists of numbers of one length"),
    "uneven dates": ({"image": {"channels": ":", "axes": "NTCHW", "dates": 4}}, 6, r"for each of 4 dates, got 6 in all"),
    "dates without an axis": ({"image": {"channels": ":", "axes": "NCHW", "dates": 2}}, 6, r"need an axis T, such as axes"),
    "axes": ({"image": {"channels": ":", "axes": "NCWH2"}}, 6, r'must be N, C and H, W, each once, with T .* got "NCWH2"'),
    "none": ({}, 6, r"inputs: must have 1 or more values"),
    "unknown key": ({"image": {"channels": ":", "date": 1}}, 6, r"unknown key inputs.image.date"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(case):
    inputs, channels, match = REFUSED[case]
    with pytest.raises(ContractError, match=match):
        terms(inputs, channels)


def test_keys_for_one_input_are_refused_beside():
    with pytest.raises(ContractError, match=r'got input = "image" as well: leave input out'):
        terms(IMAGE, input="image")
    with pytest.raises(ContractError, match=r"got neighbours = 1 and inputs: leave one out"):
        terms(IMAGE, neighbours=1)


def test_a_contract_without_inputs_is_written_as_before_and_one_with_them_comes_back():
    assert "inputs" not in json.loads(Contract.model_validate(contract(6, 3)).model_dump_json())
    own = terms({"image": {"channels": "0:6", "axes": "NTCHW", "dates": 2}, "d": {"value": [[1, 2]]}})
    written = json.loads(own.model_dump_json(exclude_none=True))
    assert written["inputs"] == {
        "image": {"channels": "0:6", "axes": "NTCHW", "dates": 2},
        "d": {"value": [[1, 2]]},
    }
    assert parse_contract(written, "written") == own


def test_dates_repeat_channels_and_their_scaling():
    changes = {"normalize": "fixed", "mean": [1.0, 2.0], "std": 3.0, "clip": [0, 4], "scale": [0.5, 0.25]}
    own = parse_contract(contract(["a", "b"], 3, dates=2, **changes), "c.toml")
    assert own.channels == ["a", "b", "a", "b"]
    assert (own.mean, own.std, own.scale, own.clip) == ([1.0, 2.0, 1.0, 2.0], 3.0, [0.5, 0.25, 0.5, 0.25], (0, 4))
    assert parse_contract(contract(2, 3, dates=3, clip=[[0, 1], [0, 2]]), "c.toml").clip == [(0, 1), (0, 2)] * 3
    with pytest.raises((ContractError, ValidationError), match=r"dates must be a whole number, 1 to 1,000, got 0"):
        parse_contract(contract(2, 3, dates=0), "c.toml")


def test_a_file_of_some_channels_has_a_contract_of_these():
    own = terms({"a": {"channels": "0:4"}, "b": {"channels": "4:6"}}, NAMES, scale=[1, 2, 3, 4, 5, 6])
    part = own.of_channels((4, 5))
    assert (part.channels, part.scale, part.inputs) == (["green", "dem"], [5, 6], None)
