"""The STAC Item of a model, against the published schemas in tests/schemas."""

import copy
import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from networks import contract as values
from networks import pixelwise
from referencing import Registry, Resource

from segpipe.contract import parse_contract
from segpipe.export.mlm import mlm_item, with_weights
from segpipe.network.scaling import fixed_scaling
from segpipe.network.signature import TensorSpec

SCHEMAS = Path(__file__).parents[1] / "schemas"
STAC = "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json"
CONTENTS = {f"https://{p.relative_to(SCHEMAS)}": json.loads(p.read_text()) for p in sorted(SCHEMAS.rglob("*.json"))}
REGISTRY = Registry().with_resources((url, Resource.from_contents(schema)) for url, schema in CONTENTS.items())
"""Answers for the files alone: a reference to anything else is an error."""

FLOAT = np.dtype("float32")
PROVENANCE = {
    "architecture": "U-Net",
    "framework": "torch 2.15.0",
    "date": "2026-11-03",
    "parameters": 31_337,
    "pretrained": True,
    "pretrained_source": "ImageNet",
}


def faults(item):
    """What the schemas of STAC and of every extension that the item names have against it."""
    item = json.loads(json.dumps(item, allow_nan=False))
    urls = [STAC, *item["stac_extensions"]]
    return [e.message for url in urls for e in Draft7Validator(CONTENTS[url], registry=REGISTRY).iter_errors(item)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return pixelwise(tmp_path_factory.mktemp("mlm") / "U-Net 10 m.onnx")


def made(model, channels=3, classes=3, /, *, shapes=None, dtype=FLOAT, **changes):
    contract = parse_contract(values(channels, classes, **changes), "test")
    inside, outside = shapes or ((None, contract.channel_count, None, None), (None, contract.scores, None, None))
    tensors = (TensorSpec("image", dtype, inside), TensorSpec("scores", FLOAT, outside))
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    return mlm_item(model, contract, sha256=sha256, tensors=tensors)


CONTRACTS = {
    "plain": {},
    "named": {"channels": ["B02", "B03", "B04"], "spacing": [10, 10], "provenance": PROVENANCE},
    "fixed": {"normalize": "fixed", "mean": [0.1, 0.2, 0.3], "std": 0.5},
    "clipped": {"clip": [0, 0.5], "normalize": "fixed", "mean": 0.2, "std": [0.1, 0.2, 0.3]},
    "own statistics": {"normalize": "zscore", "clip": [0, 1]},
    "own extent": {"normalize": "minmax"},
    "graph": {"scaling": "graph"},
    "physical": {"pixel": "physical", "equivariant": True},
    "last": {"layout": "NHWC", "shapes": ((1, 64, 64, 3), (1, 64, 64, 3))},
    "last, named": {"channels": ["r", "g", "b"], "layout": "NHWC", "shapes": ((1, 64, 64, 3), (1, 64, 64, 3))},
    "volume": {
        "layout": "NCDHW",
        "tile": [8, 64, 64],
        "overlap": [2, 16, 16],
        "shapes": ((None, 3, 8, None, None), (None, 3, 8, None, None)),
    },
    "binary": {"task": "binary", "activation": "sigmoid", "classes": [{"id": 1, "name": "road", "color": "#ff8000"}]},
    "flat": {
        "task": "binary",
        "activation": "none",
        "classes": [{"id": 1, "name": "road"}],
        "shapes": ((None, 3, None, None), (None, None, None)),
    },
    "multilabel": {"task": "multilabel", "activation": "sigmoid"},
    "from scratch": {"provenance": {"pretrained": False}},
    "unknown source": {"provenance": {"pretrained": True, "date": "spring"}},
}


@pytest.mark.parametrize("changes", CONTRACTS.values(), ids=CONTRACTS)
def test_every_kind_of_contract_makes_a_valid_item(model, changes):
    assert faults(made(model, **changes)) == []


def test_what_the_item_says(model):
    item = made(model, **CONTRACTS["named"])
    properties = item["properties"]
    assert (item["id"], properties["mlm:name"]) == ("U-Net-10-m", "U-Net-10-m")
    assert properties["datetime"] == "2026-11-03T00:00:00Z"
    assert (properties["mlm:framework"], properties["mlm:framework_version"]) == ("ONNX", onnx.__version__)
    assert (properties["mlm:architecture"], properties["mlm:total_parameters"]) == ("U-Net", 31_337)
    assert (properties["mlm:pretrained"], properties["mlm:pretrained_source"]) == (True, "ImageNet")
    (given_,) = properties["mlm:input"]
    assert given_["bands"] == [b["name"] for b in properties["bands"]] == ["B02", "B03", "B04"]
    assert given_["input"] == {
        "shape": [-1, 3, -1, -1],
        "dim_order": ["batch", "bands", "height", "width"],
        "data_type": "float32",
    }
    (made_,) = properties["mlm:output"]
    assert made_["result"]["dim_order"] == ["batch", "class", "height", "width"]
    assert [c["name"] for c in made_["classification:classes"]] == ["class0", "class1", "class2"]
    hyperparameters = properties["mlm:hyperparameters"]
    assert (hyperparameters["tile"], hyperparameters["overlap"], hyperparameters["align"]) == ([64, 64], [16, 16], 1)
    assert hyperparameters["activation"] == "softmax"
    assert hyperparameters["provenance"]["framework"] == "torch 2.15.0"


def test_the_asset_is_the_file(model):
    (asset,) = made(model)["assets"].values()
    assert asset["href"] == "./U-Net%2010%20m.onnx"
    assert asset["file:size"] == len(model.read_bytes())
    multihash = bytes.fromhex(asset["file:checksum"])
    assert multihash[:2] == bytes([0x12, 32])  # SHA-256 and its length
    assert multihash[2:] == hashlib.sha256(model.read_bytes()).digest()


def scaled(steps, channel, pixels):
    """What MLM's text says of one channel: its own step, or the only one."""
    step = steps[channel if len(steps) > 1 else 0]
    if step["type"] == "processing":
        return eval(step["expression"], {"A": pixels, "clip": np.clip})
    return (pixels - step["mean"]) / step["stddev"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scale": [1e-4, 2e-4, 3e-4], "offset": -0.1},
        {"scale": 1e-4, "offset": [-0.1, 0, 0.1], "normalize": "fixed", "mean": [0.1, 0.2, 0.3], "std": 0.5},
        {"scale": 1e-4, "offset": -0.1, "clip": [0, 0.5]},
        {"scale": 1e-4, "clip": [0, 0.5], "normalize": "fixed", "mean": 0.2, "std": [0.1, 0.2, 0.3]},
    ],
)
def test_value_scaling_is_the_contracts(model, changes):
    pixels = np.random.default_rng(0).integers(0, 10_000, (3, 9, 9)).astype(np.float64)
    contract = parse_contract(values(3, 3, **changes), "test")
    steps = made(model, **changes)["properties"]["mlm:input"][0]["value_scaling"]
    expected = fixed_scaling(contract, None)(pixels, None)
    for channel in range(3):
        np.testing.assert_allclose(scaled(steps, channel, pixels[channel]), expected[channel], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("changes", [{"scaling": "graph", "normalize": "fixed", "mean": 1, "std": 2}, {"scale": 1}])
def test_raw_pixels_have_no_value_scaling(model, changes):
    item = made(model, dtype=np.dtype("uint16"), **changes)
    assert faults(item) == []
    (given_,) = item["properties"]["mlm:input"]
    assert (given_["value_scaling"], given_["input"]["data_type"]) == (None, "uint16")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"classes": [{"id": 7, "name": "b", "index": 1}, {"id": 3, "name": "a", "index": 0}]}, [(3, "a"), (7, "b")]),
        ({"classes": [{"id": 0, "name": "b", "index": 1}, {"id": 1, "name": "a", "index": 0}]}, [(1, "a"), (0, "b")]),
        (CONTRACTS["binary"], [(0, "background"), (1, "road")]),
    ],
)
def test_classes_stand_in_the_order_of_the_output(model, changes, expected):
    (made_,) = made(model, **changes)["properties"]["mlm:output"]
    assert [(c["value"], c["name"]) for c in made_["classification:classes"]] == expected


def test_colours_are_hints(model):
    (made_,) = made(model, **CONTRACTS["binary"])["properties"]["mlm:output"]
    assert [c.get("color_hint") for c in made_["classification:classes"]] == [None, "FF8000"]


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("2026-11-03T01:30:00+02:00", "2026-11-02T23:30:00Z"),
        ("2026-11-03 01:30", "2026-11-03T01:30:00Z"),
        ("spring", None),
        (None, None),
    ],
)
def test_the_date_is_the_provenances_else_the_files(model, date, expected):
    found = made(model, provenance={"date": date})["properties"]["datetime"]
    moment = datetime.fromtimestamp(model.stat().st_mtime, UTC).replace(microsecond=0)
    assert datetime.fromisoformat(found) == (datetime.fromisoformat(expected) if expected else moment)


@given(st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), max_size=12))
def test_any_file_name_gives_a_valid_name_and_reference(tmp_path_factory, stem):
    path = tmp_path_factory.getbasetemp() / f"a{stem}.onnx"
    path.write_bytes(b"")
    item = made(path)
    assert faults(item) == []
    assert re.fullmatch(r"\./[!-~]+", item["assets"]["model"]["href"])
    path.unlink()


def references(schema):
    if isinstance(schema, dict):
        yield from ([schema["$ref"]] if isinstance(schema.get("$ref"), str) else [])
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else []:
        yield from references(part)


@pytest.mark.parametrize("url", CONTENTS)
def test_no_reference_of_the_schemas_is_missing(url):
    for reference in references(CONTENTS[url]):
        REGISTRY.resolver(url).lookup(reference)


def drop(*keys):
    return lambda item: at(item, keys[:-1]).pop(keys[-1])


def put(value, *keys):
    return lambda item: at(item, keys[:-1]).__setitem__(keys[-1], value)


def at(item, keys):
    for key in keys:
        item = item[key]
    return item


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (drop("geometry"), "'geometry' is a required property"),
        (drop("links"), "'links' is a required property"),
        (drop("properties", "datetime"), "is not valid under any of the given schemas"),
        (put("2026-11-03", "properties", "datetime"), "does not match"),
        (put([0, 0, 1, 1], "bbox"), "is not valid under any of the given schemas"),
        (put("1.0.0", "stac_version"), "'1.1.0' was expected"),
        (drop("properties", "mlm:name"), "'mlm:name' is a required property"),
        (put("7", "properties", "mlm:name"), "does not match"),
        (put(["guessing"], "properties", "mlm:tasks"), "'guessing' is not one of"),
        (put("1.2", "properties", "mlm:framework_version"), "does not match"),
        (put("tpu", "properties", "mlm:accelerator"), "is not valid under any of the given schemas"),
        (put("x", "properties", "mlm:unknown"), "does not match any of the regexes"),
        (put({}, "properties", "mlm:hyperparameters"), "should be non-empty"),
        (drop("properties", "mlm:input", 0, "input"), "'input' is a required property"),
        (put("float31", "properties", "mlm:input", 0, "input", "data_type"), "'float31' is not one of"),
        (put([-2], "properties", "mlm:input", 0, "input", "shape"), "less than the minimum"),
        (put(["Bands"], "properties", "mlm:input", 0, "input", "dim_order"), "does not match"),
        (put(["batch"], "properties", "mlm:input", 0, "input", "dim_order"), "None of ['batch'] are valid"),
        (put([{"type": "z-score"}], "properties", "mlm:input", 0, "value_scaling"), "is not valid under any"),
        (drop("properties", "mlm:output", 0, "tasks"), "'tasks' is a required property"),
        (
            put([{"value": 0, "name": "x"}], "properties", "mlm:output", 0, "classification:classes"),
            "is not valid under any",
        ),
        (drop("properties", "bands"), "is not valid under any of the given schemas"),
        (drop("assets", "model", "bands"), "False schema does not allow"),
        (drop("assets", "model", "mlm:artifact_type"), "'mlm:artifact_type' is a required property"),
        (put(["data"], "assets", "model", "roles"), "should not be valid under"),
        (put("ABC", "assets", "model", "file:checksum"), "is not valid under any of the given schemas"),
        (put("U-Net", "assets", "model", "mlm:name"), "should not be valid under"),
    ],
)
def test_the_schemas_refuse_a_broken_item(model, harm, message):
    """Else a valid item would say nothing."""
    item = copy.deepcopy(made(model, **CONTRACTS["named"]))
    harm(item)
    assert any(message in fault for fault in faults(item)), faults(item)


def test_weights_beside_the_model_are_assets_of_their_own(model, tmp_path):
    item = made(model)
    assert with_weights(item, {}) == item
    files = [tmp_path / "m.1.data", tmp_path / "m 2.data"]
    for k, file in enumerate(files):
        file.write_bytes(bytes(k + 1))
    whole = with_weights(item, {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files})
    assert faults(whole) == []
    assert [(name, asset["href"], asset["roles"]) for name, asset in whole["assets"].items()] == [
        ("model", "./U-Net%2010%20m.onnx", ["mlm:model"]),
        ("weights", "./m.1.data", ["mlm:weights"]),
        ("weights-2", "./m%202.data", ["mlm:weights"]),
    ]
    assert whole["assets"]["weights-2"]["file:size"] == 2
