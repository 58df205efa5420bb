"""Deepness metadata, against the plugin's own steps written out in NumPy."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import contract as values

from segpipe.contract import contract_of_metadata, parse_contract
from segpipe.export.deepness import deepness_metadata
from segpipe.network.scaling import fixed_scaling

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BINARY = {"task": "binary", "classes": [{"id": 1, "name": "road"}]}


def made(channels=3, classes=3, /, **changes):
    return parse_contract(values(channels, classes, **changes), "test")


def read(contract, **options):
    return {key: json.loads(text) for key, text in deepness_metadata(contract, **options).items()}


def fed(metadata, pixels):
    """What the plugin feeds: normalize_values_to_01 and standardize_values of its preprocessing_utils.py."""
    mean, std = (np.array(metadata[f"standardization_{key}"], np.float32) for key in ("mean", "std"))
    tiles = np.float32(np.moveaxis(pixels, 0, -1) * 1.0 / 255.0)
    return np.moveaxis((tiles - mean) / std, -1, 0)


def painted(metadata, output):
    """Labels of one output ``(channels, rows, cols)``: _process_tile of its map_processor_segmentation.py."""
    result = output.copy()
    result[result < metadata["seg_thresh"]] = 0.0
    return (result[0] != 0).astype(int) if len(result) == 1 else result.argmax(axis=0)


def test_a_picture_model_keeps_the_numbers_it_was_trained_with():
    metadata = read(made(normalize="fixed", mean=MEAN, std=STD, spacing=[0.1, 0.1], activation="none"))
    assert metadata == {
        "model_type": "Segmentor",
        "class_names": {"0": "class0", "1": "class1", "2": "class2"},
        "resolution": 10.0,
        "tile_size": 64,
        "tiles_overlap": 25,
        "standardization_mean": MEAN,
        "standardization_std": STD,
        "seg_thresh": 0.01,
    }


numbers = st.floats(-2, 2)
spreads = st.floats(0.01, 10)
scales = st.sampled_from([1 / 255, 1e-4, 1.0, -0.5])


@given(st.lists(st.tuples(scales, numbers, numbers, spreads), min_size=1, max_size=4), st.booleans(), st.integers(0, 99))
def test_the_plugin_feeds_what_segpipe_feeds(columns, wide, seed):
    """To float32 of the plugin's own steps: it rounds after / 255, and its mean and std."""
    keys = dict(zip(("scale", "offset", "mean", "std"), map(list, zip(*columns, strict=True)), strict=True))
    contract = made(len(columns), 2, normalize="fixed", **keys)
    pixels = np.random.default_rng(seed).integers(0, 65536 if wide else 256, (len(columns), 5, 7)).astype(np.uint16)
    metadata = read(contract)
    mean, std = (np.reshape(metadata[f"standardization_{key}"], (-1, 1, 1)) for key in ("mean", "std"))
    expected = fixed_scaling(contract, None)(pixels.astype(np.float64), None)
    rounding = 4 * np.finfo(np.float32).eps * ((pixels / 255 + np.abs(mean)) / np.abs(std) + np.abs(expected))
    assert (np.abs(fed(metadata, pixels) - expected) <= rounding).all()
    np.testing.assert_allclose(
        (pixels / 255 - mean) / std, expected, rtol=1e-6, atol=1e-9 + 1e-12 * (np.abs(mean / std)).max()
    )


def test_a_model_that_scales_itself_is_fed_raw_pixels():
    metadata = read(made(scaling="graph", normalize="zscore"))
    pixels = np.random.default_rng(0).integers(0, 65536, (3, 8, 8)).astype(np.uint16)
    np.testing.assert_allclose(fed(metadata, pixels), pixels, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"normalize": "zscore"}, {}),
        ({"normalize": "minmax"}, {}),
        ({"clip": [0.0, 0.5]}, {}),
        ({"scale": 1e-4, "clip": [0.0, 1.0]}, {}),
        ({"pixel": "physical"}, {}),
        ({"layout": "NHWC"}, {}),
        ({"scaling": "graph"}, {"input_dtype": "uint16"}),
        ({}, {"input_dtype": "float16"}),
    ],
)
def test_scaling_that_deepness_cannot_say_is_left_out(changes, options):
    metadata = read(made(**changes), **options)
    assert not {"standardization_mean", "standardization_std"} & metadata.keys()
    assert metadata["model_type"] == "Segmentor"


@pytest.mark.parametrize("changes", [{"scale": 1 / 255, "clip": [0, 1]}, {"scale": -2 / 255, "offset": 1, "clip": [-1, 1]}])
def test_a_clip_that_8_bit_pixels_just_reach_is_no_loss(changes):
    contract = made(1, normalize="fixed", mean=0.25, std=0.5, **changes)
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    expected = fixed_scaling(contract, None)(pixels, None)
    np.testing.assert_allclose(fed(read(contract), pixels), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [{"layout": "NCDHW", "tile": [8, 64, 64], "overlap": [2, 16, 16]}, {"task": "multilabel", "activation": "sigmoid"}],
)
def test_volumes_and_independent_classes_are_no_models_of_deepness(changes):
    assert deepness_metadata(made(**changes)) == {}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"classes": [{"id": 7, "name": "b", "index": 1}, {"id": 3, "name": "a", "index": 0}]}, ["a", "b"]),
        ({**BINARY, "activation": "none"}, ["background", "road"]),
        ({**BINARY, "activation": "none", "classes": [{"id": 1, "name": "x"}, {"id": 0, "name": "y"}]}, ["y", "x"]),
    ],
)
def test_names_stand_at_output_channels_without_gaps(changes, names):
    """get_outputs_channel_names of model_base.py raises where a number is missing."""
    assert read(made(**changes))["class_names"] == {str(i): name for i, name in enumerate(names)}


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.7])
@pytest.mark.parametrize("activation", ["none", "sigmoid"])
def test_one_channel_is_cut_where_the_contract_cuts(threshold, activation):
    logits = np.random.default_rng(1).normal(size=(1, 64, 64))
    probability = 1 / (1 + np.exp(-logits))
    metadata = read(made(**BINARY, threshold=threshold, activation=activation))
    output = probability if activation == "none" else logits
    np.testing.assert_array_equal(painted(metadata, output), probability[0] > threshold)


@pytest.mark.parametrize("count", [2, 12, 99, 120])
def test_no_threshold_hides_the_most_likely_of_many_classes(count):
    scores = np.random.default_rng(2).exponential(size=(count, 32, 32))
    probabilities = scores / scores.sum(axis=0)
    metadata = read(made(3, count, activation="none"))
    np.testing.assert_array_equal(painted(metadata, probabilities), probabilities.argmax(axis=0))


def test_logits_of_many_classes_keep_what_is_above_zero():
    """The plugin sets all below its threshold to 0, and its field takes no threshold below 0."""
    scores = np.random.default_rng(3).normal(size=(4, 32, 32))
    right = painted(read(made(3, 4)), scores) == scores.argmax(axis=0)
    assert right[scores.max(axis=0) > 0].all()
    assert not right.all()


@pytest.mark.parametrize(("spacing", "unit", "cm"), [([2.5, 2.5], "m", 250), ([0.5, 0.5], "um", 5e-5), ([5, 5], "mm", 0.5)])
def test_resolution_is_in_centimetres(spacing, unit, cm):
    assert read(made(spacing=spacing, spacing_unit=unit))["resolution"] == pytest.approx(cm)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tile": [512], "overlap": [64]}, (512, 13)),
        ({"tile": [512, 512], "overlap": None}, (512, 25)),
        ({"tile": [512, 256], "overlap": [64, 64]}, (None, None)),
        ({"tile": None, "overlap": [64, 64]}, (None, None)),
    ],
)
def test_tiles_are_square_and_overlap_is_rounded_up(changes, expected):
    metadata = read(made(**changes))
    assert (metadata.get("tile_size"), metadata.get("tiles_overlap")) == expected


def test_spacing_that_differs_by_axis_has_no_resolution():
    assert "resolution" not in read(made(spacing=[10, 20]))


@pytest.mark.parametrize("changes", [{}, {"scale": 1e-4, "offset": -0.1, "normalize": "fixed", "mean": MEAN, "std": STD}])
def test_segpipe_reads_its_own_deepness_metadata(changes):
    """Without the key "segpipe": scaling, classes, tile, overlap and spacing come back."""
    contract = made(activation="none", spacing=[10, 10], tile=[256, 256], overlap=[64, 64], **changes)
    back = contract_of_metadata(deepness_metadata(contract), 3)
    assert back is not None
    pixels = np.random.default_rng(4).integers(0, 10_000, (3, 16, 16)).astype(np.uint16)
    expected = fixed_scaling(contract, None)(pixels, None)
    np.testing.assert_allclose(fixed_scaling(back, None)(pixels, None), expected, rtol=1e-5, atol=1e-5)
    assert [back.axes(key, 2) for key in ("tile", "overlap")] == [(256, 256), (64, 64)]
    assert (back.spacing, back.activation) == ([10, 10], "none")
    assert [(c.id, c.name) for c in back.classes] == [(c.id, c.name) for c in contract.classes]
