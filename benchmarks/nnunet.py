"""``nnUNetv2_predict`` and ``segpipe run`` side by side: the same volumes, folds and mirroring, on the CPU; time and memory.

Both start from one folder as nnU-Net leaves it: two folds with seeded weights, z-score, a spacing other than that of the
volumes. The volumes are seeded, of 64³ to 112³ voxels (``--size``). The two programs take turns, each with its
defaults. Exporting the model is not in segpipe's time.

nnU-Net is not one of segpipe's dependencies. Install it into an environment of its own, and name its Python:

    python -m venv nnunet && nnunet/bin/pip install nnunetv2==2.8.1
    python benchmarks/nnunet.py --nnunet nnunet/bin/python

Without it, the benchmark says so in one line and ends. segpipe's own environment needs the extra ``nnunet``, for the export.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from children import Child, watched
from history import append
from machine import machine
from scenes import SCRATCH

FOLDS = (0, 1)
SPACING, VOXEL = [1.0, 1.0, 1.0], (0.95, 1.05, 1.1)
"""Spacing of the plans, and of the volumes, in mm."""

TIME, MEMORY = 0.7, 0.5
"""Most of nnU-Net's time and memory that a run may take."""

PREDICT = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder as run; run()"
"""What ``nnUNetv2_predict_from_modelfolder`` is; ``nnUNetv2_predict`` differs in how the folder is named."""

SAVE = """
import json, sys, torch
from pathlib import Path
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
folder = Path(sys.argv[1])
own = json.loads((folder / "plans.json").read_text())["configurations"]["3d_fullres"]["architecture"]
for fold in map(int, sys.argv[2:]):
    torch.manual_seed(fold)
    net = get_network_from_plans(own["network_class_name"], own["arch_kwargs"], own["_kw_requires_import"], 1, 3)
    content = {"network_weights": net.state_dict(), "trainer_name": "nnUNetTrainer", "current_epoch": 1000,
               "init_args": {"configuration": "3d_fullres", "fold": fold},
               "inference_allowed_mirroring_axes": (0, 1, 2)}
    (folder / f"fold_{fold}").mkdir(exist_ok=True)
    torch.save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
"""


@dataclass(frozen=True)
class Bench:
    """Where everything is."""

    root: Path
    python: str
    """Python that has nnU-Net."""

    @property
    def folder(self) -> Path:
        return self.root / "nnUNetTrainer__nnUNetPlans__3d_fullres"

    @property
    def model(self) -> Path:
        return self.root / "model.onnx"

    def nnunet(self, *, mirror: bool) -> list[object]:
        flags = [] if mirror else ["--disable_tta"]
        where = ["-i", self.root / "in", "-o", self.root / "nnunet", "-m", self.folder]
        return [self.python, "-c", PREDICT, *where, "-f", *FOLDS, "-device", "cpu", *flags]

    def segpipe(self, *, mirror: bool, like: bool = False) -> list[object]:
        flags = [*(["--tta", "flips"] if mirror else []), *(["--like", "nnunet"] if like else [])]
        where = ["--input", self.root / "in", "--model", self.model, "--output", self.root / "segpipe", "--overwrite"]
        return [sys.executable, "-m", "segpipe", "run", *where, "--device", "cpu", *flags]


def volumes(folder: Path, count: int, *, sizes: tuple[int, int], border: float) -> None:
    """Seeded MR-like volumes: smooth noise within an ellipsoid that fills ``border`` of each axis, zeros around it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        shape = tuple(int(n) for n in rng.integers(sizes[0], sizes[1] + 1, 3))
        coarse = rng.normal(size=[n // 8 + 1 for n in shape])
        fields = np.kron(coarse, np.ones((8, 8, 8)))[tuple(map(slice, shape))]
        away = sum(((np.arange(n) - n / 2) / (border * n / 2)).reshape([-1 if k == a else 1 for k in range(3)]) ** 2
                   for a, n in enumerate(shape))  # fmt: skip
        pixels = np.where(away < 1, 500 + 80 * fields + 25 * rng.normal(size=shape), 0)
        family: Any = nibabel.Nifti1Image
        image = family(pixels.astype(np.int16), np.diag([*VOXEL, 1.0]))
        nibabel.save(image, folder / f"case{number:02}_0000.nii.gz")


def architecture(features: Sequence[int]) -> dict[str, Any]:
    """A plain U-Net as plans.json describes it."""
    stages = len(features)
    network = {
        "n_stages": stages,
        "features_per_stage": list(features),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3] * 3] * stages,
        "strides": [[1] * 3, *[[2] * 3] * (stages - 1)],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": network,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def plans(features: Sequence[int], patch: int) -> dict[str, Any]:
    """plans.json of a plain U-Net."""
    cubic = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    resampling = {f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [patch] * 3,
        "spacing": SPACING,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        **resampling,
        "resampling_fn_data_kwargs": cubic,
        "resampling_fn_seg_kwargs": {**cubic, "is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": {**cubic, "order": 1},
        "architecture": architecture(features),
        "batch_dice": False,
    }
    return {
        "dataset_name": "Dataset001_Seeded",
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
    }


def prepare(bench: Bench, arguments: argparse.Namespace) -> None:
    """Write volumes and folder, and export the folder."""
    shutil.rmtree(bench.root, ignore_errors=True)
    volumes(bench.root / "in", arguments.volumes, sizes=tuple(arguments.size), border=arguments.border)
    bench.folder.mkdir(parents=True)
    features = [arguments.features * 2**stage for stage in range(4)]
    (bench.folder / "plans.json").write_text(json.dumps(plans(features, arguments.patch)))
    labels = {"background": 0, "organ": 1, "lesion": 2}
    dataset = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (bench.folder / "dataset.json").write_text(json.dumps(dataset))
    watched([bench.python, "-c", SAVE, bench.folder, *FOLDS], every=None)
    export = [sys.executable, "-m", "segpipe", "export", "nnunet", bench.folder, "--merge", "--output", bench.model]
    watched(export, every=None)


def agreement(bench: Bench) -> float:
    """Share of voxels with the same label in both programs' masks."""
    equal = total = 0
    for path in sorted((bench.root / "nnunet").glob("*.nii.gz")):
        theirs, ours = (np.asarray(load(found)) for found in (path, mask_of(bench.root / "segpipe", path.name)))
        equal, total = equal + int((theirs == ours).sum()), total + theirs.size
    return equal / total


def mask_of(folder: Path, name: str) -> Path:
    own = folder / name
    return own if own.exists() else folder / name.replace(".nii.gz", "_0000.nii.gz")


def load(path: Path) -> Any:
    image: Any = nibabel.load(path)
    return image.dataobj


def measure(bench: Bench, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Alternate the two programs; the best of the rounds for time, the largest for memory."""
    results = {}
    for mirror in (False, True):
        theirs, ours = [], []
        for _ in range(arguments.rounds):
            theirs.append(watched(bench.nnunet(mirror=mirror), every=arguments.every))
            ours.append(watched(bench.segpipe(mirror=mirror), every=arguments.every))
            print(f"mirroring {mirror}: {told(theirs[-1])}; segpipe: {told(ours[-1])}", flush=True)
        results["mirroring" if mirror else "plain"] = ratios(theirs, ours) | {"agreement": agreement(bench)}
    return results


def told(child: Child) -> str:
    return f"{child.seconds:.1f} s, {child.busy:.1f} processor s, {child.peak_mb:,.0f} MB"


def ratios(theirs: Sequence[Child], ours: Sequence[Child]) -> dict[str, float]:
    """Figures of both, and segpipe's share of nnU-Net's."""
    found: dict[str, float] = {}
    for key, best in (("seconds", min), ("busy", min), ("peak_mb", max)):
        a, b = (best(getattr(child, key) for child in group) for group in (theirs, ours))
        found |= {f"nnunet_{key}": round(a, 1), f"segpipe_{key}": round(b, 1), f"{key}_ratio": round(b / a, 3)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnunet", default=sys.executable, help="Python that has nnunetv2")
    parser.add_argument("--volumes", type=int, default=20)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 112), help="smallest and largest axis of a volume")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--features", type=int, default=8, help="of the first stage")
    parser.add_argument("--patch", type=int, default=48)
    parser.add_argument("--border", type=float, default=2.0, help="share of each axis that is not 0; 2: all of it")
    parser.add_argument("--every", type=float, default=0.2, help="seconds between two looks at memory")
    parser.add_argument("--keep", action="store_true", help="do not add the figures to history.jsonl")
    arguments = parser.parse_args()
    if subprocess.run([arguments.nnunet, "-c", "import nnunetv2"], capture_output=True, check=False).returncode:
        print(f"skipped: {arguments.nnunet} has no nnunetv2; the head of benchmarks/nnunet.py says how to install it")
        return
    bench = Bench(SCRATCH / "nnunet", arguments.nnunet)
    prepare(bench, arguments)
    print(machine())
    results = measure(bench, arguments)
    for name, found in results.items():
        verdict = "goal met" if found["seconds_ratio"] <= TIME and found["peak_mb_ratio"] <= MEMORY else "GOAL MISSED"
        print(f"{name}: {verdict}: {json.dumps(found)}")
    if not arguments.keep:
        append("nnunet", results)


if __name__ == "__main__":
    main()
