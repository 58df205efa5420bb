"""The keys of a contract, their checks (segpipe.contract.checks), and where it is read from (segpipe.contract.reading)."""

import json
import tomllib
from pathlib import Path

import pytest
from networks import contract as values

from segpipe.contract import contract_of_metadata, parse_contract, read_contract
from segpipe.errors import ContractError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalise": "fixed"}, "unknown key normalise"),
        ({"normalize": None}, "missing key normalize"),
        ({"normalize": "fixed"}, "needs mean and std"),
        ({"mean": 0.5, "std": 0.2}, 'mean and std are used by normalize = "fixed" only'),
        ({"normalize": "fixed", "mean": [0.5], "std": [0.2] * 3}, "mean must be one number or one per channel, got 1 for 3"),
        ({"normalize": "fixed", "mean": 0.5, "std": [0.2, 0.0, 0.2]}, "std must be above 0"),
        ({"scale": float("nan")}, "must be finite"),
        ({"version": 2}, "version"),
        ({"activation": "sigmoid"}, 'multiclass model has activation "softmax"'),
        ({"task": "multilabel"}, 'activation "sigmoid"'),
        ({"task": "binary", "activation": "sigmoid"}, "classes 0 and 1, or 1 alone"),
        ({"classes": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "class ids must differ"),
        ({"classes": [{"id": 0, "name": "nodata"}]}, "no class may be called"),
        ({"output_layout": "NCDHW"}, "output_layout must have the spatial axes of layout"),
        ({"channels": 60_000, "neighbours": 1}, "must take at most 65535 channels, got 180000"),
        ({"task": "regions", "activation": "sigmoid"}, "an id from 1 for each region, and 0 where there is none"),
        ({"activation": "labels", "threshold": 0.4}, 'activation = "labels" has none, got 0.4: leave it out'),
        ({"activation": "labels", "classes": [{"id": 0, "name": "a"}, {"id": 5, "name": "b", "index": 0}]}, "got 0 twice"),
        ({"activation": "labels", "task": "multilabel", "classes": [{"id": 5, "name": "a"}]}, "must be 0 to 0, .* got 5"),
        ({"classes": [{"id": 0, "name": "a", "color": "red"}]}, "color"),
        ({"classes": [{"id": 0, "name": "a", "index": 1}, {"id": 1, "name": "b"}]}, "output channels .* must be 0 to 1"),
        ({"channels": []}, "channels"),
    ],
)
def test_a_contract_that_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(ContractError, match=message):
        parse_contract(values(3, 3, **changes), "c.toml")


def test_a_contract_may_map_class_ids_to_other_channels():
    classes = [{"id": 7, "name": "maize", "index": 1}, {"id": 3, "name": "wheat", "index": 0}]
    contract = parse_contract(values(3, 2, classes=classes), "c.toml")
    assert [c.id for c in contract.mask_classes] == [3, 7]
    assert [c.channel for c in contract.mask_classes] == [0, 1]


def test_class_ids_beyond_the_channels_count_in_order():
    """A contract with ids 3 and 7 and no index cannot mean output channels 3 and 7 of 2."""
    with pytest.raises(ContractError, match="give each class its index"):
        parse_contract(values(3, 2, classes=[{"id": 3, "name": "a"}, {"id": 7, "name": "b"}]), "c.toml")


def test_toml_and_json_say_the_same(tmp_path):
    path = tmp_path / "c.toml"
    text = """
        version = 1
        channels = ["B04", "B03"]
        normalize = "fixed"
        mean = [0.1, 0.2]
        std = 0.5
        activation = "softmax"
        classes = [{ id = 0, name = "water", color = "#1f77b4" }, { id = 1, name = "land" }]
    """
    path.write_text(text)
    from_json = contract_of_metadata({"segpipe": json.dumps(tomllib.loads(text))}, None)
    assert read_contract(path) == from_json
    assert from_json.column("std") == [0.5, 0.5]


@pytest.mark.parametrize(
    ("text", "message"), [("= 1", "is not TOML: .*: correct it there"), (None, "must exist, and does not")]
)
def test_a_contract_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / "c.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ContractError, match=message):
        read_contract(path)


DEEPNESS = {
    "class_names": '{"0": "not_flooded", "1": "flooded"}',
    "resolution": "100",
    "tile_size": "512",
    "tiles_overlap": "15",
    "standardization_mean": "[0.4, 0.5, 0.6]",
    "standardization_std": "[0.1, 0.2, 0.3]",
}


def test_deepness_metadata_is_a_contract():
    contract = contract_of_metadata(DEEPNESS, 3)
    assert contract is not None
    assert contract.channel_count == 3
    assert (contract.scale, contract.mean) == (pytest.approx(1 / 255), [0.4, 0.5, 0.6])
    assert (contract.tile, contract.overlap, contract.spacing) == ([512], [77], [1.0, 1.0])
    assert [c.name for c in contract.classes] == ["not_flooded", "flooded"]


@pytest.mark.parametrize("kind", ["Regressor", "Detector", "Superresolution", "Recognition"])
def test_deepness_models_of_other_kinds_are_no_masks(kind):
    with pytest.raises(ContractError, match=f'model of class scores, and .* says model_type = "{kind}": .* --contract'):
        contract_of_metadata({**DEEPNESS, "model_type": json.dumps(kind)}, 3)
    assert contract_of_metadata({**DEEPNESS, "model_type": '"Segmentor"'}, 3) is not None


@pytest.mark.parametrize("size", [64, [64], [64, 64]])
def test_sizes_are_one_number_or_one_per_axis(size):
    contract = parse_contract(values(3, 3, tile=size, overlap=size), "c.toml")
    assert contract.axes("tile", 2) == contract.axes("overlap", 2) == (64, 64)


@pytest.mark.parametrize("missing", ["standardization_mean", "standardization_std"])
def test_deepness_metadata_without_scaling_is_no_contract(missing):
    assert contract_of_metadata({k: v for k, v in DEEPNESS.items() if k != missing}, 3) is None


def test_the_bundled_model_carries_a_contract():
    import onnx

    model = onnx.load(Path(__file__).parents[2] / "examples" / "crops.onnx")
    contract = contract_of_metadata({p.key: p.value for p in model.metadata_props}, 4)
    assert contract is not None
    assert contract.channel_names == ("B02", "B03", "B04", "B08")


@pytest.mark.parametrize("names", [{"0": "road"}, {"0": "background", "1": "road"}, [{"0": "road"}]])
def test_deepness_models_of_one_score_tell_background_from_one_class(names):
    metadata = {**DEEPNESS, "class_names": json.dumps(names), "seg_thresh": "0.3"}
    contract = contract_of_metadata(metadata, 3, 1)
    assert contract.task == "binary"
    assert (contract.mask_classes[1].id, contract.mask_classes[1].name) == (1, "road")
    assert contract.threshold == 0.3


def test_deepness_thresholds_are_for_models_of_one_score():
    contract = contract_of_metadata({**DEEPNESS, "seg_thresh": "0.0"}, 3, 2)
    assert (contract.task, contract.threshold) == ("multiclass", 0.5)
