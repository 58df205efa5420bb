"""Maps of small scenes, made by a run, and readers of their masks that share no code with segpipe's."""

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from command import invoke
from networks import pixelwise
from rasterio.transform import from_origin

SCENES = {"a": (60, 70), "b": (90, 50), "c/d": (40, 120)}


def make_map(
    root: Path, *, seed: int = 0, crs: str = "EPSG:32633", step: float = 10.0, **origins: tuple[float, float]
) -> Path:
    """Scenes side by side below ``in``, and the output of a run over them."""
    draw = np.random.default_rng(seed)
    left = 500_000.0
    for name, (rows, cols) in SCENES.items():
        x, y = origins.get(name.replace("/", "_"), (left, 5_400_000.0))
        left += (cols + 1) * step
        pixels = draw.integers(1, 256, (3, rows, cols), dtype=np.uint8)
        pixels[:, :7, :9] = 0
        path = root / "in" / f"{name}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        place = {"crs": crs, "transform": from_origin(x, y, step, step), "nodata": 0}
        with rasterio.open(path, "w", driver="GTiff", count=3, height=rows, width=cols, dtype="uint8", **place) as scene:
            scene.write(pixels)
    pixelwise(root / "m.onnx", 3, 3, seed=6)
    done = invoke(["run", "-i", "in", "-m", "m.onnx", "-o", "out", "--executor", "serial", "--device", "cpu"], root)
    assert done.returncode == 0, done.stderr
    return root / "out"


def labels_of(out: Path) -> dict[str, Any]:
    """The masks of a run, by case."""
    found = {}
    for path in sorted(out.rglob("*.tif")):
        with rasterio.open(path) as mask:
            found[str(path.relative_to(out).with_suffix(""))] = mask.read(1)
    return found
