"""Networks of torchvision, segmentation-models-pytorch and segpipe."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from catalogue.family import CLASSES


def vision(name: str, **options: Any) -> nn.Module:
    from torchvision.models import segmentation

    network: nn.Module = getattr(segmentation, name)(
        weights=None, weights_backbone=None, num_classes=len(CLASSES), **options
    )
    return network


def smp(name: str, encoder: str, options: Mapping[str, Any]) -> nn.Module:
    import segmentation_models_pytorch

    make = getattr(segmentation_models_pytorch, name)
    network: nn.Module = make(encoder_name=encoder, encoder_weights=None, in_channels=4, classes=len(CLASSES), **options)
    return network


def unet() -> nn.Module:
    from segpipe.export.unet import UNet

    return UNet(4, len(CLASSES), widths=(8, 16, 32))


def bisenet() -> nn.Module:
    from segpipe.export.bisenetv2 import BiSeNetV2

    return BiSeNetV2(4, len(CLASSES))
