"""(c) The script that a good engineer writes in an afternoon: no segpipe in it.

rasterio windows, one tile at a time through ONNX Runtime or OpenVINO with its default threads, sums of weighted scores in
arrays of the scene's size, one COG at the end. Windows and weights are segpipe's, so that labels can be compared. Prints the
seconds from the opening of the scene to the mask's last name.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

NODATA = 255


def starts(size: int, tile: int, overlap: int, align: int) -> list[int]:
    """Evenly spread, at multiples of the network's stride."""
    last, step = -(-(size - tile) // align), (tile - overlap) // align
    count = -(-last // step) + 1
    return [align * (i * last // (count - 1)) for i in range(count)] if last > 0 else [0]


def profiles(count: int, tile: int) -> list[NDArray[np.float32]]:
    """A gaussian per window of an axis, flat towards the borders of the scene."""
    distance = np.arange(tile) - (tile - 1) / 2
    gaussian = np.maximum(np.exp(-0.5 * (distance / (tile / 8)) ** 2), 1e-3)
    gaussian /= gaussian.max()
    found = []
    for i in range(count):
        weights = gaussian.copy()
        if i == 0:
            weights[distance <= 0] = 1
        if i == count - 1:
            weights[distance >= 0] = 1
        found.append(weights.astype(np.float32))
    return found


Score = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def openvino_score(model: Path, precision: str) -> Score:
    import openvino

    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return lambda batch: np.asarray(compiled(batch)[0])


def onnx_score(session: onnxruntime.InferenceSession) -> Score:
    name = session.get_inputs()[0].name
    return lambda batch: np.asarray(session.run(None, {name: batch})[0])


def segment(score: Score, contract: dict[str, Any], scene: Path, mask: Path) -> None:
    """One scene, from file to file."""
    mean, std = (np.reshape(contract[key], (-1, 1, 1)).astype(np.float32) for key in ("mean", "std"))
    (tile, _), (overlap, _) = contract["tile"], contract["overlap"]
    with rasterio.open(scene) as dataset:
        rows, cols = (starts(size, tile, overlap, contract["align"]) for size in dataset.shape)
        down, right = profiles(len(rows), tile), profiles(len(cols), tile)
        height, width = rows[-1] + tile, cols[-1] + tile
        sums = np.zeros((len(contract["classes"]), height, width), np.float32)
        invalid = np.ones((height, width), bool)
        for i, row in enumerate(rows):
            for j, col in enumerate(cols):
                pixels = dataset.read(window=Window(col, row, tile, tile))
                beyond = [(0, 0), (0, tile - pixels.shape[1]), (0, tile - pixels.shape[2])]
                pixels = np.pad(pixels, beyond, mode="reflect") if any(b for _, b in beyond) else pixels
                nodata = (pixels == dataset.nodata).any(axis=0)
                invalid[row : row + tile, col : col + tile] = nodata
                if nodata.all():
                    continue
                x = (pixels * np.float32(contract["scale"]) - mean) / std
                x[:, nodata] = 0
                sums[:, row : row + tile, col : col + tile] += score(x[None])[0] * np.outer(down[i], right[j])
        labels = sums.argmax(axis=0).astype(np.uint8)
        labels[invalid] = NODATA
        write(labels[: dataset.height, : dataset.width], dataset, mask)


def write(labels: NDArray[np.uint8], scene: rasterio.DatasetReader, mask: Path) -> None:
    """A COG on the grid of its scene, under a temporary name until it is whole."""
    draft = mask.with_suffix(".draft")
    grid = {"height": labels.shape[0], "width": labels.shape[1], "crs": scene.crs, "transform": scene.transform}
    how = {"driver": "COG", "compress": "deflate", "resampling": "nearest", "num_threads": "all_cpus"}
    with rasterio.open(draft, "w", **grid, **how, dtype="uint8", count=1, nodata=NODATA) as dataset:
        dataset.write(labels, 1)
    draft.rename(mask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "scene", "mask"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--openvino", metavar="PRECISION", help="f32 or bf16, in place of ONNX Runtime")
    arguments = parser.parse_args()
    session = onnxruntime.InferenceSession(str(arguments.model), providers=["CPUExecutionProvider"])
    contract = json.loads(session.get_modelmeta().custom_metadata_map["segpipe"])
    score = openvino_score(arguments.model, arguments.openvino) if arguments.openvino else onnx_score(session)
    started = time.perf_counter()
    segment(score, contract, arguments.scene, arguments.mask)
    print(json.dumps({"seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
