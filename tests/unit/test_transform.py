"""Scaling of transforms as albumentations 1.4.14 writes them; the oracle is the formula of its documentation."""

import json

import numpy as np
import pytest

from segpipe.contract import parse_contract
from segpipe.errors import ExportError
from segpipe.export.families.transform import FILE, read_transform
from segpipe.network.scaling import Scaling, fixed_scaling

PICTURE = np.random.default_rng(0).integers(0, 256, (3, 16, 16), dtype=np.uint8)
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def step(name, **keys):
    return {"__class_fullname__": name, "p": 1.0, **keys}


RESIZE = step("Resize", height=512, width=512, interpolation=1)
HUB = step(
    "Normalize",
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    max_pixel_value=1.0,
    normalization="standard",
)


def folder_of(path, *steps):
    whole = step("Compose", transforms=list(steps), bbox_params=None, keypoint_params=None, additional_targets={})
    (path / FILE).write_text(json.dumps({"__version__": "1.4.14", "transform": whole}))
    return path


def scaled(keys):
    values = {"version": 1, "channels": 3, "activation": "softmax", "classes": [{"id": 0, "name": "a"}], **keys}
    return fixed_scaling(parse_contract(values, "test"), None)(PICTURE, None)


def normalized(mean, std, largest, pixels=PICTURE):
    mean, std = (np.reshape(np.ravel(v), (-1, 1, 1)) for v in (mean, std))
    return (pixels - mean * largest) / (std * largest)


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        ([RESIZE, HUB], normalized(HUB["mean"], HUB["std"], 1)),
        ([step("Normalize")], normalized(*IMAGENET, 255)),
        ([step("Normalize", mean=[0.5], std=[0.2], max_pixel_value=255.0)], normalized(0.5, 0.2, 255)),
        ([step("albumentations.augmentations.transforms.Normalize")], normalized(*IMAGENET, 255)),
        ([RESIZE], PICTURE),
        ([RESIZE, step("ToTensorV2", transpose_mask=False)], PICTURE),
        ([step("ToFloat", max_value=255.0)], PICTURE / 255),
        (
            [
                step("PadIfNeeded"),
                step("ToFloat", max_value=255.0),
                step("Normalize", mean=0.5, std=0.2, max_pixel_value=1.0),
            ],
            normalized(0.5, 0.2, 1, PICTURE / 255),
        ),
        (
            [step("Sequential", transforms=[step("CenterCrop", height=8, width=8), HUB])],
            normalized(HUB["mean"], HUB["std"], 1),
        ),
    ],
)
def test_pixels_are_scaled_as_the_library_scales_them(steps, wanted, tmp_path):
    keys, _ = read_transform(folder_of(tmp_path, *steps), 3)
    np.testing.assert_allclose(scaled(keys), wanted, rtol=1e-5, atol=1e-5)


def test_numbers_are_those_of_the_file_and_what_moves_pixels_is_told(tmp_path):
    keys, notes = read_transform(folder_of(tmp_path, RESIZE, HUB), 3)
    assert keys == {"scale": 1.0, "normalize": "fixed", "mean": HUB["mean"], "std": HUB["std"]}
    assert notes == ("the saved transform also resizes; a run does not, and takes tiles at the pixels' own size",)


def test_a_folder_without_a_transform_says_nothing(tmp_path):
    assert read_transform(tmp_path, 3) == ({}, ())


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (
            step("Normalize", normalization="image_per_channel"),
            r"got Normalize \(p = 1.0, normalization = .image_per_channel",
        ),
        (step("ToFloat", max_value=None), r"got ToFloat \(p = 1.0, max_value = null\)"),
        (step("Normalize", p=0.5), r"got Normalize \(p = 0.5\)"),
        ({"__class_fullname__": "Sequential", "transforms": [HUB]}, r"got Sequential \(\)"),
        (step("ToGray"), r"got ToGray \(p = 1.0\)"),
        (step("Normalize", mean=[0.5] * 4, std=[0.2] * 4), "each of 3 channels by one factor and offset, got Normalize"),
        (step("Normalize", std=[0.2, 0.0, 0.2]), "got Normalize"),
        (step("Normalize", max_pixel_value=0), "got Normalize"),
    ],
)
def test_what_is_no_affine_map_is_refused_with_the_mend(one, message, tmp_path):
    with pytest.raises(ExportError, match=message) as caught:
        read_transform(folder_of(tmp_path, RESIZE, one), 3)
    assert str(caught.value).endswith(
        "say in the file of --classes how pixels are scaled, by scale, normalize, mean and std"
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"transform": {}}', '{"transform": {"__class_fullname__": "Compose"}}'])
def test_a_file_that_is_no_transform_is_refused(text, tmp_path):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ExportError, match="must be a transform of albumentations"):
        read_transform(tmp_path, 3)


def test_scaling_of_nodata_at_the_end_of_float32_is_silent():
    """Warnings are errors here; a valid pixel that is as large becomes infinite, and its scores are refused."""
    pixels, invalid = np.array([[[np.finfo(np.float32).min, 2.0]]], np.float32), np.array([[True, False]])
    scaling = Scaling(np.array([3.0]), np.array([1.0]))
    np.testing.assert_array_equal(scaling(pixels, invalid), [[[0, 7]]])
    np.testing.assert_array_equal(scaling(pixels, None), [[[-np.inf, 7]]])
