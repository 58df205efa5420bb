"""Trained networks of other people, given a contract with ``segpipe export attach``, on the real image beside them.

    python benchmarks/real_models.py ../shared/data/models --output docs/models.md

The folder holds ``nuclei/`` and ``clouds/`` as the page that this writes names them. Pictures go to ``benchmarks/scratch``.
"""

import argparse
import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

SCRATCH = Path(__file__).parent / "scratch" / "real"
SEGPIPE = [sys.executable, "-m", "segpipe.cli"]

NUCLEI = """version = 1
channels = 1
normalize = "zscore"
tile = [512, 512]
overlap = [64, 64]
activation = "sigmoid"
task = "binary"
[[classes]]
id = 1
name = "nucleus"
color = "#ffd24d"
[provenance]
architecture = "2-D U-Net of bioimage-io/spec-bioimage-io"
"""

CLOUDS = """version = 1
channels = ["blue", "green", "red", "nir", "swir1", "swir2"]
normalize = "none"
tile = [256, 256]
overlap = [64, 64]
activation = "none"
task = "binary"
[[classes]]
id = 1
name = "cloud"
color = "#ffffff"
[provenance]
architecture = "U-Net of IPL-UV/DL-L8S2-UV"
"""


@dataclass(frozen=True)
class Case:
    """One model, its image and its truth, of shape ``(rows, cols)``; True is the class that is sought."""

    name: str
    model: Path
    contract: str
    image: Path
    truth: NDArray[np.bool_]
    seen: NDArray[np.float32]
    """The image as a person sees it, ``(rows, cols)``, 0 to 1."""


def nuclei(folder: Path) -> Case:
    """Fluorescence, 512 x 512."""
    image = folder / "nuclei" / "stardist_img2d.tif"
    with rasterio.open(image) as pixels, rasterio.open(folder / "nuclei" / "stardist_mask2d.tif") as mask:
        seen, truth = pixels.read(1).astype(np.float32), mask.read(1) > 0
    return Case(
        "nuclei", folder / "nuclei" / "weights.onnx", NUCLEI, image, truth, np.clip(seen / np.quantile(seen, 0.99), 0, 1)
    )


def clouds(folder: Path) -> Case:
    """Landsat 7, 512 x 512, six bands of reflectance, written as a GeoTIFF."""
    with np.load(folder / "clouds" / "landsat7.npz") as scene:
        reflectance, truth = np.moveaxis(scene["img"], -1, 0).astype(np.float32), scene["msk"][..., 0] == 4
    image = SCRATCH / "landsat7.tif"
    place = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_400_000, 30, 30)}
    with rasterio.open(image, "w", driver="GTiff", count=6, height=512, width=512, dtype="float32", **place) as dataset:
        dataset.write(reflectance)
        dataset.descriptions = ["blue", "green", "red", "nir", "swir1", "swir2"]
    seen = np.clip(reflectance[2] / 0.6, 0, 1)
    return Case("clouds", folder / "clouds" / "clouds_bgrn_swir.onnx", CLOUDS, image, truth, seen)


def segpipe(*arguments: object) -> str:
    """The command line as a user has it."""
    ended = subprocess.run([*SEGPIPE, *map(str, arguments)], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"segpipe {' '.join(map(str, arguments))}\n{ended.stdout}{ended.stderr}")
    return ended.stdout


def measure(case: Case) -> dict[str, object]:
    """Attach, run, compare with the truth, and draw."""
    contract, model, out = SCRATCH / f"{case.name}-contract.toml", SCRATCH / f"{case.name}.onnx", SCRATCH / case.name
    contract.write_text(case.contract, encoding="utf-8")
    segpipe("export", "attach", case.model, "--contract", contract, "--output", model)
    segpipe("run", "-i", case.image, "-m", model, "-o", out, "--device", "cpu")
    with rasterio.open(out / f"{case.image.stem}.tif") as mask:
        found = mask.read(1) == 1
    draw(case, found)
    about = json.loads(segpipe("inspect", model, "--json"))["contract"]
    hits = [(a & b).sum() / (a | b).sum() for a, b in ((found, case.truth), (~found, ~case.truth))]
    return {
        "name": case.name,
        "architecture": about["provenance"]["architecture"],
        "tile": about["tile"],
        "align": about["align"],
        "equivariant": about["equivariant"],
        "iou": hits[0],
        "miou": sum(hits) / 2,
        "dice": 2 * (found & case.truth).sum() / (found.sum() + case.truth.sum()),
    }


def draw(case: Case, found: NDArray[np.bool_]) -> None:
    """The image; beside it hits in white, what was missed in blue and what is not there in red."""
    shown = np.stack([case.seen] * 3) * 255
    judged = np.zeros_like(shown)
    for hit, colour in (
        (found & case.truth, (255, 255, 255)),
        (~found & case.truth, (60, 110, 255)),
        (found & ~case.truth, (230, 60, 50)),
    ):
        judged[:, hit] = np.array(colour)[:, None]
    picture = np.concatenate([shown, judged], axis=2).astype(np.uint8)
    with rasterio.open(
        SCRATCH / f"{case.name}.png",
        "w",
        driver="PNG",
        count=3,
        height=picture.shape[1],
        width=picture.shape[2],
        dtype="uint8",
    ) as file:
        file.write(picture)


def page(rows: list[dict[str, Any]]) -> str:
    """The table, for docs."""
    lines = [
        "# Other people's models on real images",
        "",
        "Made by `python benchmarks/real_models.py ../shared/data/models --output docs/models.md`: each ONNX file was",
        "given a contract with `segpipe export attach` and run on the real image beside it; the stride is measured. The",
        "nuclei are bioimage-io/spec-bioimage-io's (MIT), the clouds IPL-UV/DL-L8S2-UV's (MIT, graph rebuilt from its",
        "weights), each with its image and mask. Classes are the one sought and the rest. Where *starts matter* is no,",
        "labels do not depend on where tiles begin, beyond multiples of the stride.",
        "",
        "| model | tile | stride | starts matter | IoU | Dice | mIoU |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        tile, matter = " x ".join(map(str, row["tile"])), "no" if row["equivariant"] else "yes"
        figures = " | ".join(f"{row[key]:.3f}" for key in ("iou", "dice", "miou"))
        lines.append(f"| {row['architecture']} | {tile} | {row['align']} | {matter} | {figures} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all, print and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore", NotGeoreferencedWarning)  # pictures have no place on Earth
    shutil.rmtree(SCRATCH, ignore_errors=True)
    SCRATCH.mkdir(parents=True)
    text = page([measure(make(options.folder)) for make in (nuclei, clouds)])
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
