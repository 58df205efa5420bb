"""Everything that there is to do on a GPU, in one call: tests, parity with the CPU, same bytes, throughput.

    python benchmarks/gpu.py --prepare                     # where smp is: its U-Net's graph anew, which the repository holds
    python benchmarks/gpu.py --out gpu.json                # on the GPU
    python benchmarks/gpu.py --device cpu-tensors --small  # every line of it without one

It needs what a run needs and pytest. Results are written after every step, so that one that is stopped leaves what it has;
what no longer fits into ``--seconds`` is named as left out. Runs of one model and precision share a process.
"""

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import onnx
import rasterio
from machine import machine
from onnx import numpy_helper
from scenes import BANDS, CLASSES, OVERLAP, SCRATCH, scene
from scenes import _contract as contract_of

from segpipe.pipeline.batches import Reading, read
from segpipe.pipeline.cases import Case
from segpipe.pipeline.config import load_settings
from segpipe.pipeline.device import gpu_facts
from segpipe.pipeline.errors import SegpipeError
from segpipe.pipeline.gdal import gdal_options
from segpipe.pipeline.launch import Prepared, carry_out, prepare
from segpipe.pipeline.profile import begin
from segpipe.pipeline.records import versions
from segpipe.pipeline.spec import read_spec

ROOT = Path(__file__).parents[1]
SKELETON = ROOT / "benchmarks" / "unet_resnet34.skeleton.onnx"
SEEDED = 4096
"""Elements from which on a weight is left out of the skeleton."""

EXAMPLE = ROOT / "examples" / "crops.onnx"
STRIDE = 32
IN_A_ROW = 4
"""Scenes."""

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


def skeleton() -> None:
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


# runs, in a process of their own


@dataclass(frozen=True)
class Asked:
    """What is asked of the runs of a process."""

    source: Path
    tile: int
    bare: bool
    """Whether the network alone is timed, too."""


def several(settings: Iterable[Setting], asked: Asked) -> Iterator[Result]:
    """From a scene on disk to its mask; and the rate of the same session on pixels that are on the device already."""
    with Busy() as busy:
        for number, setting in enumerate(settings):
            try:
                yield one(setting, asked, busy, thorough=asked.bare and not number)
            except SegpipeError as error:
                yield {"error": str(error)}
            gc.collect()


class Silent:
    """Nobody looks."""

    def progress(self, pixels: int) -> None: ...

    def outcome(self, outcome: Any) -> None: ...

    def note(self, line: str) -> None: ...


def one(setting: Setting, asked: Asked, busy: "Busy", *, thorough: bool) -> Result:
    """One run; the first of a process twice, since users run many scenes, then in a row, and once more for its profile."""
    out = SCRATCH / "gpu-out" / str(setting).replace(" ", "_")
    shutil.rmtree(out, ignore_errors=True)
    flags = {
        "input": (str(asked.source),),
        "model": file_of(setting),
        "output": out,
        "executor": "serial",
        "overwrite": True,
    }
    overlap = asked.tile * OVERLAP // 512
    told = {"device": setting.device, "batch": setting.batch, "tile": (asked.tile,), "overlap": (overlap,)}
    options = {name: True for name in ("tf32", "nhwc") if getattr(setting, name)}
    began = time.perf_counter()
    prepared = prepare(load_settings(None, flags | told | options))
    trial = time.perf_counter() - began
    first = _carried_out(prepared, out) if thorough else None
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak of memory begins anew
    started = time.time()
    record = _carried_out(prepared, out)
    seconds, size = record["seconds"], float(np.prod(record["input"]["shape"])) / 1e6
    share, memory = busy.between(started, time.time())
    result = {
        "mask": str(out / "scene.tif"),
        "windows": record["inferred"],
        "seconds": seconds,
        "trial_seconds": round(trial, 2),
        "mpx_per_second": round(size / seconds, 2),
        "busy": share,
        "device_mb": memory,
        "host_mb": _peak_mb(),
        "device": record["device"],
    }
    if first is not None:
        result |= {
            "first_seconds": first["seconds"],
            "in_a_row_mpx_per_second": in_a_row(asked.source, flags | told | options),
            "profile": profiled(prepared),
        }
    if asked.bare:
        gc.collect()
        alone = bare_seconds(prepared.run.model) * record["inferred"]
        result |= {
            "bare_mpx_per_second": round(size / alone, 2),
            "share_of_bare": round(alone / seconds, 3),
        }
    return result


def _carried_out(prepared: Prepared, out: Path) -> Result:
    summary = carry_out(prepared, Silent())
    if summary.failed or summary.problems:
        raise SegpipeError(f"{summary.failed} {summary.problems}")
    record: Result = json.loads((out / "scene.json").read_text(encoding="utf-8"))
    return record


def profiled(prepared: Prepared) -> Result:
    """Where the time of another run goes."""
    settings = prepared.run.settings.model_copy(update={"profile": True})
    begin(on=True)
    summary = carry_out(replace(prepared, run=replace(prepared.run, settings=settings)), Silent())
    assert summary.profile is not None
    found: Result = summary.profile.as_json()
    return found


def in_a_row(source: Path, flags: dict[str, Any]) -> float:
    """The rate of some scenes after each other, as a night has them: each is finished beside the next."""
    folder = SCRATCH / f"{source.parent.name}_in_a_row"
    folder.mkdir(exist_ok=True)
    for number in range(IN_A_ROW):
        link = folder / f"scene-{number}.tif"
        if not link.exists():
            os.link(source, link)
    summary = carry_out(prepare(load_settings(None, flags | {"input": (str(folder),)})), Silent())
    if len(summary.done) != IN_A_ROW:
        raise SegpipeError(f"{summary.failed} {summary.problems}")
    return round(summary.megapixels_per_second, 2)


def _peak_mb() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


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
            while time.perf_counter() - began < 0.7:
                for _ in range(4):  # few enough that the host does not run far ahead
                    model._network(given, out)
                model.lane.wait()
                count += 4
            rates.append((time.perf_counter() - began) / count / spec.batch)
    return min(rates)


class Busy:
    """Share of the time in which a kernel ran, and the memory used, as nvidia-smi samples them."""

    COMMAND = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "50")

    def __init__(self) -> None:
        self._there = shutil.which(self.COMMAND[0]) is not None
        self._samples: list[tuple[float, float, int]] = []

    def __enter__(self) -> "Busy":
        if self._there:
            self._process = subprocess.Popen(self.COMMAND, stdout=subprocess.PIPE, text=True)
            Thread(target=self._listen, daemon=True).start()
        return self

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            words = [word.strip() for word in line.split(",")]
            if len(words) == 2 and all(word.isdigit() for word in words):
                self._samples.append((time.time(), float(words[0]) / 100, int(words[1])))

    def between(self, start: float, stop: float) -> tuple[float | None, int | None]:
        """Mean share, and the most memory in MB."""
        rows = [(share, memory) for when, share, memory in self._samples if start <= when <= stop]
        return (round(float(np.mean([a for a, _ in rows])), 3), max(b for _, b in rows)) if rows else (None, None)

    def __exit__(self, *_: object) -> None:
        if self._there:
            self._process.terminate()


def apart(settings: Sequence[Setting], source: Path, tile: int, *, bare: bool, limit: float) -> list[Result]:
    """``several`` in a process of their own; an error is the result where one fails."""
    told = {"settings": [asdict(s) for s in settings], "source": str(source), "tile": tile, "bare": bare}
    process = subprocess.Popen(
        [sys.executable, __file__, "--these", json.dumps(told)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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

    def run(self, key: str, settings: Sequence[Setting], source: Path, *, bare: bool = False) -> list[Result]:
        """Runs of one process, kept under a key; what no longer fits is left out."""
        if self.left < 20:
            results: list[Result] = [{"error": "left out: no time"}] * len(settings)
        else:
            results = apart(settings, source, self.arguments.tile, bare=bare, limit=self.left)
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
    """Labels of the device against the CPU's, by precision; and the same bytes over repeats, in another process, too."""
    device, source = session.arguments.device, scene(session.arguments.parity_size, 0.1)
    found = {}
    for model in session.arguments.models:
        settings = [Setting(model, "cpu", 1), *precisions(model, device, 8)]
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
    from segpipe.pipeline.device import _load_tensorrt
    from segpipe.pipeline.errors import DeviceError

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
            tiles = sum(tile.error is None for tile in read([Case("scene", str(source))], Reading(spec, None)))
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
    parser.add_argument("--prepare", action="store_true", help="make the graph of smp's U-Net, and end")
    parser.add_argument("--these", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu-tensors"])
    parser.add_argument("--small", action="store_true", help="small scenes and batches: to see that every line runs")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "tf32", "fp16"], help="for throughput [all]")
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 32, 64])
    parser.add_argument("--size", type=int, default=10_980, help="pixels per side of the scene that is timed")
    parser.add_argument("--parity-size", type=int, default=2048)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=1500, help="after which no further run is begun")
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--out", type=Path, default=SCRATCH / "gpu.json")
    arguments = parser.parse_args()
    if arguments.small:
        arguments.size, arguments.parity_size, arguments.tile, arguments.batches = 400, 300, 128, [2, 3]
    return arguments


def main() -> None:
    arguments = arguments_of()
    if arguments.prepare:
        skeleton()
        return
    if arguments.these:
        asked = json.loads(arguments.these)
        settings = [Setting(**setting) for setting in asked["settings"]]
        for result in several(settings, Asked(Path(asked["source"]), asked["tile"], asked["bare"])):
            print(json.dumps(result), flush=True)
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
