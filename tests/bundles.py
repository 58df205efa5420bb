"""MONAI bundles with small seeded networks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from networks import Network


def target(name: str, keys: str = "image", **values: Any) -> dict[str, Any]:
    """A transform for dictionaries."""
    return {"_target_": f"{name}d", "keys": keys, **values}


LOADED = [target("LoadImage"), target("EnsureChannelFirst")]
AXIAL = target("Orientation", axcodes="RAS")
MOST_LIKELY = [
    target("Activations", "pred", softmax=True),
    target("Invert", "pred"),
    target("AsDiscrete", "pred", argmax=True),
]


def metadata(channels: int, classes: list[str], shape: Any) -> dict[str, Any]:
    return {
        "monai_version": "1.6.1",
        "version": "0.1.0",
        "task": "a test",
        "network_data_format": {
            "inputs": {"image": {"type": "image", "num_channels": channels, "spatial_shape": shape}},
            "outputs": {
                "pred": {
                    "format": "segmentation",
                    "num_channels": len(classes),
                    "spatial_shape": shape,
                    "channel_def": {str(k): name for k, name in enumerate(classes)},
                }
            },
        },
    }


def inference(before: list[Any], after: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    """A workflow, with what the transforms do beside the point."""
    return {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "device": "$torch.device('cpu')",
        "preprocessing": {"_target_": "Compose", "transforms": [*LOADED, *before, target("EnsureType")]},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "overlap": 0.25, "mode": "gaussian"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                *(MOST_LIKELY if after is None else after),
                target("SaveImage", "pred", output_dir="@bundle_root"),
            ],
        },
        **more,
    }


def network(path: Path, channels: int = 1, scores: int = 2, ndim: int = 3) -> Path:
    """Two convolutions of free sizes; weights differ along each axis."""
    net = Network(channels, 5, ndim=ndim).conv(channels, 4, 3).add("Relu").conv(4, scores, 3)
    return net.save(path, None, classes=scores, shape=("n", "x", "y", "z")[: ndim + 1])


def write(
    folder: Path, workflow: dict[str, Any], *, channels: int = 1, classes: list[str] | None = None, ndim: int = 3
) -> Path:
    """A bundle with an ONNX network."""
    names = classes or ["background", "organ"]
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "models").mkdir(exist_ok=True)
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata(channels, names, [16] * ndim)))
    (folder / "configs" / "inference.json").write_text(json.dumps(workflow))
    network(folder / "models" / "model.onnx", channels, len(names), ndim)
    return folder


def voxels(shape: tuple[int, ...] = (16, 16, 16), seed: int = 0, low: int = -300, high: int = 500) -> np.ndarray:
    """Values with coarse and fine detail, axes ``(i, j, k)``, a quarter of them zero."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(low, high, [-(-n // 4) for n in shape])
    for axis in range(len(shape)):
        coarse = np.repeat(coarse, 4, axis)
    values = coarse[tuple(map(slice, shape))] + rng.integers(-30, 30, shape)
    values[: shape[0] // 4] = 0
    return values.astype(np.int16)
