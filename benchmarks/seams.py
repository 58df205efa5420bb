"""Which blend leaves the fewest seams: tiled labels against whole-image inference, on scenes with known truth.

Two networks, both fully convolutional, so that the whole scene can be inferred in one call: the bundled one, whose
receptive field is about the overlap, and an untrained U-Net of five levels, whose field is far wider. Printed per blend and
overlap: labels that differ from whole-image inference, mIoU against the truth, and how much oftener than elsewhere labels
change across the lines where a window starts or ends (whole-image inference has 1.21 at the same lines).
"""

import itertools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import rasterio
from machine import machine
from numpy.typing import NDArray
from scenes import SCRATCH, network

from segpipe.geometry.starts import axis_starts
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.jobs.tasks import Outcome
from segpipe.settings import load_settings

EXAMPLES = Path(__file__).parents[1] / "examples"
BLENDS = ("cosine", "linear", "gaussian", "constant", "crop")
TILE, OVERLAPS = 128, (0, 32, 64)

Labels = NDArray[np.uint8]


class Silent:
    """Nobody watches a benchmark."""

    def progress(self, pixels: int) -> None: ...

    def note(self, line: str) -> None: ...

    def outcome(self, outcome: Outcome) -> None: ...


def contract_of(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads({p.key: p.value for p in onnx.load(path).metadata_props}["segpipe"])
    return values


def whole(path: Path, scene: Path) -> Labels:
    """Labels of the scene inferred in one call, padded by reflection to the network's stride."""
    contract = contract_of(path)
    with rasterio.open(scene) as dataset:
        pixels, valid = dataset.read(), (dataset.read() != 0).all(axis=0)
    mean, std = (np.reshape(contract[key], (-1, 1, 1)) for key in ("mean", "std"))
    x = np.where(valid, (pixels * contract["scale"] - mean) / std, 0).astype(np.float32)
    rows, cols = valid.shape
    x = np.pad(x, [(0, 0), (0, -rows % contract["align"]), (0, -cols % contract["align"])], mode="reflect")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"image": x[None]})
    return np.where(valid, scores[0, :, :rows, :cols].argmax(axis=0), 255).astype(np.uint8)


def tiled(path: Path, blend: str, overlap: int) -> dict[str, Labels]:
    """Labels of all scenes through segpipe."""
    out = Path(tempfile.mkdtemp(dir=SCRATCH))
    flags = {"input": (str(EXAMPLES / "scenes"),), "model": path, "output": out, "executor": "serial", "bands": "1,2,3,4"}
    carry_out(prepare(load_settings(None, {**flags, "tile": TILE, "overlap": str(overlap), "blend": blend})), Silent())
    masks = {path.stem: rasterio.open(path).read(1) for path in sorted(out.glob("*.tif"))}
    shutil.rmtree(out)
    return masks


def miou(labels: Labels, truth: Labels) -> float:
    seen = (labels != 255) & (truth != 255)
    both = [((labels == k) & (truth == k) & seen).sum() / (((labels == k) | (truth == k)) & seen).sum() for k in range(7)]
    return float(np.mean(both))


def seam(labels: Labels, overlap: int, align: int) -> float:
    """Label changes per pixel across inner window edges, over those across all other lines."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    for axis, size in enumerate(labels.shape):
        starts = axis_starts(size, TILE, overlap, align)
        edges = {e for s in starts for e in (s, s + TILE) if 0 < e < size}
        changed = np.diff(labels.astype(int), axis=axis) != 0
        for line, rate in enumerate(changed.mean(axis=1 - axis), 1):
            rates[line in edges].append(float(rate))
    return float(np.mean(rates[True]) / np.mean(rates[False]))


def table(name: str, path: Path) -> list[dict[str, Any]]:
    """Print and give one row per overlap and blend."""
    names = sorted(scene.stem for scene in (EXAMPLES / "scenes").glob("*.tif"))
    reference = {n: whole(path, EXAMPLES / "scenes" / f"{n}.tif") for n in names}
    truth = {n: rasterio.open(EXAMPLES / "truth" / f"{n}.tif").read(1) for n in names}
    align, trained, rows = contract_of(path)["align"], name == "bundled", []
    for overlap, blend in itertools.product(OVERLAPS, BLENDS):
        masks = tiled(path, blend, overlap)
        row: dict[str, Any] = {"network": name, "blend": blend, "overlap": overlap}
        row["differ_percent"] = np.mean([(masks[n] != reference[n])[reference[n] != 255].mean() for n in names]) * 100
        row["miou"] = np.mean([miou(masks[n], truth[n]) for n in names]) if trained else float("nan")
        row["seam"] = np.mean([seam(masks[n], overlap, align) for n in names])
        rows.append(row)
        print(
            "{network:>10} {overlap:>8} {blend:>9} {differ_percent:9.3f} {miou:7.4f} {seam:6.3f}".format(**row), flush=True
        )
    return rows


def main() -> None:
    SCRATCH.mkdir(exist_ok=True)
    print(f"{machine()}; tile {TILE}")
    print(f"{'network':>10} {'overlap':>8} {'blend':>9} {'differ %':>9} {'mIoU':>7} {'seam':>6}")
    rows = [*table("bundled", EXAMPLES / "crops.onnx"), *table("untrained", network("2M"))]
    (SCRATCH / "seams.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2, default=float))


if __name__ == "__main__":
    main()
