"""Each rule on pixels that it is for, made by hand, and on those that the contract expects."""

import re

import numpy as np
import pytest
from networks import contract

from segpipe.contract import parse_contract
from segpipe.formats.unusual.case_statistics import constant, sentinel
from segpipe.formats.unusual.far_off import far_off, linear_or_decibels, outside_clip
from segpipe.formats.unusual.scale import (
    below_clip,
    has_tags,
    too_large,
    too_large_in_volume,
    too_small,
    type_too_small,
    without_tags,
)
from segpipe.formats.unusual.shifted import negative, shifted
from segpipe.formats.unusual.values import FEWEST, Finding, expected_of, holds, scale_words, values_of

MEAN, STD = np.array([0.05, 0.08, 0.07, 0.3]), np.array([0.02, 0.02, 0.03, 0.1])
NOISE = np.random.default_rng(2).normal(size=(4, 500))
REFLECTANCE = MEAN[:, None] + STD[:, None] * np.clip(NOISE, -2, 2)
"""0 to 1, shape ``(4, 500)``."""


def terms(channels=4, **changes):
    return parse_contract(contract(channels, 2, **changes), "test")


def fixed(**changes):
    return terms(**{"scale": 1e-4, "normalize": "fixed", "mean": MEAN.tolist(), "std": STD.tolist()} | changes)


def seen(pixels, expected, tags=None):
    return values_of(np.asarray(pixels)), expected_of(expected, tags)


TAGS = np.ones(4), np.zeros(4)
"""Of a file that has none."""

MISTAKES = {
    "fractions": (too_small, REFLECTANCE, fixed(), "reflectance 0 to 1 where the contract expects 0 to 10,000"),
    "fractions below a clip": (below_clip, REFLECTANCE, terms(scale=1e-4, clip=[0, 0.3]), "reflectance 0 to 1"),
    "8 bits": (type_too_small, (REFLECTANCE * 255).astype(np.uint8), fixed(), "are uint8, at most 255"),
    "a scale forgotten": (too_large, REFLECTANCE * 1e4, fixed(scale=1), "scale seems to be missing: set scale = 0.0001"),
    "1,000 added": (shifted, REFLECTANCE * 1e4 + 1000, fixed(), "since baseline 04.00.*set offset = -0.1"),
    "an offset of another product": (negative, REFLECTANCE * 1e4, fixed(offset=-0.5), "half of the pixels are below 0"),
    "decibels": (
        linear_or_decibels,
        -12 + NOISE,
        fixed(scale=1, mean=[0.1, 0.1, 0.1, 0.1], std=[0.05, 0.05, 0.05, 0.05]),
        "look like decibels",
    ),
    "Celsius": (far_off, 15 + NOISE, fixed(scale=1, mean=[288.0] * 4, std=[10.0] * 4), "degrees Celsius.* expects kelvin"),
    "above the clip": (outside_clip, 1000 + NOISE, terms(scale=1, clip=[0, 10]), "the contract's clip ends at 10"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_rule_finds_its_mistake(name):
    rule, pixels, expected, text = MISTAKES[name]
    found = rule(*seen(pixels, expected))
    assert isinstance(found, Finding)
    assert_matches(text, found.text)


def assert_matches(pattern, text):
    assert re.search(pattern, text), text


@pytest.mark.parametrize("name", MISTAKES)
def test_a_rule_finds_nothing_in_what_the_contract_expects(name):
    rule = MISTAKES[name][0]
    assert rule(*seen(REFLECTANCE * 1e4, fixed())) is None


def test_integers_without_tags_are_no_physical_values():
    expected = terms(pixel="physical", scale=1)
    values, of_file = seen((REFLECTANCE * 1e4).astype(np.uint16), expected, TAGS)
    assert not has_tags(of_file)
    assert "it has none: its integers are taken as they are" in without_tags(values, of_file).text
    values, of_file = seen((REFLECTANCE * 1e4).astype(np.uint16), expected, (np.full(4, 1e-4), np.zeros(4)))
    assert has_tags(of_file)
    assert without_tags(values, of_file) is None


def test_one_value_and_a_value_of_nodata():
    pixels = REFLECTANCE * 1e4
    pixels[1], pixels[2, :30] = 7, -9999
    values, expected = seen(pixels, fixed())
    assert [found.text for found in constant(values, expected)] == [
        "all sampled pixels are equal in channel 2 (7): is that band empty?"
    ]
    (found,) = sentinel(values, expected.contract, "say so")
    assert_matches(r"of channel 3 hold -9999, which looks like nodata that the file does not declare: say so", found.text)


def test_quantiles_are_those_of_numpy():
    pixels = np.random.default_rng(3).permuted(np.tile(np.arange(101.0), (2, 1)), axis=1)
    values = values_of(pixels)
    for name, share in {"least": 0, "low": 0.01, "mid": 0.5, "high": 0.99, "most": 1}.items():
        np.testing.assert_array_equal(getattr(values, name), np.quantile(pixels, share, axis=1))
    assert values.whole
    assert values_of(pixels[:, : FEWEST - 1]) is None


def test_words_are_those_of_toml_and_of_the_worst_channel():
    assert scale_words(np.array([0.1, 0.1])) == "0.1"
    assert scale_words(np.array([0.1, 0.25])) == "[0.1, 0.25]"
    pixels = REFLECTANCE * 1e4
    pixels[3] = 9000
    assert_matches(r"channel 4 holds 9000 to 9000, its mean should be 3000 ± 1e\+03", holds(*seen(pixels, fixed())))


def test_a_volume_of_other_units_than_bytes_gets_scale_and_offset_that_fit():
    """No command of GDAL, which writes no volumes."""
    voxels = np.linspace(-900, 900, 500)[None].astype(np.int16)
    found = too_large_in_volume(*seen(voxels, terms(1, scale=1 / 255)))
    assert found is not None
    assert "gdal" not in found.text
    scale, offset = re.search(r"scale = ([\d.]+), offset = ([\d.]+)", found.text).groups()
    mended = terms(1, scale=float(scale), offset=float(offset))
    values, expected = seen(voxels, mended)
    assert too_large_in_volume(values, expected) is None
    assert expected.scaled(np.array([-900.0, 900.0])) == pytest.approx([0, 1], abs=0.02)
