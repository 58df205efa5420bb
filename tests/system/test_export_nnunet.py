"""Folders of nnU-Net as files: labels of a run are those of torch on the same tiles, or an error says why not."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import nnunets
import numpy as np
import onnx
import pytest
from command import invoke

from segpipe.contract import Contract

torch = pytest.importorskip("torch")
pytest.importorskip(
    "dynamic_network_architectures.architectures.unet", reason="dynamic_network_architectures is not installed"
)


def export(folder: Path, *words: Any, output: str = "lesion.onnx") -> Any:
    return invoke(["export", "nnunet", folder, "--output", output, *words], folder.parent)


def contract_in(path: Path) -> Contract:
    return Contract.model_validate(json.loads(next(p.value for p in onnx.load(path).metadata_props if p.key == "segpipe")))


def volume(path: Path, shape: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    """Noise with blobs, ``(k, j, i)``; spacing in that order."""
    rng = np.random.default_rng(5)
    values = np.repeat(np.repeat(np.repeat(rng.normal(size=[-(-n // 4) for n in shape]), 4, 0), 4, 1), 4, 2)
    stored = np.round(100 * values[tuple(map(slice, shape))]).astype(np.int16)
    nib.save(nib.Nifti1Image(stored.T, np.diag([*spacing[::-1], 1])), path)
    return stored


def ct(pixels: np.ndarray) -> torch.Tensor:
    """As CTNormalization does."""
    own = nnunets.FOREGROUND
    clipped = np.clip(pixels.astype(np.float32), own["percentile_00_5"], own["percentile_99_5"])
    return torch.from_numpy((clipped - own["mean"]) / own["std"])[None, None]


@pytest.mark.parametrize("residual", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_volume_network_labels_as_torch_does(tmp_path: Path, residual: bool):
    own = nnunets.configuration(architecture=nnunets.architecture(residual=residual, strides=[[1, 1, 1], [1, 2, 2]]))
    folder = nnunets.write_folder(tmp_path / "f", nnunets.plans({"3d_fullres": own}, transpose_forward=[2, 0, 1]))
    network = nnunets.save_fold(folder, "0")
    done = export(folder)
    assert done.returncode == 0, done.stderr
    assert "3d_fullres" in done.stdout
    assert "windows start at multiples of 2" in done.stdout
    contract = contract_in(tmp_path / "lesion.onnx")
    assert (contract.align, contract.equivariant) == ([1, 2, 2], False)
    assert contract.provenance["weights"] == "fold_0/checkpoint_final.pth"
    (tmp_path / "ct").mkdir()
    # one tile in the file's order (1, 2, 0) of the network's axes, at the plans' spacing
    stored = volume(tmp_path / "ct" / "a.nii.gz", (16, 16, 16), (1.0, 1.5, 2.0))
    done = invoke(["run", "--input", "ct", "--model", "lesion.onnx", "--output", "out"], tmp_path)
    assert done.returncode == 0, done.stderr
    found = np.asarray(nib.load(tmp_path / "out" / "a.nii.gz").dataobj).T
    with torch.inference_mode():
        scores = network(ct(stored.transpose(2, 0, 1)))[0].numpy()
    assert len(np.unique(found)) > 1
    assert (found == scores.argmax(0).transpose(1, 2, 0)).all()


def test_a_network_of_slices_and_regions(tmp_path: Path):
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    folder = nnunets.write_folder(
        tmp_path / "f",
        nnunets.plans({"2d": nnunets.configuration(2)}),
        nnunets.dataset(labels=labels, regions_class_order=[1, 2]),
    )
    network = nnunets.save_fold(folder, "0", "2d", inference_allowed_mirroring_axes=(1,))
    assert export(folder).returncode == 0
    assert contract_in(tmp_path / "lesion.onnx").flips == [1]
    (tmp_path / "ct").mkdir()
    stored = volume(tmp_path / "ct" / "a.nii.gz", (3, 16, 16), (5.0, 1.0, 1.5))
    done = invoke(["run", "--input", "ct", "--model", "lesion.onnx", "--output", "out"], tmp_path)
    assert done.returncode == 0, done.stderr
    found = np.asarray(nib.load(tmp_path / "out" / "a.nii.gz").dataobj)
    with torch.inference_mode():
        scores = np.stack([network(ct(plane))[0].numpy() for plane in stored], axis=1)
    whole, core = scores > 0  # as LabelManager.convert_probabilities_to_segmentation: the core lies over the whole
    assert np.array_equal(found.T, np.where(core, 2, np.where(whole, 1, 0)))
    assert len(np.unique(found)) == 3


def test_several_folds_are_files_or_one_with_their_mean(tmp_path: Path):
    folder = nnunets.write_folder(tmp_path / "f", nnunets.plans({"2d": nnunets.configuration(2)}))
    networks = [nnunets.save_fold(folder, fold, "2d") for fold in ("0", "1")]
    assert export(folder).returncode == 0
    assert sorted(path.name for path in tmp_path.glob("*.onnx")) == ["lesion-fold0.onnx", "lesion-fold1.onnx"]
    done = export(folder, "--merge", output="mean.onnx")
    assert "mean of 2 folds" in done.stdout
    import onnxruntime

    image = np.random.default_rng(1).normal(size=(2, 1, 16, 16)).astype(np.float32)
    (found,) = onnxruntime.InferenceSession(tmp_path / "mean.onnx").run(None, {"image": image})
    with torch.inference_mode():
        wanted = torch.stack([network(torch.from_numpy(image)) for network in networks]).mean(0).numpy()
    assert np.abs(found - wanted).max() < 1e-5
    assert contract_in(tmp_path / "mean.onnx").provenance["weights"].count("checkpoint_final.pth") == 2


def test_batch_norm_of_its_trainer(tmp_path: Path):
    folder = nnunets.write_folder(tmp_path / "f", nnunets.plans({"2d": nnunets.configuration(2)}))
    nnunets.save_fold(folder, "0", "2d", trainer_name="nnUNetTrainerBN")
    assert export(folder).returncode == 0


def part(root: Path, number: int, name: str, labels: dict[str, int]) -> Path:
    """A trained folder for a part of the classes, in the folder of its dataset as nnU-Net has it."""
    own = nnunets.plans({"2d": nnunets.configuration(2)}, dataset_name=f"Dataset{number}_{name}")
    folder = root / f"Dataset{number}_{name}" / "nnUNetTrainerNoMirroring__nnUNetPlans__2d"
    nnunets.write_folder(folder, own, nnunets.dataset(labels=labels))
    for fold in ("0", "1") if name == "bones" else ("0",):
        nnunets.save_fold(folder, fold, "2d", trainer_name="nnUNetTrainerNoMirroring")
    return folder


def test_folders_for_parts_of_the_classes_are_one_list(tmp_path: Path):
    organs = part(tmp_path, 291, "organs", {"background": 0, "liver": 1, "spleen": 2})
    bones = part(tmp_path, 292, "bones", {"background": 0, "rib": 1, "skull": 2})
    words = ["export", "nnunet", organs, bones, "--output"]
    refused = invoke([*words, "all.onnx"], tmp_path)
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: several folders need a list, got --output all.onnx: name it all.toml\n",
    )
    done = invoke([*words, "all.toml"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "all.toml: 2 models, 4 classes" in done.stdout + done.stderr
    files = ["all-bones-fold0.onnx", "all-bones-fold1.onnx", "all-organs.onnx"]
    assert sorted(path.name for path in tmp_path.glob("*.onnx")) == files
    (tmp_path / "ct").mkdir()
    volume(tmp_path / "ct" / "a.nii.gz", (3, 16, 16), (5.0, 1.0, 1.5))
    done = invoke(["run", "--input", "ct", "--model", "all.toml", "--output", "out", "--executor", "serial"], tmp_path)
    assert done.returncode == 0, done.stderr
    one, other, found = (
        np.asarray(nib.load(tmp_path / "out" / where / "a.nii.gz").dataobj)
        for where in (".models/organs", ".models/bones", ".")
    )
    assert (found == np.where(other > 0, other + 2, one)).all()
    assert len(np.unique(found)) > 2
    again = invoke([*words, "all.toml"], tmp_path)
    assert "error: all.toml exists: name another file with --output, or give --overwrite" in again.stderr


def test_folders_with_a_class_of_one_name_are_refused_before_anything_is_exported(tmp_path: Path):
    folders = [part(tmp_path, k, name, {"background": 0, "liver": 1, name: 2}) for k, name in enumerate(("a", "b"), 1)]
    done = invoke(["export", "nnunet", *folders, "--output", "all.toml"], tmp_path)
    assert done.returncode == 2
    assert 'both have "liver": export each on its own, and write a list that renames it' in done.stderr
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"trainer_name": "Mine"}, "error: the trainer must be one of nnU-Net's"),
        (
            {"init_args": {"configuration": "3d_fullres"}},
            "error: plans.json must hold the configuration 3d_fullres, and has 2d",
        ),
        ({"network_weights": {"a": torch.ones(1)}}, "must fit the network of plans.json and dataset.json key by key"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, changes: dict[str, Any], says: str):
    folder = nnunets.write_folder(tmp_path / "f", nnunets.plans({"2d": nnunets.configuration(2)}))
    nnunets.save_fold(folder, "0", "2d", **changes)
    done = export(folder)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if not line.startswith("loading")]
    assert len(errors) == 1
    assert says in errors[0]
    assert not list(tmp_path.glob("*.onnx"))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path):
    folder = nnunets.write_folder(tmp_path / "f", nnunets.plans({"2d": nnunets.configuration(2)}))
    weights = nnunets.save_fold(folder, "0", "2d").state_dict()
    weights["decoder.seg_layers.0.bias"][0] = torch.nan
    content = nnunets.checkpoint(weights, init_args={"configuration": "2d"}, inference_allowed_mirroring_axes=(0, 1))
    nnunets.save_checkpoint(folder, "0", content)
    assert "weights must be finite, got NaN or infinity in decoder.seg_layers.0.bias" in export(folder).stderr


def test_a_case_without_the_channels_fails_alone(tmp_path: Path):
    own = nnunets.configuration(2, normalization_schemes=["ZScoreNormalization"] * 2, use_mask_for_norm=[True] * 2)
    folder = nnunets.write_folder(
        tmp_path / "f", nnunets.plans({"2d": own}), nnunets.dataset(channel_names={"0": "T1", "1": "FLAIR"})
    )
    nnunets.save_fold(folder, "0", "2d")
    assert export(folder).returncode == 0
    (tmp_path / "mr").mkdir()
    for name in ("a_0000", "a_0001", "b_0000"):
        volume(tmp_path / "mr" / f"{name}.nii.gz", (2, 16, 16), (5.0, 1.0, 1.5))
    done = invoke(["run", "--input", "mr", "--model", "lesion.onnx", "--output", "out"], tmp_path)
    assert done.returncode == 1
    assert "channel 1 (FLAIR)" in done.stderr + done.stdout
    assert (tmp_path / "out" / "a.nii.gz").is_file()
