"""What segpipe adds to the bare model: wall time of a run over the time of ONNX Runtime alone on the same tiles in memory.

Pairs in alternation in one process tree; medians. The run is timed by its own record: from the first read to the last
rename. Limits: 1.10 for a U-Net of 2 M parameters, 1.25 for one of 0.1 M; a half-empty scene at most 0.6 of a full one.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
from scenes import BANDS, SCRATCH, TILE, machine, network, scene
from stages import stages

LIMITS = {"2M": 1.10, "0.1M": 1.25}
HALF_LIMIT = 0.6
TILES_HELD = 24
"""Different tiles that the bare model is given in turn: far more than a cache holds."""


def bare(model: Path, windows: int) -> dict[str, Callable[[], None]]:
    """ONNX Runtime alone on tiles in memory, by thread setting: calls in flight, or threads within a call."""
    rng = np.random.default_rng(0)
    tiles = [rng.random((1, BANDS, TILE, TILE), np.float32) for _ in range(TILES_HELD)]

    def in_flight(calls: int) -> Callable[[], None]:
        session = _session(model, 1)

        def work() -> None:
            with ThreadPoolExecutor(calls) as pool:
                for _ in pool.map(
                    lambda i: session.run(None, {"image": tiles[i % TILES_HELD]})[0][0, 0, 0, 0], range(windows)
                ):
                    pass

        return work

    def within(threads: int) -> Callable[[], None]:
        session = _session(model, threads)

        def work() -> None:
            for i in range(windows):
                session.run(None, {"image": tiles[i % TILES_HELD]})

        return work

    return {"2 calls of 1 thread": in_flight(2), "1 call of 2 threads": within(2)}


def _session(model: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def segpipe(model: Path, source: Path) -> dict[str, float]:
    """One run in processes of its own; its record."""
    out = SCRATCH / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "segpipe.cli", "run", "--input", source, "--model", model, "--output", out]
    subprocess.run([*map(str, command), "--device", "cpu"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    record: dict[str, float] = json.loads((out / "scene.json").read_text())
    return record


def timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(name: str, pairs: int, size: int) -> dict[str, object]:
    """Ratios of a full scene to the bare model, and of a half-empty scene to the full one."""
    model, full, half = network(name), scene(size), scene(size, 0.5)
    windows = int(segpipe(model, full)["inferred"])
    settings = bare(model, windows)
    best = min(settings, key=lambda key: timed(settings[key]))
    rows = []
    for _ in range(pairs):
        rows.append((timed(settings[best]), segpipe(model, full)["seconds"], segpipe(model, half)["seconds"]))
        print(f"  {name}: bare {rows[-1][0]:.2f} s, full {rows[-1][1]:.2f} s, half {rows[-1][2]:.2f} s", flush=True)
    return {
        "network": name,
        "windows": windows,
        "bare": best,
        "bare_seconds": statistics.median(a for a, _, _ in rows),
        "ratio": statistics.median(b / a for a, b, _ in rows),
        "ratios": [round(b / a, 3) for a, b, _ in rows],
        "half": statistics.median(c / b for _, b, c in rows),
        "stages": {name: round(seconds, 3) for name, seconds in stages(model, full).items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--networks", nargs="+", default=list(LIMITS), choices=LIMITS)
    arguments = parser.parse_args()
    print(machine())
    results = [compare(name, arguments.pairs, arguments.size) for name in arguments.networks]
    for r in results:
        print(
            f"{r['network']:>5}: run / bare = {r['ratio']:.3f} (limit {LIMITS[str(r['network'])]}; {r['ratios']}), "
            f"half-empty / full = {r['half']:.3f} (limit {HALF_LIMIT}); bare: {r['bare']}, {r['windows']} tiles in "
            f"{r['bare_seconds']:.2f} s; beside the network, in core-seconds: {r['stages']}"
        )
    (SCRATCH / "overhead.json").write_text(json.dumps({"machine": machine(), "results": results}, indent=2))


if __name__ == "__main__":
    main()
