"""One architecture: how it is made, what it is given, and how its weights lie on the disk."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

CLASSES = ("water", "forest", "built-up", "grassland", "cropland")
MULTISPECTRAL = """channels = ["B02", "B03", "B04", "B08"]
scale = 0.0001
normalize = "fixed"
mean = [0.0556, 0.0838, 0.0763, 0.2925]
std = [0.0168, 0.0222, 0.0301, 0.0864]
"""


@dataclass(frozen=True)
class Family:
    """One architecture, how it is made, and how its weights lie on the disk."""

    library: str
    name: str
    build: Callable[[], nn.Module]
    heads: tuple[str, ...]
    """Layers whose channels are centred, in the order of the work."""
    save: Callable[[nn.Module, Path], Path]
    """Write the weights into a folder, and name what ``segpipe export`` is given."""
    flags: Mapping[str, Any] = field(default_factory=dict)
    channels: int = 3
    tile: int = 128
    call: Callable[[nn.Module, Tensor], Any] = field(default=lambda network, images: network(images))
    queries: tuple[str, ...] = ()
    """Layers that give each query its mask and its class."""
    processor: str | None = None
    """The image processor that transformers has for it."""
    inputs: str = ""
    """Lines of the contract on what each argument of the network gets."""
    margin: int = 0
    """Pixels on each side of a tile without scores."""

    @property
    def id(self) -> str:
        """Of one word, for ``--only`` and for tests."""
        return f"{self.library} {self.name}".replace(" ", "-").replace(",", "")


def class_lines() -> str:
    return "".join(f'[[classes]]\nid = {i}\nname = "{name}"\n' for i, name in enumerate(CLASSES))
