"""Messages about contracts and settings: the key, the rule and the value, without words of Python or of pydantic."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import networks
import pytest

from segpipe.contract import Contract, parse_contract
from segpipe.errors import ContractError, SettingsError
from segpipe.settings import Settings, load_settings

WORDS = re.compile(
    r"constrained|Input|[Tt]uple|\bList\b|String|\bbool\b|\bfloat\b|pydantic|pathlib|validation|instance of|dictionary"
)
WRONG: tuple[Any, ...] = (
    None,
    3,
    -1,
    0,
    2.5,
    float("inf"),
    "x",
    "",
    [],
    [None],
    ["x"],
    [0],
    [-1],
    [[1]],
    [1, 2, 3],
    {},
    {"a": {}},
    True,
)


def of_contract(**changes: Any) -> str:
    with pytest.raises(ContractError) as caught:
        parse_contract({**networks.contract(1, 2), **changes}, "m.toml")
    return str(caught.value).removeprefix("m.toml: ")


def of_class(**changes: Any) -> str:
    return of_contract(classes=[{"id": 0, "name": "a"}, {"id": 1, "name": "b", **changes}])


def of_settings(**changes: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(None, {"input": "in", "model": "m.onnx", **changes})
    return str(caught.value)


FORM = 'must be the identifier of a SNOMED CT concept in quotes, such as "10200004", or two, of category and type, got '


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (10200004, f"classes.1.snomed: {FORM}10200004"),
        (["49755003"], f"classes.1.snomed: {FORM}['49755003']"),
        ({}, f"classes.1.snomed: {FORM}{{}}"),
    ],
)
def test_snomed_codes_of_another_form(value: Any, message: str) -> None:
    assert of_class(snomed=value) == message


def test_snomed_codes_that_cannot_be() -> None:
    assert of_class(snomed="10200005") == (
        "classes.1.snomed: must be the identifier of a SNOMED CT concept, whose last digit is a check digit of the others, "
        "got '10200005'"
    )
    assert of_class(snomed=["49755003", "751689013"]).startswith("classes.1.snomed.1: must be the identifier of a SNOMED CT")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("channels", 0, "channels: must be their number, 1 to 65,535, or a list of their names, got 0"),
        ("scale", ["x"], "scale: must be a number, or a list of one per channel, got ['x']"),
        ("scale", float("inf"), "scale: must be finite, got inf"),
        ("clip", [1], "clip: must be two numbers, low and high, or a list of such pairs, one per channel, got [1]"),
        ("clip_percentiles", [1], "clip_percentiles: must have 2 or more values, got [1]"),
        ("align", 0, "align: must be a whole number, 1 or more, or a list of one per axis, got 0"),
        ("tile", [0], "tile.0: must be at least 1, got 0"),
        ("zzz", 1, "unknown key zzz"),
        ("layout", "x", "layout: must be 'NCHW', 'NHWC', 'NCDHW' or 'NDHWC', got 'x'"),
    ],
)
def test_contracts(key: str, value: Any, message: str) -> None:
    assert of_contract(**{key: value}) == message


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lesions", 3, "lesions: must be true, false, or a list of names or ids of classes, got 3"),
        ("lesions", [], "lesions: must be one class or more, or true for all but the background, got []"),
        ("profile", 3, "profile: must be true, false or a path, got 3"),
        ("model", "", "model.0: must not be empty, got ''"),
        ("model", [], "model: must have 1 or more values, got []"),
        ("memory", -1, "memory: must be above 0, got -1"),
        ("tile", "0", "tile.0: must be at least 1, got '0'"),
    ],
)
def test_settings(key: str, value: Any, message: str) -> None:
    assert of_settings(**{key: value}) == message


def said(read: Callable[[], object]) -> str:
    """The message; empty if there is none."""
    try:
        read()
    except (ContractError, SettingsError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("key", Contract.model_fields)
def test_no_message_of_a_contract_has_words_of_python(key: str) -> None:
    messages = [said(partial(parse_contract, {**networks.contract(1, 2), key: value}, "m.toml")) for value in WRONG]
    assert any(messages)
    assert not [message for message in messages if WORDS.search(message)]


@pytest.mark.parametrize("key", Settings.model_fields)
def test_no_message_of_settings_has_words_of_python(key: str) -> None:
    messages = [said(partial(load_settings, None, {"input": "in", "model": "m.onnx", key: value})) for value in WRONG]
    assert any(messages)
    assert not [message for message in messages if WORDS.search(message)]


def test_many_mistakes_are_counted() -> None:
    message = of_contract(**{f"key{n}": n for n in range(8)})
    assert message.count("unknown key") == 5
    assert message.endswith("; and 3 more like these")
