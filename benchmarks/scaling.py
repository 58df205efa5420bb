"""What more workers bring: two processes against one, sleeping models on up to 64 workers, and what cutting repeats.

1. One process with one call in flight on one processor, then two on two, in alternation: on one large scene and on many
   small ones. Starting is left out: speed is taken from the first pixels that are told to the last outcome. Beside it the
   same for ONNX Runtime alone, which no scheduler can beat, and the share of windows that two parts infer twice.
2. A model that sleeps for a second a tile on 1 to 64 workers that know nothing of it: the command line, a Dask scheduler,
   the task queue, reading, blending, writing and records are real; in the workers ``InferenceSession.run`` sleeps and gives
   zeros. They are ``distributed`` workers of one thread, eight to a process, since 64 processes would not fit beside others.
   Speed is taken from the first tile that a model is given to the last record.
3. The share of repeated inference, from ``segpipe.geometry.division``.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import history
import numpy as np
from children import watched
from machine import load, machine
from pictures import BANDS, pictures
from scenes import OVERLAP, SCRATCH, TILE, network, scene

HERE = Path(__file__)
WORK = SCRATCH / "scaling"
PAIR_GOAL, SLEEP_GOAL = 1.85, 0.95
SLEEP = 1.0
"""Seconds that the sleeping model takes for a tile."""
CROWD = 8
"""Workers in one process."""
BEGUN = WORK / "begun"
"""When the first tile came to each process of sleeping workers."""
CREWS = (1, 2, 4, 8, 16, 32, 64)


class Clock:
    """A watcher that leaves out how a run starts."""

    def __init__(self) -> None:
        self.first, self.last, self.before, self.pixels = 0.0, 0.0, 0, 0
        self.failed: list[str] = []

    def progress(self, pixels: int) -> None:
        self.pixels += pixels
        if not self.first:
            self.first, self.before = time.perf_counter(), self.pixels

    def outcome(self, outcome: Any) -> None:
        self.last = time.perf_counter()
        if outcome.error:
            self.failed.append(outcome.error)

    def note(self, line: str) -> None: ...

    @property
    def speed(self) -> float:
        """Mpx/s after the first pixels."""
        return (self.pixels - self.before) / 1e6 / (self.last - self.first)


def one(model: Path, source: Path, workers: int) -> None:
    """One run in this process and its workers, on as many processors as workers; prints its speed."""
    from segpipe.jobs.launch import carry_out
    from segpipe.jobs.prepare import prepare
    from segpipe.settings import load_settings

    out, clock = WORK / "out", Clock()
    shutil.rmtree(out, ignore_errors=True)
    # each worker then has one processor for its calls in flight, and the first has no other for reading
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    flags = {"input": (str(source),), "model": model, "output": out, "device": "cpu", "workers": workers, "threads": 1}
    prepared = prepare(load_settings(None, flags))
    carry_out(prepared, clock)
    if clock.failed:
        raise SystemExit(clock.failed[0])
    repeats = sum(cut.repeated for cut in prepared.plan.cuts)
    print(json.dumps({"speed": clock.speed, "calls": prepared.plan.calls, "repeated": repeats}))


def pairs(name: str, model: Path, source: Path, rounds: int) -> dict[str, Any]:
    """Two processes against one, in alternation."""
    speeds: dict[int, list[float]] = {1: [], 2: []}
    busy: dict[int, list[float]] = {1: [], 2: []}
    repeated = 0.0
    for i in range(rounds):
        for workers in (1, 2) if i % 2 == 0 else (2, 1):
            child = watched([sys.executable, HERE, "--one", model, source, workers], every=None)
            facts = json.loads(child.printed)
            if facts["calls"] != 1:
                raise SystemExit(f"each worker must have one call in flight, got {facts['calls']}")
            speeds[workers].append(facts["speed"])
            busy[workers].append(child.busy)
            if workers == 2:
                repeated = facts["repeated"]
        print(f"  {name}, round {i + 1}: {speeds[1][-1]:.2f} and {speeds[2][-1]:.2f} Mpx/s", file=sys.stderr, flush=True)
    gains = [b / a for a, b in zip(speeds[1], speeds[2], strict=True)]
    return {
        "name": name,
        "one": statistics.median(speeds[1]),
        "two": statistics.median(speeds[2]),
        "gain": [min(gains), statistics.median(gains), max(gains)],
        "core_seconds": [statistics.median(busy[workers]) for workers in (1, 2)],
        "repeated": repeated,
    }


def bare_gain(model: Path, source: Path, rounds: int) -> list[float]:
    """ONNX Runtime alone: two calls on two processors against one on one."""
    processors = sorted(os.sched_getaffinity(0))
    tiles = ["--tiles", "16"]

    def once(calls: int) -> float:
        pinned = ["taskset", "-c", ",".join(map(str, processors[:calls]))]
        command = [*pinned, sys.executable, HERE.parent / "bare.py", model, source, *tiles, "--setting", calls, 1, 1]
        return float(json.loads(watched(command, every=None).printed)["tried"][0]["seconds"])

    gains = [once(1) / once(2) for _ in range(rounds)]
    return [min(gains), statistics.median(gains), max(gains)]


def crowd(address: str, count: int) -> None:
    """Workers whose model sleeps, until somebody ends this process."""
    import dask.config
    import onnxruntime
    from distributed import Worker

    from segpipe.jobs.dask_options import LOOKS

    dask.config.set(LOOKS)  # as workers have it that segpipe starts
    begun = BEGUN / str(os.getpid())

    def sleeping(self: Any, _: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        (batch,) = feeds.values()
        if batch.any() and not begun.exists():  # the batch that a model is tried with is empty
            begun.write_text(str(time.time()))
        time.sleep(SLEEP * len(batch))
        classes = self.get_outputs()[0].shape[1]
        return [np.zeros((len(batch), classes, *batch.shape[2:]), np.float32)]

    onnxruntime.InferenceSession.run = sleeping

    async def work() -> None:
        many = [Worker(address, nthreads=1, memory_limit=0, dashboard=False) for _ in range(count)]
        await asyncio.gather(*many)
        await asyncio.gather(*(worker.finished() for worker in many))

    asyncio.run(work())


@contextmanager
def cluster(workers: int) -> Iterator[str]:
    """Address of a scheduler on loopback with workers that sleep."""
    file = WORK / "scheduler.json"
    file.unlink(missing_ok=True)
    log = (WORK / "cluster.log").open("w")
    with ExitStack() as stack:

        def start(*command: object) -> None:
            process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)

        start("-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", 0, "--no-dashboard", "--scheduler-file", file)
        address = _address(file)
        for first in range(0, workers, CROWD):
            start(HERE, "--crowd", address, min(CROWD, workers - first))
        _await(address, workers)
        yield address


def _address(file: Path) -> str:
    for _ in range(600):
        if file.exists() and (found := re.search(r"tcp://127\.0\.0\.1:\d+", file.read_text())):
            return found[0]
        time.sleep(0.1)
    raise SystemExit("the scheduler did not start within a minute")


def _await(address: str, workers: int) -> None:
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(workers, timeout=300)


def sleepers(workers: int, each: int) -> dict[str, float]:
    """How close a crew comes to its sleeping time: ``each`` tiles a worker, each a case of its own."""
    out, cases = WORK / "asleep", workers * each
    for folder in (out, BEGUN):
        shutil.rmtree(folder, ignore_errors=True)
    BEGUN.mkdir()
    words = [
        "--input",
        pictures(cases, 64),
        "--model",
        network("0.1M", BANDS),
        "--output",
        out,
        "--tile",
        64,
        "--overlap",
        0,
    ]
    with cluster(workers) as address:
        command = [sys.executable, "-m", "segpipe.cli", "run", *words, "--device", "cpu", "--scheduler", address]
        spent = watched(command, every=None).seconds
    written = [path.stat().st_mtime for path in out.rglob("*.json") if path.name != "run.json"]
    if len(written) != cases:
        raise SystemExit(f"{cases} records must be there, got {len(written)}")
    span = max(written) - min(float(path.read_text()) for path in BEGUN.iterdir())
    return {"workers": workers, "cases": cases, "seconds": span, "whole": spent, "efficiency": each * SLEEP / span}


def repeats() -> list[dict[str, Any]]:
    """What parts for 8 and 64 workers infer twice, of two sizes."""
    from segpipe.geometry.division import Limits, divide, repeated
    from segpipe.geometry.windows import Cover, Tiling

    found = []
    for size in (10_980, 100_000):
        cover = Cover((size, size), Tiling((TILE,) * 2, (OVERLAP,) * 2, (32,) * 2, "gaussian"))
        for workers in (8, 64):
            parts = divide(cover, Limits(workers))
            longest = max(len(cover.touching(part)) for part in parts)
            ideal = len(cover) / (-(-len(parts) // workers) * longest * workers)
            share = repeated(cover, parts)
            found.append({"size": size, "workers": workers, "parts": len(parts), "repeated": share, "of_ideal_speed": ideal})
    return found


def verdict(value: float, goal: float) -> str:
    return "reached" if value >= goal else "MISSED"


def show_pairs(two: list[dict[str, Any]], bare: list[float]) -> None:
    """Markdown."""
    print(
        f"\nTwo processes of one thread over one (goal {PAIR_GOAL}), median (least to most); ONNX Runtime alone: "
        f"{bare[1]:.3f} ({bare[0]:.3f} to {bare[2]:.3f})\n"
    )
    print("| work | one, Mpx/s | two, Mpx/s | gain | goal | core-seconds | inferred twice | gain over ONNX Runtime's own |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in two:
        (low, gain, high), busy = row["gain"], "{:.1f}, {:.1f}".format(*row["core_seconds"])
        print(
            f"| {row['name']} | {row['one']:.2f} | {row['two']:.2f} | {gain:.3f} ({low:.3f} to {high:.3f}) | "
            f"{verdict(gain, PAIR_GOAL)} | {busy} | {row['repeated']:.1%} | {gain / bare[1]:.3f} |"
        )


def show_sleepers(crews: list[dict[str, float]]) -> None:
    """Markdown."""
    print(f"\nA model that sleeps {SLEEP:g} s a tile (goal {SLEEP_GOAL} at 64)\n")
    print("| workers | cases | seconds | of the ideal speed |\n| --- | --- | --- | --- |")
    for crew in crews:
        print(f"| {crew['workers']} | {crew['cases']} | {crew['seconds']:.1f} | {crew['efficiency']:.3f} |")
    print(f"\n{crews[-1]['workers']} workers: {verdict(crews[-1]['efficiency'], SLEEP_GOAL)}")


def show_cuts(cuts: list[dict[str, Any]]) -> None:
    """Markdown."""
    print(f"Repeated inference, tile {TILE}, overlap {OVERLAP}\n")
    print("| scene | workers | parts | inferred twice | share of ideal speed |\n| --- | --- | --- | --- | --- |")
    for c in cuts:
        print(f"| {c['size']:,}² | {c['workers']} | {c['parts']} | {c['repeated']:.1%} | {c['of_ideal_speed']:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="rounds of two processes against one [3]")
    parser.add_argument("--size", type=int, default=10_980, help="of the large scene")
    parser.add_argument("--small", type=int, default=1000, help="pictures of 512 x 512 pixels")
    parser.add_argument("--each", type=int, default=40, help="tiles for each worker whose model sleeps")
    parser.add_argument("--quick", action="store_true", help="smaller, one round: about three minutes")
    parser.add_argument("--only", choices=["pairs", "sleep", "cuts"], help="this alone")
    parser.add_argument("--no-history", action="store_true", help="leave benchmarks/history.jsonl as it is")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--crowd", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster ends with this process
    if arguments.one:
        one(Path(arguments.one[0]), Path(arguments.one[1]), int(arguments.one[2]))
    elif arguments.crowd:
        crowd(arguments.crowd[0], int(arguments.crowd[1]))
    else:
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """All three parts, or the one that is asked for; the history has each as soon as it is measured."""
    WORK.mkdir(parents=True, exist_ok=True)
    quick, only, remembered = arguments.quick, arguments.only, not (arguments.quick or arguments.no_history)
    size, small, rounds = (4096, 200, 1) if quick else (arguments.size, arguments.small, arguments.pairs)
    print(f"{machine()}; load before {load():.1f}\n", flush=True)
    results: dict[str, Any] = {"machine": machine(), "load": load(), "cuts": repeats()}
    show_cuts(results["cuts"])
    if only in (None, "pairs"):
        model, large = network("0.1M"), scene(size)
        results["bare"] = bare_gain(model, large, rounds)
        results["pairs"] = [
            pairs(f"one scene of {size:,}²", model, large, rounds),
            pairs(f"{small} pictures of 512²", network("0.1M", BANDS), pictures(small, 512), rounds),
        ]
        show_pairs(results["pairs"], results["bare"])
        if remembered:
            rows = {
                r["name"]: {"one, Mpx/s": r["one"], "two, Mpx/s": r["two"], "gain": r["gain"][1]} for r in results["pairs"]
            }
            history.append("scaling", {**rows, "ONNX Runtime alone": {"gain": results["bare"][1]}})
    if only in (None, "sleep"):
        results["sleep"] = []
        for workers in (1, CREWS[-1]) if quick else CREWS:
            results["sleep"].append(sleepers(workers, 20 if quick else arguments.each))
            print(f"  {workers} workers: {results['sleep'][-1]['efficiency']:.3f}", file=sys.stderr, flush=True)
        show_sleepers(results["sleep"])
        if remembered:
            rates = {f"efficiency at {crew['workers']}": crew["efficiency"] for crew in results["sleep"]}
            history.append("scaling", {"a model that sleeps": rates})
    (SCRATCH / "scaling.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
