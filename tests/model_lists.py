"""Lists of small seeded 3-D networks for parts of the classes, and their labels joined by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import rasterio
from networks import Network, contract

PARTS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "organs": (["background", "liver", "spleen", "stomach"], {"spacing": [1.5, 1.5, 1.5]}),
    "vertebrae": (["background", "L1", "L2"], {"spacing": [1.5, 1.5, 1.5], "normalize": "zscore"}),
    "cardiac": (["background", "heart"], {"tile": [8, 12, 8]}),
    "muscles": (["background", "gluteus", "iliopsoas"], {"spacing": [3.0, 3.0, 3.0]}),
    "ribs": (["background", "rib_1", "rib_2"], {"spacing": [2.0, 2.0, 2.0]}),
}
"""Five models as those of a whole-body task: other classes, spacings, scaling and tiles."""


def network(path: Path, names: Sequence[str], *, seed: int, **changes: Any) -> Path:
    """A 3-D network of voxels and their neighbours; scores of the background are high enough that it is found, too."""
    tile = changes.pop("tile", [8, 8, 8])
    net = Network(1, seed, ndim=3).conv(1, 4, 3).add("Relu").conv(4, len(names), 1)
    net.add("Add", np.array([1.0] + [0.0] * (len(names) - 1), np.float32).reshape(1, -1, 1, 1, 1))
    plain = {"layout": "NCDHW", "tile": tile, "overlap": [2, 2, 2], "spacing_unit": "mm", "scale": 1 / 500}
    values = contract(1, len(names), **{**plain, "classes": numbered_from_0(names), **changes})
    return net.save(path, values, classes=len(names), shape=("n", *tile))


def flat(path: Path, names: Sequence[str], *, seed: int) -> Path:
    """A 2-D network of three bands."""
    net = Network(3, seed).conv(3, 8, 3).add("Relu").conv(8, len(names), 3)
    return net.save(path, contract(3, len(names), classes=numbered_from_0(names)), classes=len(names))


def numbered_from_0(names: Sequence[str]) -> list[dict[str, Any]]:
    return [{"id": k, "name": name} for k, name in enumerate(names)]


def write(root: Path, parts: Mapping[str, tuple[list[str], dict[str, Any]]] = PARTS) -> Path:
    """The networks and a list of them."""
    for seed, (name, (classes, changes)) in enumerate(parts.items()):
        network(root / f"{name}.onnx", classes, seed=seed, **changes)
    path = root / "total.toml"
    path.write_text("".join(f'[[models]]\nfile = "{name}.onnx"\n' for name in parts))
    return path


def numbered(parts: Mapping[str, tuple[list[str], Any]] = PARTS) -> dict[str, int]:
    """Ids of the joined classes: from 1, in the order of the models and of their own classes."""
    return {name: k for k, name in enumerate((name for classes, _ in parts.values() for name in classes[1:]), 1)}


def joined_by_hand(masks: Mapping[str, np.ndarray], parts: Mapping[str, tuple[list[str], Any]] = PARTS) -> np.ndarray:
    """Voxel by voxel: the class of the last model that claims it."""
    ids, out = numbered(parts), np.zeros(next(iter(masks.values())).shape, int)
    for where in np.ndindex(out.shape):
        for name, (classes, _) in parts.items():
            if label := masks[name][where]:
                out[where] = ids[classes[label]]
    return out


def first_band(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def labels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)
