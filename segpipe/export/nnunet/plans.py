"""A configuration in ``plans.json``: patch, spacing, axes, normalisation, resampling and architecture, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from segpipe.errors import ExportError

OWN_PREPROCESSOR = "DefaultPreprocessor"

PLAIN, RESIDUAL = "PlainConvUNet", "ResidualEncoderUNet"

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Architecture:
    """The class of a network and the arguments of its constructor; classes among them are still names."""

    class_name: str
    """Without its module."""
    arguments: Json
    imported: tuple[str, ...]
    """Arguments that name a class."""

    @property
    def strides(self) -> list[tuple[int, ...]]:
        """Stride of each stage, per axis."""
        return [tuple(stage) for stage in self.arguments["strides"]]


@dataclass(frozen=True)
class Configuration:
    """One configuration of the plans."""

    name: str
    patch: tuple[int, ...]
    spacing: tuple[float, ...]
    """In mm, in the order of the network's axes; for a network of images, of the axes of a slice."""
    order: tuple[int, ...]
    """Axis of the file, slowest first, that becomes each of the network's axes: ``transpose_forward``."""
    schemes: tuple[str, ...]
    """Class of the normalisation of each channel."""
    masked: tuple[bool, ...]
    """Whether the normalisation of a channel leaves out voxels outside the non-zero region."""
    foreground: Json
    """Intensities of the foreground in training, by number of the channel."""
    architecture: Architecture
    reader: str
    """Class with which nnU-Net reads images."""
    resampling: Json = field(default_factory=dict)
    """How nnU-Net resamples images and scores, for the record."""

    @property
    def align(self) -> tuple[int, ...]:
        """Total stride of the network, per axis."""
        total = [1] * len(self.patch)
        for stage in self.architecture.strides:
            total = [a * b for a, b in zip(total, stage, strict=True)]
        return tuple(total)


def configuration_of(plans: Json, name: str) -> Configuration:
    """The configuration with its inherited keys.

    Raises:
        ExportError: it is missing, is the second stage of a cascade, or needs code that is not nnU-Net's.
    """
    values = _inherited(plans, name)
    _check_own(values, name)
    try:
        return _read(plans, values, name)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ExportError(
            f"plans.json must describe the configuration {name} as nnU-Net 2 writes it, and {_lacking(error)}: copy it "
            "again from the folder of the training"
        ) from None


def _lacking(error: Exception) -> str:
    return f"has no {error}" if isinstance(error, KeyError) else f"a value has another form ({error})"


def _inherited(plans: Json, name: str) -> dict[str, Any]:
    """Keys of a configuration, those of its ancestors first."""
    known = plans.get("configurations")
    if not isinstance(known, dict):
        raise ExportError(
            "plans.json must hold configurations, as nnU-Net 2 writes it: plans of nnU-Net 1 are not supported"
        )
    chain: list[str] = []
    below: str | None = name
    while below is not None:
        if below not in known or not isinstance(known[below], dict):
            raise ExportError(f"plans.json must hold the configuration {below}, and has {', '.join(known)}")
        if below in chain:
            raise ExportError(f"the configurations of plans.json inherit from each other: {', '.join(chain)}")
        chain.append(below)
        below = known[below].get("inherits_from")
    return {key: value for one in reversed(chain) for key, value in known[one].items()}


def _check_own(values: Json, name: str) -> None:
    if values.get("previous_stage"):
        raise ExportError(
            f"{name} is the second stage of a cascade, whose input includes the labels of {values['previous_stage']} for "
            "the same case; a run gives a model the case alone: export 3d_fullres or 3d_lowres, which need no other stage"
        )
    preprocessor = values.get("preprocessor_name", OWN_PREPROCESSOR)
    if preprocessor != OWN_PREPROCESSOR:
        raise ExportError(
            f"the preprocessor must be nnU-Net's {OWN_PREPROCESSOR}, got {preprocessor}, whose code is not in the folder: "
            "write a contract for what it does, and put it into an ONNX file with segpipe export attach"
        )


def _read(plans: Json, values: Json, name: str) -> Configuration:
    patch = tuple(int(n) for n in values["patch_size"])
    order = tuple(int(n) for n in plans["transpose_forward"])
    spacing = tuple(float(n) for n in values["spacing"])
    if len(patch) not in (2, 3) or len(spacing) != len(patch) or sorted(order) != [0, 1, 2]:
        raise ValueError(f"patch_size {list(patch)}, spacing {list(spacing)}, transpose_forward {list(order)}")
    schemes = tuple(str(scheme) for scheme in values["normalization_schemes"])
    foreground = plans.get("foreground_intensity_properties_per_channel")
    if foreground is None:
        foreground = plans.get("foreground_intensity_properties_by_modality", {})
    return Configuration(
        name=name,
        patch=patch,
        spacing=spacing,
        order=order,
        schemes=schemes,
        masked=tuple(bool(one) for one in values.get("use_mask_for_norm", [False] * len(schemes))),
        foreground=foreground,
        architecture=_architecture(values),
        reader=str(plans.get("image_reader_writer", "SimpleITKIO")),
        resampling={key: value for key, value in values.items() if key.startswith("resampling_fn")},
    )


def _architecture(values: Json) -> Architecture:
    if "architecture" not in values:
        return _old_architecture(values)
    given = values["architecture"]
    name, arguments = str(given["network_class_name"]), dict(given["arch_kwargs"])
    return Architecture(
        name.rpartition(".")[2],
        {**arguments, "strides": _per_axis(arguments["strides"], len(values["patch_size"]))},
        tuple(given["_kw_requires_import"]),
    )


def _per_axis(strides: Sequence[Any], axes: int) -> list[list[int]]:
    """Strides as one list per stage: some plans have one number for all axes."""
    return [[int(n) for n in stage] if isinstance(stage, list) else [int(stage)] * axes for stage in strides]


def _old_architecture(values: Json) -> Architecture:
    """The architecture of plans that nnU-Net wrote before it named classes: always instance norm and leaky ReLU."""
    name, convolutions = str(values["UNet_class_name"]), list(values["n_conv_per_stage_encoder"])
    width, most, axes = values["UNet_base_num_features"], values["unet_max_num_features"], len(values["patch_size"])
    arguments = {
        "n_stages": len(convolutions),
        "features_per_stage": [min(width * 2**stage, most) for stage in range(len(convolutions))],
        "conv_op": f"torch.nn.Conv{axes}d",
        "kernel_sizes": values["conv_kernel_sizes"],
        "strides": _per_axis(values["pool_op_kernel_sizes"], axes),
        "n_conv_per_stage" if name == PLAIN else "n_blocks_per_stage": convolutions,
        "n_conv_per_stage_decoder": values["n_conv_per_stage_decoder"],
        "conv_bias": True,
        "norm_op": f"torch.nn.InstanceNorm{axes}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return Architecture(name, arguments, ("conv_op", "norm_op", "dropout_op", "nonlin"))
