"""Networks that somebody wrote, and their factories for ``--module``."""

from typing import Any

import torch
from torch import Tensor, nn

from catalogue.family import CLASSES

DAY = [0.3, -0.6]


class Ladder(nn.Module):
    """Somebody's own network, which a compiler of TorchScript understands, with scores at half the size."""

    def __init__(self, bands: int = 4, classes: int = len(CLASSES), width: int = 16) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(bands, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.coarse = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.SiLU())
        self.head = nn.Conv2d(2 * width, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Scores ``(batch, classes, rows / 2, cols / 2)``."""
        fine = self.fine(image)
        coarse = nn.functional.interpolate(self.coarse(fine), size=fine.shape[-2:], mode="bilinear")
        scores: Tensor = self.head(torch.cat([fine, coarse], 1))
        return scores


def ladder(**options: Any) -> nn.Module:
    """The factory for ``--module catalogue.own:ladder``."""
    return Ladder(**options)


class Change(nn.Module):
    """Somebody's own network of two images, one before and one after, of two bands each."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(2, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Conv2d(2 * width, len(CLASSES), 1)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Scores ``(batch, classes, rows / 2, cols / 2)``."""
        one, two = self.encode(before), self.encode(after)
        scores: Tensor = self.head(torch.cat([one, one - two], 1))
        return scores


def of_change(network: nn.Module, images: Tensor) -> Any:
    return network(images[:, :2], images[:, 2:])


class Season(nn.Module):
    """Somebody's own network of two dates of two bands, ``(batch, bands, dates, rows, cols)``, and of a day."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.encode = nn.Conv3d(2, width, (2, 3, 3), padding=(0, 1, 1))
        self.day = nn.Linear(2, width)
        self.head = nn.Conv2d(width, len(CLASSES), 1)

    def forward(self, image: Tensor, day: Tensor) -> Tensor:
        """Scores ``(batch, classes, rows, cols)``."""
        scores: Tensor = self.head(torch.relu(self.encode(image)[:, :, 0] + self.day(day)[:, :, None, None]))
        return scores


def of_season(network: nn.Module, images: Tensor) -> Any:
    return network(images.unflatten(1, (2, 2)).transpose(1, 2), torch.tensor([DAY]).expand(len(images), 2))


class Valid(nn.Module):
    """A U-Net of convolutions without padding, whose scores are those of the middle: 8 pixels less on each side."""

    def __init__(self, bands: int = 4, classes: int = len(CLASSES), width: int = 16) -> None:
        super().__init__()
        self.fine = self._pair(bands, width)
        self.coarse = nn.Sequential(nn.MaxPool2d(2), self._pair(width, width))
        self.both = self._pair(2 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    @staticmethod
    def _pair(inside: int, outside: int) -> nn.Module:
        first, second = nn.Conv2d(inside, outside, 3), nn.Conv2d(outside, outside, 3)
        return nn.Sequential(first, nn.BatchNorm2d(outside), nn.ReLU(), second, nn.BatchNorm2d(outside), nn.ReLU())

    def forward(self, image: Tensor) -> Tensor:
        """Scores ``(batch, classes, rows - 16, cols - 16)``."""
        fine = self.fine(image)
        coarse = nn.functional.interpolate(self.coarse(fine), scale_factor=2.0)
        scores: Tensor = self.head(self.both(torch.cat([fine[..., 4:-4, 4:-4], coarse], 1)))
        return scores


def valid(**options: Any) -> nn.Module:
    """The factory for ``--module catalogue.own:valid``."""
    return Valid(**options)
