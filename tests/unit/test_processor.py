"""Scaling and order of channels as an image processor of transformers has them; the processor itself is the oracle."""

import json

import numpy as np
import pytest
import torch
from later import Later

from segpipe.contract import parse_contract
from segpipe.errors import ExportError
from segpipe.export.families.hub import open_folder
from segpipe.export.families.processor import _fitted, read_processor
from segpipe.export.settings import ExportSettings
from segpipe.export.terms import Terms, draw_up
from segpipe.network.scaling import fixed_scaling

transformers = Later("transformers")

PICTURE = ["red", "green", "blue"]
STILL = {"do_resize": False, "do_center_crop": False, "do_pad": False}


def folder_of(path, said, *, nested=False, model="mobilevit"):
    """A folder with the processor's file by either of its names."""
    text = {"processor_class": "Some", "image_processor": said} if nested else said
    (path / ("processor_config.json" if nested else "preprocessor_config.json")).write_text(json.dumps(text))
    (path / "config.json").write_text(json.dumps({"model_type": model}))
    return path


def scaled(keys, picture):
    """What a run gives the network for a picture whose bands are red, green and blue."""
    values = {"version": 1, "channels": 3, "activation": "softmax", "classes": [{"id": 0, "name": "a"}], **keys}
    contract = parse_contract(values, "test")
    bands = [PICTURE.index(name) for name in contract.channel_names or PICTURE]
    return fixed_scaling(contract, None)(picture[bands], None)


SAID = {
    "nothing but the class": {"image_processor_type": "SegformerImageProcessor"},
    "an old name of the class": {"feature_extractor_type": "BeitFeatureExtractor"},
    "a fast class": {"image_processor_type": "DPTImageProcessorFast"},
    "no class: the model's own, which flips": {},
    "no rescaling": {"image_processor_type": "ViTImageProcessor", "do_rescale": False},
    "no normalizing": {"image_processor_type": "ViTImageProcessor", "do_normalize": False},
    "another factor": {"image_processor_type": "ViTImageProcessor", "rescale_factor": 1 / 127.5},
    "a factor with an offset": {
        "image_processor_type": "EfficientNetImageProcessor",
        "rescale_factor": 1 / 127.5,
        "rescale_offset": True,
        "do_normalize": False,
    },
    "mean and std of its own": {
        "image_processor_type": "SegformerImageProcessor",
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
    },
    "a flip": {"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": True},
    "no flip": {"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": False},
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", SAID)
def test_pixels_are_scaled_as_the_processor_scales_them(name, nested, tmp_path):
    folder = folder_of(tmp_path, SAID[name], nested=nested)
    keys, _ = read_processor(folder, 3)
    picture = np.random.default_rng(1).integers(0, 256, (3, 40, 56), dtype=np.uint8)
    oracle = transformers.AutoImageProcessor.from_pretrained(folder)
    wanted = oracle([torch.from_numpy(picture)], **STILL, return_tensors="pt")["pixel_values"][0]
    np.testing.assert_allclose(scaled(keys, picture), wanted, rtol=1e-5, atol=1e-5)


def test_numbers_are_those_of_the_file_not_fitted_ones(tmp_path):
    keys, notes = read_processor(folder_of(tmp_path, SAID["mean and std of its own"]), 3)
    assert keys == {"scale": 1 / 255, "normalize": "fixed", "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (note,) = notes
    assert note.startswith("the image processor also resizes to height 512, width 512; a run does not")


def test_a_flip_names_the_channels_and_is_told(tmp_path):
    keys, notes = read_processor(folder_of(tmp_path, SAID["a flip"]), 3)
    assert keys == {"scale": 1 / 255, "normalize": "none", "channels": ["blue", "green", "red"]}
    assert "cuts out the middle, height 256, width 256" in notes[0]
    assert notes[1].endswith("the network's are blue, green, red")


@pytest.mark.parametrize("key", ["do_reduce_labels", "reduce_labels"])
def test_reduced_labels_are_told(key, tmp_path):
    _, notes = read_processor(folder_of(tmp_path, {**SAID["no flip"], key: True, **STILL}), 3)
    assert notes == ("classes were trained with do_reduce_labels: an id here is the data set's less one",)


def test_a_folder_without_a_processor_says_nothing(tmp_path):
    assert read_processor(tmp_path, 3) == ({}, ())


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"image_processor_type": "SuperPointImageProcessor", "do_grayscale": True}, "scale each channel by one factor"),
        ({"image_processor_type": "VideoMAEImageProcessor"}, r"leave pixels where they are, got \(1, 3, 128, 128\)"),
        ({"image_processor_type": "Nobodys"}, r"cannot be loaded \(ValueError: Unrecognized image processor"),
        ({"image_processor_type": "SegformerImageProcessor", "image_mean": [0.5] * 4}, "does not take 3 channels"),
        ([], "cannot be loaded"),
    ],
)
def test_what_is_no_map_of_each_channel_is_refused_in_one_line_with_the_mend(said, message, tmp_path):
    with pytest.raises(ExportError, match=message) as caught:
        read_processor(folder_of(tmp_path, said), 3)
    assert str(caught.value).endswith(
        "say in the file of --classes how pixels are scaled, by scale, normalize, mean and std"
    )
    assert "\n" not in str(caught.value)


class OfPicture:
    """Takes mean and deviation from the picture itself."""

    def __call__(self, images, **options):
        return {"pixel_values": [(i.float() - i.float().mean()) / i.float().std() for i in images]}


def test_statistics_of_the_picture_are_no_scaling_of_a_contract(tmp_path):
    with pytest.raises(
        ExportError, match=r"OfPicture in .* must scale each channel by one factor and offset, and does more"
    ):
        _fitted(OfPicture(), 3, tmp_path)


def test_code_beside_a_processor_is_not_run(tmp_path):
    folder = folder_of(tmp_path, {"auto_map": {"AutoImageProcessor": "evil.Evil"}, "image_processor_type": "Evil"})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(ExportError, match="cannot be loaded"):
        read_processor(folder, 3)
    assert not (tmp_path / "ran").exists()


def test_oneformer_needs_no_download_for_its_scaling(tmp_path):
    said = {"image_processor_type": "OneFormerImageProcessor", "class_info_file": "ade20k_panoptic.json"}
    keys, _ = read_processor(folder_of(tmp_path, said), 3)
    assert keys["mean"] == [0.485, 0.456, 0.406]


# --- in a contract --------------------------------------------------------------------------------------------------------

FLIPPED = {"scale": 1 / 255, "normalize": "none", "channels": ["blue", "green", "red"]}
CLASSES = [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]


def contract(**given):
    settings = ExportSettings(weights="w", output="o")
    return draw_up(Terms({"classes": CLASSES, "tile": [64], **given}), FLIPPED, settings)


@pytest.mark.parametrize(
    ("given", "channels"),
    [
        ({}, ["blue", "green", "red"]),
        ({"channels": 3}, ["blue", "green", "red"]),
        ({"channels": ["b", "g", "r"]}, ["b", "g", "r"]),
        ({"channels": ["B08", "B04", "B03"]}, ["B08", "B04", "B03"]),
    ],
)
def test_channels_come_in_the_order_of_the_processor(given, channels):
    assert contract(**given).channels == channels


@pytest.mark.parametrize(
    ("given", "mend"), [("r,g,b", "b,g,r"), ("red,green,blue", "blue,green,red"), ("B04,B03,B02", "B02,B03,B04")]
)
def test_bands_in_the_order_before_a_flip_are_refused(given, mend):
    with pytest.raises(ExportError, match=f"channels as blue, green, red, got --bands {given}: give --bands {mend}$"):
        contract(channels=given.split(","))


# --- a folder as a whole --------------------------------------------------------------------------------------------------


@pytest.fixture
def mobilevit(tmp_path):
    """A tiny network as ``save_pretrained`` leaves it, with its library's own processor, which turns RGB to BGR."""
    torch.manual_seed(0)
    config = transformers.MobileViTConfig(
        image_size=64,
        hidden_sizes=[8, 12, 16],
        neck_hidden_sizes=[4, 4, 8, 8, 8, 8, 16],
        num_attention_heads=2,
        aspp_out_channels=8,
        id2label={0: "a", 1: "b", 2: "c"},
    )
    network = transformers.MobileViTForSemanticSegmentation(config).eval()
    network.save_pretrained(tmp_path / "net")
    transformers.MobileViTImageProcessor().save_pretrained(tmp_path / "net")
    return tmp_path / "net"


def test_a_folder_says_what_its_processor_does(mobilevit):
    opened = open_folder(mobilevit, classes=None, replace_head=False, trust_pickle=False)
    assert opened.known["channels"] == ["blue", "green", "red"]
    assert [c["name"] for c in opened.known["classes"]] == ["a", "b", "c"]


def test_a_processor_that_cannot_be_followed_is_left_out_where_the_user_says_the_scaling(mobilevit):
    said = {"image_processor_type": "SuperPointImageProcessor", "do_grayscale": True}
    (mobilevit / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(ExportError, match="does more"):
        open_folder(mobilevit, classes=None, replace_head=False, trust_pickle=False)
    opened = open_folder(mobilevit, classes=None, replace_head=False, trust_pickle=False, scaled=True)
    assert "cannot be followed" in opened.notes[0]


def test_names_of_classes_with_gaps_are_refused(mobilevit):
    path = mobilevit / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "id2label": {"0": "a", "1": "b", "3": "c"}}))
    with pytest.raises(
        ExportError, match=r"id2label in .*config.json must name outputs 0 to 2, got 0, 1, 3: correct it, or give"
    ):
        open_folder(mobilevit, classes=None, replace_head=False, trust_pickle=False)
    assert "classes" not in open_folder(mobilevit, classes=3, replace_head=False, trust_pickle=False).known
