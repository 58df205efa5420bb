"""Pixels in other units than the contract's: mistakes are named, honest scenes pass. Truth: what was done to the pixels."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner, Result
from networks import Network, contract, pixelwise
from numpy.typing import NDArray

from segpipe.cli import main
from segpipe.contract import Contract, parse_contract
from segpipe.formats.case import Case
from segpipe.formats.cases import find_cases
from segpipe.formats.unusual.pixel_check import PixelCheck
from segpipe.formats.unusual.values import Finding
from segpipe.network.scaling import case_scaling, fixed_scaling
from segpipe.overrides import AS_STORED
from segpipe.results.parts import parts_folder, read_findings, write_findings
from segpipe.storage.folder import Folder
from segpipe.tune.places import survey

EXAMPLES = Path(__file__).parents[2] / "examples"
SCENES = sorted((EXAMPLES / "scenes").glob("*.tif"))
BANDS = ["B02", "B03", "B04", "B08"]
MEAN, STD = np.array([0.0556, 0.0838, 0.0763, 0.2925]), np.array([0.0168, 0.0222, 0.0301, 0.0864])
FIXED = {"normalize": "fixed", "mean": MEAN.tolist(), "std": STD.tolist()}
IMAGENET = {"normalize": "fixed", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
IMAGENET_255 = {"normalize": "fixed", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "scale": 1}
CAFFE = {"normalize": "fixed", "mean": [103.939, 116.779, 123.68], "std": 1.0, "scale": 1}

Pixels = NDArray[Any]


def terms(channels: Any, **changes: Any) -> Contract:
    return parse_contract(contract(channels, 2, **changes), "test")


REFLECTANCE = terms(BANDS, scale=1e-4, **FIXED)
STORED = terms(BANDS, scale=1, normalize="fixed", mean=(MEAN * 1e4).tolist(), std=(STD * 1e4).tolist())


Range = tuple[float, float]
"""Least and most."""


def judged(pixels: Pixels, terms: Contract, tags: tuple[float, float] = (1.0, 0.0)) -> list[Finding]:
    count = len(pixels)
    bands = np.full(count, tags[0]), np.full(count, tags[1])
    return PixelCheck(terms)(pixels.reshape(count, -1), fixed_scaling(terms, None), bands, axes=2)


def read(path: Path, bands: list[int] | None = None) -> Pixels:
    """Some of the valid pixels of a raster, ``(bands, count)``."""
    with rasterio.open(path) as dataset:
        pixels = dataset.read(bands, masked=True)
    valid = ~np.ma.getmaskarray(pixels).any(axis=0)
    return pixels.data[:, valid][:, ::37]


# --- honest scenes --------------------------------------------------------------------------------------------------------


def weather(x: Pixels, rng: np.random.Generator) -> dict[str, Pixels]:
    """Scenes as they come, of reflectance times 10,000, from a common one of shape ``(4, count)``."""
    count = x.shape[1]
    spectrum = partial(np.multiply.outer, dtype=float)
    return {
        "as it is": x,
        "night": x * 0.05,
        "winter": x * 0.3,
        "snow": rng.normal(9500, 800, x.shape),
        "fresh snow": rng.normal(10500, 300, x.shape),
        "saturated snow": 16000 + rng.integers(-5, 5, x.shape),
        "water": np.maximum(rng.normal(np.c_[[400, 350, 150, 5]], np.c_[[40, 40, 30, 4]], x.shape), 0),
        "sun glint": np.maximum(rng.normal(np.c_[[900, 850, 800, 700]], 250, x.shape), 0),
        "thick cloud": x * 0.2 + rng.normal(5000, 1200, count),
        "thin cloud": x * 0.9 + rng.gamma(2, 400, count),
        "haze": x + spectrum([1200, 960, 720, 240], np.ones(count)),
        "desert": spectrum([1500, 2300, 3400, 4300], rng.normal(1, 0.1, count)),
        "city": np.array([[1300], [1500], [1600], [2200]]) * rng.gamma(4, 0.25, x.shape),
        "half cloud": np.where(rng.random(count) < 0.6, 6000 + x * 0.1, x),
    }


@pytest.mark.parametrize("scene", SCENES, ids=lambda path: path.stem)
def test_honest_scenes_pass(scene):
    rng = np.random.default_rng(1)
    graph = REFLECTANCE.model_copy(update={"scaling": "graph"})
    clipped = terms(4, scale=1e-4, clip=[0, 0.3])
    for what, x in weather(read(scene).astype(float), rng).items():
        for dtype in (np.uint16, np.float32):
            pixels = np.clip(np.rint(x), 0, 65535).astype(dtype)
            for expected in (REFLECTANCE, STORED, graph, clipped, terms(4, scale=1e-4), terms(4, scale=1)):
                assert judged(pixels, expected) == [], (what, dtype, expected)
            moved = terms(BANDS, scale=1e-4, offset=-0.1, **FIXED)  # which says that 1,000 were added, and they were
            assert judged(pixels + dtype(1000), moved) == [], (what, dtype)
            tagged = terms(BANDS, pixel="physical", scale=1, **FIXED)
            assert judged(pixels, tagged, (1e-4, 0.0)) == [], (what, dtype)
        assert judged(x * 1e-4, terms(BANDS, scale=1, **FIXED)) == [], what


@pytest.mark.parametrize("expected", [IMAGENET, IMAGENET_255, CAFFE, {}], ids=["0-1", "0-255", "mean alone", "no mean"])
def test_honest_pictures_pass(expected):
    rng = np.random.default_rng(2)
    for mean, spread in ((115, 60), (6, 3), (2, 1), (240, 8), (60, 90)):  # day, night, dark, snow, contrast
        pixels = np.clip(rng.normal(mean, spread, (3, 4000)), 0, 255).astype(np.uint8)
        assert judged(pixels, terms(3, **expected)) == [], (mean, spread)


# what else models are trained on, and cases far from their mean: pixels, mean, deviation, other keys
OTHERS: dict[str, tuple[tuple[float, float], float, float, dict[str, Any]]] = {
    "height of a marsh": ((1.2, 0.3), 500, 400, {"far": False}),
    "height of a plain": ((12, 4), 500, 400, {}),
    "height of the Alps": ((2500, 600), 60, 30, {}),
    "below the sea": ((-4, 1), 50, 40, {}),
    "degrees Celsius in winter": ((-20, 4), 10, 8, {}),
    "degrees Celsius in summer": ((20, 4), -5, 10, {}),
    "vegetation index of water": ((-0.3, 0.05), 0.4, 0.2, {}),
    "lights at night, none": ((0.02, 0.01), 5, 20, {}),
    "height of trees": ((15, 5), 0.5, 0.6, {"far": False}),
    "kelvin": ((44000, 900), 290, 10, {"scale": 0.00341802, "offset": 149}),
    "kelvin, no mean": ((44000, 900), 0, 0, {"scale": 0.00341802, "offset": 149, "normalize": "none"}),
    "kelvin in tenths, no mean": ((2900, 90), 0, 0, {"scale": 0.1, "normalize": "none"}),
    "backscatter, sign turned": ((12, 4), -12, 4, {"scale": -1}),
    "half and half": ((300, 80), 0.5, 0.5, {"scale": 1e-4}),
    "a factor alone": ((700, 400), 0, 1, {}),
}


@pytest.mark.parametrize(("values", "mean", "std", "keys"), OTHERS.values(), ids=OTHERS)
def test_other_quantities_are_not_refused(values, mean, std, keys):
    far = keys.get("far", None)
    moments = {} if keys.get("normalize") == "none" else {"normalize": "fixed", "mean": mean, "std": std}
    expected = terms(1, **({"scale": 1} | moments | {k: v for k, v in keys.items() if k != "far"}))
    found = judged(np.random.default_rng(7).normal(*values, (1, 4000)), expected)
    assert [finding.far for finding in found] == ([] if far is None else [far])


# the same of uniform pixels in some channels: range, mean and deviation of each, whether it is warned
SEVERAL: dict[str, tuple[list[Range], list[float], list[float], bool]] = {
    "height of hills": ([(500, 900)], [120], [80], False),
    "heights of three dates": ([(500, 900)] * 3, [110, 120, 130], [80, 80, 80], True),
    "rain of twelve months": ([(500, 900)] * 12, [*range(90, 150, 5)], [80] * 12, False),
    "water index of a lake": ([(0.2, 0.3)], [-0.35], [0.25], False),
    "two indices of a lake": ([(0.2, 0.3), (0.5, 0.6)], [-0.35, -0.2], [0.25, 0.3], False),
    "standardised, a flat tile": ([(0.1, 0.4)], [-0.02], [0.9], False),
    "standardised, three channels": ([(0.1, 0.4)] * 3, [-0.02, -0.1, -0.3], [0.9, 1, 1.1], False),
    "depth of the sea at its shore": ([(0.1, 0.4)], [-40], [30], True),
    "height of the Dead Sea": ([(-430, -400)], [300], [60], True),
    "height of the Dead Sea, twice": ([(-430, -400)] * 2, [300, 310], [60, 60], True),
    "two indices of water": ([(-0.9, -0.7)] * 2, [0.4, 0.5], [0.1, 0.1], True),
    "power of a calm sea": ([(0.001, 0.003), (0.0004, 0.001)], [0.1, 0.03], [0.2, 0.05], False),
    "power of a calmer sea": ([(0, 0.0004), (0, 0.0004)], [0.1, 0.02], [0.2, 0.05], False),
    "people in a desert": ([(0, 0.1)], [50], [400], True),
    "rain and more in a desert": ([(0, 0.005)] * 2, [3, 1], [8, 3], True),
    "heavy rain": ([(14, 16)], [0.3], [0.4], True),
    "height, by a model of a coast": ([(8000, 8800)], [2], [1.5], True),
}


@pytest.mark.parametrize(("ranges", "mean", "std", "warned"), SEVERAL.values(), ids=SEVERAL)
def test_other_quantities_of_any_number_of_channels_are_not_refused(ranges, mean, std, warned):
    expected = terms(len(ranges), scale=1, normalize="fixed", mean=mean, std=std)
    pixels = np.stack([np.random.default_rng(8).uniform(*ends, 2000) for ends in ranges])
    found = judged(pixels.astype(np.float32), expected)
    assert [finding.far for finding in found] == [False] * warned, found
    assert not any("10,000" in finding.text for finding in found)
    assert not any(finding.far for finding in judged(pixels.astype(np.int16), expected))


def test_height_of_a_plain_in_8_bits_is_doubted():
    pixels = np.random.default_rng(9).integers(0, 200, (1, 2000)).astype(np.uint8)
    (found,) = judged(pixels, terms(1, scale=1, normalize="fixed", mean=500, std=400))
    assert not found.far


@pytest.mark.shared_data
def test_real_rasters_pass_under_their_own_models(shared):
    own = {"scale": 1, "normalize": "fixed"}
    for path in sorted((shared / "geotiff").glob("*.tif")):
        with rasterio.open(path) as dataset:
            rgb = dataset.count in (3, 4) and dataset.dtypes[0] == "uint8" and "mosaic" not in path.name
            pixels = read(path, [1, 2, 3] if rgb else None)
        if rgb:
            for expected in (IMAGENET, IMAGENET_255, CAFFE, {}):
                assert judged(pixels, terms(3, **expected)) == [], path
                assert (
                    judged((pixels * 0.05).astype(np.uint8) + np.arange(pixels.shape[1], dtype=np.uint8) % 2, terms(3)) == []
                )
        varied = pixels.shape[1] and (pixels.min(axis=1) < pixels.max(axis=1)).all() and np.isfinite(pixels).all()
        if varied:  # a model that was trained on it
            x = pixels.astype(float)
            means = {"mean": x.mean(axis=1).tolist(), "std": x.std(axis=1).tolist()}
            assert judged(pixels, terms(len(pixels), **own, **means)) == [], path
    dates = read(shared / "geotiff/inference-img.tif")
    for date in (dates[:4], dates[4:]):  # Sentinel-2, by a model of another place
        assert judged(date, REFLECTANCE) == []
        assert [f.far for f in judged(date + np.uint16(1000), REFLECTANCE)] == [False]


@pytest.mark.shared_data
def test_real_scenes_of_real_models_pass(shared):
    nuclei = read(shared / "models/nuclei/stardist_img2d.tif")
    for normalize in ("zscore", "minmax"):
        own = terms(1, scale=1, normalize=normalize)
        scaling = case_scaling(own, fixed_scaling(own, None), lambda _: [nuclei.astype(np.float32)])
        assert PixelCheck(own)(nuclei, scaling, (np.ones(1), np.zeros(1)), axes=2) == []
    with np.load(shared / "models/clouds/landsat7.npz") as landsat:
        reflectance = np.moveaxis(landsat["img"], -1, 0).reshape(6, -1)[:, ::37]
    assert judged(reflectance, terms(6, scale=1)) == []
    assert judged(reflectance[:4], terms(BANDS, scale=1, **FIXED)) == []
    assert judged(reflectance[:4] * 1e4, REFLECTANCE) == []


# --- mistakes -------------------------------------------------------------------------------------------------------------


def scene() -> NDArray[np.float64]:
    return read(SCENES[0]).astype(float)


def picture() -> NDArray[np.float64]:
    return np.clip(np.random.default_rng(3).normal(110, 50, (3, 4000)), 0, 255)


def radar() -> NDArray[np.float64]:
    """Backscatter as power, two polarisations."""
    return np.random.default_rng(4).gamma(4, 0.03, (2, 4000)) * [[1], [0.25]]


FORGOTTEN = terms(BANDS, scale=1, **FIXED)
PHYSICAL = terms(BANDS, scale=1, pixel="physical", **FIXED)
DECIBELS = terms(2, scale=1, normalize="fixed", mean=[-12.5, -20.0], std=[5.0, 6.0])
POWER = terms(2, scale=1, normalize="fixed", mean=[0.12, 0.03], std=[0.1, 0.03])
KELVIN = terms(1, scale=1, normalize="fixed", mean=290.0, std=10.0)
NONE_OF = "gdal_edit.py -a_nodata"

FAR: dict[str, tuple[Any, Contract, str]] = {
    "0 to 1": (
        lambda: scene() * 1e-4,
        REFLECTANCE,
        "reflectance 0 to 1 where the contract expects 0 to 10,000.*set scale = 1 ",
    ),
    "0 to 1, no scale": (
        lambda: scene() * 1e-4,
        STORED,
        "reflectance 0 to 1 .*multiply .* by 10,000, or set scale = 10000 ",
    ),
    "0 to 1 in the graph": (
        lambda: (scene() * 1e-4).astype(np.float32),
        REFLECTANCE.model_copy(update={"scaling": "graph"}),
        "reflectance 0 to 1 where",
    ),
    "0 to 1, clip": (lambda: scene() * 1e-4, terms(4, scale=1, clip=[0, 3000]), "reflectance 0 to 1 where"),
    "8 bits": (
        lambda: (scene() / 1e4 * 255).astype(np.uint8),
        REFLECTANCE,
        "are uint8, at most 255, where the contract expects",
    ),
    "true colour": (lambda: np.clip(scene() / 3558 * 255, 0, 255).astype(np.uint8), STORED, "are uint8, at most 255, where"),
    "no scale": (
        lambda: scene().astype(np.uint16),
        FORGOTTEN,
        r"standard deviations from .*scale = 0\.0001 in the contract",
    ),
    "no tags": (
        lambda: scene().astype(np.uint16),
        PHYSICAL,
        r"standard deviations from .*pixel = \"physical\" applies the scale",
    ),
    "picture 0 to 1": (
        lambda: picture() / 255,
        terms(3, **IMAGENET),
        "intensities 0 to 1 where the contract expects 0 to 255",
    ),
    "picture 0 to 1, 255": (lambda: picture() / 255, terms(3, **IMAGENET_255), "intensities 0 to 1 .*set scale = 255 in"),
    "picture 0 to 1, mean alone": (lambda: picture() / 255, terms(3, **CAFFE), "intensities 0 to 1 where"),
    "picture without a scale": (
        lambda: picture().astype(np.uint8),
        terms(3, **(IMAGENET | {"scale": 1})),
        r"scale = 0\.00392157",
    ),
    "16-bit picture": (lambda: (picture() * 257).astype(np.uint16), terms(3, **IMAGENET), "reach [0-9,]+ where .* 0 to 255"),
    "12-bit picture": (
        lambda: (picture() * 16).astype(np.uint16),
        terms(3, **IMAGENET_255),
        "reach 3,[0-9]+ where .* 0 to 255",
    ),
    "power": (radar, DECIBELS, "linear power where the contract expects decibels"),
    "decibels": (lambda: 10 * np.log10(radar()), POWER, "decibels where the contract expects positive values"),
}

NEAR: dict[str, tuple[Any, Contract, str]] = {
    "1,000 added": (
        lambda: (scene() + 1000).astype(np.uint16),
        REFLECTANCE,
        r"1,000 were added, .*set offset = -0\.1 in the con",
    ),
    "1,000 added, no scale": (lambda: scene() + 1000, STORED, "1,000 were added, .*set offset = -1000 in the contract"),
    "1,000 not added": (
        lambda: scene().astype(np.uint16),
        terms(BANDS, scale=1e-4, offset=-0.1, **FIXED),
        "half of the pixels are below 0 after the contract's offset of -0.1",
    ),
    "1,000 in the mean": (
        scene,
        terms(BANDS, scale=1e-4, **(FIXED | {"mean": (MEAN + 0.1).tolist()})),
        r"contract expects 1,000 more, .*set offset = 0\.1 in the contract",
    ),
    "Landsat": (
        lambda: ((scene() * 1e-4 + 0.2) / 2.75e-5).astype(np.uint16),
        REFLECTANCE,
        "like those of Landsat Collection 2",
    ),
    "per cent": (lambda: scene() * 1e-2, REFLECTANCE, "far smaller than the contract expects"),
    "8 bits in 16": (
        lambda: np.clip(scene() / 3000 * 255, 0, 255).astype(np.uint16),
        REFLECTANCE,
        "end at 255, as in an 8-bit picture",
    ),
    "8 bits, no mean": (lambda: (scene() / 1e4 * 255).astype(np.uint8), terms(4, scale=1e-4), "are uint8, at most 255"),
    "16-bit picture, no mean": (
        lambda: (picture() * 257).astype(np.uint16),
        terms(3),
        "where the contract expects 0 to 255",
    ),
    "picture 0 to 1, no mean": (lambda: picture() / 255, terms(3), "intensities 0 to 1 where"),
    "no tags, no mean": (
        lambda: scene().astype(np.uint16),
        terms(4, scale=1, pixel="physical"),
        "its integers are taken as they",
    ),
    "Celsius": (
        lambda: np.random.default_rng(5).normal(25, 5, (1, 999)),
        KELVIN,
        "Celsius where the contract expects kelvin",
    ),
    "empty band": (lambda: scene() * [[1], [1], [1], [0]], REFLECTANCE, r"all sampled pixels are equal in B08 \(0\)"),
    "alpha as near infrared": (
        lambda: scene() * [[1], [1], [1], [0]] + [[0], [0], [0], [255]],
        REFLECTANCE,
        r"in B08 \(255\)",
    ),
    "nodata not declared": (lambda: np.where(scene()[:1] < 400, -9999, scene()), REFLECTANCE, f"hold -9999, .*{NONE_OF}"),
}


@pytest.mark.parametrize(("made", "expected", "text"), FAR.values(), ids=FAR)
def test_mistake_that_makes_labels_mean_nothing(made, expected, text):
    found = judged(made(), expected)[0]
    assert found.far
    assert re.search(text, found.text), found.text


@pytest.mark.parametrize(("made", "expected", "text"), NEAR.values(), ids=NEAR)
def test_mistake_that_is_doubted(made, expected, text):
    found = judged(made(), expected)[0]
    assert not found.far
    assert re.search(text, found.text), found.text


def test_scale_applied_twice():
    twice = terms(BANDS, scale=1e-4, pixel="physical", **FIXED)
    (found,) = judged(scene().astype(np.uint16), twice, (1e-4, 0.0))
    assert found.far
    assert found.text.endswith("the contract's scale comes on top: set scale = 1 in the contract")


def test_mend_works():
    """Whoever does what a message says is not warned again."""
    assert judged(scene() * 1e-4, terms(BANDS, scale=1, **FIXED)) == []
    assert judged(scene() + 1000, terms(BANDS, scale=1e-4, offset=-0.1, **FIXED)) == []
    assert judged(scene(), terms(BANDS, scale=1e-4, offset=0.1, **(FIXED | {"mean": (MEAN + 0.1).tolist()}))) == []
    assert judged(picture() / 255, terms(3, **(IMAGENET | {"scale": 1}))) == []
    assert judged(picture() / 255, terms(3, **(IMAGENET_255 | {"scale": 255}))) == []


def test_too_few_pixels_say_nothing():
    assert judged(scene()[:, :63] * 1e-4, REFLECTANCE) == []


@pytest.mark.parametrize("normalize", ["zscore", "minmax"])
def test_statistics_of_the_case_need_spread(normalize):
    pixels = scene()
    own = terms(BANDS, scale=1, normalize=normalize)
    scaling = fixed_scaling(own, None)
    tags = np.ones(4), np.zeros(4)
    low, high = pixels.min(axis=1), pixels.max(axis=1)
    good = scaling.then(1 / (high - low), -low / (high - low))
    assert PixelCheck(own)(pixels, good, tags, axes=2) == []
    gain = np.array([1 / 100, 1 / 100, 1 / 100, 0])
    (found,) = PixelCheck(own)(pixels, scaling.then(gain, -gain), tags, axes=2)
    assert found.text.startswith(f"all valid pixels of B08 are equal, and {normalize} makes them 0")


def test_outliers_stretch_minmax():
    pixels, own = picture(), terms(3, scale=1, normalize="minmax")
    scaling = fixed_scaling(own, None).then(np.full(3, 1 / 65535), np.zeros(3))  # one pixel of 65535
    (first, *_) = PixelCheck(own)(pixels, scaling, (np.ones(3), np.zeros(3)), axes=2)
    assert first.text.startswith("98 % of the sampled pixels of channel 1 lie within 0.3% of the case's range, 0 to 65535")


OWN: dict[str, tuple[Any, dict[str, Any], bool | None]] = {
    "0 to 1, clip": (lambda: scene() * 1e-4, {"scale": 1, "clip": [0, 10_000]}, False),
    "0 to 1, scale": (lambda: scene() * 1e-4, {"scale": 1e-4}, None),
    "8 bits": (lambda: (scene() / 1e4 * 255).astype(np.uint8), {"scale": 1e-4}, False),
    "8 bits, clip": (lambda: (scene() / 1e4 * 255).astype(np.uint8), {"scale": 1, "clip": [0, 10_000]}, False),
    "all beyond the clip": (lambda: scene() + 1000, {"scale": 1, "clip": [0, 1]}, True),
    "no scale": (lambda: scene().astype(np.uint16), {"scale": 1}, None),
    "16-bit picture": (lambda: scene().astype(np.uint16), {"scale": 1 / 255}, None),
}


@pytest.mark.parametrize("normalize", ["zscore", "minmax"])
@pytest.mark.parametrize(("made", "keys", "far"), OWN.values(), ids=OWN)
def test_a_dry_run_judges_own_statistics_as_the_run_does(made, keys, far, normalize):
    """Where they are not known yet, what comes before them is judged all the same."""
    pixels, own = made(), terms(4, normalize=normalize, **keys)
    fixed, tags = fixed_scaling(own, None), (np.ones(4), np.zeros(4))
    scaling = case_scaling(own, fixed, lambda _: [fixed(pixels, None)])
    dry, run = (PixelCheck(own)(pixels, known, tags, axes=2) for known in (None, scaling))
    assert [finding.far for finding in dry] == ([] if far is None else [far])
    assert [finding for finding in run if "valid pixels" not in finding.text] == dry


# --- through the bundled model --------------------------------------------------------------------------------------------


def in_process(*arguments: Any) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)


def bundled(path: Path, **changes: Any) -> Path:
    """The bundled model's contract with other keys, as a file."""
    values = {"version": 1, "channels": BANDS, "scale": 1e-4, **FIXED, "tile": [256, 256], "overlap": [64, 64], "align": 8}
    values |= {"activation": "softmax", "spacing": [10.0, 10.0], **changes}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    lines += [f'[[classes]]\nid = {i}\nname = "c{i}"' for i in range(7)]
    path.write_text("\n".join(lines))
    return path


def altered(path: Path, change: Any, rows: int = 530) -> Path:
    """A bundled scene whose valid pixels were changed."""
    with rasterio.open(EXAMPLES / "scenes" / "morava.tif") as dataset:
        pixels, profile, names = dataset.read(), dataset.profile, dataset.descriptions
    pixels = pixels[:, -rows:, -rows:]
    changed = np.where(pixels > 0, change(pixels.astype(float)), 0).astype(change(pixels[:, :1, :1]).dtype)
    profile |= {"height": pixels.shape[1], "width": pixels.shape[2], "dtype": changed.dtype, "photometric": "minisblack"}
    with rasterio.open(path, "w", **profile, ALPHA="NO") as dataset:
        dataset.write(changed)
        dataset.descriptions = names
    return path


def quick(path: Path) -> Path:
    """A network that takes no time, with what the bundled one's contract says of pixels."""
    return Network(4).conv(4, 7, 1).save(path, contract(BANDS, 7, scale=1e-4, spacing=[10.0, 10.0], **FIXED), classes=7)


MISTAKES: dict[str, tuple[Any, dict[str, Any], bool, str]] = {
    "reflectance 0 to 1": (lambda x: (x * 1e-4).astype(np.float32), {}, True, "reflectance 0 to 1"),
    "uint8": (lambda x: np.clip(x / 3558 * 254 + 1, 1, 255).astype(np.uint8), {}, True, "are uint8"),
    "1,000 added": (lambda x: (x + 1000).astype(np.uint16), {}, False, "1,000 were added"),
    "scale forgotten": (lambda x: x.astype(np.uint16), {"scale": 1}, True, "set scale = 0.0001"),
    "no tags": (lambda x: x.astype(np.uint16), {"scale": 1, "pixel": "physical"}, True, "and it has none"),
    "scale twice": (lambda x: (x * 1e-4).astype(np.float64), {"scale": 1e-8}, True, "far smaller|0 to 1"),
    "empty band": (lambda x: np.concatenate([x[:3], x[3:] * 0 + 7]).astype(np.uint16), {}, False, r"equal in B08 \(7\)"),
}


WINDOWS = {"one": 250, "nine": 530}
CUT = ("one", "reflectance 0 to 1"), ("one", "1,000 added"), *(("nine", mistake) for mistake in MISTAKES)


@pytest.mark.parametrize(("windows", "mistake"), CUT, ids=map(": ".join, CUT))
def test_mistake_through_the_bundled_model(windows, mistake, tmp_path, caplog):
    change, changes, far, text = MISTAKES[mistake]
    scene = altered(tmp_path / "s.tif", change, WINDOWS[windows])
    command = ["run", "-i", scene, "-m", EXAMPLES / "crops.onnx", "--executor", "serial", "--device", "cpu"]
    command += ["--contract", bundled(tmp_path / "c.toml", **changes)]
    dry = in_process(*command, "-o", tmp_path / "dry", "--dry-run")
    assert dry.exit_code == int(far)
    assert re.search(f"{'problem' if far else 'note'}  s: .*{text}", dry.stdout)
    assert in_process(*command, "-o", tmp_path / "out").exit_code == int(far)
    summary = json.loads((tmp_path / "out" / "run.json").read_text())
    if far:
        assert re.search(text, summary["failed"][0]["error"])
        assert not (tmp_path / "out" / "s.tif").exists()
    else:
        record = json.loads((tmp_path / "out" / "s.json").read_text())
        assert re.search(text, record["notes"][-1])
        assert (summary["unusual_cases"], summary["warnings"]) == (1, [{"case": "s", "warning": record["notes"][-1]}])
        assert f"warning: s: {record['notes'][-1]}" in caplog.messages


def test_unusual_values_are_allowed_where_asked_for(tmp_path):
    scene = altered(tmp_path / "s.tif", lambda x: (x * 1e-4).astype(np.float32), 250)
    command = ["run", "-i", scene, "-m", quick(tmp_path / "m.onnx"), "--executor", "serial", "-o", tmp_path / "out"]
    assert in_process(*command).exit_code == 1
    assert in_process(*command, "--unusual-values", "allow").exit_code == 0
    assert "reflectance 0 to 1" in json.loads((tmp_path / "out" / "s.json").read_text())["notes"][-1]
    again = in_process(*command)  # its labels would be the same, and its record still has the warning
    assert (again.exit_code, "0 done, 1 done before" in again.stdout) == (0, True)
    assert in_process(*command, "--overwrite").exit_code == 1


def test_bundled_scenes_raise_no_alarm(tmp_path):
    ended = in_process(
        *("run", "-i", EXAMPLES / "scenes", "-m", EXAMPLES / "crops.onnx", "-o", tmp_path / "out", "--executor", "serial")
    )
    assert ended.exit_code == 0
    summary = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (summary["unusual_cases"], summary["warnings"]) == (0, [])


def test_inspect_tells_what_a_run_would(tmp_path):
    doubtful = altered(tmp_path / "a.tif", lambda x: (x + 1000).astype(np.uint16))
    wrong = altered(tmp_path / "b.tif", lambda x: (x * 1e-4).astype(np.float32))
    facts = json.loads(in_process("inspect", doubtful, "-m", EXAMPLES / "crops.onnx", "--json").stdout)
    assert ["1,000 were added" in note for note in facts["notes"]] == [True]
    assert facts["error"] is None
    ended = in_process("inspect", wrong, "-m", EXAMPLES / "crops.onnx", "--json")
    assert ended.exit_code == 1
    assert "reflectance 0 to 1" in json.loads(ended.stdout)["error"]


def test_file_without_tags_among_tagged_ones(tmp_path):
    """Each case is judged by its own tags."""
    altered(tmp_path / "in-a.tif", lambda x: x.astype(np.uint16))
    tagged = altered(tmp_path / "in-b.tif", lambda x: x.astype(np.uint16))
    with rasterio.open(tagged, "r+") as dataset:
        dataset.scales = (1e-4,) * 4
    terms = bundled(tmp_path / "c.toml", scale=1, pixel="physical")
    command = ["run", "-i", tmp_path / "in-*.tif", "-m", quick(tmp_path / "m.onnx"), "--contract", terms]
    ended = in_process(*command, "-o", tmp_path / "out", "--executor", "serial")
    assert ended.exit_code == 1
    summary = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (summary["done"], [failed["case"] for failed in summary["failed"]]) == (["in-b"], ["in-a"])


@pytest.mark.parametrize("mistake", ["1,000 added", "reflectance 0 to 1"])
def test_parts_tell_what_the_whole_tells(mistake, tmp_path, caplog):
    scene = altered(tmp_path / "s.tif", MISTAKES[mistake][0])
    reported = []
    for options in ((), ("--parts", "4", "--batch", "2", "--overlap", "8")):
        out = tmp_path / f"out{len(reported)}"
        in_process("run", "-i", scene, "-m", quick(tmp_path / "m.onnx"), "-o", out, "--executor", "serial", *options)
        record = json.loads((out / "run.json").read_text())
        reported.append((record["failed"], record["warnings"]))
    assert reported[0] == reported[1]
    assert any(reported[0])
    assert [text.startswith("warning: s: ") for text in caplog.messages].count(True) == len(reported) * len(reported[0][1])


def test_workers_hand_warnings_on(tmp_path, segpipe):
    scene = altered(tmp_path / "s.tif", MISTAKES["1,000 added"][0], 250)
    ended = segpipe("run", "-i", scene, "-m", EXAMPLES / "crops.onnx", "-o", tmp_path / "out", "--workers", "1")
    (warning,) = json.loads((tmp_path / "out" / "run.json").read_text())["warnings"]
    assert f"warning: s: {warning['warning']}\n" in ended.stderr
    assert "warning: " not in ended.stdout


@pytest.mark.parametrize("count", [20, 21, pytest.param(24, marks=pytest.mark.slow)])
def test_cases_that_are_not_named_on_stderr_are_counted(count, tmp_path, caplog):
    scene = altered(tmp_path / "s.tif", MISTAKES["1,000 added"][0], 64)
    for number in range(count):
        (tmp_path / f"in-{number}.tif").write_bytes(scene.read_bytes())
        with rasterio.open(tmp_path / f"in-{number}.tif", "r+") as dataset:  # side by side, or they would share ground
            dataset.transform @= Affine.translation(64 * number, 0)
    out = tmp_path / "out"
    command = ["run", "-i", tmp_path / "in-*.tif", "-m", quick(tmp_path / "m.onnx"), "-o", out, "--executor", "serial"]
    assert in_process(*command).exit_code == 0
    warned = [text for text in caplog.messages if text.startswith("warning: ")]
    assert sum("1,000 were added" in text for text in warned) == 20
    noun = {21: "1 more case has", 24: "4 more cases have"}.get(count)
    assert warned[20:] == ([f'warning: {noun} unusual pixels: see "warnings" in {out / "run.json"}'] if noun else [])


def test_scenes_of_tune_and_of_exports_are_judged(tmp_path, caplog):
    from segpipe.export.file import spec_of
    from segpipe.export.tiles import scene_samples

    scene = altered(tmp_path / "s.tif", MISTAKES["reflectance 0 to 1"][0], 250)
    scene_samples([str(scene)], spec_of(EXAMPLES / "crops.onnx"), AS_STORED, 1)
    assert any(text.startswith("warning: s: pixels look like reflectance 0 to 1") for text in caplog.messages)
    caplog.clear()
    cases = find_cases((str(scene),))
    survey(cases, spec_of(EXAMPLES / "crops.onnx"), AS_STORED)
    assert any(text.startswith("warning: s: pixels look like reflectance 0 to 1") for text in caplog.messages)


def test_allowed_case_has_the_bytes_of_an_unjudged_one(tmp_path, raster):
    """Nothing about labels depends on what is said: a contract without mean that scales the same gives the same mask."""
    pixels = np.random.default_rng(6).random((3, 200, 300), dtype=np.float32) * 100
    source = raster("in.tif", pixels)
    mean, std = [0.5, 0.4, 0.3], [0.1, 0.2, 0.3]
    judged_model = pixelwise(tmp_path / "a.onnx", scale=1, normalize="fixed", mean=mean, std=std)
    gain = (1 / np.array(std)).tolist()
    bias = (-np.array(mean) / np.array(std)).tolist()
    plain = pixelwise(tmp_path / "b.onnx", scale=gain, offset=bias)
    masks = []
    for model, options in ((judged_model, ("--unusual-values", "allow")), (plain, ())):
        out = tmp_path / model.stem
        assert in_process("run", "-i", source, "-m", model, "-o", out, "--executor", "serial", *options).exit_code == 0
        with rasterio.open(out / "in.tif") as mask:
            masks.append(mask.read(1))
    np.testing.assert_array_equal(*masks)


def test_parts_that_look_at_once_do_not_stop_each_other(tmp_path):
    """Workers begin the first parts of a case together."""
    output, finding = Folder(tmp_path), Finding("doubtful", far=False)
    for number in range(20):
        case = Case(f"a{number}", "a.tif")
        output.write(f"{parts_folder(case)}/plan.json", b"{}")
        with ThreadPoolExecutor(8) as pool:
            for written in [pool.submit(write_findings, output, case, [finding]) for _ in range(8)]:
                written.result()
        assert read_findings(output, case) == [finding]
        assert {path.name for path in (tmp_path / parts_folder(case)).iterdir()} == {"plan.json", "unusual.json"}


def volumes() -> dict[str, Pixels]:
    """Voxels ``(1, count)`` as scanners give them."""
    rng = np.random.default_rng(0)
    soft, bone, lung = rng.normal(45, 40, 4000), rng.uniform(300, 1500, 300), rng.normal(-850, 60, 2000)
    return {
        "abdomen": np.concatenate([np.full(3000, -1024), soft, bone])[None].round().astype("i2"),
        "thorax": np.concatenate([np.full(3000, -1000), lung, soft[:1500], bone])[None].astype("f4"),
        "air": rng.normal(-1000, 12, (1, 4096)).round().astype("i2"),
        "head MR": np.concatenate([rng.exponential(8, 3000), rng.normal(400, 150, 3000).clip(0)])[None].astype("i2"),
        "8-bit MR": np.concatenate([np.zeros(3000), rng.normal(110, 30, 3000).clip(0, 255)])[None].astype("u1"),
        "PET": rng.exponential(1.2, (1, 4096)).astype("f4"),
    }


CT = {
    "window of an abdomen": {"scale": 1 / 425, "offset": 175 / 425, "clip": [0, 1], "normalize": "none"},
    "window of bone": {"scale": 1 / 1200, "offset": -300 / 1200, "clip": [0, 1], "normalize": "none"},
    "whole range": {"scale": 1 / 2000, "offset": 0.5, "clip": [0, 1], "normalize": "none"},
    "nnU-Net's CT": {"clip": [-958, 327], "normalize": "fixed", "mean": 82.9, "std": 136.6},
    "nnU-Net's liver": {"clip": [-17, 201], "normalize": "fixed", "mean": 99.4, "std": 39.4},
    "numbers of CT": {"normalize": "fixed", "mean": -280, "std": 480},
}
OWN = {"own z-score": {"normalize": "zscore"}, "own range": {"normalize": "minmax"}}


@pytest.mark.parametrize("slope", [None, (1.0, -1024.0)], ids=["as stored", "with a slope"])
@pytest.mark.parametrize(("terms_of", "volume"), [
    *((name, volume) for name in CT for volume in ("abdomen", "thorax", "air")),
    *((name, volume) for name in OWN for volume in ("abdomen", "thorax", "head MR", "8-bit MR", "PET")),
])  # fmt: skip
def test_volumes_pass(terms_of: str, volume: str, slope: tuple[float, float] | None) -> None:
    values = {"layout": "NCDHW", "tile": [16], "overlap": [4], "scale": 1, "pixel": "physical", "activation": "softmax"}
    of_volumes = terms(1, **{**values, **(CT | OWN)[terms_of]})
    pixels = volumes()[volume]
    tags = None if slope is None else (np.array([slope[0]]), np.array([slope[1]]))
    pixels = pixels if slope is None else (pixels - slope[1]).astype(pixels.dtype if pixels.dtype != "u1" else "i2")
    scaling = fixed_scaling(of_volumes, tags)
    if of_volumes.normalize in ("zscore", "minmax"):
        scaling = case_scaling(of_volumes, scaling, lambda scale: [scale(pixels, None)])
    assert PixelCheck(of_volumes)(pixels, scaling, tags, axes=3) == []


def test_a_volume_of_another_scale_is_named() -> None:
    liver = terms(1, layout="NCDHW", tile=[16], overlap=[4], pixel="physical", **{"scale": 1, **CT["nnU-Net's liver"]})
    pixels = volumes()["abdomen"] * np.float32(1000)
    (found,) = PixelCheck(liver)(pixels, fixed_scaling(liver, None), None, axes=3)
    assert "standard deviations from the contract's mean" in found.text


@pytest.mark.parametrize("slope", [None, (2.0, 0.0)], ids=["as stored", "with a slope"])
@pytest.mark.parametrize("normalize", ["fixed", "zscore", "minmax"])
def test_nodata_of_a_volume_is_declared_by_a_flag(normalize: str, slope: tuple[float, float] | None) -> None:
    """No program sets it in the file, as gdal_edit.py does in a raster's; under a model of slices, too."""
    more = {"mean": 45.0, "std": 400.0} if normalize == "fixed" else {}
    tags = None if slope is None else (np.array([slope[0]]), np.array([slope[1]]))
    pixels = np.where(np.arange(7300) % 3 == 0, -32768, volumes()["abdomen"]).astype("i2")
    for layout in ({}, {"layout": "NCDHW", "tile": [16], "overlap": [4]}):
        model = terms(1, pixel="physical", scale=1, normalize=normalize, **more, **layout)
        (*_, found) = PixelCheck(model)(pixels, None, tags, axes=3)
        assert "hold -32768, which looks like nodata" in found.text
        assert found.text.endswith("say so with --nodata")
    (*_, found) = PixelCheck(model)(pixels, None, tags, axes=2)
    assert found.text.endswith("gdal_edit.py -a_nodata")


def test_a_volume_with_a_slope_is_judged_as_one_without() -> None:
    """Air is far below what a model of slices takes its mean of, whether or not the file has an intercept."""
    slices = terms(1, scale=1, pixel="physical", normalize="fixed", mean=45.0, std=60.0)
    air = volumes()["air"]
    tags = np.array([1.0]), np.array([-1024.0])
    assert PixelCheck(slices)(air, None, None, axes=3) == []
    assert PixelCheck(slices)((air + 1024).astype("i2"), None, tags, axes=3) == []
    (found,) = PixelCheck(slices)(air, None, (np.ones(1), np.zeros(1)), axes=2)
    assert "where the contract expects positive values" in found.text


def test_an_offset_alone_is_a_tag() -> None:
    """A file that has one is not told that it has none, nor that it has a scale."""
    plain = terms(1, scale=1, pixel="physical", normalize="none")
    heights = np.arange(5000, dtype="u2")[None]
    assert judged(heights, plain, (1.0, -500.0)) == []
    (found,) = judged(heights, plain)
    assert "and it has none" in found.text
    (found,) = judged(scene() * 1e-4, terms(BANDS, scale=1e-4, pixel="physical", **FIXED), (1.0, 0.01))
    assert "multiply the file's pixels by 10,000" in found.text
