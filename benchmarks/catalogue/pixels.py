"""Pixels of the bundled scenes: as they are stored, as pictures, and as a network takes them."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from torch import Tensor

from catalogue.family import MULTISPECTRAL, Family
from catalogue.hub import transformers_library
from segpipe.export.terms import IMAGENET

ROOT = Path(__file__).parents[2]

SCENES = ROOT / "examples" / "scenes"
SIDE = 384
"""Rows and columns of each picture: all valid pixels of the scene that it is cut from."""
CORNERS = {"danube": (0, 80), "morava": (0, 96), "pirai": (0, 64)}
BRIGHTEST = 1600
"""Stored reflectance that becomes 255 in a picture."""


def crops(channels: int) -> dict[str, NDArray[Any]]:
    """By scene: stored pixels ``(4, SIDE, SIDE)``, or 8-bit red, green and blue ``(3, SIDE, SIDE)``."""
    found = {}
    for name, (row, col) in CORNERS.items():
        with rasterio.open(SCENES / f"{name}.tif") as scene:
            pixels: NDArray[np.uint16] = scene.read()
            found[name] = pixels[:, row : row + SIDE, col : col + SIDE]
    return found if channels == 4 else {name: _eight_bit(crop[[2, 1, 0]]) for name, crop in found.items()}


def _eight_bit(pixels: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return np.asarray(np.clip(pixels * (255 / BRIGHTEST), 0, 255), np.uint8)


def pictures(folder: Path) -> Path:
    """The scenes in true colour, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in crops(3).items():
        size = {"count": 3, "height": SIDE, "width": SIDE, "dtype": "uint8"}
        with rasterio.open(folder / f"{name}.png", "w", driver="PNG", **size) as picture:
            picture.write(pixels)
    return folder


def tile_of(family: Family) -> NDArray[Any]:
    """One tile of stored pixels ``(channels, tile, tile)``."""
    return crops(family.channels)["morava"][:, : family.tile, : family.tile]


def scaled(family: Family, count: int = 9) -> Tensor:
    """Up to ``count`` tiles of all scenes, as the network takes them."""
    steps = range(0, SIDE - family.tile + 1, family.tile)
    sides = [(slice(r, r + family.tile), slice(c, c + family.tile)) for r in steps for c in steps]
    found = crops(family.channels).values()
    tiles = [crop[:, *side] for side in sides for crop in found]
    gain, mean, std = _scaling(family)
    shifted = np.stack(tiles[:count]) * gain - np.reshape(mean, (-1, 1, 1))
    return torch.from_numpy((shifted / np.reshape(std, (-1, 1, 1))).astype(np.float32))


def _scaling(family: Family) -> tuple[float, Any, Any]:
    """Gain, mean and deviation of the contract, or of the image processor."""
    if family.channels == 4:
        contract = tomllib.loads(MULTISPECTRAL)
        return contract["scale"], contract["mean"], contract["std"]
    if family.processor is None:
        return 1 / 255, IMAGENET["mean"], IMAGENET["std"]
    processor = getattr(transformers_library(), family.processor)()
    return 1 / 255, processor.image_mean, processor.image_std
