"""(a) An engine alone, ONNX Runtime or OpenVINO: a model's tiles are in memory before the clock starts.

Nothing is done with its scores. As a script: seconds for all tiles of a scene that show a valid pixel, at one setting, or
at each of several, fastest first.
"""

import argparse
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from segpipe.geometry.windows import Cover
from segpipe.network.openvino_session import runtime
from segpipe.network.read import read_spec
from segpipe.settings import load_settings

Tiles = list[NDArray[np.float32]]

WARM = 2
"""Batches before the clock starts."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Calls that are in the model at once, threads within each, tiles in each."""

    calls: int
    threads: int
    batch: int

    def __str__(self) -> str:
        return f"{self.calls} calls in flight x {self.threads} threads, batch {self.batch}"


def settings(batches: tuple[int, ...]) -> Iterator[Setting]:
    """All processors as calls, all as threads, and both."""
    n = len(os.sched_getaffinity(0))
    shares = sorted({(n, 1), (1, n), (n, n)})
    yield from (Setting(calls, threads, batch) for (calls, threads), batch in itertools.product(shares, batches))


def valid_tiles(model: Path, scene: Path) -> Tiles:
    """The tiles of a scene as the model takes them, without those that show nodata only."""
    spec = read_spec(load_settings(None, {"input": (str(scene),), "model": model, "device": "cpu"}))
    scale, mean, std = (np.reshape(value, (-1, 1, 1)) for value in _numbers(model))
    tiles = []
    with rasterio.open(scene) as dataset:
        cover = Cover(dataset.shape, spec.tiling)
        for index in cover:
            window = cover.window(index)
            pixels = dataset.read(window=Window(*window.start[::-1], *window.shape[::-1]))
            if pixels.any():
                tiles.append(((pixels * scale - mean) / std).astype(np.float32)[None])
    return tiles


def _numbers(model: Path) -> list[float | list[float]]:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    contract = json.loads(session.get_modelmeta().custom_metadata_map["segpipe"])
    return [contract[key] for key in ("scale", "mean", "std")]


Call = Callable[[NDArray[np.float32]], float]


def on_onnx_runtime(model: Path, setting: Setting) -> Call:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: float(session.run(None, {name: batch})[0][0, 0, 0, 0])


def on_openvino(model: Path, setting: Setting, precision: str, tile: tuple[int, ...]) -> Call:
    """Sizes are fixed, as segpipe fixes them; the last batch must be whole."""
    core = runtime().Core()
    network = core.read_model(model)
    network.reshape([setting.batch, *tile])
    options = {"INFERENCE_PRECISION_HINT": precision, "ENABLE_CPU_PINNING": False, "NUM_STREAMS": setting.calls}
    compiled = core.compile_model(network, "CPU", {**options, "INFERENCE_NUM_THREADS": setting.calls * setting.threads})
    own = threading.local()

    def call(batch: NDArray[np.float32]) -> float:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        own.request.set_input_tensor(runtime().Tensor(batch, shared_memory=True))
        own.request.infer(share_outputs=True)
        return float(own.request.get_output_tensor().data[0, 0, 0, 0])

    return call


def seconds(model: Path, tiles: Tiles, setting: Setting, engine: str) -> float:
    """For all tiles, in batches; the last may be smaller."""
    batches = [np.concatenate(tiles[i : i + setting.batch]) for i in range(0, len(tiles), setting.batch)]
    name, _, precision = engine.partition(":")
    call = (
        on_openvino(model, setting, precision, tiles[0].shape[1:]) if name == "openvino" else on_onnx_runtime(model, setting)
    )
    with ThreadPoolExecutor(setting.calls) as pool:
        list(pool.map(call, batches[:WARM]))
        started = time.perf_counter()
        list(pool.map(call, batches))
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--setting", type=int, nargs=3, metavar=("CALLS", "THREADS", "BATCH"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4], help="that are tried where no setting is given")
    parser.add_argument("--tiles", type=int, help="only so many")
    parser.add_argument("--engine", default="onnxruntime", help="onnxruntime, openvino:f32 or openvino:bf16 [onnxruntime]")
    parser.add_argument("--goes", type=int, default=1, help="of each setting, of which the best counts")
    arguments = parser.parse_args()
    tiles = valid_tiles(arguments.model, arguments.scene)[: arguments.tiles]
    tried = [Setting(*arguments.setting)] if arguments.setting else list(settings(tuple(arguments.batches)))
    # the better of several goes, so that a moment's noise does not choose a setting that flatters what is compared with it
    goes = [[seconds(arguments.model, tiles, setting, arguments.engine) for setting in tried] for _ in range(arguments.goes)]
    found = [{**asdict(setting), "seconds": min(times)} for setting, *times in zip(tried, *goes, strict=True)]
    print(json.dumps({"tiles": len(tiles), "tried": sorted(found, key=lambda row: float(row["seconds"]))}))


if __name__ == "__main__":
    main()
