"""Real models on real input, with a contract alone: what a user without Python gets."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import rasterio
from click.testing import CliRunner, Result
from rasterio.transform import from_origin

from segpipe.cli import main
from segpipe.network.openvino_session import has_bf16

pytestmark = pytest.mark.shared_data

MODELS = Path(__file__).parents[3] / "shared" / "data" / "models"
DEEPNESS = MODELS / "deepness"
BF16 = ("--device", "openvino", "--precision", "bf16", "--overwrite")

Ended = subprocess.CompletedProcess[str] | Result
Segpipe = Callable[..., Ended]


def toml(path: Path, **values: Any) -> Path:
    """A contract with the keys that all of these share, as a file for ``--contract``; JSON writes TOML's values."""
    classes = values.pop("classes", ["background", "found"])
    keys = {"version": 1, "normalize": "none", "activation": "none", "task": "binary", **values}
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    lines += [f'[[classes]]\nid = {i}\nname = "{name}"' for i, name in enumerate(classes)]
    path.write_text("\n".join(lines))
    return path


def in_process(*arguments: Any) -> Result:
    """The command line without the second that a process takes to start."""
    return CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)


def segment(segpipe: Segpipe, source: Path, model: Path, contract: Path, *options: Any) -> np.ndarray:
    """Labels that ``segpipe run`` gives of one file."""
    output = contract.with_suffix(".out")
    command = ["run", "-i", source, "-m", model, "--contract", contract, "-o", output, "--device", "cpu"]
    ended = segpipe(*command, "--executor", "serial", *options)
    assert exit_code(ended) == 0, ended.stdout + ended.stderr
    with rasterio.open(output / f"{source.stem}.tif") as mask:
        return mask.read(1)


def exit_code(ended: Ended) -> int:
    return ended.exit_code if isinstance(ended, Result) else ended.returncode


def infer(model: Path, x: np.ndarray, output: str | None = None) -> np.ndarray:
    """What ONNX Runtime gives for an array ``(channels, rows, cols)``, straight."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(output and [output], {session.get_inputs()[0].name: x.astype(np.float32)[None]})[0]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


# --- nuclei ---------------------------------------------------------------------------------------------------------------


def test_nuclei_match_the_truth_as_published(segpipe, tmp_path):
    """The graph ends in logits; its bioimageio.yaml names the sigmoid as a step after it."""
    source, model = MODELS / "nuclei/stardist_img2d.tif", MODELS / "nuclei/weights.onnx"
    sizes = {"tile": [512, 512], "overlap": [64, 64], "align": 8}
    contract = toml(
        tmp_path / "n.toml", channels=1, **sizes, normalize="zscore", activation="sigmoid", classes=["rest", "nucleus"]
    )
    labels = segment(segpipe, source, model, contract)
    with rasterio.open(source) as image, rasterio.open(MODELS / "nuclei/stardist_mask2d.tif") as mask:
        pixels, truth = image.read().astype(float), mask.read(1) > 0
    straight = infer(model, (pixels - pixels.mean()) / pixels.std())[0, 0] > 0
    assert (labels != straight).mean() < 1e-4
    assert dice(labels == 1, truth) == pytest.approx(0.878, abs=1e-3)
    if has_bf16("openvino"):
        coarse = segment(segpipe, source, model, contract, *BF16)
        assert (coarse == labels).mean() > 0.999
        assert dice(coarse == 1, truth) == pytest.approx(0.878, abs=2e-3)


# --- clouds ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tile", "overlap"), [(512, 0), (128, 32)])
def test_clouds_match_the_truth_whole_and_cut(tile, overlap, segpipe, tmp_path):
    with np.load(MODELS / "clouds/landsat7.npz") as scene:
        reflectance, truth = np.moveaxis(scene["img"], -1, 0), scene["msk"][..., 0] == 4
    source, names = tmp_path / "landsat7.tif", ["blue", "green", "red", "nir", "swir1", "swir2"]
    place = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_400_000, 30, 30), "dtype": "float32"}
    with rasterio.open(source, "w", driver="GTiff", count=6, height=512, width=512, **place) as dataset:
        dataset.write(reflectance)
        dataset.descriptions = names
    sizes = {"tile": [tile, tile], "overlap": [overlap, overlap], "align": 4}
    contract = toml(tmp_path / "c.toml", channels=names, **sizes, classes=["clear", "cloud"])
    model = MODELS / "clouds/clouds_bgrn_swir.onnx"
    labels = segment(segpipe, source, model, contract)
    assert iou(labels == 1, truth) == pytest.approx(0.634, abs=0.01)
    if has_bf16("openvino"):
        coarse = segment(segpipe, source, model, contract, *BF16)
        assert (coarse == labels).mean() > 0.995
        assert iou(coarse == 1, truth) == pytest.approx(0.634, abs=0.01)
    if tile == 512:
        assert (labels != (infer(model, reflectance)[0, 0] > 0.5)).mean() < 1e-4


# --- the forms found in the wild ------------------------------------------------------------------------------------------

# model: what the contract must say besides scaling, and whether it has two outputs
FORMS: dict[str, tuple[dict[str, Any], bool]] = {
    "dummy_model": ({"task": "multiclass", "activation": "softmax", "classes": ["red", "green", "blue"]}, False),
    "one_output_sigmoid_bsx1x512x512": ({}, False),
    "one_output_sigmoid_bsx512x512": ({}, False),
    "one_output_sigmoid_red_detector": ({}, False),
    "one_output_softmax_bsx2x512x512": ({"task": "multiclass"}, False),
    "two_outputs_sigmoid_bsx1x512x512": ({}, True),
    "two_outputs_sigmoid_bsx512x512": ({}, True),
    "two_outputs_softmax_bsx2x512x512": ({"task": "multiclass"}, True),
}
SMALLER = "different_output_size_512_to_484"
SCALING = {"channels": 3, "scale": 1 / 255, "tile": [512, 512], "overlap": [128, 128]}
SHAPE = (600, 700)


@pytest.fixture
def picture(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Smooth content, larger than a tile: the file and its pixels ``(3, rows, cols)``."""
    rng = np.random.default_rng(7)
    rows, cols, k = np.ogrid[: SHAPE[0], : SHAPE[1], :3]
    waves = [np.sin(cols / a + rows / b + k * c) for a, b, c in rng.uniform([20, 20, 0], [90, 90, 6], (6, 3))]
    pixels = np.moveaxis(127 + 21 * np.sum(waves, axis=0), -1, 0).clip(0, 255).astype(np.uint8)
    place = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_400_000, 0.1, 0.1), "dtype": "uint8"}
    with rasterio.open(tmp_path / "p.tif", "w", driver="GTiff", count=3, height=SHAPE[0], width=SHAPE[1], **place) as file:
        file.write(pixels)
    return tmp_path / "p.tif", pixels


def decided(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels of scores ``(classes, rows, cols)``, and where no rounding can change them."""
    if len(scores) == 1:
        return scores[0] > 0.5, np.abs(scores[0] - 0.5) > 1e-5
    second, best = np.sort(scores, axis=0)[-2:]
    return scores.argmax(axis=0), best - second > 1e-5


def direct(model: Path, pixels: np.ndarray, output: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a case of two by two windows from ONNX Runtime alone.

    These models see a pixel or three, so the first window decides but for its last rows and columns, where the others do:
    corners of the case are inferred straight, and each keeps the quadrant that is its own.
    """
    labels, sure = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, bool)
    for top, left in [(0, 0), (0, 188), (88, 0), (88, 188)]:
        scores = infer(model, pixels[:, top : top + 512, left : left + 512] / 255, output)
        scores = scores.reshape(-1, 512, 512)
        own = np.s_[300 if top else 0 : 600 if top else 300, 350 if left else 0 : 700 if left else 350]
        here = tuple(slice(s.start - o, s.stop - o) for s, o in zip(own, (top, left), strict=True))
        labels[own], sure[own] = (part[here] for part in decided(scores))
    return labels, sure


def outputs_of(name: str) -> list[str]:
    return ["output", "output2"] if FORMS[name][1] else ["output"]


@pytest.mark.parametrize("name", [*FORMS, SMALLER])
def test_model_without_scaling_is_refused(name, picture, tmp_path):
    source, _ = picture
    model = DEEPNESS / f"{name}.onnx"
    ended = in_process("run", "-i", source, "-m", model, "-o", tmp_path / "out", "--device", "cpu")
    assert ended.exit_code == 2
    assert re.match(rf"error: {re.escape(str(model))} has no contract that says how its pixels are scaled", ended.stderr)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [name for name in FORMS if not FORMS[name][1]])
def test_lines_to_write_work_as_they_are(name, picture, tmp_path):
    """The message is a contract that runs, with the guesses left to the user."""
    source, _ = picture
    model = DEEPNESS / f"{name}.onnx"
    said = in_process("run", "-i", source, "-m", model, "-o", tmp_path / "out").stderr
    (tmp_path / "c.toml").write_text(said.split("\n\n", 1)[1])
    options = ("--bands", "1,2,3", "--device", "cpu", "--dry-run")
    ended = in_process("run", "-i", source, "-m", model, "--contract", tmp_path / "c.toml", "-o", tmp_path / "out", *options)
    assert ended.exit_code == 0, ended.stderr


@pytest.mark.parametrize(("name", "output"), [(name, output) for name in FORMS for output in outputs_of(name)])
def test_labels_are_those_of_onnxruntime(name, output, picture, tmp_path):
    source, pixels = picture
    model, (keys, several) = DEEPNESS / f"{name}.onnx", FORMS[name]
    named = {"output": output} if several else {}
    labels = segment(in_process, source, model, toml(tmp_path / "c.toml", **SCALING, **keys, **named), "--blend", "crop")
    truth, sure = direct(model, pixels, output)
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(labels[sure], truth[sure])


@pytest.mark.parametrize("name", [name for name in FORMS if FORMS[name][1]])
def test_one_of_two_outputs_must_be_named(name, picture, tmp_path):
    contract = toml(tmp_path / "c.toml", **SCALING, **FORMS[name][0])
    ended = in_process("run", "-i", picture[0], "-m", DEEPNESS / f"{name}.onnx", "--contract", contract)
    assert ended.exit_code == 2
    assert re.search(r"2 outputs, .*output = .*: output \(.*512\), output2 \(.*512\)", ended.stderr)


def test_output_that_is_cropped_needs_a_margin(picture, tmp_path):
    contract = toml(tmp_path / "c.toml", **SCALING, task="multiclass")
    ended = in_process("run", "-i", picture[0], "-m", DEEPNESS / f"{SMALLER}.onnx", "--contract", contract)
    assert ended.exit_code == 2
    assert re.search(
        r"rounded up or down, got 484 x 484 for a tile of 512 x 512: if it is the middle .* set margin = \[14, 14\]",
        ended.stderr,
    )


def test_output_that_is_cropped(picture, tmp_path):
    """The labels of a window are those of ONNX Runtime for the window and its surroundings."""
    source, pixels = picture
    model = DEEPNESS / f"{SMALLER}.onnx"
    keys = {**SCALING, "task": "multilabel", "margin": 14, "overlap": [0, 0]}
    labels = segment(in_process, source, model, toml(tmp_path / "c.toml", **keys), "--blend", "crop")
    around = np.pad(pixels / 255, [(0, 0), (14, 400), (14, 400)], mode="reflect")
    truth, sure = decided(infer(model, around[:, :512, :512]).reshape(-1, 484, 484)[:1])
    np.testing.assert_array_equal(labels[:300, :350][sure[:300, :350]], truth[:300, :350][sure[:300, :350]])


def test_tile_of_a_fixed_model_cannot_be_changed(picture, tmp_path):
    contract = toml(tmp_path / "c.toml", **SCALING, task="multiclass")
    model = DEEPNESS / "one_output_softmax_bsx2x512x512.onnx"
    ended = in_process("run", "-i", picture[0], "-m", model, "--contract", contract, "--tile", "256")
    assert ended.exit_code == 2
    assert re.search("tile must be the model's, got 256 x 256 and .* takes 512 x 512", ended.stderr)
