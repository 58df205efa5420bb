"""The U-Net of the bundled example: small, and quick on a CPU."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

WIDTHS = (16, 24, 40, 64)


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3 x 3 convolutions with batch norm and ReLU."""
    pairs = ((inputs, outputs), (outputs, outputs))
    layers = [(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairs]
    return nn.Sequential(*(layer for three in layers for layer in three))


class UNet(nn.Module):
    """Ronneberger, Fischer and Brox (2015), padded and normalised; sides are multiples of ``2 ** (len(widths) - 1)``."""

    def __init__(self, bands: int, classes: int, *, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        steps = list(pairwise(widths))
        self.stem = block(bands, widths[0])
        self.down = nn.ModuleList(block(fine, coarse) for fine, coarse in steps)
        self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in reversed(steps))
        self.join = nn.ModuleList(block(2 * fine, fine) for fine, _ in reversed(steps))
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Scores ``(batch, classes, rows, cols)`` for images ``(batch, bands, rows, cols)``."""
        levels = [self.stem(image)]
        for down in self.down:
            levels.append(down(nn.functional.max_pool2d(levels[-1], 2)))
        x: Tensor = levels.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([up(x), levels.pop()], 1))
        scores: Tensor = self.head(x)
        return scores
