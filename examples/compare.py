"""Compare the masks and areas of a run on the bundled scenes with their truth."""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import Geod, Transformer
from rasterio.io import DatasetReader
from rich.console import Console
from rich.table import Table

TRUTH = Path(__file__).parent / "truth"
REQUIRED = 0.85
BLOCK = 16


@dataclass(frozen=True)
class Row:
    """One class of one case as ``areas.csv`` tells it; ``hectares`` is the predicted area."""

    id: int
    name: str
    hectares: float


@dataclass(frozen=True)
class Score:
    """Pixels in both masks, and in either, and true hectares; each of shape ``(classes,)``."""

    both: NDArray[np.intp]
    either: NDArray[np.intp]
    hectares: NDArray[np.floating]

    @property
    def iou(self) -> NDArray[np.floating]:
        """Intersection over union of each class; NaN for a class that occurs in neither mask."""
        return np.divide(self.both, self.either, out=np.full(len(self.both), np.nan), where=self.either > 0)


def outline(top: int, left: int, bottom: int, right: int) -> NDArray[np.floating]:
    """Rows and columns around a block of pixels, each edge in eight pieces; shape ``(2, points)``."""
    corners = np.array([(top, left), (top, right), (bottom, right), (bottom, left)], float)
    steps = np.linspace(0, 1, 8, endpoint=False)[:, None]
    return np.concatenate([a + (b - a) * steps for a, b in zip(corners, np.roll(corners, -1, 0), strict=True)]).T


def pixel_hectares(raster: DatasetReader) -> NDArray[np.floating]:
    """Hectares of each pixel on the WGS84 ellipsoid, as geodesic polygons give them; shape ``(rows, cols)``."""
    degrees, earth = Transformer.from_crs(raster.crs, "EPSG:4326", always_xy=True), Geod(ellps="WGS84")
    hectares = np.empty(raster.shape)
    for top in range(0, raster.height, BLOCK):
        for left in range(0, raster.width, BLOCK):
            block = hectares[top : top + BLOCK, left : left + BLOCK]
            edge = outline(top, left, top + block.shape[0], left + block.shape[1])
            area, _ = earth.polygon_area_perimeter(*degrees.transform(*raster.xy(*edge, offset="ul")))
            block[:] = abs(area) / 1e4 / block.size
    return hectares


def read_areas(path: Path) -> dict[str, list[Row]]:
    """The classes of each case, without nodata."""
    if not path.exists():
        sys.exit(f"{path}: not found; run segpipe on examples/scenes with this output folder first")
    cases = defaultdict(list)
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            if line["unit"] != "ha":
                sys.exit(f"{path}: areas must be in ha, got {line['unit']!r}; run segpipe with its default unit")
            if line["class_name"] != "nodata":
                cases[line["case"]].append(Row(int(line["class_id"]), line["class_name"], float(line["area"])))
    return cases


def score(mask_path: Path, truth_path: Path, ids: list[int]) -> Score:
    """How well a mask agrees with the truth wherever that is known; a pixel left as nodata there is a miss."""
    with rasterio.open(mask_path) as mask, rasterio.open(truth_path) as truth:
        if (mask.shape, mask.transform, mask.crs) != (truth.shape, truth.transform, truth.crs):
            sys.exit(f"{mask_path}: the mask must lie on the grid of {truth_path}")
        guess, fact, hectares = mask.read(1), truth.read(1), pixel_hectares(truth)
        guess = guess[None, fact != truth.nodata] == np.array(ids)[:, None]
        fact, hectares = fact[None, fact != truth.nodata] == np.array(ids)[:, None], hectares[fact != truth.nodata]
    return Score((guess & fact).sum(1), (guess | fact).sum(1), (fact * hectares).sum(1))


def show(console: Console, case: str, rows: list[Row], result: Score) -> None:
    """Print one case. The total tells of the areas alone: classes that are mistaken for each other cancel out."""
    table = Table("class", title=f"{case}: mIoU {np.nanmean(result.iou):.4f}")
    for heading in ("predicted ha", "true ha", "difference %", "IoU"):
        table.add_column(heading, justify="right")
    total = (("total", sum(row.hectares for row in rows), result.hectares.sum(), np.nan),)
    each = zip((r.name for r in rows), (r.hectares for r in rows), result.hectares, result.iou, strict=True)
    for name, guess, truth, iou in (*each, *total):
        difference = f"{100 * (guess / truth - 1):+.3f}" if truth else "-"
        table.add_row(name, f"{guess:.2f}", f"{truth:.2f}", difference, "" if np.isnan(iou) else f"{iou:.4f}")
    console.print(table)


def main(output: Path) -> None:
    """Compare every case; exit with 1 unless the mean IoU over the pixels of all of them is as required."""
    console, cases = Console(), read_areas(output / "areas.csv")
    missing = {path.stem for path in TRUTH.glob("*.tif")} - set(cases)
    if missing:
        sys.exit(f"{output}/areas.csv: every scene must have been run, missing {', '.join(sorted(missing))}")
    scores = []
    for case, rows in sorted(cases.items()):
        scores.append(score(output / f"{case}.tif", TRUTH / f"{case}.tif", [row.id for row in rows]))
        show(console, case, rows, scores[-1])
    pooled = Score(*(sum(getattr(s, field) for s in scores) for field in ("both", "either", "hectares")))
    overall = np.nanmean(pooled.iou)
    console.print(f"mIoU over all scenes: {overall:.4f} (at least {REQUIRED} required)")
    if overall < REQUIRED:
        sys.exit(f"mIoU must be at least {REQUIRED}, got {overall:.4f}: the model or the run does not do its work")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/compare.py OUT_DIR")
    main(Path(sys.argv[1]))
