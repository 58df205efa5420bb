"""Everything that there is to do on a GPU, in one call: tests, parity with the CPU, same bytes, throughput.

    python benchmarks/gpu.py --prepare                     # where smp is: its U-Net's graph anew, which the repository holds
    python benchmarks/gpu.py --out gpu.json                # on the GPU
    python benchmarks/gpu.py --device cpu-tensors --small  # every line of it without one

It needs what a run needs and pytest. Results are written after every step, so that one that is stopped leaves what it has;
what no longer fits into ``--seconds`` is named as left out. Every run has a process of its own.
"""

import argparse
import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import onnx
import rasterio
from onnx import numpy_helper
from scenes import BANDS, CLASSES, OVERLAP, SCRATCH, machine, scene
from scenes import _contract as contract_of

ROOT = Path(__file__).parents[1]
SKELETON = ROOT / "benchmarks" / "unet_resnet34.skeleton.onnx"
SEEDED = 4096
"""Elements from which on a weight is left out of the skeleton."""

EXAMPLE = ROOT / "examples" / "crops.onnx"
STRIDE = 32
EQUAL = {"fp32": 0.9999}
"""Labels that must be the CPU's, by precision; the others are measured."""

Result = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One way to run one model."""

    model: str
    device: str
    batch: int
    tf32: bool = False
    nhwc: bool = False
    fp16: bool = False

    def __str__(self) -> str:
        words = [self.device, "fp16" if self.fp16 else "tf32" if self.tf32 else "fp32", *(["nhwc"] if self.nhwc else [])]
        return f"{self.model} {' '.join(words)} batch {self.batch}"

    @property
    def precision(self) -> str:
        return "fp16" if self.fp16 else "tf32" if self.tf32 else "fp32"


# models


def prepare() -> None:
    """The graph of smp's U-Net with a ResNet-34, exported by segpipe; large weights, random anyway, become seeds."""
    import segmentation_models_pytorch as smp
    import torch

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        weights, classes, whole = (Path(folder) / name for name in ("unet.pt", "classes.toml", "unet.onnx"))
        net = smp.Unet("resnet34", encoder_weights=None, in_channels=BANDS, classes=CLASSES).eval()
        torch.save(net.state_dict(), weights)
        told = contract_of(STRIDE)
        rows = [f'[[classes]]\nid = {i}\nname = "class {i}"\n' for i in range(CLASSES)]
        lines = [f"{key} = {json.dumps(told[key])}\n" for key in ("scale", "normalize", "mean", "std")]
        classes.write_text("".join([*lines, *rows]), encoding="utf-8")
        command = [sys.executable, "-m", "segpipe.cli", "export", weights, "--arch", "smp:Unet", "--encoder", "resnet34"]
        names = ",".join(f"band {i}" for i in range(BANDS))
        more = ["--classes", classes, "--bands", names, "--tile", 512, "--output", whole]
        subprocess.run([*map(str, [*command, *more])], check=True)
        onnx.save(_emptied(onnx.load(whole)), SKELETON)
    print(f"{SKELETON}: {SKELETON.stat().st_size / 1e6:.2f} MB")


def _emptied(proto: onnx.ModelProto) -> onnx.ModelProto:
    spreads = {}
    for tensor in proto.graph.initializer:
        if np.prod(tensor.dims) >= SEEDED and tensor.data_type == onnx.TensorProto.FLOAT:
            spreads[tensor.name] = float(numpy_helper.to_array(tensor).std())
            tensor.raw_data = b""
    entry = proto.metadata_props.add()
    entry.key, entry.value = "seeded", json.dumps(spreads)
    return proto


def resnet34() -> Path:
    """The U-Net with its weights: noise of the spread that they had."""
    path = SCRATCH / "unet_resnet34.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        proto = onnx.load(SKELETON)
        spreads = json.loads(next(p.value for p in proto.metadata_props if p.key == "seeded"))
        for number, tensor in enumerate(proto.graph.initializer):
            if tensor.name in spreads:
                noise = np.random.default_rng(number).standard_normal(tuple(tensor.dims), np.float32) * spreads[tensor.name]
                tensor.CopyFrom(numpy_helper.from_array(noise.astype(np.float32), tensor.name))
        _without(proto, "seeded")
        onnx.save(proto, path)
    return path


def _without(proto: onnx.ModelProto, key: str) -> None:
    kept = [p for p in proto.metadata_props if p.key != key]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)


MODELS: dict[str, Callable[[], Path]] = {"resnet34": resnet34, "example": lambda: EXAMPLE}


def file_of(setting: Setting) -> Path:
    """The model's file at the precision of a setting."""
    path = MODELS[setting.model]()
    if not setting.fp16:
        return path
    half = SCRATCH / f"{path.stem}.fp16.onnx"
    if not half.exists():
        from segpipe.export.precision import converted

        half.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(converted(onnx.load(path), "fp16", []), half)
    return half


# one run, in a process of its own


def one(setting: Setting, source: Path, tile: int, bare: bool) -> Result:
    """From a scene on disk to its mask; and the rate of the same session on pixels that are on the device already."""
    from segpipe.pipeline.config import load_settings
    from segpipe.pipeline.launch import carry_out, prepare

    class Silent:
        def progress(self, pixels: int) -> None: ...

        def outcome(self, outcome: Any) -> None: ...

    out = SCRATCH / "gpu-out" / str(setting).replace(" ", "_")
    shutil.rmtree(out, ignore_errors=True)
    flags = {"input": (str(source),), "model": file_of(setting), "output": out, "executor": "serial", "overwrite": True}
    told = {"device": setting.device, "batch": setting.batch, "tile": (tile,), "overlap": (tile * OVERLAP // 512,)}
    options = {name: True for name in ("tf32", "nhwc") if getattr(setting, name)}
    began = time.perf_counter()
    prepared = prepare(load_settings(None, flags | told | options))
    trial = time.perf_counter() - began
    with Busy(setting.device) as busy:
        summary = carry_out(prepared, Silent())
    if summary.failed or summary.problems:
        raise SystemExit(f"{setting}: {summary.failed} {summary.problems}")
    record = json.loads((out / "scene.json").read_text())
    result = {
        "mask": str(out / "scene.tif"),
        "windows": record["inferred"],
        "seconds": record["seconds"],
        "trial_seconds": round(trial, 2),
        "mpx_per_second": round(np.prod(record["input"]["shape"]) / 1e6 / record["seconds"], 2),
        "busy": busy.share,
        "device_mb": busy.memory_mb,
        "host_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "device": record["device"],
    }
    if bare:
        gc.collect()
        per_tile = bare_seconds(prepared.run.model)
        result["bare_mpx_per_second"] = round(np.prod(record["input"]["shape"]) / 1e6 / (per_tile * record["inferred"]), 2)
        result["share_of_bare"] = round(per_tile * record["inferred"] / record["seconds"], 3)
    return result


def bare_seconds(spec: Any) -> float:
    """Of one tile, in full batches that lie on the device: the network alone, best of three."""
    import torch

    from segpipe.pipeline.model import load

    model: Any = load(spec)
    with model.arrays.here():
        image = torch.randn(spec.batch_shape, device=model.lane.device)
        given = model._given(image)
        out = torch.empty(model._scores_shape, dtype=model._scores_type, device=model.lane.device)
        rates = []
        for _ in range(3):
            count, began = 0, time.perf_counter()
            while time.perf_counter() - began < 1.5:
                for _ in range(4):  # few enough that the host does not run far ahead
                    model._network(given, out)
                model.lane.wait()
                count += 4
            rates.append((time.perf_counter() - began) / count / spec.batch)
    return min(rates)


class Busy:
    """Share of the time in which a kernel ran, and the memory used, as nvidia-smi samples them."""

    COMMAND = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "100")

    def __init__(self, device: str) -> None:
        self._there = device != "cpu" and shutil.which(self.COMMAND[0]) is not None
        self._lines: list[str] = []
        self.share: float | None = None
        self.memory_mb: int | None = None

    def __enter__(self) -> "Busy":
        if self._there:
            self._process = subprocess.Popen(self.COMMAND, stdout=subprocess.PIPE, text=True)
            assert self._process.stdout is not None
            self._thread = Thread(target=self._lines.extend, args=(self._process.stdout,), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._there:
            self._process.terminate()
            self._thread.join(5)
            rows = [line.split(",") for line in self._lines if line.count(",") == 1]
            numbers = [(float(a), int(b)) for a, b in rows if a.strip().isdigit() and b.strip().isdigit()]
            if numbers:
                self.share = round(float(np.mean([a for a, _ in numbers])) / 100, 3)
                self.memory_mb = max(b for _, b in numbers)


def apart(setting: Setting, source: Path, tile: int, *, bare: bool = False, limit: float = 900) -> Result:
    """``one`` in a process of its own, whose memory is its alone; its error is the result where it fails."""
    asked = json.dumps({"setting": asdict(setting), "source": str(source), "tile": tile, "bare": bare})
    command = [sys.executable, __file__, "--one", asked]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"longer than {limit:.0f} s"}
    if done.returncode:
        return {"error": (done.stderr.strip() or done.stdout.strip() or str(done.returncode))[-2000:]}
    result: Result = json.loads(done.stdout.strip().splitlines()[-1])
    return result


# steps


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

    def run(self, key: str, setting: Setting, source: Path, *, bare: bool = False) -> Result:
        """One run, kept under a key; what no longer fits is left out."""
        if self.left < 20:
            result: Result = {"error": "left out: no time"}
        else:
            result = apart(setting, source, self.arguments.tile, bare=bare, limit=self.left)
        self.keep(key, [*self.results.get(key, []), {"setting": str(setting), **result}])
        print(f"  {setting}: {_said(result)}", flush=True)
        return result


def _said(result: Result) -> str:
    if "error" in result:
        return str(result["error"]).splitlines()[-1][:200]
    keys = ("seconds", "mpx_per_second", "bare_mpx_per_second", "share_of_bare", "busy", "host_mb", "device_mb")
    return ", ".join(f"{key} {result[key]}" for key in keys if result.get(key) is not None)


def tests(session: Session) -> None:
    """Those with the marker ``gpu``, without the fixtures of the suite, whose libraries need not be here."""
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", ROOT, "--noconftest", "-p", "no:cacheprovider"]
    environment = {
        "SEGPIPE_TEST_DEVICE": session.arguments.device,
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }
    done = subprocess.run(
        [*map(str, command), "-m", "gpu", "-q", "--tb=short", str(ROOT / "tests" / "test_gpu.py")],
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
    """Labels of the device against the CPU's, by precision; and the same bytes over repeats."""
    device, source = session.arguments.device, scene(session.arguments.parity_size, 0.1)
    found = {}
    for model in session.arguments.models:
        truth = session.run("parity_runs", Setting(model, "cpu", 1), source)
        for setting in precisions(model, device, 8):
            result = session.run("parity_runs", setting, source)
            if "error" in truth or "error" in result:
                continue
            share = equal(Path(truth["mask"]), Path(result["mask"]))
            needed = EQUAL.get(setting.precision, 0.0) if setting.device != "tensorrt" else 0.0
            found[str(setting)] = {"equal": share, "needed": needed, "good": share >= needed}
            print(f"  {setting}: {share:.4%} of the labels are the CPU's (needed: {needed:.2%})", flush=True)
        bytes_ = []
        for _ in range(3):
            result = session.run("parity_runs", Setting(model, device, 8), source)
            bytes_.append(Path(result["mask"]).read_bytes() if "mask" in result else os.urandom(8))
        found[f"{model}: same bytes in 3 runs"] = {"good": all(a == b for a, b in pairwise(bytes_))}
    session.keep("parity", found)


def precisions(model: str, device: str, batch: int) -> Iterator[Setting]:
    yield Setting(model, device, batch)
    yield Setting(model, device, batch, tf32=True)
    yield Setting(model, device, batch, fp16=True)
    if has_tensorrt():
        yield Setting(model, "tensorrt", batch)
        yield Setting(model, "tensorrt", batch, fp16=True)


def has_tensorrt() -> bool:
    from segpipe.pipeline.device import _load_tensorrt
    from segpipe.pipeline.errors import DeviceError

    try:
        _load_tensorrt()
    except DeviceError:
        return False
    return True


def throughput(session: Session) -> None:
    """From the scene on disk to its COG, by model, precision and batch; then channels last at the middle batch."""
    device, batches = session.arguments.device, session.arguments.batches
    source = scene(session.arguments.size)
    middle = batches[len(batches) // 2]
    for model in session.arguments.models:
        for batch in sorted(batches, key=lambda n: n != middle):  # the most telling first
            for setting in precisions(model, device, batch):
                if setting.device == "tensorrt" and batch != middle:
                    continue  # an engine takes minutes to build
                session.run("throughput", setting, source, bare=True)
        for setting in list(precisions(model, device, middle))[:3]:
            more = Setting(**{**asdict(setting), "nhwc": True})
            session.run("throughput", more, source, bare=True)


def table(results: Result) -> str:
    """The throughput, for a page."""
    lines = [
        f"{results['machine']}; {results['gpu']}",
        "",
        "| setting | Mpx/s | network alone | share of it | GPU busy | host memory | GPU memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in results.get("throughput", []):
        if "error" in row:
            lines.append(f"| {row['setting']} | {_said(row)} | | | | | |")
            continue
        share = "?" if row["busy"] is None else f"{row['busy']:.0%}"
        memory = "?" if row["device_mb"] is None else f"{row['device_mb']} MB"
        rates = f"{row['mpx_per_second']:.1f} | {row['bare_mpx_per_second']:.1f} | {row['share_of_bare']:.2f}"
        lines.append(f"| {row['setting']} | {rates} | {share} | {row['host_mb']} MB | {memory} |")
    return "\n".join(lines)


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", action="store_true", help="make the graph of smp's U-Net, and end")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu-tensors"])
    parser.add_argument("--small", action="store_true", help="small scenes and batches: to see that every line runs")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 32, 64])
    parser.add_argument("--size", type=int, default=10_980, help="pixels per side of the scene that is timed")
    parser.add_argument("--parity-size", type=int, default=2048)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=1500, help="after which no further run is begun")
    parser.add_argument("--steps", nargs="+", default=["tests", "parity", "throughput"])
    parser.add_argument("--out", type=Path, default=SCRATCH / "gpu.json")
    arguments = parser.parse_args()
    if arguments.small:
        arguments.size, arguments.parity_size, arguments.tile, arguments.batches = 400, 300, 128, [2, 3]
    return arguments


def main() -> None:
    arguments = arguments_of()
    if arguments.prepare:
        prepare()
        return
    if arguments.one:
        asked = json.loads(arguments.one)
        result = one(Setting(**asked["setting"]), Path(asked["source"]), asked["tile"], asked["bare"])
        print(json.dumps(result))
        return
    from segpipe.pipeline.device import gpu_facts
    from segpipe.pipeline.records import versions

    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    session = Session(arguments, {"machine": machine(), "gpu": gpu_facts(), "versions": versions()}, time.monotonic())
    print(session.results, flush=True)
    steps = {"tests": tests, "parity": parity, "throughput": throughput}
    for name in arguments.steps:
        print(name, flush=True)
        steps[name](session)
    session.keep("finished", True)
    print(table(session.results))
    good = session.results.get("tests", {}).get("passed", True)
    good &= all(row["good"] for row in session.results.get("parity", {}).values())
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
