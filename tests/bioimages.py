"""Model folders of bioimage.io with small seeded networks, in formats 0.4 and 0.5."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from networks import Network
from onnx import TensorProto


def network(path: Path, channels: int = 1, scores: int = 1, *, ending: str | None = None, size: int | str = "s") -> Path:
    """Two convolutions whose scores spread over both signs, as ONNX with an input ``image`` and an output ``scores``."""
    net = Network(channels, 3).conv(channels, 6, 3).add("Relu").conv(6, scores, 3)
    if ending:
        net.add(ending, **({"axis": 1} if ending == "Softmax" else {}))
    return net.save(path, None, classes=scores, shape=("n", size, size), dtype=TensorProto.FLOAT)


def axes(channels: list[str], size: Any, **more: Any) -> list[dict[str, Any]]:
    """Axes of format 0.5."""
    space = [{"type": "space", "id": name, "size": size, **more} for name in "yx"]
    return [{"type": "batch"}, {"type": "channel", "channel_names": channels}, *space]


def following(channels: list[str], halo: int = 0) -> list[dict[str, Any]]:
    """Axes of an output of the size of the input."""
    edge = {"halo": halo} if halo else {}
    space = [{"type": "space", "id": n, "size": {"tensor_id": "raw", "axis_id": n}, **edge} for n in "yx"]
    return [{"type": "batch"}, {"type": "channel", "channel_names": channels}, *space]


def described(before: list[dict[str, Any]], after: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A description of format 0.5 of one input and one output."""
    channels, classes = more.pop("channels", ["grey"]), more.pop("classes", ["cell"])
    size = more.pop("size", 64)
    return {
        "format_version": "0.5.4",
        "type": "model",
        "name": "a test",
        "license": "MIT",
        "inputs": [{"id": "raw", "axes": axes(channels, size), "preprocessing": before}],
        "outputs": [{"id": "seg", "axes": following(classes, more.pop("halo", 0)), "postprocessing": after}],
        "weights": {"onnx": {"source": "weights.onnx"}},
        **more,
    }


def described_4(before: list[dict[str, Any]], after: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The same of format 0.4."""
    channels, scores, size = more.pop("channels", 1), more.pop("scores", 1), more.pop("size", 64)
    shape = {"reference_tensor": "raw", "scale": [1, 1, 1, 1], "offset": [0, scores / 2, 0, 0]}
    shape["scale"] = [1, 0, 1, 1]
    return {
        "format_version": "0.4.9",
        "type": "model",
        "name": "a test",
        "inputs": [{"name": "raw", "axes": "bcyx", "shape": [1, channels, size, size], "preprocessing": before}],
        "outputs": [{"name": "seg", "axes": "bcyx", "shape": shape, "halo": [0, 0, 8, 8], "postprocessing": after}],
        "weights": {"onnx": {"source": "weights.onnx"}},
        **more,
    }


def write(folder: Path, description: dict[str, Any], **options: Any) -> Path:
    """A package with an ONNX network; ``options`` are those of `network`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rdf.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
    network(folder / "weights.onnx", **options)
    return folder


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pixels(channels: int = 1, shape: tuple[int, int] = (64, 64), seed: int = 0) -> np.ndarray:
    """Pixels with coarse and fine detail; channels of different brightness."""
    rng = np.random.default_rng(seed)
    rows, columns = shape
    coarse = rng.integers(20, 180, (channels, rows // 8 + 1, columns // 8 + 1))
    fine = rng.integers(0, 40, (channels, rows, columns))
    smooth = np.repeat(np.repeat(coarse, 8, 1), 8, 2)[:, :rows, :columns]
    return (smooth + fine + 10 * np.arange(channels)[:, None, None]).astype(np.uint8)
