"""Everything that there is to do on a GPU, in one call: tests, parity with the CPU, same bytes, throughput.

    python benchmarks/gpu.py --prepare                     # where smp is: its U-Net's graph anew, which the repository holds
    python benchmarks/gpu.py --out gpu.json                # on the GPU
    python benchmarks/gpu.py --device cpu-tensors --small  # every line of it without one

It needs what a run needs and pytest. Results are written after every step, so that one that is stopped leaves what it has;
what no longer fits into ``--seconds`` is named as left out. Runs of one model and precision share a process.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import rasterio
from gpu_networks import EXAMPLE, MODELS, ROOT, SKELETON, Setting, skeleton
from machine import machine
from scenes import OVERLAP, SCRATCH, scene

from segpipe.formats.case import Case
from segpipe.formats.raster.gdal import gdal_options
from segpipe.network.device import gpu_facts
from segpipe.network.read import read_spec
from segpipe.pipeline.read import Decoders, Reading, windows_of
from segpipe.pipeline.tiles import Tile, cut_tiles
from segpipe.results.device_kind import versions
from segpipe.settings import load_settings

RUNS = Path(__file__).with_name("gpu_runs.py")
EQUAL = {"fp32": 0.9999}
"""Labels that must be the CPU's, by precision; the others are measured."""

Result = dict[str, Any]


def apart(settings: Sequence[Setting], source: Path, tile: int, *, bare: float, limit: float) -> list[Result]:
    """Runs in a process of their own; an error is the result where one fails."""
    request = {"settings": [asdict(s) for s in settings], "source": str(source), "tile": tile, "bare": bare}
    process = subprocess.Popen(
        [sys.executable, RUNS, json.dumps(request)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        out, error = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        out, error = process.communicate()
        error = f"longer than {limit:.0f} s"
    if error.strip():
        print(f"    said: {error.strip()[-1500:]}", flush=True)
    results: list[Result] = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    lost = {"error": error.strip()[-2000:] or str(process.returncode)}
    return results + [lost] * (len(settings) - len(results))


@dataclass
class Session:
    """What was asked for, and what has come of it."""

    arguments: argparse.Namespace
    results: Result
    began: float

    @property
    def left(self) -> float:
        return float(self.arguments.seconds - (time.monotonic() - self.began))

    def keep(self, key: str, value: Any) -> None:
        self.results[key] = value
        self.results["seconds"] = round(time.monotonic() - self.began, 1)
        self.arguments.out.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")

    def run(self, key: str, settings: Sequence[Setting], source: Path, *, bare: bool = False) -> list[Result]:
        """Runs of one process, kept under a key; what no longer fits is left out."""
        if self.left < 20:
            results: list[Result] = [{"error": "left out: no time"}] * len(settings)
        else:
            seconds = self.arguments.bare_seconds if bare else 0.0
            results = apart(settings, source, self.arguments.tile, bare=seconds, limit=self.left)
        rows = [{"setting": str(setting), **result} for setting, result in zip(settings, results, strict=True)]
        self.keep(key, [*self.results.get(key, []), *rows])
        for setting, result in zip(settings, results, strict=True):
            print(f"  {setting}: {_said(result)}", flush=True)
        return results


def _said(result: Result) -> str:
    if "error" in result:
        return str(result["error"]).splitlines()[-1][:200]
    rates = ("mpx_per_second", "in_a_row_mpx_per_second", "bare_mpx_per_second", "share_of_bare")
    keys = ("seconds", *rates, "busy", "host_mb", "device_mb")
    return ", ".join(f"{key} {result[key]}" for key in keys if result.get(key) is not None)


def tests(session: Session) -> None:
    """Those with the marker ``gpu``, without the fixtures of the suite, whose libraries need not be here."""
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", ROOT, "--noconftest", "-p", "no:cacheprovider"]
    environment = {
        "SEGPIPE_TEST_DEVICE": session.arguments.device,
        "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }
    done = subprocess.run(
        [*map(str, command), "-m", "gpu", "-q", "--tb=short", str(ROOT / "tests" / "system" / "test_gpu.py")],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=max(session.left, 30),
        check=False,
    )
    session.keep("tests", {"passed": done.returncode == 0, "said": done.stdout[-6000:]})
    print(done.stdout[-3000:], flush=True)


def equal(a: Path, b: Path) -> float:
    """Share of equal labels of two masks, over pixels that are not nodata in either."""
    with rasterio.open(a) as one_, rasterio.open(b) as other:
        x, y = one_.read(1), other.read(1)
    seen = (x != 255) & (y != 255)
    return float((x == y)[seen].mean()) if seen.any() and ((x == 255) == (y == 255)).all() else 0.0


def parity(session: Session) -> None:
    """Labels of the device against the CPU's, by precision; and the same bytes over repeats, in another process, too."""
    device, source = session.arguments.device, scene(session.arguments.parity_size, 0.1)
    found = {}
    for model in session.arguments.models:
        settings = [Setting(model, "cpu", 1), *precisions(model, device, session.arguments.parity_batch)]
        results = session.run("parity_runs", settings, source)
        masks = {str(s): Path(r["mask"]) for s, r in zip(settings, results, strict=True) if "mask" in r}
        truth = masks.get(str(settings[0]))
        for setting in settings[1:]:
            mask = masks.get(str(setting))
            share = equal(truth, mask) if truth is not None and mask is not None else 0.0
            needed = EQUAL.get(setting.precision, 0.0) if setting.device != "tensorrt" else 0.0
            found[str(setting)] = {"equal": share, "needed": needed, "good": share >= needed}
            print(f"  {setting}: {share:.4%} of the labels are the CPU's (needed: {needed:.2%})", flush=True)
        again = settings[1]
        bytes_ = [mask.read_bytes() for mask in [masks.get(str(again))] if mask is not None]
        for count in (2, 1):
            for result in session.run("parity_runs", [again] * count, source):
                bytes_.append(Path(result["mask"]).read_bytes() if "mask" in result else b"")
        found[f"{model}: same bytes in 4 runs of 3 processes"] = {"good": len(bytes_) == 4 and len(set(bytes_)) == 1}
    session.keep("parity", found)


def precisions(model: str, device: str, batch: int) -> Iterator[Setting]:
    yield Setting(model, device, batch)
    yield Setting(model, device, batch, tf32=True)
    yield Setting(model, device, batch, fp16=True)
    if has_tensorrt():
        yield Setting(model, "tensorrt", batch)
        yield Setting(model, "tensorrt", batch, fp16=True)


def has_tensorrt() -> bool:
    from segpipe.errors import DeviceError
    from segpipe.network.device import _load_tensorrt

    try:
        _load_tensorrt()
    except DeviceError:
        return False
    return True


def throughput(session: Session) -> None:
    """From the scene on disk to its COG, by model and precision: the middle batch and channels last first."""
    device, batches = session.arguments.device, session.arguments.batches
    source = scene(session.arguments.size)
    middle = batches[len(batches) // 2]
    ordered = sorted(batches, key=lambda n: n != middle)
    for model in session.arguments.models:
        for setting in precisions(model, device, middle):
            if session.arguments.precisions and setting.precision not in session.arguments.precisions:
                continue
            if setting.device == "tensorrt":
                session.run("throughput", [setting], source, bare=True)  # an engine takes minutes to build
                continue
            of_batch = [replace(setting, batch=batch) for batch in ordered]
            session.run("throughput", [of_batch[0], replace(setting, nhwc=True), *of_batch[1:]], source, bare=True)


def reading(session: Session) -> None:
    """What reading alone reaches, by the number of threads that decode."""
    source, found = scene(session.arguments.size), {}
    tiling = {"tile": (session.arguments.tile,), "overlap": (session.arguments.tile * OVERLAP // 512,)}
    settings = {"input": (str(source),), "model": EXAMPLE, "device": session.arguments.device}
    spec = read_spec(load_settings(None, settings | tiling))
    for threads in (1, 2, 4, 8, 16):
        began = time.perf_counter()
        with gdal_options(threads):
            read = cut_tiles(windows_of([Case("scene", str(source))], Reading(spec, decoders=Decoders(threads, threads))))
            tiles = sum(isinstance(tile, Tile) for tile in read)
        seconds = time.perf_counter() - began
        found[threads] = round(session.arguments.size**2 / 1e6 / seconds, 1)
        print(f"  {threads} threads: {tiles} tiles, {found[threads]} Mpx/s", flush=True)
    session.keep("reading_mpx_per_second", found)


def table(results: Result) -> str:
    """The throughput, for a page."""
    lines = [
        f"{results['machine']}; {results['gpu']}",
        "",
        "| setting | network alone, Mpx/s | one scene | share | in a row | share | GPU busy | host memory | GPU memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in results.get("throughput", []):
        if "error" in row:
            lines.append(f"| {row['setting']} | {_said(row)} | | | | | | | |")
            continue
        share = "?" if row["busy"] is None else f"{row['busy']:.0%}"
        memory = "?" if row["device_mb"] is None else f"{row['device_mb']} MB"
        bare, single, many = (row.get(f"{key}mpx_per_second") for key in ("bare_", "", "in_a_row_"))
        rates = f"{bare:.1f} | {single:.1f} | {single / bare:.2f} | "
        rates += " | " if many is None else f"{many:.1f} | {many / bare:.2f}"
        lines.append(f"| {row['setting']} | {rates} | {share} | {row['host_mb']} MB | {memory} |")
    return "\n".join(lines)


STEPS: dict[str, Callable[[Session], None]] = {
    "tests": tests,
    "reading": reading,
    "parity": parity,
    "throughput": throughput,
}


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path, nargs="?", const=SKELETON, help="make the graph of smp's U-Net, and end")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu-tensors"])
    parser.add_argument("--small", action="store_true", help="small scenes and batches: to see that every line runs")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "tf32", "fp16"], help="for throughput [all]")
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 32, 64])
    parser.add_argument("--size", type=int, default=10_980, help="pixels per side of the scene that is timed")
    parser.add_argument("--parity-size", type=int, default=2048)
    parser.add_argument("--parity-batch", type=int, default=8)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--bare-seconds", type=float, default=0.7, help="for which the network alone is timed, three times")
    parser.add_argument("--seconds", type=float, default=1500, help="after which no further run is begun")
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--out", type=Path, default=SCRATCH / "gpu.json")
    arguments = parser.parse_args()
    if arguments.small:
        arguments.size, arguments.parity_size, arguments.tile = 130, 100, 64
        arguments.batches, arguments.parity_batch, arguments.bare_seconds = [2, 3], 2, 0.05
    return arguments


def main() -> None:
    arguments = arguments_of()
    if arguments.prepare:
        skeleton(arguments.prepare, arguments.tile)
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    session = Session(arguments, {"machine": machine(), "gpu": gpu_facts(), "versions": versions()}, time.monotonic())
    print(session.results, flush=True)
    for name in arguments.steps:
        print(name, flush=True)
        STEPS[name](session)
    session.keep("finished", True)
    print(table(session.results))
    good = session.results.get("tests", {}).get("passed", True)
    good &= all(row["good"] for row in session.results.get("parity", {}).values())
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
