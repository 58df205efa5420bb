"""Who is timed against whom: processes that label one scene, in rounds whose order turns."""

import json
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from children import watched
from machine import load
from scenes import SCRATCH, scene

HERE = Path(__file__).parent
WORK = SCRATCH / "limit"
SIZE = 4096
"""Rows and columns of the scenes."""

NODATA = 255
LOOKS = 0.5
"""Seconds between two looks at memory in a timed round of --quick."""

BARE, RUN, PLAIN, SLIDING = "bare ONNX Runtime", "segpipe run", "plain script", "MONAI"


@dataclass(frozen=True, slots=True)
class Go:
    """One go of a contender."""

    seconds: float
    wall: float
    busy: float
    peak_mb: float


@dataclass
class Contender:
    """Who is timed: how to let it go, where its mask lies, and how its goes went."""

    name: str
    once: Callable[[float | None], Go]
    mask: Path | None = None
    peak_mb: float = 0.0
    goes: list[Go] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        return [go.seconds for go in self.goes]


def alternate(contenders: Sequence[Contender], pairs: int, *, quick: bool) -> None:
    """A round that looks at memory, then rounds that are timed; the order turns by one from round to round."""
    if not quick:
        for contender in contenders:
            contender.peak_mb = contender.once(0.05).peak_mb
    for pair in range(pairs):
        turned = [*contenders[pair % len(contenders) :], *contenders[: pair % len(contenders)]]
        for contender in turned:
            contender.goes.append(contender.once(LOOKS if quick else None))
            contender.peak_mb = max(contender.peak_mb, contender.goes[-1].peak_mb)
        summary = ", ".join(f"{contender.name} {contender.seconds[-1]:.2f} s" for contender in contenders)
        print(f"  round {pair + 1} of {pairs}, load {load():.1f}: {summary}", file=sys.stderr, flush=True)


def script(name: str, *arguments: object) -> Callable[[float | None], Go]:
    """A script of this folder that prints its seconds."""

    def once(every: float | None) -> Go:
        child = watched([sys.executable, HERE / name, *arguments], every=every)
        return Go(float(json.loads(child.printed)["seconds"]), child.seconds, child.busy, child.peak_mb)

    return once


def segpipe(
    model: Path, source: Path, out: Path, *more: object, checkout: Path = HERE.parent
) -> Callable[[float | None], Go]:
    """``segpipe run`` of one scene, timed by its own record, with the package of a checkout."""

    def once(every: float | None) -> Go:
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "segpipe", "run", "--input", source, "--model", model, "--output", out]
        where = [] if "--device" in more else ["--device", "cpu"]
        child = watched([*command, *where, *more], every=every, environment={"PYTHONPATH": str(checkout)})
        return Go(float(record(out)["seconds"]), child.seconds, child.busy, child.peak_mb)

    return once


def record(out: Path) -> dict[str, Any]:
    """Of the one case in a folder."""
    facts: dict[str, Any] = json.loads((out / "scene.json").read_text())
    return facts


def bare(
    model: Path, source: Path, settings: Sequence[dict[str, Any]], engine: str = "onnxruntime"
) -> Callable[[float | None], Go]:
    """The bare model at the better of two settings each time: noise in their trial once flattered the run by a tenth."""

    def at(setting: dict[str, Any], every: float | None) -> Go:
        words = [str(setting[key]) for key in ("calls", "threads", "batch")]
        child = watched(
            [sys.executable, HERE / "bare.py", model, source, "--engine", engine, "--setting", *words], every=every
        )
        return Go(float(json.loads(child.printed)["tried"][0]["seconds"]), child.seconds, child.busy, child.peak_mb)

    return lambda every: min((at(setting, every) for setting in settings), key=lambda go: go.seconds)


def best_bare(model: Path, source: Path, *, quick: bool) -> list[dict[str, Any]]:
    """The two fastest of calls in flight x threads x batch on some tiles of the scene; the two of different calls."""
    tries = ["--tiles", 12 if quick else 24, "--batches", *((1, 2) if quick else (1, 2, 4)), "--goes", 1 if quick else 2]
    facts = json.loads(watched([sys.executable, HERE / "bare.py", model, source, *tries], every=None).printed)
    best, *others = facts["tried"]
    return [best, next(other for other in others if other["calls"] != best["calls"])]


def best_sliding(model: Path, *, quick: bool) -> list[object]:
    """The fastest batch and layout of MONAI with torch on a small scene."""
    choices: list[list[object]] = [["--batch", 1, "--layout", "channels_last"]]
    if not quick:
        choices += [["--batch", 4, "--layout", "channels_last"], ["--batch", 1, "--layout", "contiguous"]]
    small, mask = scene(1024), WORK / "try.tif"
    return (
        choices[0]
        if quick
        else min(choices, key=lambda choice: script("sliding.py", model, small, mask, *choice)(None).seconds)
    )


def labels(mask: Path) -> np.ndarray:
    with rasterio.open(mask) as dataset:
        return np.asarray(dataset.read(1))


def equal(mask: Path, reference: Path) -> float:
    """Share of the reference's valid pixels that have the same label."""
    a, b = labels(mask), labels(reference)
    return float((a == b)[b != NODATA].mean())


def spread(values: Iterable[float]) -> list[float]:
    """Least, median, most."""
    values = list(values)
    return [round(x, 4) for x in (min(values), statistics.median(values), max(values))]


def ratios(over: Contender, under: Contender, factor: float = 1.0) -> list[float]:
    """Within each round."""
    return spread(factor * a / b for a, b in zip(over.seconds, under.seconds, strict=True))


def summary(contender: Contender, reference: Path) -> dict[str, Any]:
    return {
        "seconds": spread(contender.seconds),
        "wall": spread(go.wall for go in contender.goes),
        "core_seconds": spread(go.busy for go in contender.goes),
        "peak_mb": round(contender.peak_mb),
        "equal_labels": None if contender.mask is None else equal(contender.mask, reference),
    }
