"""Models of bioimage.io: what their description says is what a run does, computed here by the words of the specification.

The parts are segpipe.export.bundles.bioimageio_axes, segpipe.export.bundles.bioimageio_steps,
segpipe.export.bundles.described, segpipe.export.bundles.networks and segpipe.export.bundles.decision.
"""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bioimages
import numpy as np
import onnx
import onnxruntime
import pytest
import rasterio
from networks import Network
from numpy.typing import NDArray

from segpipe.errors import ContractError, ExportError, ModelError, SegpipeError, SettingsError
from segpipe.export.bundles.attach import Choices, attach_described

MODELS = Path(__file__).parents[3] / "shared" / "data" / "models"
Array = NDArray[np.float64]
Step = Callable[[Array], Array]

EVERY = (0, 1, 2)
OF_CHANNEL = (1, 2)


def zscore(axes: tuple[int, ...], eps: float = 1e-6) -> Step:
    """``out = (tensor - mean) / (std + eps)``."""
    return lambda x: (x - x.mean(axes, keepdims=True)) / (x.std(axes, keepdims=True) + eps)


def scale_range(axes: tuple[int, ...], low: float, high: float, eps: float = 1e-6) -> Step:
    """``out = (tensor - v_lower) / (v_upper - v_lower + eps)``."""

    def scale(x: Array) -> Array:
        v_lower, v_upper = np.percentile(x, (low, high), axis=axes, keepdims=True)
        return np.asarray((x - v_lower) / (v_upper - v_lower + eps))

    return scale


def column(*values: float) -> Array:
    return np.array(values)[:, None, None]


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def softmax(x: Array) -> Array:
    return np.asarray(np.exp(x) / np.exp(x).sum(0, keepdims=True))


def step(name: str, **kwargs: Any) -> dict[str, Any]:
    return {"id": name, "kwargs": kwargs}


def old(name: str, **kwargs: Any) -> dict[str, Any]:
    """A step of format 0.4."""
    return {"name": name, "kwargs": kwargs}


BEFORE: dict[str, tuple[list[dict[str, Any]], Step]] = {
    "nothing": ([], lambda x: x),
    "linear": ([step("scale_linear", gain=0.01, offset=-1)], lambda x: x * 0.01 - 1),
    "linear per channel": (
        [step("scale_linear", axis="channel", gain=[0.01, 0.02, 0.03], offset=[-1, -2, 0])],
        lambda x: x * column(0.01, 0.02, 0.03) + column(-1, -2, 0),
    ),
    "fixed": (
        [step("fixed_zero_mean_unit_variance", axis="channel", mean=[90, 100, 110], std=[50, 40, 30])],
        lambda x: (x - column(90, 100, 110)) / column(50, 40, 30),
    ),
    "linear, then fixed": (
        [step("scale_linear", gain=1 / 255, offset=0), step("fixed_zero_mean_unit_variance", mean=0.4, std=0.2)],
        lambda x: (x / 255 - 0.4) / 0.2,
    ),
    "fixed, clip, linear": (
        [
            step("fixed_zero_mean_unit_variance", mean=100, std=50),
            step("clip", min=-1, max=0.5),
            step("scale_linear", gain=-2),
        ],
        lambda x: np.clip((x - 100) / 50, -1, 0.5) * -2,
    ),
    "two clips": (
        [step("clip", min=60), step("clip", max=150), step("scale_linear", gain=0.01)],
        lambda x: np.clip(x, 60, 150) * 0.01,
    ),
    "each channel": ([step("zero_mean_unit_variance", axes=["y", "x"])], zscore(OF_CHANNEL)),
    "all channels": ([step("zero_mean_unit_variance", axes=["channel", "y", "x"], eps=0.05)], zscore(EVERY, 0.05)),
    "all axes by default": ([step("zero_mean_unit_variance")], zscore(EVERY)),
    "range": ([step("scale_range", axes=["y", "x"])], scale_range(OF_CHANNEL, 0, 100)),
    "percentiles": (
        [step("scale_range", axes=["y", "x"], min_percentile=1, max_percentile=99.8, eps=1e-2)],
        scale_range(OF_CHANNEL, 1, 99.8, 1e-2),
    ),
    "percentiles of all channels": (
        [step("scale_range", axes=["channel", "y", "x"], min_percentile=5, max_percentile=95)],
        scale_range(EVERY, 5, 95),
    ),
    "percentiles, then clip": (
        [step("scale_range", axes=["y", "x"], min_percentile=5, max_percentile=90), step("clip", min=0, max=1)],
        lambda x: np.clip(scale_range(OF_CHANNEL, 5, 90)(x), 0, 1),
    ),
    "z-score, then clip": (
        [step("zero_mean_unit_variance", axes=["y", "x"]), step("clip", min=-1, max=1), step("scale_linear", gain=3)],
        lambda x: np.clip(zscore(OF_CHANNEL)(x), -1, 1) * 3,
    ),
    "binarize": (
        [step("binarize", axis="channel", threshold=[100, 110, 120]), step("scale_linear", gain=2, offset=-1)],
        lambda x: (x > column(100, 110, 120)) * 2.0 - 1,
    ),
    "sigmoid": (
        [step("scale_linear", gain=0.05, offset=-5), step("sigmoid"), step("ensure_dtype", dtype="float32")],
        lambda x: sigmoid(x * 0.05 - 5),
    ),
    "softmax": (
        [step("scale_linear", gain=0.05), step("softmax", axis="channel")],
        lambda x: softmax(x * 0.05),
    ),
}

BEFORE_4: dict[str, tuple[list[dict[str, Any]], Step]] = {
    "fixed": (
        [old("zero_mean_unit_variance", mode="fixed", axes="yx", mean=[90, 100, 110], std=[50, 40, 30], eps=0.1)],
        lambda x: (x - column(90, 100, 110)) / (column(50, 40, 30) + 0.1),
    ),
    "per sample": ([old("zero_mean_unit_variance", mode="per_sample", axes="yx")], zscore(OF_CHANNEL)),
    "per sample, all channels": ([old("zero_mean_unit_variance", mode="per_sample", axes="cyx")], zscore(EVERY)),
    "range": (
        [old("scale_range", mode="per_sample", axes="yx", min_percentile=2, max_percentile=98)],
        scale_range(OF_CHANNEL, 2, 98),
    ),
    "linear": ([old("scale_linear", gain=[0.01, 0.02, 0.03], offset=[0, 1, 2], axes="yx")],
               lambda x: x * column(0.01, 0.02, 0.03) + column(0, 1, 2)),
}  # fmt: skip


def attached(package: Path, output: Path, **choices: Any) -> Any:
    return attach_described("bioimageio", package, output, Choices(**choices))


def labels(run_serial: Callable[..., Path], source: Path, model: Path, output: Path, **settings: Any) -> NDArray[Any]:
    with rasterio.open(run_serial(source, model, output=output, **settings) / source.name) as mask:
        return np.asarray(mask.read())


def raw(weights: Path, image: NDArray[Any]) -> Array:
    """Scores of the network itself for a scaled image ``(channels, rows, cols)``."""
    session = onnxruntime.InferenceSession(str(weights), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": image[None].astype(np.float32)})[0][0], np.float64)


def centred(package: Path, image: NDArray[Any]) -> float:
    """A threshold in the middle of the scores, so that both labels occur."""
    return float(np.median(raw(package / "weights.onnx", image)))


@pytest.mark.parametrize(("rule", "version"), [*((rule, "0.5") for rule in BEFORE), *((rule, "0.4") for rule in BEFORE_4)])
def test_preprocessing(rule: str, version: str, raster: Any, run_serial: Any, tmp_path: Path) -> None:
    """Of one whole tile: pixels scaled by the words of the specification, scores of the network, a threshold."""
    steps, oracle = (BEFORE if version == "0.5" else BEFORE_4)[rule]
    pixels = bioimages.pixels(3)
    network = bioimages.network(tmp_path / "n.onnx", 3)
    scaled = oracle(pixels.astype(np.float64))
    threshold = float(np.median(raw(network, scaled)))
    after = [{"id" if version == "0.5" else "name": "binarize", "kwargs": {"threshold": threshold}}]
    named = {"channels": ["a", "b", "c"]} if version == "0.5" else {"channels": 3}
    make = bioimages.described if version == "0.5" else bioimages.described_4
    package = bioimages.write(tmp_path / "p", make(steps, after, **named), channels=3)
    found = attached(package, tmp_path / "m.onnx")
    assert found.contract.task == "binary"
    mask = labels(run_serial, raster("in/a.tif", pixels), tmp_path / "m.onnx", tmp_path / "out")
    expected = raw(network, scaled) > threshold
    assert 0.2 < expected.mean() < 0.8
    assert (mask == expected).mean() >= 0.9999


AFTER: dict[str, tuple[int, str | None, list[dict[str, Any]], Step, dict[str, Any]]] = {
    "sigmoid": (1, None, [step("sigmoid")], lambda x: x > 0, {"task": "binary", "activation": "sigmoid"}),
    "sigmoid, threshold": (
        1,
        None,
        [step("sigmoid"), step("binarize", threshold=0.4), step("ensure_dtype", dtype="uint8")],
        lambda x: sigmoid(x) > 0.4,
        {"task": "binary", "activation": "sigmoid", "threshold": 0.4},
    ),
    "linear, sigmoid": (
        2,
        None,
        [step("scale_linear", axis="channel", gain=[-2, 1], offset=[0.5, -0.5]), step("sigmoid")],
        lambda x: x * column(-2, 1) + column(0.5, -0.5) > 0,
        {"task": "multilabel", "activation": "sigmoid"},
    ),
    "softmax": (3, None, [step("softmax", axis="channel")], lambda x: x.argmax(0), {"activation": "softmax"}),
    "softmax, threshold": (
        2,
        None,
        [step("softmax"), step("binarize", threshold=0.6)],
        lambda x: softmax(x) > 0.6,
        {"task": "multilabel", "activation": "none", "threshold": 0.6},
    ),
    "probabilities of a sigmoid": (1, "Sigmoid", [], lambda x: x > 0.5, {"task": "binary", "activation": "none"}),
    "probabilities of sigmoids": (2, "Sigmoid", [step("clip", min=0, max=1)], lambda x: x > 0.5, {"task": "multilabel"}),
    "probabilities of a softmax": (3, "Softmax", [], lambda x: x.argmax(0), {"task": "multiclass", "activation": "none"}),
}


@pytest.mark.parametrize("rule", AFTER)
def test_postprocessing(rule: str, raster: Any, run_serial: Any, tmp_path: Path) -> None:
    scores, ending, steps, oracle, keys = AFTER[rule]
    pixels = bioimages.pixels(1)
    before = [step("scale_linear", gain=0.02, offset=-2)]
    description = bioimages.described(before, steps, classes=[f"kind {k}" for k in range(scores)])
    package = bioimages.write(tmp_path / "p", description, scores=scores, ending=ending)
    contract = attached(package, tmp_path / "m.onnx").contract
    assert {key: getattr(contract, key) for key in keys} == keys
    mask = labels(run_serial, raster("in/a.tif", pixels), tmp_path / "m.onnx", tmp_path / "out")
    expected = oracle(raw(package / "weights.onnx", pixels * 0.02 - 2))
    assert len(np.unique(expected)) > 1
    assert (mask.squeeze() == np.squeeze(expected)).mean() >= 0.9999
    names = [c.name for c in contract.mask_classes]
    assert names == (["background", "kind 0"] if scores == 1 else [f"kind {k}" for k in range(scores)])


def test_same_bytes_for_parts_and_workers(raster: Any, segpipe: Any, tmp_path: Path) -> None:
    """Statistics of the case, and steps in front of the network, whatever the cut."""
    steps = [step("zero_mean_unit_variance", axes=["channel", "y", "x"]), step("clip", min=-1.5, max=1.5)]
    description = bioimages.described(
        steps, [step("sigmoid")], channels=["a", "b", "c"], size={"min": 32, "step": 16}, halo=4
    )
    package = bioimages.write(tmp_path / "p", description, channels=3)
    done = segpipe("export", "attach", package, "--from", "bioimageio", "--contract", tile(tmp_path, 64), "-o", "m.onnx")
    assert done.returncode == 0, done.stderr
    raster("in/a.tif", bioimages.pixels(3, (230, 190)))
    masks = []
    for k, more in enumerate((["--parts", 1], ["--parts", 2], ["--parts", 7], ["--parts", 2, "--workers", 2])):
        kind = "processes" if "--workers" in more else "serial"
        done = segpipe("run", "-i", "in", "-m", "m.onnx", "-o", f"o{k}", "--executor", kind, "--device", "cpu", *more)
        assert done.returncode == 0, done.stderr
        masks.append((tmp_path / f"o{k}" / "a.tif").read_bytes())
    assert len(set(masks)) == 1


def tile(folder: Path, size: int) -> Path:
    path = folder / "tile.toml"
    path.write_text(f"tile = {size}\n")
    return path


def test_sizes_and_halo(tmp_path: Path) -> None:
    """The largest size of the steps up to 512; windows overlap by both halos at least; the user's tile comes first."""
    description = bioimages.described([], [step("sigmoid")], size={"min": 100, "step": 48}, halo=70)
    package = bioimages.write(tmp_path / "p", description)
    contract = attached(package, tmp_path / "m.onnx").contract
    assert (contract.tile, contract.overlap) == ([484, 484], [140, 140])
    (tmp_path / "c.toml").write_text('tile = 196\noverlap = 144\n[[classes]]\nid = 1\nname = "nucleus"\ncolor = "#ff0000"\n')
    contract = attached(package, tmp_path / "n.onnx", contract=tmp_path / "c.toml").contract
    assert (contract.tile, contract.overlap, contract.classes[0].name) == ([196], [144], "nucleus")


def cropped(folder: Path, version: str, offset: int) -> Path:
    """A package whose network of convolutions without padding gives four pixels less along each axis, as ``offset`` says."""
    make = bioimages.described if version == "0.5" else bioimages.described_4
    description = make([], [step("sigmoid") if version == "0.5" else old("sigmoid")])
    output = description["outputs"][0]
    if version == "0.5":
        for axis in output["axes"][2:]:
            axis["size"]["offset"] = offset
    else:
        output["shape"]["offset"][2:] = [offset / 2] * 2
    package = bioimages.write(folder, description)
    net = Network(1, 3).valid(1, 6).add("Relu").valid(6, 1)
    net.save(package / "weights.onnx", None, classes=1, shape=("n", 64, 64), out_shape=("n", 1, 60, 60))
    return package


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_offset_is_a_margin(version: str, raster: Any, run_serial: Any, tmp_path: Path) -> None:
    """Labels are those of the network on the whole image with mirrored borders."""
    package = cropped(tmp_path / "p", version, -4)
    contract = attached(package, tmp_path / "m.onnx").contract
    assert (contract.margin, contract.overlap) == ([2, 2], [16, 16] if version == "0.4" else [12, 12])
    net = Network(1, 3).valid(1, 6).add("Relu").valid(6, 1)
    free = net.save(tmp_path / "free.onnx", None, classes=1, out_shape=("n", 1, "a", "b"))
    pixels = np.random.default_rng(0).normal(size=(1, 150, 170)).astype(np.float32)
    mask = labels(run_serial, raster("in/a.tif", pixels), tmp_path / "m.onnx", tmp_path / "out")
    expected = raw(free, np.pad(pixels, [(0, 0), (2, 2), (2, 2)], mode="reflect")) > 0
    assert 0.1 < expected.mean() < 0.9
    assert (mask == expected).mean() >= 0.9999


def test_an_offset_that_the_network_does_not_have_is_refused(tmp_path: Path) -> None:
    refused(ModelError, r"got 60 x 60: set margin = \[2, 2\]", cropped(tmp_path / "p", "0.5", -8), tmp_path)


@pytest.mark.parametrize("form", ["zip", "zip with a folder", "the description itself"])
def test_forms_of_a_package(form: str, tmp_path: Path) -> None:
    package = bioimages.write(tmp_path / "p", bioimages.described([], [step("sigmoid")]))
    expected = attached(package, tmp_path / "folder.onnx").contract
    source = package / "rdf.yaml"
    if form != "the description itself":
        source = tmp_path / "p.zip"
        with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in package.iterdir():
                archive.write(file, file.name if form == "zip" else f"model/{file.name}")
    assert attached(source, tmp_path / "m.onnx").contract == expected


def test_axes_in_the_order_x_y(raster: Any, run_serial: Any, tmp_path: Path) -> None:
    """A network that takes columns before rows gets them so."""
    description = bioimages.described([step("scale_linear", gain=0.02, offset=-2)], [step("sigmoid")])
    for tensor in (description["inputs"][0], description["outputs"][0]):
        tensor["axes"][2:] = tensor["axes"][:1:-1]
    package = bioimages.write(tmp_path / "p", description)
    attached(package, tmp_path / "m.onnx")
    pixels = bioimages.pixels()
    mask = labels(run_serial, raster("in/a.tif", pixels), tmp_path / "m.onnx", tmp_path / "out")
    expected = raw(package / "weights.onnx", pixels.transpose(0, 2, 1) * 0.02 - 2).transpose(0, 2, 1) > 0
    assert (mask == expected).mean() >= 0.9999
    assert (mask == (raw(package / "weights.onnx", pixels * 0.02 - 2) > 0)).mean() < 0.99


# --- the test tensors of a package ----------------------------------------------------------------------------------------


def with_example(folder: Path, **changes: Any) -> Path:
    """A package with a test input and the output that follows from the specification."""
    description = bioimages.described([step("zero_mean_unit_variance", axes=["y", "x"])], [step("sigmoid")])
    for key, name in (("inputs", "given.npy"), ("outputs", "wanted.npy")):
        description[key][0]["test_tensor"] = {"source": name}
    package = bioimages.write(folder, {**description, **changes})
    pixels = bioimages.pixels().astype(np.float32)
    np.save(package / "given.npy", pixels[None])
    np.save(package / "wanted.npy", sigmoid(raw(package / "weights.onnx", zscore(OF_CHANNEL)(pixels)))[None])
    return package


def test_a_package_gives_its_own_test_output(segpipe: Any, tmp_path: Path) -> None:
    package = with_example(tmp_path / "p")
    done = segpipe("export", "attach", package, "--from", "bioimageio", "-o", "m.onnx")
    assert done.returncode == 0, done.stderr
    assert "note: gives the test output of the package on its test input, largest difference" in done.stderr


def test_a_test_output_of_masks(tmp_path: Path) -> None:
    package = with_example(tmp_path / "p")
    steps = [step("sigmoid"), step("binarize", threshold=0.6)]
    description = bioimages.described([step("zero_mean_unit_variance", axes=["y", "x"])], steps)
    for key, name in (("inputs", "given.npy"), ("outputs", "wanted.npy")):
        description[key][0]["test_tensor"] = {"source": name}
    bioimages.write(package, description)
    np.save(package / "wanted.npy", np.load(package / "wanted.npy") > 0.6)
    assert "gives the test output" in attached(package, tmp_path / "m.onnx").notes[0]
    np.save(package / "wanted.npy", np.zeros((1, 1, 64, 64), bool))
    refused(ExportError, "its test input must give its test output", package, package)


def test_a_package_that_does_not_give_its_test_output_is_refused(tmp_path: Path) -> None:
    package = with_example(tmp_path / "p")
    wanted = np.load(package / "wanted.npy")
    np.save(package / "wanted.npy", np.where(np.arange(64) < 3, wanted + 0.01, wanted))
    refused(ExportError, r"its test input must give its test output, and .*% of the values differ", package, tmp_path)
    np.save(package / "wanted.npy", wanted[..., :-1])
    refused(ExportError, "its test output must have the shape", package, tmp_path)
    np.save(package / "wanted.npy", np.array([{}]), allow_pickle=True)
    refused(ExportError, "wanted.npy must be an array of NumPy", package, tmp_path)


# --- what cannot be expressed ---------------------------------------------------------------------------------------------


def refused(kind: type[SegpipeError], match: str, package: Path, folder: Path, **choices: Any) -> None:
    with pytest.raises(kind, match=match):
        attached(package, folder / "m.onnx", **choices)
    assert not list(folder.glob("*m.onnx*"))


REFUSED: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], str]] = {
    "unknown": ([step("spline")], [step("sigmoid")], "the step spline has no counterpart .* --without spline leaves it out"),
    "mean variance": ([step("scale_mean_variance", reference_tensor="raw")], [], "scale_mean_variance has no counterpart"),
    "stardist": ([], [step("stardist_postprocessing", n_rays=32)], "stardist_postprocessing has no counterpart"),
    "clip percentiles": (
        [step("clip", min_percentile=1, max_percentile=99)],
        [],
        r"the step clip limits pixels to values at percentiles, which a contract interpolates \(clip_percentiles\)",
    ),
    "samples": ([step("zero_mean_unit_variance", axes=["batch", "y", "x"])], [], "over several samples"),
    "rows": ([step("zero_mean_unit_variance", axes=["x"])], [], "takes statistics of each y by itself"),
    "reference": (
        [step("scale_linear", gain=2), step("scale_range", reference_tensor="raw")],
        [],
        "takes the percentiles of raw",
    ),
    "numbers": ([step("scale_linear", gain=[1, 2])], [], "has 2 numbers of gain for 1 channel"),
    "axis": ([step("scale_linear", axis="y", gain=[1, 2])], [], "has numbers along the axis y"),
    "integers": ([step("ensure_dtype", dtype="uint8")], [], "makes uint8 of numbers that may have fractions"),
    "words": ([step("scale_linear", gain="much")], [], "the step scale_linear of raw must follow the specification"),
    "two statistics": (
        [step("zero_mean_unit_variance"), step("clip", min=0, max=1), step("scale_range")],
        [],
        "the step scale_range takes statistics of what other steps made",
    ),
    "output range": ([], [step("scale_range")], "scale_range takes statistics of a whole output"),
    "after probabilities": ([], [step("sigmoid"), step("scale_linear", gain=255)], "changes probabilities after sigmoid"),
    "after labels": ([], [step("sigmoid"), step("binarize", threshold=0.5), step("sigmoid")], "follows a threshold"),
    "thresholds": (
        [],
        [step("sigmoid"), step("binarize", axis="channel", threshold=[0.1])],
        "",
    ),
    "threshold": ([], [step("sigmoid"), step("binarize", threshold=2)], "threshold must lie between 0 and 1 .*, got 2"),
    "no decision": ([], [], "does not say that its 1 output channels are scores of classes: .* the graph ends in Conv"),
}


@pytest.mark.parametrize("name", [name for name in REFUSED if REFUSED[name][2]])
def test_steps_that_are_refused(name: str, tmp_path: Path) -> None:
    before, after, match = REFUSED[name]
    refused(ExportError, match, bioimages.write(tmp_path / "p", bioimages.described(before, after)), tmp_path)


def test_without_leaves_a_step_out(tmp_path: Path) -> None:
    package = bioimages.write(tmp_path / "p", bioimages.described([step("spline")], [step("sigmoid"), step("median")]))
    refused(ExportError, "the step median", package, tmp_path, without=("spline",))
    refused(ExportError, "--without must name steps of .*, got wavelet: it has spline", package, tmp_path,
            without=("spline", "median", "wavelet"))  # fmt: skip
    assert attached(package, tmp_path / "m.onnx", without=("spline", "median")).contract.activation == "sigmoid"


def test_keys_of_the_user_say_what_the_description_does_not(tmp_path: Path) -> None:
    package = bioimages.write(tmp_path / "p", bioimages.described([], []))
    (tmp_path / "c.toml").write_text('activation = "sigmoid"\ntask = "binary"\nthreshold = 0.7\n')
    assert attached(package, tmp_path / "m.onnx", contract=tmp_path / "c.toml").contract.threshold == 0.7
    (tmp_path / "c.toml").write_text('activaton = "sigmoid"\n')
    shutil.rmtree(package)
    package = bioimages.write(tmp_path / "p", bioimages.described([], [step("sigmoid")]))
    refused(ContractError, "by its description and --contract: unknown key activaton", package, tmp_path / "p",
            contract=tmp_path / "c.toml")  # fmt: skip


def changed(package: Path, change: Callable[[dict[str, Any]], Any], **write: Any) -> Path:
    description = bioimages.described([], [step("sigmoid")])
    change(description)
    return bioimages.write(package, description, **write)


def _two(values: dict[str, Any]) -> None:
    values["inputs"].append({**values["inputs"][0], "id": "prompt"})


def _three(values: dict[str, Any]) -> None:
    values["outputs"].append({**values["outputs"][0], "id": "edges"})


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "old": (
        lambda v: v.update(format_version="0.3.6"),
        "must have format_version 0.4 or 0.5, got 0.3.6: bring it up to date",
    ),
    "dataset": (lambda v: v.update(type="dataset"), "must describe a model, got type: dataset"),
    "inputs": (_two, r"must take one image, got 2 inputs \(raw, prompt\)"),
    "outputs": (_three, 'has 2 outputs, seg, edges: say which .* output = "seg"'),
    "time": (
        lambda v: v["inputs"][0]["axes"].insert(0, {"type": "time", "size": 1}),
        "must have the axes batch, channel, and",
    ),
    "no channel": (lambda v: v["inputs"][0]["axes"].pop(1), "must have the axes batch, channel, and y, x"),
    "letters": (lambda v: v["inputs"][0].update(axes="bcyx"), "inputs are not described by format 0.5"),
    "nothing": (lambda v: v.update(inputs=[]), "inputs must be a list of tensors"),
    "halo": (lambda v: v["outputs"][0]["axes"][2].update(halo=40), r"halo on both sides must be smaller than the tile"),
    "odd": (
        lambda v: v["outputs"][0]["axes"][2]["size"].update(offset=-3),
        "must be its middle, with as many pixels less on both sides, and that along y is not",
    ),
    "larger": (lambda v: v["outputs"][0]["axes"][3]["size"].update(offset=2), "both sides, and that along x is not"),
    "other weights": (
        lambda v: v.update(weights={"keras_hdf5": {"source": "w.h5"}}),
        r"got keras_hdf5 \(w.h5, not in the package",
    ),
    "elsewhere": (
        lambda v: v["weights"]["onnx"].update(source="https://a.b/w.onnx"),
        "not in the package.* download one of them",
    ),
    "above": (lambda v: v["weights"]["onnx"].update(source="../weights.onnx"), "not in the package"),
    "digest": (lambda v: v["weights"]["onnx"].update(sha256="0" * 64), "must have the SHA-256 0000.* get it again"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_descriptions_that_are_refused(name: str, tmp_path: Path) -> None:
    change, match = CHANGES[name]
    refused(ExportError, match, changed(tmp_path / "p", change), tmp_path)


def test_digest_that_fits(tmp_path: Path) -> None:
    package = bioimages.write(tmp_path / "p", bioimages.described([], [step("sigmoid")]))
    sha256 = bioimages.digest(package / "weights.onnx")
    weights = {"onnx": {"source": "weights.onnx", "sha256": sha256}}
    bioimages.write(package, bioimages.described([], [step("sigmoid")], weights=weights))
    attached(package, tmp_path / "m.onnx")


def test_files_that_are_no_description(tmp_path: Path) -> None:
    refused(ExportError, "must exist, got .*none", tmp_path / "none", tmp_path)
    (tmp_path / "empty").mkdir()
    refused(ExportError, r"must hold rdf.yaml or .*, got .*empty, which does not", tmp_path / "empty", tmp_path)
    (tmp_path / "empty" / "rdf.yaml").write_text("a: [")
    refused(ExportError, "rdf.yaml is not YAML", tmp_path / "empty", tmp_path)
    (tmp_path / "empty" / "rdf.yaml").write_bytes(b"\xff\xfe\x00")
    refused(ExportError, "rdf.yaml must be UTF-8", tmp_path / "empty", tmp_path)
    (tmp_path / "empty" / "rdf.yaml").write_text("- a")
    refused(ExportError, "rdf.yaml must hold keys with values, got list", tmp_path / "empty", tmp_path)
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 and no more")
    refused(ExportError, "must hold rdf.yaml or", tmp_path / "bad.zip", tmp_path)


def test_damaged_zip(tmp_path: Path) -> None:
    package = bioimages.write(tmp_path / "p", bioimages.described([], [step("sigmoid")]))
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for file in package.iterdir():
            archive.write(file, file.name)
    whole = (tmp_path / "p.zip").read_bytes()
    place = whole.index((package / "weights.onnx").read_bytes()[:200]) + 100
    (tmp_path / "p.zip").write_bytes(whole[:place] + bytes(50) + whole[place + 50 :])
    refused(ExportError, r"weights.onnx cannot be unpacked \(Bad CRC-32", tmp_path / "p.zip", tmp_path)


def test_flags_that_belong_together(segpipe: Any, tmp_path: Path) -> None:
    package = bioimages.write(tmp_path / "p", bioimages.described([], [step("sigmoid")]))
    for arguments, message in (
        ([package, "--from", "bioimageio"], "goes into a new file, got no --output: name one"),
        ([package / "weights.onnx"], "weights.onnx needs a contract, got no --contract"),
        (
            [package / "weights.onnx", "--without", "clip", "--trust-pickle"],
            "--without, --trust-pickle is for models with a",
        ),
    ):
        done = segpipe("export", "attach", *arguments)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    (tmp_path / "m.onnx").write_text("mine")
    with pytest.raises(SettingsError, match=r"the output must be new, got .*m.onnx"):
        attached(package, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_text() == "mine"


# --- a real model ---------------------------------------------------------------------------------------------------------


@pytest.mark.shared_data
def test_nuclei(tmp_path: Path, run_serial: Any) -> None:
    """A published U-Net: its own test output, and the labels of its network on a real picture."""
    found = attached(MODELS / "nuclei", tmp_path / "m.onnx")
    assert any("gives the test output of the package" in note for note in found.notes)
    assert (found.contract.overlap, found.contract.align) == ([128, 128], 8)
    inside = json.loads(next(p.value for p in onnx.load(str(tmp_path / "m.onnx")).metadata_props if p.key == "segpipe"))
    assert (inside["normalize"], inside["epsilon"], inside["activation"]) == ("zscore", 1e-6, "sigmoid")
