"""Networks of our own: BiSeNetV2, and the U-Net of the bundled example."""

from torch import nn

from segpipe.export.bisenetv2 import BiSeNetV2
from segpipe.export.families import Wanted
from segpipe.export.unet import UNet


def build(name: str, wanted: Wanted) -> nn.Module:
    """Build ``bisenetv2``, with auxiliary heads if the checkpoint has them, or ``unet``."""
    if name == "unet":
        return UNet(wanted.channels, wanted.scores, **wanted.options)
    auxiliary = any(".aux" in f".{key}" for key in wanted.state)
    return BiSeNetV2(wanted.channels, wanted.scores, **{"auxiliary": auxiliary, **wanted.options})
