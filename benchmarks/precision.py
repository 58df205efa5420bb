"""What fp16 and int8 cost in labels and bring in speed on a CPU: the bundled network exported at three precisions.

Labels: ONNX Runtime against torch on tiles that the ranges of int8 do not come from; masks of real runs against those of
fp32 and against the truth. Speed: processor time of a network alone on tiles in memory, in a session as segpipe opens it;
wall time of whole runs over a scene of 4,096 x 4,096 pixels; pairs in alternation, medians and quartiles. Milliseconds by
operator say where the time goes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import rasterio
from machine import machine
from numpy.typing import NDArray
from scenes import SCRATCH, scene

from segpipe.export.file import spec_of
from segpipe.export.make import Exported, export_model
from segpipe.export.settings import ExportSettings
from segpipe.export.tiles import Tiles, scene_samples
from segpipe.network.device import open_session
from segpipe.overrides import AS_STORED

EXAMPLES = Path(__file__).parents[1] / "examples"
FOLDER = SCRATCH / "precision"
PRECISIONS = ("fp32", "fp16", "int8")
NODATA = 255
TILES_HELD = 24
PROFILED = 12
"""Tiles whose operators are timed one by one."""

Row = dict[str, Any]


def export(precision: str) -> Exported:
    """The bundled weights; all precisions are compared with torch on the same tiles."""
    scenes, notes = (str(EXAMPLES / "scenes"),), str(EXAMPLES / "classes.toml")
    target = {"output": FOLDER / f"crops_{precision}.onnx", "overwrite": True, "precision": precision, "calibrate": scenes}
    return export_model(ExportSettings(weights=EXAMPLES / "crops.safetensors", arch="unet", classes=notes, **target))


def masks(model: Path) -> NDArray[np.uint8]:
    """All pixels of the three scenes as a run labels them."""
    out = FOLDER / f"out_{model.stem}"
    command = [sys.executable, "-m", "segpipe.cli", "run", "--input", EXAMPLES / "scenes", "--model", model, "--output", out]
    subprocess.run([*map(str, command), "--device", "cpu", "--overwrite"], check=True, capture_output=True)
    return pixels(out)


def pixels(folder: Path) -> NDArray[np.uint8]:
    """The masks in a folder, one after another in the order of their names."""
    found = []
    for path in sorted(folder.glob("*.tif")):
        with rasterio.open(path) as dataset:
            found.append(dataset.read(1).ravel())
    return np.concatenate(found)


def miou(mask: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """Mean over the classes, of all pixels whose truth is known."""
    known = truth != NODATA
    pairs = [(mask[known] == k, truth[known] == k) for k in np.unique(truth[known])]
    return float(np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs]))


def labels() -> dict[str, Row]:
    """Size and labels of each precision."""
    truth, rows, reference = pixels(EXAMPLES / "truth"), {}, None
    for precision in PRECISIONS:
        exported = export(precision)
        found = masks(exported.path)
        reference = found if reference is None else reference
        rows[precision] = {
            "kilobytes": round(exported.path.stat().st_size / 1000),
            "equal_labels": exported.agreement.equal_labels,
            "miou_with_torch": exported.agreement.miou,
            "equal_masks": float((found == reference)[reference != NODATA].mean()),
            "miou_with_truth": miou(found, truth),
        }
    return rows


def bare(models: list[Path], tiles: Tiles, rounds: int) -> list[list[float]]:
    """Seconds per tile of each model, in alternation on the same tile; of the processor, which others use too."""
    sessions = [open_session(str(model), arena="own") for model in models]
    tries = [[processor_time(session, tile) for session in sessions] for tile in islice(cycle(tiles), rounds + 1)]
    return tries[1:]


def processor_time(session: onnxruntime.InferenceSession, tile: NDArray[np.float32]) -> float:
    """Of one tile; the session has no threads of its own."""
    started = time.process_time()
    session.run(None, {"image": tile[None]})
    return time.process_time() - started


def whole(models: list[Path], rounds: int) -> list[list[float]]:
    """Seconds of a run of each model over one large scene."""
    return [[_seconds(model, scene(4096)) for model in models] for _ in range(rounds)]


def _seconds(model: Path, source: Path) -> float:
    out = FOLDER / "out_scene"
    command = [sys.executable, "-m", "segpipe.cli", "run", "--input", source, "--model", model, "--output", out]
    subprocess.run([*map(str, command), "--device", "cpu", "--overwrite"], check=True, capture_output=True)
    return float(json.loads((out / "scene.json").read_text())["seconds"])


def gains(times: list[list[float]]) -> list[list[float]]:
    """How many times as fast as the first of each round: quartile, median, quartile."""
    ratios = np.array([[row[0] / seconds for seconds in row] for row in times])
    return np.quantile(ratios, (0.25, 0.5, 0.75), axis=0).T.round(3).tolist()  # type: ignore[no-any-return]


def by_operator(model: Path, tiles: Tiles) -> dict[str, float]:
    """Milliseconds per tile in each kind of operator, medians of what ONNX Runtime's profiler tells."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling, options.log_severity_level = True, 3
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        for tile in islice(cycle(tiles), PROFILED):
            session.run(None, {"image": tile[None]})
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = defaultdict(list)
    for event in events:
        if event["name"].endswith("_kernel_time"):
            nodes[event["args"]["op_name"], event["name"]].append(event["dur"] / 1000)
    total: Counter[str] = Counter()
    for (operator, _), durations in nodes.items():
        total[operator] += statistics.median(durations)
    return {operator: round(value, 2) for operator, value in total.most_common()}


def show(rows: dict[str, Row]) -> None:
    """A table, and where the time of a tile goes."""
    print("times as fast as fp32: median (quartiles)")
    print(f"{'':5} {'kB':>4} {'as torch':>9} {'mIoU':>7} {'masks':>9} {'truth':>7} {'tile':>20} {'run':>20}")
    for precision, r in rows.items():
        tile, run = ("{1:.2f} ({0:.2f} to {2:.2f})".format(*r[key]) for key in ("tile", "run"))
        print(
            f"{precision:5} {r['kilobytes']:4} {r['equal_labels']:9.4%} {r['miou_with_torch']:7.4f} "
            f"{r['equal_masks']:9.4%} {r['miou_with_truth']:7.4f} {tile:>20} {run:>20}"
        )
    for precision, r in rows.items():
        print(f"{precision}, ms a tile by operator: {r['operators']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=60, help="rounds of one tile")
    parser.add_argument("--runs", type=int, default=3, help="rounds of one run")
    arguments = parser.parse_args()
    print(machine())
    rows = labels()
    models = [FOLDER / f"crops_{precision}.onnx" for precision in PRECISIONS]
    tiles = [pixels for pixels, _ in scene_samples([str(EXAMPLES / "scenes")], spec_of(models[0]), AS_STORED, TILES_HELD)]
    tile, run = gains(bare(models, tiles, arguments.tiles)), gains(whole(models, arguments.runs))
    for row, a, b, model in zip(rows.values(), tile, run, models, strict=True):
        row.update(tile=a, run=b, operators=by_operator(model, tiles))
    show(rows)
    (FOLDER / "precision.json").write_text(json.dumps({"machine": machine(), "results": rows}, indent=2))


if __name__ == "__main__":
    main()
