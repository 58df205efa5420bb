"""Networks of segmentation-models-pytorch."""

from pathlib import Path
from typing import Any

from torch import nn

from segpipe.errors import ExportError
from segpipe.export.families import Network, Wanted, foreign_errors, need
from segpipe.export.families.transform import read_transform
from segpipe.storage.documents import DocumentError, read_json
from segpipe.storage.existence import is_file

NAMES = (
    "Unet",
    "UnetPlusPlus",
    "FPN",
    "PSPNet",
    "DeepLabV3",
    "DeepLabV3Plus",
    "Linknet",
    "MAnet",
    "PAN",
    "UPerNet",
    "Segformer",
    "DPT",
)


def build(name: str, wanted: Wanted) -> nn.Module:
    """Build one of `NAMES` with any encoder of the library, without pretrained weights."""
    library = need("segmentation_models_pytorch")
    if name not in NAMES:
        raise ExportError(f"networks of segmentation-models-pytorch are {', '.join(NAMES)}, got {name!r}: name one of them")
    if wanted.encoder is None:
        raise ExportError(
            f"smp:{name} needs an encoder, got no --encoder: give the one it was trained with, such as resnet34"
        )
    network: nn.Module = getattr(library, name)(
        encoder_name=wanted.encoder,
        encoder_weights=None,
        in_channels=wanted.channels,
        classes=wanted.scores,
        **wanted.options,
    )
    return network


def is_folder(folder: Path) -> bool:
    """Whether a folder was written by the library's ``save_pretrained``: its ``config.json`` names one of its classes."""
    return "_model_class" in _config(folder)


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / "config.json")
    except DocumentError:
        return {}
    return found if isinstance(found, dict) else {}


def check_named(folder: Path) -> None:
    """Refuse a folder of the library whose configuration does not name the class, as those of early versions.

    Raises:
        ExportError: only the class is missing; the message says how to name it.
    """
    config = _config(folder)
    encoder = config.get("encoder_name")
    if encoder and "model_type" not in config:
        raise ExportError(
            f"{folder / 'config.json'} must name the class of its network by _model_class, and has none: "
            f"give {_weights(folder)} itself, with --arch, as in smp:Unet, and --encoder {encoder}"
        )


def open_folder(folder: Path, scores: int | None, *, scaled: bool = False) -> tuple[Network, Path]:
    """The network of ``config.json`` with fresh weights, and the path of its saved weights.

    Args:
        folder: folder of ``save_pretrained``, with the transform of albumentations that folders of smp-hub contain.
        scores: scores of the new head; None: as saved.
        scaled: whether the user gives the scaling; then the transform is not read.
    """
    config = _config(folder)
    name, encoder = config.pop("_model_class"), config.pop("encoder_name", None)
    options = {key: value for key, value in config.items() if key not in ("in_channels", "classes", "encoder_weights")}
    channels, labels = config.get("in_channels", 3), config.get("classes", 1)
    with foreign_errors(f"{folder / 'config.json'} cannot be used"):
        module = build(name, Wanted(channels, scores or labels, encoder, options, {}))
    scaling, notes = ({}, ()) if scaled else read_transform(folder, channels)
    known = {"channels": channels} | scaling | _activation(config.get("activation"), folder)
    return Network(module, f"smp:{name}, encoder {encoder}", known, notes), _weights(folder)


def _activation(name: Any, folder: Path) -> dict[str, str]:
    """The contract's activation if the network ends in one, which must not be applied twice."""
    if name in (None, "identity"):
        return {}
    if name in ("sigmoid", "softmax", "softmax2d"):
        return {"activation": "none"}
    raise ExportError(
        f"a network must end in scores, or in a sigmoid or softmax, got activation {name!r} in {folder / 'config.json'}: "
        "save it with activation=None"
    )


def _weights(folder: Path) -> Path:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if is_file(folder / name):
            return folder / name
    raise ExportError(f"{folder} must hold model.safetensors beside its config.json: save it again by save_pretrained")
