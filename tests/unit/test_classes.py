from collections import defaultdict

import pytest
from later import Later
from networks import contract

from segpipe.contract import parse_contract
from segpipe.errors import ExportError
from segpipe.export.classes import TABLES, class_table

models = Later("torchvision.models")

COUNTS = {"voc": 21, "cityscapes": 19, "ade20k": 150, "coco-stuff": 171}

KNOWN = {
    "voc": {0: ("background", (0, 0, 0)), 15: ("person", (192, 128, 128)), 20: ("tvmonitor", (0, 64, 128))},
    "cityscapes": {
        0: ("road", (128, 64, 128)),
        1: ("sidewalk", (244, 35, 232)),
        8: ("vegetation", (107, 142, 35)),
        10: ("sky", (70, 130, 180)),
        11: ("person", (220, 20, 60)),
        13: ("car", (0, 0, 142)),
        18: ("bicycle", (119, 11, 32)),
    },
    "ade20k": {
        0: ("wall", (120, 120, 120)),
        1: ("building", (180, 120, 120)),
        2: ("sky", (6, 230, 230)),
        7: ("bed", (204, 5, 255)),
        45: ("counter", (235, 12, 255)),
        89: ("television", (0, 255, 194)),
        149: ("flag", (92, 0, 255)),
    },
    "coco-stuff": {
        0: ("person", (0, 192, 64)),
        79: ("toothbrush", (192, 160, 0)),
        80: ("banner", (0, 192, 0)),
        170: ("wood", (64, 64, 0)),
    },
}

SHARED_COLORS = {
    "voc": [],
    "cityscapes": [],
    "ade20k": [{"road", "skyscraper"}],
    "coco-stuff": [
        {"person", "bicycle"},
        {"car", "fog"},
        {"motorcycle", "remote"},
        {"truck", "traffic light", "cloth"},
        {"parking meter", "broccoli"},
        {"bird", "oven"},
        {"cat", "apple"},
        {"horse", "dirt"},
    ],
}
"""Classes that the published palettes draw alike."""


def names(table):
    return [entry["name"] for entry in class_table(table)]


def hexadecimal(rgb):
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def voc_color(label):
    """VOClabelcolormap of the VOC development kit: bit 3k + c of the label is bit 7 - k of colour c."""
    return tuple(sum((label >> 3 * k + c & 1) << 7 - k for k in range(8)) for c in range(3))


@pytest.mark.parametrize("table", TABLES)
def test_a_table_makes_a_contract_of_one_class_per_channel(table):
    made = parse_contract(contract(3, 0, classes=class_table(table)), table)
    assert [c.channel for c in made.classes] == [c.id for c in made.classes] == list(range(COUNTS[table]))
    assert None not in {c.color for c in made.classes}


@pytest.mark.parametrize("table", TABLES)
def test_names_are_plain(table):
    assert [name.strip() for name in names(table)] == names(table)
    assert all(name and name.isascii() and ";" not in name and "," not in name for name in names(table))


@pytest.mark.parametrize("table", TABLES)
def test_known_classes(table):
    classes = class_table(table)
    for index, (name, rgb) in KNOWN[table].items():
        assert classes[index] == {"id": index, "name": name, "color": hexadecimal(rgb)}


@pytest.mark.parametrize("table", TABLES)
def test_colors_differ_but_where_the_published_ones_do_not(table):
    alike = defaultdict(set)
    for entry in class_table(table):
        alike[entry["color"]].add(entry["name"])
    assert [group for group in alike.values() if len(group) > 1] == SHARED_COLORS[table]


def test_voc_colors_follow_the_published_formula():
    assert [entry["color"] for entry in class_table("voc")] == [hexadecimal(voc_color(i)) for i in range(21)]


def test_voc_names_are_those_of_torchvision_but_for_the_underscores():
    background, *objects = models.segmentation.FCN_ResNet50_Weights.DEFAULT.meta["categories"]
    assert names("voc") == [background.strip("_"), *objects]


def test_coco_stuff_things_are_those_that_coco_annotates():
    """torchvision's list has COCO's ids as its indices and "N/A" for what COCO never annotated."""
    official = models.detection.FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
    assert names("coco-stuff")[:80] == [name for name in official[1:] if name != "N/A"]


def test_coco_stuff_after_the_things_is_in_order_of_names():
    stuff = names("coco-stuff")[80:]
    assert len(stuff) == 91
    assert stuff == sorted(stuff)


def test_an_unknown_table_is_refused():
    with pytest.raises(ExportError, match="must be one of voc, cityscapes, ade20k, coco-stuff, got 'coco'"):
        class_table("coco")
