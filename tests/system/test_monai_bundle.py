"""MONAI bundles: their transforms are what a run does, computed here by MONAI itself.

The readers are segpipe.export.bundles.monai and segpipe.export.bundles.monai_transforms.
"""

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundles
import nibabel
import numpy as np
import onnxruntime
import pytest
import yaml
from bundles import AXIAL, MOST_LIKELY, target
from numpy.typing import NDArray
from volumes import OBLIQUE, write

from segpipe.errors import ExportError, SegpipeError
from segpipe.export.bundles.attach import Choices, attach_described

Array = NDArray[np.float64]


def attached(package: Path, output: Path, **choices: Any) -> Any:
    return attach_described("monai", package, output, Choices(**choices))


def raw(weights: Path, image: NDArray[Any]) -> Array:
    """Scores of the network itself for ``(channels, x, y, z)``."""
    session = onnxruntime.InferenceSession(str(weights), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": np.asarray(image, np.float32)[None]})[0][0], np.float64)


def by_monai(path: Path, transforms: list[dict[str, Any]]) -> NDArray[np.float32]:
    """The image as MONAI's own transforms give it to the network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of optional readers that MONAI looks for
        from monai.bundle import ConfigParser

        parsed = ConfigParser({"t": {"_target_": "Compose", "transforms": transforms}})
        return np.asarray(parsed.get_parsed_content("t")({"image": str(path)})["image"])


def labels(folder: Path, run_serial: Callable[..., Path], source: Path, **settings: Any) -> NDArray[Any]:
    out = run_serial(source, folder / "m.onnx", output=folder / "out", **settings)
    return np.asarray(nibabel.load(out / source.name).dataobj)


SCALES: dict[str, list[dict[str, Any]]] = {
    "range": [target("ScaleIntensityRange", a_min=-57, a_max=164, b_min=0, b_max=1, clip=True)],
    "range without a clip": [target("ScaleIntensityRange", a_min=-100, a_max=300, b_min=-1, b_max=1)],
    "range without ends": [target("ScaleIntensityRange", a_min=-100, a_max=300)],
    "range cut above": [target("ScaleIntensityRange", a_min=-100, a_max=300, b_min=None, b_max=0.6, clip=True)],
    "z-score": [target("NormalizeIntensity")],
    "z-score of non-zero voxels": [target("NormalizeIntensity", nonzero=True, channel_wise="True")],
    "fixed": [target("NormalizeIntensity", subtrahend=[40], divisor=[200], channel_wise=True)],
    "0 to 1": [target("ScaleIntensity")],
    "-1 to 1": [target("ScaleIntensity", minv=-1.0, maxv=1.0)],
    "factor": [target("ScaleIntensity", minv=None, maxv=None, factor=-0.99)],
    "0 to 1, then z-score": [target("ScaleIntensity", minv=0, maxv=1), target("NormalizeIntensity")],
    "percentiles": [target("ScaleIntensityRangePercentiles", lower=2, upper=98, b_min=0, b_max=1)],
    "percentiles, cut": [target("ScaleIntensityRangePercentiles", lower=2, upper=98, b_min=0, b_max=1, clip=True)],
    "percentiles onto another range": [
        target("ScaleIntensityRangePercentiles", lower=2, upper=98, b_min=-1, b_max=2, clip=True, channel_wise=True)
    ],
    "clip at percentiles, then z-score": [
        target("ClipIntensityPercentiles", lower=5, upper=95),
        target("NormalizeIntensity"),
    ],
    "thresholds": [
        target("ThresholdIntensity", threshold=-100, above=True, cval=-100),
        target("ThresholdIntensity", threshold=300, above=False, cval=300),
        target("NormalizeIntensity"),
    ],
}


@pytest.mark.parametrize("rule", SCALES)
def test_intensity(rule: str, run_serial: Any, tmp_path: Path) -> None:
    """Of a volume that is one window, with oblique axes: labels of the network on what MONAI prepares."""
    before = [AXIAL, *SCALES[rule]]
    package = bundles.write(tmp_path / "p", bundles.inference(before))
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in" / "a.nii.gz", bundles.voxels(), OBLIQUE)
    found = attached(package, tmp_path / "m.onnx")
    assert found.contract.orientation == "RAS"
    prepared = by_monai(path, [*bundles.LOADED, *before])
    scores = raw(package / "models" / "model.onnx", prepared)
    expected = in_order_of_file(path, scores.argmax(0))
    assert 0.02 < expected.mean() < 0.98
    assert (labels(tmp_path, run_serial, path) == expected).mean() >= 0.9999


def in_order_of_file(path: Path, values: NDArray[Any]) -> NDArray[Any]:
    """Voxels of the orientation RAS in the order of a file's axes."""
    own = nibabel.orientations.io_orientation(nibabel.load(path).affine)
    back = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), own)
    return np.asarray(nibabel.orientations.apply_orientation(values, back))


@pytest.mark.parametrize("ndim", [2, 3])
def test_without_an_orientation_the_network_sees_the_axes_of_the_file(ndim: int, run_serial: Any, tmp_path: Path) -> None:
    """MONAI's arrays begin with the file's first axis, which varies fastest; segpipe's end with it."""
    inferer = {"_target_": "SliceInferer", "roi_size": [16, 16], "spatial_dim": 2, "mode": "gaussian"}
    more = {"inferer": inferer} if ndim == 2 else {}
    before = [target("ScaleIntensityRange", a_min=-300, a_max=500, b_min=0, b_max=1)]
    package = bundles.write(tmp_path / "p", bundles.inference(before, **more), ndim=ndim)
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in" / "a.nii.gz", bundles.voxels())
    attached(package, tmp_path / "m.onnx")
    prepared, weights = by_monai(path, [*bundles.LOADED, *before]), package / "models" / "model.onnx"
    if ndim == 3:
        expected = raw(weights, prepared).argmax(0)
    else:
        expected = np.stack([raw(weights, prepared[..., k]).argmax(0) for k in range(16)], axis=-1)
    mask = labels(tmp_path, run_serial, path)
    assert (mask == expected).mean() >= 0.9999
    assert (mask.transpose(1, 0, 2) == expected).mean() < 0.99


AFTER: dict[str, tuple[int, list[dict[str, Any]], Callable[[Array], Any], dict[str, Any]]] = {
    "argmax alone": (3, [target("AsDiscrete", "pred", argmax=True)], lambda x: x.argmax(0), {"activation": "softmax"}),
    "argmax of one of two keys": (
        2,
        [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {"_target_": "AsDiscreted", "keys": ["pred", "label"], "argmax": [True, False], "to_onehot": [2, 2]},
        ],
        lambda x: x.argmax(0),
        {"activation": "softmax"},
    ),
    "sigmoid, argmax": (
        3,
        [target("Activations", "pred", sigmoid=True), target("AsDiscrete", "pred", argmax=True)],
        lambda x: x.argmax(0),
        {"task": "multiclass"},
    ),
    "threshold": (
        1,
        [target("Activations", "pred", sigmoid=True), target("AsDiscrete", "pred", threshold=0.4)],
        lambda x: 1 / (1 + np.exp(-x[0])) > 0.4,
        {"task": "binary", "threshold": 0.4},
    ),
    "threshold of logits": (
        1,
        [target("AsDiscrete", "pred", threshold=0.3)],
        lambda x: x[0] > 0.3,
        {"task": "binary", "threshold": 0.5},
    ),
}


@pytest.mark.parametrize("rule", AFTER)
def test_decisions(rule: str, run_serial: Any, tmp_path: Path) -> None:
    scores, after, oracle, keys = AFTER[rule]
    before = [AXIAL, target("ScaleIntensityRange", a_min=-300, a_max=500, b_min=-1, b_max=1)]
    names = [f"part {k}" for k in range(scores)]
    package = bundles.write(tmp_path / "p", bundles.inference(before, after), classes=names)
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in" / "a.nii.gz", bundles.voxels())
    contract = attached(package, tmp_path / "m.onnx").contract
    assert {key: getattr(contract, key) for key in keys} == keys
    prepared = by_monai(path, [*bundles.LOADED, *before])
    expected = oracle(raw(package / "models" / "model.onnx", prepared))
    assert len(np.unique(expected)) > 1
    assert (labels(tmp_path, run_serial, path) == expected).mean() >= 0.9999


def test_several_channels(segpipe: Any, tmp_path: Path) -> None:
    """Overlapping classes of two sequences, each normalised by itself; the same bytes for any parts and workers."""
    after = [target("Activations", "pred", sigmoid=True), target("AsDiscrete", "pred", threshold=0.5)]
    before = [AXIAL, target("NormalizeIntensity", nonzero=True, channel_wise=True)]
    workflow = bundles.inference(before, after)
    package = bundles.write(tmp_path / "p", workflow, channels=2, classes=["core", "whole"])
    done = segpipe("export", "attach", package, "--from", "monai", "-o", "m.onnx")
    assert done.returncode == 0, done.stderr
    (tmp_path / "in").mkdir()
    image = np.stack([bundles.voxels((30, 26, 22)), bundles.voxels((30, 26, 22), 1, 0, 900)], axis=-1)
    write(tmp_path / "in" / "a.nii.gz", image)
    masks = []
    for k, more in enumerate((["--parts", 1], ["--parts", 2], ["--parts", 7], ["--parts", 2, "--workers", 2])):
        kind = "processes" if "--workers" in more else "serial"
        done = segpipe("run", "-i", "in", "-m", "m.onnx", "-o", f"o{k}", "--executor", kind, "--device", "cpu", *more)
        assert done.returncode == 0, done.stderr
        masks.append((tmp_path / f"o{k}" / "a.nii.gz").read_bytes())
    assert len(set(masks)) == 1


def test_spacing_overlap_and_notes(tmp_path: Path) -> None:
    before = [
        target("Orientation", axcodes="LPS"),
        target("Spacing", pixdim=[1.5, 1.25, 2.0], mode="bilinear"),
        target("NormalizeIntensity"),
    ]
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": [32, 16, 8], "overlap": 0.5}
    workflow = bundles.inference(before, inferer=inferer)
    found = attached(bundles.write(tmp_path / "p", workflow), tmp_path / "m.onnx")
    contract = found.contract
    assert (contract.tile, contract.overlap, contract.align) == ([32, 16, 8], [16, 8, 4], [16, 8, 4])
    assert (contract.orientation, contract.spacing, contract.spacing_unit) == ("LPS", [1.5, 1.25, 2.0], "mm")
    assert [c.name for c in contract.classes] == ["background", "organ"]
    assert any("takes a case's statistics before it resamples" in note for note in found.notes)
    assert any("--blend mean" in note for note in found.notes)


def test_references_are_followed(tmp_path: Path) -> None:
    """As in MONAI's templates: lists and keys elsewhere, positions, common keys, sums."""
    workflow = bundles.inference([])
    workflow |= {
        "image": "$monai.utils.CommonKeys.IMAGE",
        "width": 221,
        "edge": 16,
        "window": ["@edge", "$@edge * 2", "$@edge + 16"],
        "transforms": [
            {"_target_": "LoadImaged", "keys": "@image"},
            {"_target_": "monai.transforms.Orientationd", "keys": "@image", "axcodes": "RAS"},
            {
                "_target_": "ScaleIntensityRanged",
                "keys": ["@image"],
                "a_min": "$-57",
                "a_max": "$@width - 57",
                "b_min": 0,
                "b_max": 1,
            },
            {"_target_": "ScaleIntensityd", "keys": "label"},
            {"_target_": "RandFlipd", "keys": "@image", "_disabled_": True},
        ],
        "preprocessing": {"_target_": "Compose", "transforms": "$@transforms"},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": "@window", "overlap": "@shares#0", "mode": "gaussian"},
        "shares": [0.5],
    }
    package = bundles.write(tmp_path / "p", workflow)
    (package / "configs" / "inference.yaml").write_text(yaml.safe_dump(workflow))
    (package / "configs" / "inference.json").unlink()
    contract = attached(package, tmp_path / "m.onnx").contract
    assert (contract.tile, contract.overlap) == ([16, 32, 32], [8, 16, 16])
    assert contract.scale == pytest.approx(1 / 221)
    assert contract.offset == pytest.approx(57 / 221)


# --- networks of torch ----------------------------------------------------------------------------------------------------

UNET = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2], "num_res_units": 1}


def torch_network(seed: int = 0) -> Any:
    """A small U-Net of MONAI with seeded weights."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.networks.nets import UNet
    torch.manual_seed(seed)
    return UNet(**UNET).eval()


@pytest.mark.parametrize("form", ["script", "state", "checkpoint"])
def test_networks_of_torch(form: str, run_serial: Any, tmp_path: Path) -> None:
    import torch

    before = [AXIAL, target("ScaleIntensityRange", a_min=-300, a_max=500, b_min=0, b_max=1)]
    workflow = bundles.inference(before, network_def={"_target_": "UNet", **UNET}, network="$@network_def.to(@device)")
    package = bundles.write(tmp_path / "p", workflow)
    (package / "models" / "model.onnx").unlink()
    net = torch_network()
    if form == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, and what bundles hold
            torch.jit.save(torch.jit.trace(net, torch.zeros(1, 1, 16, 16, 16)), package / "models" / "model.ts")
    else:
        state = net.state_dict()
        torch.save({"model": state} if form == "checkpoint" else state, package / "models" / "model.pt")
    attached(package, tmp_path / "m.onnx")
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in" / "a.nii.gz", bundles.voxels())
    with torch.inference_mode():
        scores = net(torch.from_numpy(by_monai(path, [*bundles.LOADED, *before]))[None])[0].numpy()
    assert (labels(tmp_path, run_serial, path) == scores.argmax(0)).mean() >= 0.9999


def test_a_network_of_other_code_is_built_only_if_it_is_trusted(tmp_path: Path) -> None:
    """The definition may name any function of Python."""
    import torch

    marker = tmp_path / "ran"
    workflow = bundles.inference([AXIAL], network_def={"_target_": "os.system", "command": f"touch {marker}"})
    package = bundles.write(tmp_path / "p", workflow)
    (package / "models" / "model.onnx").unlink()
    torch.save(torch_network().state_dict(), package / "models" / "model.pt")
    refused(
        ExportError,
        "the network is built by system of os, and running it runs code .* give --trust-pickle",
        package,
        tmp_path,
    )
    assert not marker.exists()


def test_without_torch_the_message_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = bundles.write(tmp_path / "p", bundles.inference([AXIAL]))
    (package / "models" / "model.onnx").rename(package / "models" / "model.ts")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "segpipe.export.bundles.torch_networks", raising=False)
    refused(
        ExportError,
        "model.ts is a network of torch, and exporting it needs torch, which is not installed",
        package,
        tmp_path,
    )


# --- what cannot be expressed ---------------------------------------------------------------------------------------------


def refused(kind: type[SegpipeError], match: str, package: Path, folder: Path, **choices: Any) -> None:
    with pytest.raises(kind, match=match):
        attached(package, folder / "m.onnx", **choices)
    assert not list(folder.glob("*m.onnx*"))


BEFORE: dict[str, tuple[dict[str, Any], str]] = {
    "crop": (
        target("CropForeground", source_key="image"),
        "the step CropForeground has no counterpart .* --without CropForeground",
    ),
    "resize": (target("Resize", spatial_size=[96, 96, 96]), "the step Resize has no counterpart"),
    "code": (target("Lambda", func="$lambda x: x / 2"), "the step Lambda has no counterpart"),
    "own": ({"_target_": "scripts.mine.Scaled", "keys": "image"}, "the step scripts.mine.Scaled has no counterpart"),
    "nearest": (target("Spacing", pixdim=[1, 1, 1], mode="nearest"), "interpolates by nearest, and segpipe linearly"),
    "native": (target("Spacing", pixdim=[1, 1, -1]), "must give a size above 0 to each axis"),
    "computed": (target("Spacing", pixdim="$[1, 1, 1] if @bundle_root else [2, 2, 2]"), "has pixdim = .*, which is code"),
    "sides": (target("Orientation", axcodes="RA"), "must name three sides of the body, got RA"),
    "flat": (target("ScaleIntensityRange", a_min=1, a_max=1), "has equal a_min and a_max"),
    "words": (target("ScaleIntensityRange", a_min="low", a_max=1), "needs numbers as a_min, got low"),
    "half": (target("NormalizeIntensity", subtrahend=4), "has one of subtrahend and divisor"),
    "relative": (
        target("ScaleIntensityRangePercentiles", lower=1, upper=99, b_min=0, b_max=1, relative=True),
        r"scales onto percentiles of the range \(relative\)",
    ),
    "soft": (target("ClipIntensityPercentiles", lower=1, upper=99, sharpness_factor=10), "limits pixels softly"),
    "hole": (target("ThresholdIntensity", threshold=10, cval=0), "replaces pixels beyond 10 by 0"),
    "integers": (target("CastToType", dtype="$torch.uint8"), "makes torch.uint8 of numbers that may have fractions"),
}


@pytest.mark.parametrize("name", BEFORE)
def test_transforms_that_are_refused(name: str, tmp_path: Path) -> None:
    transform, match = BEFORE[name]
    refused(ExportError, match, bundles.write(tmp_path / "p", bundles.inference([AXIAL, transform])), tmp_path)


BEHIND: dict[str, tuple[list[dict[str, Any]], str]] = {
    "largest": ([*MOST_LIKELY, target("KeepLargestConnectedComponent", "pred")], "changes labels after they are decided"),
    "function": ([target("Activations", "pred", other="$lambda x: x")], r"has other = .*, which is code"),
    "merge": ([target("Activations", "pred", sigmoid=True), target("Lambda", "pred")], "Lambda has no counterpart in a run"),
    "rounded": ([target("AsDiscrete", "pred", rounding="torchrounding")], "has neither argmax nor threshold"),
}


@pytest.mark.parametrize("name", BEHIND)
def test_decisions_that_are_refused(name: str, tmp_path: Path) -> None:
    after, match = BEHIND[name]
    refused(ExportError, match, bundles.write(tmp_path / "p", bundles.inference([AXIAL], after)), tmp_path)


def test_without_leaves_a_transform_out(tmp_path: Path) -> None:
    after = [*MOST_LIKELY, target("KeepLargestConnectedComponent", "pred")]
    package = bundles.write(tmp_path / "p", bundles.inference([AXIAL], after))
    found = attached(package, tmp_path / "m.onnx", without=("KeepLargestConnectedComponent",))
    assert found.contract.activation == "softmax"


def _edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def _inputs(values: dict[str, Any]) -> dict[str, Any]:
    return dict(values["network_data_format"]["inputs"])


METADATA: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "nothing": (lambda v: v.pop("network_data_format"), "must say in configs/metadata.json, network_data_format"),
    "two": (
        lambda v: v["network_data_format"].update(inputs={"image": {}, "points": {}}),
        "must take one image, got image, points",
    ),
    "count": (lambda v: v["network_data_format"]["inputs"]["image"].pop("num_channels"), "must give num_channels of image"),
}

WORKFLOW: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "inferer": (
        lambda v: v.update(inferer={"_target_": "SaliencyInferer"}),
        "the inferer SaliencyInferer has no counterpart",
    ),
    "size": (
        lambda v: v["inferer"].update(roi_size=[-1, 96, 96]),
        "must name the size of the windows, .* add tile = ... by",
    ),
    "overlap": (
        lambda v: v["inferer"].update(overlap="$a_function(3)"),
        "overlap of the inferer must be from 0 to below 1",
    ),
    "slices": (lambda v: v["inferer"].update(_target_="SliceInferer"), "SliceInferer must cut volumes as stored"),
    "circle": (lambda v: v.update(preprocessing="@preprocessing"), "references must end"),
    "nowhere": (lambda v: v.update(preprocessing="@absent"), "@absent must refer to a value of the configuration"),
    "made": (
        lambda v: v.update(preprocessing="$make()"),
        r"transforms must be written out in the configuration, got make\(\)",
    ),
}


@pytest.mark.parametrize(("file", "name"), [*(("metadata", n) for n in METADATA), *(("inference", n) for n in WORKFLOW)])
def test_bundles_that_are_refused(file: str, name: str, tmp_path: Path) -> None:
    change, match = (METADATA if file == "metadata" else WORKFLOW)[name]
    package = bundles.write(tmp_path / "p", bundles.inference([AXIAL]))
    _edit(package / "configs" / f"{file}.json", change)
    refused(ExportError, match, package, tmp_path)


def test_weights_that_are_missing(tmp_path: Path) -> None:
    package = bundles.write(tmp_path / "p", bundles.inference([AXIAL]))
    shutil.move(package / "models" / "model.onnx", tmp_path / "weights.onnx")
    refused(
        ExportError,
        "must hold models/model.onnx, models/model.ts or models/model.pt, and holds none",
        package,
        tmp_path / "p",
    )
    (package / "models" / "model.pt").write_bytes(b"")
    refused(ExportError, "or define its network in network_def, got None", package, tmp_path / "p")
    _edit(
        package / "configs" / "inference.json",
        lambda v: v.update(network_def={"_target_": "UNet", "spatial_dims": "$three()"}),
    )
    refused(ExportError, "arguments of network_def must be written out, got code for spatial_dims", package, tmp_path / "p")
    (package / "models" / "model.pt").unlink()
    refused(ExportError, "--weights must be a file", package, tmp_path / "p", weights=tmp_path / "none.onnx")
