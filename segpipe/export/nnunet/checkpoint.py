"""Read a checkpoint of nnU-Net without running code from it."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segpipe.errors import ExportError, one_line
from segpipe.export.families import State
from segpipe.export.weights import torch_finding

WRAPPED = ("module.", "_orig_mod.")
"""Prefixes of keys that were saved from a network of several GPUs, or of ``torch.compile``."""


def allowed() -> list[Any]:
    """The types besides tensors that nnU-Net's checkpoints hold: NumPy's scalars in its log of the training."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    kinds = {type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "b1")}
    return [(scalar, "numpy.core.multiarray.scalar"), scalar, np.dtype, *sorted(kinds, key=lambda kind: kind.__name__)]


@dataclass(frozen=True)
class Checkpoint:
    """Weights of one fold, and what nnU-Net saved with them."""

    path: Path
    weights: State
    trainer: str
    configuration: str | None
    flips: list[int]
    """Spatial axes of the network that nnU-Net mirrors at inference."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the weights of one fold, and what its trainer recorded, without running code from the file.

    Raises:
        ExportError: it holds code, is damaged, or is not nnU-Net's.
    """
    content = _loaded(path)
    weights = content.get("network_weights") if isinstance(content, Mapping) else None
    if not isinstance(content, Mapping) or not isinstance(weights, Mapping) or not _are_tensors(weights):
        raise ExportError(
            f"{path} must be a checkpoint of nnU-Net 2, with network_weights, and is none: for a state_dict alone, "
            "see segpipe export --arch"
        )
    arguments = content.get("init_args")
    configuration = arguments.get("configuration") if isinstance(arguments, Mapping) else None
    return Checkpoint(
        path,
        {_unwrapped(str(key)): value for key, value in weights.items()},
        str(content.get("trainer_name", "nnUNetTrainer")),
        configuration if isinstance(configuration, str) else None,
        _axes(content.get("inference_allowed_mirroring_axes"), path),
    )


def _loaded(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(allowed()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ExportError(
            f"{path} must hold tensors, numbers and texts alone, as nnU-Net writes them, and loading more would run code "
            f"from the file: take the checkpoint that nnUNetv2_train wrote ({torch_finding(error)})"
        ) from None
    except Exception as error:  # noqa: BLE001 - torch passes on whatever its readers raise
        raise ExportError(f"{path} is damaged or no checkpoint: {one_line(error)[:200]}: copy it again") from None


def _are_tensors(weights: Mapping[Any, Any]) -> bool:
    return bool(weights) and all(isinstance(value, Tensor) for value in weights.values())


def _unwrapped(key: str) -> str:
    for prefix in WRAPPED:
        key = key.removeprefix(prefix)
    return key


def _axes(value: Any, path: Path) -> list[int]:
    if value is None:
        return []
    if not isinstance(value, list | tuple) or any(type(axis) is not int for axis in value):
        raise ExportError(f"{path}: inference_allowed_mirroring_axes must be axes, got {value!r}: copy it again")
    return sorted(value)
