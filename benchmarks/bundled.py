"""The bundled network and scenes: a large mosaic of them, the network in int8, and its labels by precision."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from contenders import NODATA, WORK, labels
from precision import EXAMPLES, FOLDER, export
from rasterio.transform import from_origin
from scenes import SCRATCH

AS_IT_IS = "segpipe, fp32, tile 256, overlap 64"
CHOSEN = "segpipe, int8, tile 512, overlap 64"
CHOICES: dict[str, list[str]] = {
    AS_IT_IS: [],
    "segpipe, fp32, tile 512, overlap 64": ["--tile", "512", "--overlap", "64"],
    "segpipe, int8, tile 256, overlap 64": [],
    CHOSEN: ["--tile", "512", "--overlap", "64"],
}


def mosaic(size: int) -> Path:
    """The bundled scenes side by side, mirrored in turn, up to a large one."""
    path = SCRATCH / f"mosaic_{size}" / "scene.tif"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    found = [_pixels(scene) for scene in sorted((EXAMPLES / "scenes").glob("*.tif"))]
    (rows, cols), names = np.min([pixels.shape[1:] for pixels, _ in found], axis=0), found[0][1]
    canvas = np.zeros((len(names), size + rows, size + cols), np.uint16)
    for i, row in enumerate(range(0, size, rows)):
        for j, col in enumerate(range(0, size, cols)):
            block = found[(i + j) % len(found)][0][:, :rows, :cols]
            canvas[:, row : row + rows, col : col + cols] = block[:, :: 1 - 2 * (i % 2), :: 1 - 2 * (j % 2)]
    draft, grid = (
        path.with_suffix(".draft"),
        {"crs": "EPSG:32633", "transform": from_origin(5e5, 5.4e6, 10, 10), "nodata": 0},
    )
    tiles = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "predictor": 2}
    shape = {"dtype": "uint16", "count": len(names), "height": size, "width": size}
    with rasterio.open(draft, "w", driver="GTiff", **shape, **grid, **tiles) as dataset:
        dataset.write(canvas[:, :size, :size])
        dataset.descriptions = names
    draft.rename(path)
    return path


def _pixels(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    with rasterio.open(path) as dataset:
        return dataset.read(), dataset.descriptions


def small_model() -> Path:
    """The bundled network at int8, exported once, or again when its weights are newer."""
    path, weights = FOLDER / "crops_int8.onnx", EXAMPLES / "crops.safetensors"
    if not path.exists() or path.stat().st_mtime < weights.stat().st_mtime:
        export("int8")
    return path


def engines_on_the_example() -> dict[str, Any]:
    """Labels of the bundled network against fp32's, and mean IoU against the truth, by precision."""
    files = {"fp32": EXAMPLES / "crops.onnx", "bf16": EXAMPLES / "crops.onnx", "int8": small_model()}
    found: dict[str, Any] = {}
    for precision, file in files.items():
        out = WORK / f"example_{precision}"
        words = ["--input", EXAMPLES / "scenes", "--model", file, "--output", out, "--overwrite"]
        engine = ["--device", "cpu"] if precision == "fp32" else ["--device", "openvino", "--precision", precision]
        subprocess.run(
            [sys.executable, "-m", "segpipe.cli", "run", *map(str, words), *engine], check=True, capture_output=True
        )
        masks = sorted(out.glob("*.tif"))
        pairs = [
            (labels(mask), labels(WORK / "example_fp32" / mask.name), labels(EXAMPLES / "truth" / mask.name))
            for mask in masks
        ]
        own, fp32, truth = (np.concatenate([each[k].ravel() for each in pairs]) for k in range(3))
        seen = fp32 != NODATA
        found[precision] = {"labels": float((own == fp32)[seen].mean()), "miou": mean_iou(own[seen], truth[seen])}
    return found


def mean_iou(found: np.ndarray, truth: np.ndarray) -> float:
    """Over the classes of the truth."""
    known = truth != NODATA
    found, truth = found[known], truth[known]
    each = [((found == k) & (truth == k)).sum() / ((found == k) | (truth == k)).sum() for k in np.unique(truth)]
    return float(np.mean(each))
