"""Scenes that share ground, runs over them, and their mosaic made by brute force."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from command import invoke
from networks import pixelwise

UTM = Affine(10, 0, 500_000, 0, -10, 5_400_000)
SHAPE = (80, 100)
PLACES = {"a_20230601": (0, 0), "b_20230815": (-20, 60), "c_20230715": (55, 70)}
"""Row and column of three scenes that meet in one corner; the second is the newest."""
CORNER = (25, 35)
"""Rows and columns on which all three lie."""
RULES = ("first", "newest", "confidence")


def scene(path: Path, transform: Affine, seed: int, crs: Any = "EPSG:32633", **tags: str) -> Path:
    """Noise in blocks of four pixels, with islands without data and a border without data on the left."""
    draw = np.random.default_rng(seed)
    pixels = np.kron(draw.integers(1, 256, (3, 20, 25), dtype=np.uint8), np.ones((1, 4, 4), np.uint8))
    pixels[:, np.kron(draw.random((20, 25)) < 0.1, np.ones((4, 4), bool))] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "width": 100, "height": 80, "count": 3, "dtype": "uint8", "nodata": 0}
    with rasterio.open(path, "w", **profile, crs=crs, transform=transform) as dataset:
        dataset.write(pixels)
        dataset.update_tags(**tags)
    return path


def make_scenes(root: Path, places: Any = None) -> Path:
    """Scenes below ``in``, and a model."""
    for seed, (name, (row, col)) in enumerate((PLACES if places is None else places).items()):
        scene(root / "in" / f"{name}.tif", UTM * Affine.translation(col, row), seed)
    pixelwise(root / "model.onnx", seed=6)
    return root


def run(root: Path, *more: Any, out: str = "out", executor: str = "serial") -> Any:
    return invoke(["run", "-i", "in", "-m", "model.onnx", "-o", out, "--device", "cpu", "--executor", executor, *more], root)


def totals(root: Path, out: str = "out") -> Any:
    """The totals in ``run.json``."""
    return json.loads((root / out / "run.json").read_text())["totals"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


def read(path: Path) -> Any:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def joined(root: Path, rule: str, out: str = "out", places: Any = None) -> tuple[Any, int]:
    """The mosaic of masks of one grid, 254 where there is none, and how many seen pixels are left out of it."""
    places = places or PLACES
    top, left = (min(place[k] for place in places.values()) for k in (0, 1))
    tall, wide = (max(place[k] for place in places.values()) - (top, left)[k] + SHAPE[k] for k in (0, 1))
    canvas, best = np.full((tall, wide), 254, np.uint8), np.zeros((tall, wide), np.int64)
    seen = 0
    for name in ordered(places, rule):
        row, col = places[name][0] - top, places[name][1] - left
        labels = read(root / out / f"{name}.tif")
        sure = read(root / out / f"{name}.confidence.tif").astype(np.int64) + 1 if rule == "confidence" else 0 * labels + 1
        there, least = canvas[row : row + 80, col : col + 100], best[row : row + 80, col : col + 100]
        sure = np.where(labels == 255, 0, sure)
        better = (there == 254) | (sure > least)
        there[better], least[better] = labels[better], sure[better]
        seen += int((labels != 255).sum())
    return canvas, seen - int((canvas < 254).sum())


def ordered(places: Any, rule: str) -> Sequence[str]:
    """Names in the order of a rule."""
    names = sorted(places)
    return sorted(names, key=lambda name: name[-8:], reverse=True) if rule == "newest" else names
