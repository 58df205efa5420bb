"""Which bands of a file are the channels of a model: what both sides say is believed, and contradictions are refused."""

import json

import numpy as np
import pytest
import rasterio
from networks import Network, contract

from segpipe.contract import Contract
from segpipe.errors import SourceError
from segpipe.formats.raster.bands import Band, alpha_bands, match_bands
from segpipe.overrides import AS_STORED, Overrides


def model(channels):
    return Contract.model_validate(contract(channels if isinstance(channels, int) else channels.split()))


def file(text):
    """``red green -:B04`` is three bands: colour, then a name."""
    words = [word.partition(":") for word in text.split()]
    return [
        Band(number, name.replace("_", " ") or None, "undefined" if colour == "-" else colour)
        for number, (colour, _, name) in enumerate(words, 1)
    ]


def matched(text, channels, overrides=AS_STORED):
    return match_bands(file(text), model(channels), overrides)


@pytest.mark.parametrize(
    ("bands", "channels", "expected"),
    [
        # order, where one side says nothing
        ("red green blue", 3, [1, 2, 3]),
        ("blue green red", 3, [1, 2, 3]),
        ("gray - - -", "B04 B03 B02 B08", [1, 2, 3, 4]),
        ("gray - -", "blue green red", [1, 2, 3]),
        ("gray", "red", [1]),
        ("red green blue -", "B04 B03 B02 B08", [1, 2, 3, 4]),
        ("red green blue", "height slope aspect", [1, 2, 3]),
        ("gray - - -", "red nir red nir", [1, 2, 3, 4]),
        # equal names, whatever the colours
        ("gray:B02 -:B03 -:B04 -:B08", "B04 B03 B02 B08", [3, 2, 1, 4]),
        ("red:B02 green:B03 blue:B04", "B04 B03 B02", [3, 2, 1]),
        ("-:a -:B -:c", "b", [2]),
        # colours that agree with the order
        ("red green blue", "red green blue", [1, 2, 3]),
        ("red green blue alpha", "R G B", [1, 2, 3]),
    ],
)
def test_by_equal_names_or_order_without_a_note(bands, channels, expected):
    found = matched(bands, channels)
    assert (found.bands, found.notes) == (expected, ())


@pytest.mark.parametrize(
    ("bands", "channels", "expected"),
    [
        ("red green blue", "blue green red", [3, 2, 1]),
        ("blue green red alpha", "Red Green Blue", [3, 2, 1]),
        ("red green blue", "B G R", [3, 2, 1]),
        ("red green blue -", "blue green red nir", [3, 2, 1, 4]),
        ("red green blue -", "blue green red B08", [3, 2, 1, 4]),
        ("red green blue nir", "nir red green", [4, 1, 2]),
        ("red green blue nir", "Near-Infrared red green", [4, 1, 2]),
        ("red green blue undefined", "red green blue", [1, 2, 3]),
        ("red green blue", "red", [1]),
        ("- - red green blue", "red green blue", [3, 4, 5]),
        ("coastal blue green red nir", "blue green red nir", [2, 3, 4, 5]),
        # names of some bands
        ("gray -:red -:green -", "blue green red nir", [1, 3, 2, 4]),
        ("gray -:B03 -", "B03 B04 B08", [2, 1, 3]),
        # alpha that a channel asks for
        ("red green blue alpha", "A B G R", [4, 3, 2, 1]),
        # all bands have names, which are not equal but say the same
        ("-:B2 -:B3 -:B4 -:B8", "B04 B03 B02 B08", [3, 2, 1, 4]),
        ("-:B4,_central_wavelength_665_nm -:B8A,_865_nm -:B8", "B8A B04", [2, 1]),
        ("-:Red -:Green -:Blue -:Near_Infrared", "nir red green", [4, 1, 2]),
        ("-:red -:green -:blue", "B G R", [3, 2, 1]),
        ("-:Red -:Green -:NIR -:B11", "B11 near_infrared red", [4, 3, 1]),
    ],
)
def test_by_what_both_say_with_a_note(bands, channels, expected):
    found = matched(bands, channels)
    assert found.bands == expected
    (note,) = found.notes
    assert "taken for" in note


@pytest.mark.parametrize(
    ("bands", "channels", "listed"),
    [
        # contradictions
        ("red green blue", "nir red green", r"3 bands \(red, green, blue\) for nir, red, green"),
        ("red green blue", "nir swir blue", r"3 bands \(red, green, blue\)"),
        ("cyan magenta yellow black", "red green blue nir", r"4 bands \(cyan, magenta, yellow, black\)"),
        ("- - red", "blue green nir", r"3 bands \(unnamed, unnamed, red\)"),
        # counts
        ("red green blue", 4, r"3 bands \(red, green, blue\)"),
        ("red green blue - -", "red green blue nir", r"5 bands \(red, green, blue, unnamed, unnamed\)"),
        ("red green blue alpha", "red green blue nir", r"3 bands \(red, green, blue\)"),
        # names
        ("-:B04 -:B03 -:B02", "red green blue", r"3 bands \(B04, B03, B02\)"),
        ("-:b1 -:b2 -:b3", "B02 B03 B01", r"3 bands \(b1, b2, b3\)"),
        ("red:B8 green:B4 blue:B3", "red green blue", r"3 bands \(B8, B4, B3\)"),
        ("-:red -:Red -:blue", "red blue", r"3 bands \(red, Red, blue\)"),
        ("-:L -:A -:B", "alpha blue", r"3 bands \(L, A, B\)"),
    ],
)
def test_what_is_open_or_contradicts_is_refused(bands, channels, listed):
    with pytest.raises(SourceError, match=rf"the file's bands must be the model's channels, got {listed}"):
        matched(bands, channels)
    count = model(channels).channel_count
    if count <= len(file(bands)):  # the mend works
        chosen = tuple(range(1, count + 1))
        assert matched(bands, channels, Overrides(chosen)).bands == list(chosen)


def test_codes_of_sentinel_and_colours_in_another_order_are_noted():
    """They may be another sensor's: nothing is swapped."""
    found = matched("red green blue", "B02 B03 B04")
    assert found.bands == [1, 2, 3]
    assert found.notes == (
        "bands were taken in their order, and band 1 is tagged red, but B02 is blue to Sentinel-2: "
        "if the tags are right, give --bands 3,2,1",
    )
    assert matched("red green blue", "B04 B03 B02").notes == ()
    assert matched("gray - -", "B02 B03 B04").notes == ()


@pytest.mark.parametrize(
    ("bands", "channels", "expected"),
    [
        ("red green blue alpha", 4, [1, 2, 3, 4]),
        ("red green blue alpha", 3, [1, 2, 3]),
        ("red green blue alpha", "red green blue nir", [1, 2, 3, 4]),
        ("red green blue alpha", "nir blue green red", [4, 3, 2, 1]),
        ("red green blue alpha", "red green blue", [1, 2, 3]),
    ],
)
def test_alpha_that_is_ignored_may_be_a_channel(bands, channels, expected):
    assert matched(bands, channels, Overrides(ignore_alpha=True)).bands == expected


@pytest.mark.parametrize(
    ("bands", "channels", "alpha"),
    [
        ("red green blue alpha", 3, [4]),
        ("red green blue alpha:alpha", 3, [4]),
        ("red green blue alpha:NIR", 3, []),
        ("red green blue alpha:B08", "B04 B03 B02 B08", []),
        ("red green blue alpha:B08", 3, [4]),
        ("alpha gray alpha", 1, [1, 3]),
    ],
)
def test_alpha_whose_name_says_that_it_is_data(bands, channels, alpha):
    assert alpha_bands(file(bands), model(channels)) == alpha


def test_near_infrared_by_name_is_a_channel_whatever_its_tag():
    assert matched("red:red green:green blue:blue alpha:nir", "nir red green").bands == [4, 1, 2]


# --- through a run --------------------------------------------------------------------------------------------------------


def labels(folder, case):
    (path,) = (path for path in folder.glob(f"{case}.*") if path.suffix in {".tif", ".png"})
    with rasterio.open(path) as mask:
        return mask.read(1)


def test_channels_in_another_order_than_the_colours_of_a_picture(raster, tmp_path, segpipe):
    """It was swapped, and the mIoU fell from 0.57 to 0.27."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 70, 90), np.uint8)
    raster("in/rgb.png", pixels)
    raster("turned/rgb.tif", pixels[::-1].copy(), photometric="MINISBLACK")
    net = Network(3, 0).conv(3, 3, 1).save(tmp_path / "m.onnx", contract(["blue", "green", "red"], 3), classes=3)
    for folder in ("in", "turned"):
        ended = segpipe("run", "-i", tmp_path / folder, "-m", net, "-o", tmp_path / f"{folder}-out", "--executor", "serial")
        assert ended.returncode == 0, ended.stderr
    np.testing.assert_array_equal(labels(tmp_path / "in-out", "rgb"), labels(tmp_path / "turned-out", "rgb"))
    note = "bands 3, 2, 1 taken for blue, green, red, as the file's names and colours say"
    assert json.loads((tmp_path / "in-out" / "rgb.json").read_text())["notes"] == [note]
    assert json.loads((tmp_path / "turned-out" / "rgb.json").read_text())["notes"] == []
    swapped = segpipe(
        "run", "-i", tmp_path / "in", "-m", net, "--bands", "1,2,3", "-o", tmp_path / "o", "--executor", "serial"
    )
    assert swapped.returncode == 0
    assert (labels(tmp_path / "o", "rgb") != labels(tmp_path / "in-out", "rgb")).any()


@pytest.mark.parametrize(("channels", "mend"), [("red green blue", "expand it with .* -expand rgb"), ("b g", "--bands 1,1")])
def test_a_picture_with_a_palette_is_to_be_expanded_for_colours(channels, mend):
    with pytest.raises(SourceError, match=f"got 1 band .*{mend}"):
        matched("palette", channels)
