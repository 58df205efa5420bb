"""Networks of segmentation-models-pytorch."""

from torch import nn

from segpipe.export.families import Wanted, need
from segpipe.pipeline.errors import ExportError

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
    """One of `NAMES` with any encoder of the library, without pretrained weights."""
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
