"""Small folders as nnU-Net leaves them: documents by hand, checkpoints with seeded weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FOREGROUND = {"mean": 40.0, "std": 60.0, "percentile_00_5": -150.0, "percentile_99_5": 260.0, "median": 41.0}


def architecture(axes: int = 3, *, residual: bool = False, strides: list[list[int]] | None = None) -> dict[str, Any]:
    """Two or more stages of few features."""
    strides = strides or [[1] * axes, [2] * axes]
    stages = len(strides)
    blocks = "n_blocks_per_stage" if residual else "n_conv_per_stage"
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet."
        + ("ResidualEncoderUNet" if residual else "PlainConvUNet"),
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [4 * 2**k for k in range(stages)],
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": [[3] * axes] * stages,
            "strides": strides,
            blocks: [1] * stages,
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def configuration(axes: int = 3, **changes: Any) -> dict[str, Any]:
    return {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16] * axes,
        "spacing": [2.0, 1.0, 1.5][-axes:],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "architecture": architecture(axes),
        **changes,
    }


def plans(configurations: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "dataset_name": "Dataset042_Lesion",
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": configurations or {"3d_fullres": configuration()},
        "image_reader_writer": "SimpleITKIO",
        "foreground_intensity_properties_per_channel": {"0": FOREGROUND},
        **changes,
    }


def dataset(**changes: Any) -> dict[str, Any]:
    return {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "lesion": 2},
        "file_ending": ".nii.gz",
        **changes,
    }


def write_folder(path: Path, plan: Mapping[str, Any] | None = None, data: Mapping[str, Any] | None = None) -> Path:
    """The documents of a trained folder, without checkpoints."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "plans.json").write_text(json.dumps(plan or plans()))
    (path / "dataset.json").write_text(json.dumps(data or dataset()))
    return path


def checkpoint(weights: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """As nnU-Net saves it, with the NumPy scalars of its log."""
    return {
        "network_weights": dict(weights),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)], "epoch_end_timestamps": [1.0]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1000,
        "init_args": {"configuration": "3d_fullres", "fold": 0},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
        **changes,
    }


def save_checkpoint(folder: Path, fold: str, content: Any) -> Path:
    import torch

    path = folder / f"fold_{fold}" / "checkpoint_final.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def save_fold(folder: Path, fold: str, name: str = "3d_fullres", **changes: Any) -> Any:
    """A checkpoint of the network of the plans, with weights seeded by the fold; needs dynamic_network_architectures.

    Returns:
        The network.
    """
    import torch

    from segpipe.export.nnunet.labels import label_terms
    from segpipe.export.nnunet.network import build
    from segpipe.export.nnunet.plans import configuration_of

    plan, data = (json.loads((folder / f"{document}.json").read_text()) for document in ("plans", "dataset"))
    torch.manual_seed(int(fold) if fold.isdecimal() else 99)
    read = configuration_of(plan, name)
    own, flips = read.architecture, tuple(range(len(read.patch)))
    batch_norm = changes.get("trainer_name") == "nnUNetTrainerBN"
    module = build(own, len(data["channel_names"]), len(label_terms(data)["classes"]), batch_norm=batch_norm)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    arguments = {"configuration": name, "fold": fold}
    save_checkpoint(folder, fold, checkpoint(module.state_dict(), **_and(arguments, flips, changes)))
    return module.eval()


def _and(arguments: Any, flips: tuple[int, ...], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {"init_args": arguments, "inference_allowed_mirroring_axes": flips, **changes}
