"""Draw the picture of README and of the site: a scene in true colour, segpipe's mask, and the truth, side by side.

python examples/picture.py OUT_DIR docs/example.png
"""

import sys
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray

EXAMPLES = Path(__file__).parent
SCENE = "morava"
GAP = 12
Picture = NDArray[np.uint8]


def true_colour(path: Path) -> Picture:
    """Bands red, green and blue, ``(3, rows, cols)``, stretched between their 1st and 99th percentile; nodata white."""
    with rasterio.open(path) as dataset:
        bands = dataset.read((3, 2, 1)).astype(float)
    seen = (bands > 0).all(axis=0)
    low, high = (np.percentile(bands[:, seen], q, axis=1)[:, None, None] for q in (1, 99))
    stretched = (np.clip((bands - low) / (high - low), 0, 1) ** 0.8 * 255).astype(np.uint8)
    return np.where(seen, stretched, 255)


def coloured(path: Path) -> Picture:
    """A mask in the colours of its own colour table; nodata white."""
    with rasterio.open(path) as dataset:
        labels, table = dataset.read(1), dataset.colormap(1)
    colours = np.array([table.get(i, (0, 0, 0, 0))[:3] for i in range(256)], np.uint8)
    colours[255] = 255
    return np.moveaxis(colours[labels], -1, 0)


def main() -> None:
    out, target = Path(sys.argv[1]), Path(sys.argv[2])
    name = f"{SCENE}.tif"
    panels = [true_colour(EXAMPLES / "scenes" / name), coloured(out / name), coloured(EXAMPLES / "truth" / name)]
    gap = np.full((3, panels[0].shape[1], GAP), 255, np.uint8)
    picture = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=2)
    _, rows, cols = picture.shape
    with rasterio.open(target, "w", driver="PNG", count=3, height=rows, width=cols, dtype="uint8") as dataset:
        dataset.write(picture)
    target.with_name(target.name + ".aux.xml").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
