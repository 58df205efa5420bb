"""BiSeNetV2: a wide and shallow branch for detail, a narrow and deep one for semantics, each gating the other.

https://arxiv.org/abs/2004.02147. Parameters have the names of https://github.com/CoinCheung/BiSeNet, and where that
departs from the paper (a ReLU after each depthwise expansion and after the last convolutions of context and aggregation,
nearest neighbours in the aggregation), so does this: checkpoints from there load with ``strict=True`` and score alike.
"""

from collections import OrderedDict
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

AUXILIARY = {"aux2": (16, 4), "aux3": (32, 8), "aux4": (64, 16), "aux5_4": (128, 32)}
"""Auxiliary heads, in the order of the semantic stages that they read: channels and stride of the stage."""


class BiSeNetV2(nn.Module):
    """Network that scores an image ``(batch, bands, rows, cols)`` at its own size.

    Rows and columns may be any; the stages align at multiples of 32. A context block sees the mean of the whole input, so
    that every shift changes the scores.

    Args:
        bands: planes of the input.
        classes: planes of the scores.
        auxiliary: build the heads that help in training; a checkpoint saved with them loads only with these.
    """

    def __init__(self, bands: int, classes: int, *, auxiliary: bool = False) -> None:
        super().__init__()
        self.detail = detail_branch(bands)
        self.segment = semantic_branch(bands)
        self.bga = Aggregation(128)
        self.head = head(activated(128, 1024), nn.Identity(), nn.Conv2d(1024, classes, 1))
        self.auxiliary = tuple(AUXILIARY) if auxiliary else ()
        for name in self.auxiliary:
            self.add_module(name, auxiliary_head(*AUXILIARY[name], classes))

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Scores ``(batch, classes, rows, cols)``; in training with auxiliary heads, a tuple with the heads' scores."""
        _, *stages, context = accumulate(self.segment, lambda x, stage: stage(x), initial=image)
        size = image.shape[-2:]
        scores = resized(self.head(self.bga(self.detail(image), context)), size)
        if not (self.training and self.auxiliary):
            return scores
        helpers = map(self.get_submodule, self.auxiliary)
        return scores, *(resized(helper(x), size) for helper, x in zip(helpers, stages, strict=True))


def resized(scores: Tensor, size: torch.Size) -> Tensor:
    """Scores at another size, bilinear between the centres of pixels."""
    return interpolate(scores, size, mode="bilinear", align_corners=False)


def normed(inside: int, outside: int, *, size: int = 3, stride: int = 1, groups: int = 1) -> tuple[nn.Module, nn.Module]:
    """A convolution without bias that turns n rows into ``ceil(n / stride)``, and its batch norm."""
    conv = nn.Conv2d(inside, outside, size, stride, padding=size // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(outside)


def activated(inside: int, outside: int, *, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm and ReLU."""
    conv, bn = normed(inside, outside, size=size, stride=stride)
    return nn.Sequential(OrderedDict(conv=conv, bn=bn, relu=nn.ReLU()))


def separable(inside: int, outside: int, *, stride: int = 1) -> list[nn.Module]:
    """A depthwise convolution with batch norm, then a pointwise one without."""
    return [*normed(inside, inside, stride=stride, groups=inside), nn.Conv2d(inside, outside, 1, bias=False)]


def detail_branch(bands: int) -> nn.Sequential:
    """Table 1, left: three stages, 64, 64 and 128 channels at strides 2, 4 and 8."""
    return nn.Sequential(
        OrderedDict(
            S1=nn.Sequential(activated(bands, 64, stride=2), activated(64, 64)),
            S2=nn.Sequential(activated(64, 64, stride=2), activated(64, 64), activated(64, 64)),
            S3=nn.Sequential(activated(64, 128, stride=2), activated(128, 128), activated(128, 128)),
        )
    )


def semantic_branch(bands: int) -> nn.Sequential:
    """Table 1, right: five stages, 16, 32, 64, 128 and 128 channels at strides 4, 8, 16, 32 and 32."""
    return nn.Sequential(
        OrderedDict(
            S1S2=Stem(bands, 16),
            S3=nn.Sequential(GatherDown(16, 32), Gather(32)),
            S4=nn.Sequential(GatherDown(32, 64), Gather(64)),
            S5_4=nn.Sequential(GatherDown(64, 128), Gather(128), Gather(128), Gather(128)),
            S5_5=ContextEmbedding(128),
        )
    )


class Stem(nn.Module):
    """Figure 4a: a strided convolution beside a maximum, both at stride 4, fused."""

    def __init__(self, bands: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv = activated(bands, channels, stride=2)
        self.left = nn.Sequential(activated(channels, half, size=1), activated(half, channels, stride=2))
        self.right = nn.MaxPool2d(3, stride=2, padding=1)
        self.fuse = activated(2 * channels, channels)

    def forward(self, image: Tensor) -> Tensor:
        """``(n, bands, h, w)`` to ``(n, channels, h / 4, w / 4)``."""
        x = self.conv(image)
        fused: Tensor = self.fuse(torch.cat([self.left(x), self.right(x)], dim=1))
        return fused


class ContextEmbedding(nn.Module):
    """Figure 4b: the mean over all pixels, added to each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv_gap = activated(channels, channels, size=1)
        self.conv_last = activated(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same shape ``(n, channels, h, w)``."""
        mean = x.mean(dim=(2, 3), keepdim=True)
        embedded: Tensor = self.conv_last(x + self.conv_gap(self.bn(mean)))
        return embedded


class Gather(nn.Module):
    """Figure 5b: gather and expand at stride 1, six times as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 6 * channels
        self.conv1 = activated(channels, channels)
        self.dwconv = nn.Sequential(*normed(channels, wide, groups=channels), nn.ReLU())
        self.conv2 = nn.Sequential(*normed(wide, channels, size=1))

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same shape ``(n, channels, h, w)``."""
        return torch.relu(x + self.conv2(self.dwconv(self.conv1(x))))


class GatherDown(nn.Module):
    """Figure 5c: gather and expand at stride 2, with a separable convolution for a shortcut."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        wide = 6 * inside
        self.conv1 = activated(inside, inside)
        self.dwconv1 = nn.Sequential(*normed(inside, wide, stride=2, groups=inside))
        self.dwconv2 = nn.Sequential(*normed(wide, wide, groups=wide), nn.ReLU())
        self.conv2 = nn.Sequential(*normed(wide, outside, size=1))
        self.shortcut = nn.Sequential(*separable(inside, outside, stride=2), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        """``(n, inside, h, w)`` to ``(n, outside, h / 2, w / 2)``."""
        return torch.relu(self.shortcut(x) + self.conv2(self.dwconv2(self.dwconv1(self.conv1(x)))))


class Aggregation(nn.Module):
    """Figure 6: each branch gates the other at its own stride; the sum has the finer one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.left1 = nn.Sequential(*separable(channels, channels))
        self.left2 = nn.Sequential(*normed(channels, channels, stride=2), nn.AvgPool2d(3, stride=2, padding=1))
        self.right1 = nn.Sequential(*normed(channels, channels))
        self.right2 = nn.Sequential(*separable(channels, channels))
        self.conv = nn.Sequential(*normed(channels, channels), nn.ReLU())

    def forward(self, detail: Tensor, meaning: Tensor) -> Tensor:
        """Features of the detail's shape ``(batch, channels, n, m)``; the other has ``ceil(n / 4)`` by ``ceil(m / 4)``."""
        size = detail.shape[-2:]
        fine = self.left1(detail) * torch.sigmoid(interpolate(self.right1(meaning), size))
        coarse = self.left2(detail) * torch.sigmoid(self.right2(meaning))
        summed: Tensor = self.conv(fine + interpolate(coarse, size))
        return summed


def head(conv: nn.Module, between: nn.Module, last: nn.Module) -> nn.Sequential:
    """Scores at the stride of the features, or of the module ``between``."""
    return nn.Sequential(OrderedDict(conv=conv, drop=nn.Dropout(0.1), conv_out=nn.Sequential(between, last)))


def auxiliary_head(channels: int, stride: int, classes: int) -> nn.Sequential:
    """Scores at half the stride of a semantic stage: nearest neighbours, then ``stride ** 2`` channels."""
    doubled = nn.Sequential(nn.Upsample(scale_factor=2), activated(128, stride**2))
    return head(activated(channels, 128), doubled, nn.Conv2d(stride**2, classes, 1))
