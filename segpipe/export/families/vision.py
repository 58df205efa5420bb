"""Networks of torchvision."""

from torch import nn

from segpipe.errors import ExportError
from segpipe.export.families import Wanted, need, with_channels

NAMES = (
    "fcn_resnet50",
    "fcn_resnet101",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
)


def build(name: str, wanted: Wanted) -> nn.Module:
    """Build one of `NAMES`, with an auxiliary head if the checkpoint has one."""
    models = need("torchvision.models.segmentation")
    if name not in NAMES:
        raise ExportError(f"torchvision's networks are {', '.join(NAMES)}, got {name!r}: name one of them")
    auxiliary = {} if name.startswith("lraspp") else {"aux_loss": any("aux_classifier." in key for key in wanted.state)}
    make = getattr(models, name)
    network: nn.Module = make(
        weights=None, weights_backbone=None, num_classes=wanted.scores, **{**auxiliary, **wanted.options}
    )
    return with_channels(network, wanted.channels)
