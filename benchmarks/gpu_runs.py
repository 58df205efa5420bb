"""Runs on a device for benchmarks/gpu.py, in a process of their own: one line of JSON for each.

python benchmarks/gpu_runs.py '{"settings": [{"model": "example", "device": "cuda", "batch": 8}], "source": ...}'
"""

import gc
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from gpu_networks import Setting, file_of
from scenes import OVERLAP, SCRATCH

from segpipe.errors import SegpipeError
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import Prepared, prepare
from segpipe.settings import load_settings
from segpipe.timing.spans import begin

IN_A_ROW = 4
"""Scenes."""

Result = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What is asked of the runs of a process."""

    source: Path
    tile: int
    bare: float
    """Seconds for which the network alone is timed, three times; 0 if it is not."""


def several(settings: Iterable[Setting], asked: Asked) -> Iterator[Result]:
    """From a scene on disk to its mask; and the rate of the same session on pixels that are on the device already."""
    with Busy() as busy:
        for number, setting in enumerate(settings):
            try:
                yield one(setting, asked, busy, thorough=bool(asked.bare) and not number)
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
    flags = _flags(setting, asked, out)
    began = time.perf_counter()
    prepared = prepare(load_settings(None, flags))
    trial = time.perf_counter() - began
    first = _carried_out(prepared, out) if thorough else None
    record, measured = _measured(prepared, out, busy)
    result = {"trial_seconds": round(trial, 2), **measured}
    if first is not None:
        result |= {
            "first_seconds": first["seconds"],
            "in_a_row_mpx_per_second": in_a_row(asked.source, flags),
            "profile": profiled(prepared),
        }
    return result | _beside_bare(prepared, record, asked.bare) if asked.bare else result


def _flags(setting: Setting, asked: Asked, out: Path) -> dict[str, Any]:
    return {
        "input": (str(asked.source),),
        "model": file_of(setting),
        "output": out,
        "executor": "serial",
        "overwrite": True,
        "device": setting.device,
        "batch": setting.batch,
        "tile": (asked.tile,),
        "overlap": (asked.tile * OVERLAP // 512,),
        **{name: True for name in ("tf32", "nhwc") if getattr(setting, name)},
    }


def _measured(prepared: Prepared, out: Path, busy: "Busy") -> tuple[dict[str, Any], Result]:
    """The record of a run, and what it took."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak of memory begins anew
    started = time.time()
    record = _carried_out(prepared, out)
    share, memory = busy.between(started, time.time())
    return record, {
        "mask": str(out / "scene.tif"),
        "windows": record["inferred"],
        "seconds": record["seconds"],
        "mpx_per_second": round(_megapixels(record) / record["seconds"], 2),
        "busy": share,
        "device_mb": memory,
        "host_mb": _peak_mb(),
        "device": record["device"],
    }


def _beside_bare(prepared: Prepared, record: dict[str, Any], seconds: float) -> Result:
    """The rate of the network alone, timed for so many seconds, and the share of it that the run reached."""
    gc.collect()
    alone = bare_seconds(prepared.run.model, seconds) * record["inferred"]
    return {
        "bare_mpx_per_second": round(_megapixels(record) / alone, 2),
        "share_of_bare": round(alone / record["seconds"], 3),
    }


def _megapixels(record: dict[str, Any]) -> float:
    return float(np.prod(record["input"]["shape"])) / 1e6


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


def bare_seconds(spec: Any, seconds: float) -> float:
    """Of one tile, in full batches that lie on the device: the network alone, best of three."""
    import torch

    from segpipe.pipeline.infer import load_model

    model: Any = load_model(spec)
    with model.arrays.here():
        image = torch.randn(spec.batch_shape, device=model.streams.device)
        (network,) = model.networks
        given = network.given(image)
        rates: list[float] = []
        for _ in range(3):
            count, began = 0, time.perf_counter()
            while time.perf_counter() - began < seconds:
                for _ in range(4):  # few enough that the host does not run far ahead
                    network.run(given)
                model.streams.wait()
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


def main() -> None:
    asked = json.loads(sys.argv[1])
    settings = [Setting(**setting) for setting in asked["settings"]]
    for result in several(settings, Asked(Path(asked["source"]), asked["tile"], asked["bare"])):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
