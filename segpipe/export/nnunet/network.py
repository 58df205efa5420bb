"""Build the network of the plans, and load one fold into it, or the mean of several."""

import importlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from segpipe.errors import ExportError
from segpipe.export.families import foreign_errors
from segpipe.export.nnunet.checkpoint import Checkpoint
from segpipe.export.nnunet.plans import PLAIN, RESIDUAL, Architecture
from segpipe.export.nnunet.trainer import BATCH_NORM
from segpipe.export.weights import check_finite, shown
from segpipe.process.extras import install

LIBRARY = "dynamic_network_architectures.architectures.unet"


class Folds(nn.Module):
    """The mean of the scores of several networks, as nnU-Net's predictor computes it."""

    def __init__(self, folds: Sequence[nn.Module]) -> None:
        super().__init__()
        self.folds = nn.ModuleList(folds)

    def forward(self, image: Tensor) -> Tensor:
        """Mean scores ``(batch, classes, *tile)``."""
        scores: list[Tensor] = [fold(image) for fold in self.folds]
        total = scores[0]
        for more in scores[1:]:
            total = total + more
        return total / len(scores)


def network_of(architecture: Architecture, checkpoints: Sequence[Checkpoint], channels: int, scores: int) -> nn.Module:
    """The network in evaluation mode, without deep supervision.

    Args:
        architecture: of the plans.
        checkpoints: one, or several whose scores are averaged.
        channels: channels of its input.
        scores: scores per voxel.

    Raises:
        ExportError: it cannot be built, or weights do not fit it.
    """
    made = [_fold(architecture, checkpoint, channels, scores) for checkpoint in checkpoints]
    return (made[0] if len(made) == 1 else Folds(made)).eval()


def _fold(architecture: Architecture, checkpoint: Checkpoint, channels: int, scores: int) -> nn.Module:
    module = build(architecture, channels, scores, batch_norm=checkpoint.trainer == BATCH_NORM)
    _load(module, checkpoint)
    return module.float()


def build(architecture: Architecture, channels: int, scores: int, *, batch_norm: bool = False) -> nn.Module:
    """The network with fresh weights.

    Args:
        architecture: of the plans.
        channels: channels of its input.
        scores: scores per voxel.
        batch_norm: whether batch norm replaces the norm of the plans.

    Raises:
        ExportError: it cannot be built.
    """
    arguments = _arguments(architecture, batch_norm=batch_norm)
    make = _class(architecture.class_name)
    with foreign_errors("the network of plans.json cannot be built"):
        module: nn.Module = make(input_channels=channels, num_classes=scores, deep_supervision=False, **arguments)
    return module


def _class(name: str) -> Any:
    if name not in (PLAIN, RESIDUAL, "ResidualUNet"):
        raise ExportError(
            f"the network of plans.json must be {PLAIN} or {RESIDUAL}, got {name}: export it with segpipe export --module"
        )
    try:
        return getattr(importlib.import_module(LIBRARY), name)
    except ModuleNotFoundError as error:
        raise ExportError(
            f"exporting a folder of nnU-Net needs {error.name}, which is not installed: {install('nnunet')}"
        ) from None


def _arguments(architecture: Architecture, *, batch_norm: bool) -> dict[str, Any]:
    """Arguments of the constructor, with classes of torch for their names."""
    arguments = dict(architecture.arguments)
    if batch_norm:
        arguments |= {"norm_op": f"torch.nn.BatchNorm{len(architecture.strides[0])}d"}
        arguments |= {"norm_op_kwargs": {"eps": 1e-5, "affine": True}}
    named = {key: _torch_class(arguments[key]) for key in architecture.imported if arguments.get(key) is not None}
    return {**arguments, **named}


def _torch_class(path: Any) -> type[nn.Module]:
    """A layer of torch by its path, such as ``torch.nn.modules.conv.Conv3d``; nothing else is imported.

    Raises:
        ExportError: it is none.
    """
    module, _, name = str(path).rpartition(".")
    found = getattr(nn, name, None) if module == "torch.nn" or module.startswith("torch.nn.modules.") else None
    if isinstance(found, type) and issubclass(found, nn.Module):
        return found
    raise ExportError(f"layers of plans.json must be torch's own, such as torch.nn.Conv3d, got {path}")


def _load(module: nn.Module, checkpoint: Checkpoint) -> None:
    wanted, given = module.state_dict(), checkpoint.weights
    differ = [key for key in given if key in wanted and given[key].shape != wanted[key].shape]
    parts = {
        "missing": [key for key in wanted if key not in given],
        "unexpected": [key for key in given if key not in wanted],
        "of another shape": [f"{key} {tuple(given[key].shape)} for {tuple(wanted[key].shape)}" for key in differ],
    }
    if found := "; ".join(f"{what}: {shown(keys)}" for what, keys in parts.items() if keys):
        raise ExportError(
            f"{checkpoint.path} must fit the network of plans.json and dataset.json key by key; {found}: take all three "
            "from one training"
        )
    check_finite(given, f"{checkpoint.path}: weights")
    module.load_state_dict(given)
