"""How close a run comes to what the bare model allows, beside the scripts that people write instead.

In one run, in alternation, each in processes of its own: (a) ONNX Runtime alone on the tiles in memory, at the best of its
settings; (b) ``segpipe run``; (c) the plain script, ``benchmarks/plain.py``; (d) MONAI's ``sliding_window_inference``,
``benchmarks/sliding.py``. All are timed from the opening of the scene to the last rename, without the start of Python and
the loading of the model; the time of the whole process has those, too. Ratios are taken within a round; the order of a round
turns. Memory is PSS over all processes, taken in a round that is not timed.

Then the engines: OpenVINO alone, through a run, and in the plain script, in bf16 and on an int8 file, over ONNX Runtime
alone in fp32; labels and mean IoU on the bundled example beside the speed.

Then the faster model: the bundled network at int8 with larger tiles against the plain script at its defaults.

With ``--against CHECKOUT`` something else: this checkout's run and another's (an earlier commit's), in alternation.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import history
import numpy as np
import onnx
import rasterio
from bare import valid_tiles
from children import watched
from machine import load, machine, versions
from precision import EXAMPLES, FOLDER, export
from rasterio.transform import from_origin
from scenes import SCRATCH, network, scene
from stages import stages

from segpipe.export.precision import converted

HERE = Path(__file__).parent
WORK = SCRATCH / "limit"
SIZE, NODATA_SHARE = 4096, 0.3
NODATA = 255
PLAIN_GOAL, FASTER_GOAL, LABELS_GOAL = 1.25, 3.0, 0.99
AGAINST_GOAL = 1.02
ENGINE_GOALS = {"2M": {"bf16": 0.60, "int8": 0.40}, "0.1M": {"bf16": 0.65, "int8": 0.45}}
"""Most time of a run with OpenVINO over that of ONNX Runtime alone in fp32."""
OWN_GOAL = 1.15
"""Most time of a run over that of its own engine alone, for the larger network."""
ENGINE_LABELS = {"bf16": 0.995, "int8": 0.99}
"""Least share of labels on the example equal to fp32's."""
LOOKS = 0.5
"""Seconds between two looks at memory in a timed round of --quick."""

BARE, RUN, PLAIN, SLIDING = "bare ONNX Runtime", "segpipe run", "plain script", "MONAI"


@dataclass(frozen=True, slots=True)
class Scenario:
    """A network and a scene, and what the run should reach on them."""

    name: str
    network: str
    nodata: float
    goal: float
    """Wall time of the run over that of the bare model on all tiles, nodata ones included."""


SCENARIOS = (
    Scenario("2 M, all valid", "2M", 0.0, 1.06),
    Scenario("2 M, 30 % nodata", "2M", NODATA_SHARE, 0.90),
    Scenario("0.1 M, all valid", "0.1M", 0.0, 1.15),
)


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
        command = [sys.executable, "-m", "segpipe.cli", "run", "--input", source, "--model", model, "--output", out]
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


def compare(scenario: Scenario, pairs: int, *, quick: bool) -> dict[str, Any]:
    """All contenders on one scenario."""
    model, source = network(scenario.network), scene(SIZE, scenario.nodata)
    print(f"{scenario.name}: trying settings", file=sys.stderr, flush=True)
    settings, choice = best_bare(model, source, quick=quick), best_sliding(model, quick=quick)
    plain_mask, sliding_mask, out = WORK / "plain.tif", WORK / "sliding.tif", WORK / "out"
    contenders = [
        Contender(BARE, bare(model, source, settings)),
        Contender(RUN, segpipe(model, source, out), out / "scene.tif"),
        Contender(PLAIN, script("plain.py", model, source, plain_mask), plain_mask),
        Contender(SLIDING, script("sliding.py", model, source, sliding_mask, *choice), sliding_mask),
    ]
    alternate(contenders, pairs, quick=quick)
    facts = record(out)
    inferred, windows = int(facts["inferred"]), int(facts["windows"])
    alone, run, plain, sliding = contenders
    return {
        "scenario": scenario.name,
        "goal": scenario.goal,
        "windows": windows,
        "inferred": inferred,
        "bare": [{key: setting[key] for key in ("calls", "threads", "batch")} for setting in settings],
        "monai": [str(word) for word in choice],
        "contenders": {c.name: summary(c, out / "scene.tif") for c in contenders},
        "run_over_bare": ratios(run, alone),
        "run_over_bare_of_all_tiles": ratios(run, alone, inferred / windows),
        "plain_over_run": ratios(plain, run),
        "monai_over_run": ratios(sliding, run),
        "beside_the_network": {} if quick else {k: round(v, 3) for k, v in stages(model, source).items()},
    }


def summary(contender: Contender, reference: Path) -> dict[str, Any]:
    return {
        "seconds": spread(contender.seconds),
        "wall": spread(go.wall for go in contender.goes),
        "core_seconds": spread(go.busy for go in contender.goes),
        "peak_mb": round(contender.peak_mb),
        "equal_labels": None if contender.mask is None else equal(contender.mask, reference),
    }


def engines(name: str, pairs: int, *, quick: bool) -> dict[str, Any]:
    """OpenVINO in two precisions: alone, through a run, and in the plain script, beside ONNX Runtime alone."""
    model, source = network(name), scene(SIZE)
    files = {"bf16": (model, "openvino:bf16"), "int8": (in_int8(model, source), "openvino:f32")}
    calls = {"calls": len(os.sched_getaffinity(0)), "threads": 1, "batch": 1}
    found = [Contender(BARE, bare(model, source, best_bare(model, source, quick=quick)))]
    for precision, (file, engine) in files.items():
        out, mask = WORK / f"engine_{precision}", WORK / f"plain_{precision}.tif"
        words = ["--device", "openvino", "--precision", precision, "--min-agreement", "0"]
        plain = script("plain.py", file, source, mask, "--openvino", engine.partition(":")[2])
        found += [
            Contender(f"OpenVINO alone, {precision}", bare(file, source, [calls], engine)),
            Contender(f"segpipe run, {precision}", segpipe(file, source, out, *words), out / "scene.tif"),
            Contender(f"plain script with OpenVINO, {precision}", plain, mask),
        ]
    fp32 = Contender(RUN, segpipe(model, source, WORK / "out"), WORK / "out" / "scene.tif")
    alternate([*found, fp32], pairs, quick=quick)
    by_name = {one.name: one for one in (*found, fp32)}
    return {
        "scenario": f"engines, {name}",
        "network": name,
        "contenders": {one.name: summary(one, WORK / "out" / "scene.tif") for one in (*found, fp32)},
        "run_over_bare": {p: ratios(by_name[f"segpipe run, {p}"], by_name[BARE]) for p in files},
        "run_over_own": {p: ratios(by_name[f"segpipe run, {p}"], by_name[f"OpenVINO alone, {p}"]) for p in files},
    }


def in_int8(model: Path, source: Path) -> Path:
    """A network of the benchmarks in int8, with its ranges from some tiles of a scene."""
    path = model.with_name(f"{model.stem}_int8.onnx")
    if not path.exists():
        proto = onnx.load(str(model))
        for number, node in enumerate(proto.graph.node):
            node.name = f"node{number}"  # the quantiser tells nodes apart by their names
        int8 = converted(proto, "int8", [tile[0] for tile in valid_tiles(model, source)[:8]])
        onnx.helper.set_model_props(int8, {p.key: p.value for p in proto.metadata_props})
        onnx.save(int8, path)
    return path


def engines_on_the_example() -> dict[str, Any]:
    """Labels of the bundled network against fp32's, and mean IoU against the truth, by precision."""
    files = {"fp32": EXAMPLES / "crops.onnx", "bf16": EXAMPLES / "crops.onnx", "int8": small_model()}
    found: dict[str, Any] = {}
    for precision, file in files.items():
        out = WORK / f"example_{precision}"
        words = ["--input", EXAMPLES / "scenes", "--model", file, "--output", out, "--overwrite"]
        engine = ["--device", "cpu"] if precision == "fp32" else ["--device", "openvino", "--precision", precision]
        subprocess.run(
            [sys.executable, "-m", "segpipe.cli", "run", *map(str, words), *engine], check=True, capture_output=True
        )
        masks = sorted(out.glob("*.tif"))
        pairs = [
            (labels(mask), labels(WORK / "example_fp32" / mask.name), labels(EXAMPLES / "truth" / mask.name))
            for mask in masks
        ]
        own, fp32, truth = (np.concatenate([each[k].ravel() for each in pairs]) for k in range(3))
        seen = fp32 != NODATA
        found[precision] = {"labels": float((own == fp32)[seen].mean()), "miou": mean_iou(own[seen], truth[seen])}
    return found


def mean_iou(found: np.ndarray, truth: np.ndarray) -> float:
    """Over the classes of the truth."""
    known = truth != NODATA
    found, truth = found[known], truth[known]
    each = [((found == k) & (truth == k)).sum() / ((found == k) | (truth == k)).sum() for k in np.unique(truth)]
    return float(np.mean(each))


def engines_table(row: dict[str, Any]) -> str:
    """Markdown for the engines on one network."""
    everyone = row["contenders"]
    base = everyone[BARE]["seconds"][1]
    lines = [
        f"**U-Net, {row['scenario']}**",
        "",
        "| what | seconds | over bare fp32 | peak memory | labels as fp32's |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, facts in everyone.items():
        same = "" if facts["equal_labels"] is None else f"{facts['equal_labels']:.3%}"
        over = facts["seconds"][1] / base
        lines.append(f"| {name} | {shown(facts['seconds'])} | {over:.2f} | {facts['peak_mb']:,} MB | {same} |")
    lines.append("")
    for precision, goal in ENGINE_GOALS[row["network"]].items():
        over, own = row["run_over_bare"][precision], row["run_over_own"][precision]
        lines.append(f"- run in {precision} over bare fp32: {shown(over, 3)}; {verdict(over[1], goal)}")
        limit = f"; {verdict(own[1], OWN_GOAL)}" if row["network"] == "2M" else ""
        lines.append(f"- run in {precision} over its own engine alone: {shown(own, 3)}{limit}")
    return "\n".join([*lines, ""])


def example_table(row: dict[str, Any]) -> str:
    """Markdown for the bundled network."""
    lines = ["**Bundled network, example scenes**", "", "| precision | labels as fp32's | mean IoU |", "| --- | --- | --- |"]
    lines += [f"| {name} | {facts['labels']:.3%} | {facts['miou']:.4f} |" for name, facts in row.items()]
    goals = [f"- labels in {p}: {verdict(row[p]['labels'], goal, least=True)}" for p, goal in ENGINE_LABELS.items()]
    return "\n".join([*lines, "", *goals, ""])


def mosaic(size: int) -> Path:
    """The bundled scenes side by side, mirrored in turn, up to a large one."""
    path = SCRATCH / f"mosaic_{size}" / "scene.tif"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    found = [_pixels(scene) for scene in sorted((EXAMPLES / "scenes").glob("*.tif"))]
    (rows, cols), names = np.min([pixels.shape[1:] for pixels, _ in found], axis=0), found[0][1]
    canvas = np.zeros((len(names), size + rows, size + cols), np.uint16)
    for i, row in enumerate(range(0, size, rows)):
        for j, col in enumerate(range(0, size, cols)):
            block = found[(i + j) % len(found)][0][:, :rows, :cols]
            canvas[:, row : row + rows, col : col + cols] = block[:, :: 1 - 2 * (i % 2), :: 1 - 2 * (j % 2)]
    draft, grid = (
        path.with_suffix(".draft"),
        {"crs": "EPSG:32633", "transform": from_origin(5e5, 5.4e6, 10, 10), "nodata": 0},
    )
    tiles = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "predictor": 2}
    shape = {"dtype": "uint16", "count": len(names), "height": size, "width": size}
    with rasterio.open(draft, "w", driver="GTiff", **shape, **grid, **tiles) as dataset:
        dataset.write(canvas[:, :size, :size])
        dataset.descriptions = names
    draft.rename(path)
    return path


def _pixels(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    with rasterio.open(path) as dataset:
        return dataset.read(), dataset.descriptions


def small_model() -> Path:
    """The bundled network at int8, exported once, or again when its weights are newer."""
    path, weights = FOLDER / "crops_int8.onnx", EXAMPLES / "crops.safetensors"
    if not path.exists() or path.stat().st_mtime < weights.stat().st_mtime:
        export("int8")
    return path


def faster(pairs: int, *, quick: bool) -> dict[str, Any]:
    """The plain script at its defaults against what a user of segpipe can choose on the same network."""
    source, model, int8 = mosaic(SIZE), EXAMPLES / "crops.onnx", small_model()
    plain_mask = WORK / "plain.tif"
    outs = {name: WORK / f"faster_{i}" for i, name in enumerate(CHOICES)}
    choices = [
        Contender(name, segpipe(int8 if "int8" in name else model, source, outs[name], *more), outs[name] / "scene.tif")
        for name, more in CHOICES.items()
    ]
    plain = Contender(PLAIN, script("plain.py", model, source, plain_mask), plain_mask)
    alternate([plain, *choices], pairs, quick=quick)
    reference = outs[AS_IT_IS] / "scene.tif"
    return {
        "scenario": "bundled network",
        "contenders": {c.name: summary(c, reference) for c in (plain, *choices)},
        "plain_over": {c.name: ratios(plain, c) for c in choices},
    }


AS_IT_IS = "segpipe, fp32, tile 256, overlap 64"
CHOSEN = "segpipe, int8, tile 512, overlap 64"
CHOICES: dict[str, list[str]] = {
    AS_IT_IS: [],
    "segpipe, fp32, tile 512, overlap 64": ["--tile", "512", "--overlap", "64"],
    "segpipe, int8, tile 256, overlap 64": [],
    CHOSEN: ["--tile", "512", "--overlap", "64"],
}


def shown(values: Sequence[float], digits: int = 2) -> str:
    """Median (least to most)."""
    low, middle, high = values
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def verdict(value: float, goal: float, *, least: bool = False) -> str:
    reached = value >= goal if least else value <= goal
    return f"goal {'>=' if least else '<='} {goal:g}: {'reached' if reached else 'MISSED'}"


def limit_table(row: dict[str, Any]) -> str:
    """Markdown for one scenario."""
    everyone = row["contenders"]
    base = everyone[BARE]["seconds"][1]
    bares = " or ".join(f"{b['calls']} calls x {b['threads']} threads, batch {b['batch']}" for b in row["bare"])
    lines = [
        f"**U-Net, {row['scenario']}**: {row['inferred']} of {row['windows']} tiles are inferred; bare at {bares}, the "
        f"better each time; MONAI at {' '.join(row['monai'])}",
        "",
        "| what | seconds | over bare | whole process, s | core-seconds of it | peak memory | labels as segpipe's |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, facts in everyone.items():
        same = "" if facts["equal_labels"] is None else f"{facts['equal_labels']:.3%}"
        lines.append(
            f"| {name} | {shown(facts['seconds'])} | {facts['seconds'][1] / base:.2f} | {facts['wall'][1]:.1f} | "
            f"{facts['core_seconds'][1]:.1f} | "
            f"{facts['peak_mb']:,} MB | {same} |"
        )
    over = row["run_over_bare_of_all_tiles"]
    return "\n".join(
        [
            *lines,
            "",
            f"- run over bare, tiles that are inferred: {shown(row['run_over_bare'], 3)}",
            f"- run over bare, all tiles: {shown(over, 3)}; {verdict(over[1], row['goal'])}",
            f"- plain script over run: {shown(row['plain_over_run'], 3)}; "
            f"{verdict(row['plain_over_run'][1], PLAIN_GOAL, least=True)}",
            f"- MONAI over run: {shown(row['monai_over_run'], 3)}",
            f"- beside the network, core-seconds: {row['beside_the_network']}",
            "",
        ]
    )


def faster_table(row: dict[str, Any]) -> str:
    """Markdown for the bundled network."""
    lines = [
        f"**Bundled network on a mosaic of {SIZE:,}² pixels**",
        "",
        "| what | seconds | times as fast as the plain script | peak memory | labels as fp32's |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, facts in row["contenders"].items():
        times = shown(row["plain_over"][name]) if name in row["plain_over"] else "1"
        lines.append(
            f"| {name} | {shown(facts['seconds'])} | {times} | {facts['peak_mb']:,} MB | {facts['equal_labels']:.3%} |"
        )
    same = row["contenders"][CHOSEN]["equal_labels"]
    return "\n".join(
        [
            *lines,
            "",
            f"- {CHOSEN}: {verdict(row['plain_over'][CHOSEN][1], FASTER_GOAL, least=True)}; "
            f"labels {verdict(same, LABELS_GOAL, least=True)}",
            "",
        ]
    )


def figures(row: dict[str, Any]) -> dict[str, float]:
    """What the history keeps of a result."""
    kept = {f"{name}, s": facts["seconds"][1] for name, facts in row["contenders"].items()}
    kept |= {f"{name}, MB": facts["peak_mb"] for name, facts in row["contenders"].items()}
    keys = ("run_over_bare", "run_over_bare_of_all_tiles", "plain_over_run", "monai_over_run")
    kept |= {key: row[key][1] for key in keys if isinstance(row.get(key), list)}
    for key in ("run_over_bare", "run_over_own"):
        if isinstance(row.get(key), dict):
            kept |= {f"{key}, {precision}": values[1] for precision, values in row[key].items()}
    return kept | {f"plain over {name}": values[1] for name, values in row.get("plain_over", {}).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--pairs", type=int, default=5, help="timed rounds [5]")
    parser.add_argument("--quick", action="store_true", help="one round, fewer scenarios: about three minutes")
    parser.add_argument("--only", nargs="+", choices=[*names, "engines", "faster"], help="these alone")
    parser.add_argument("--no-history", action="store_true", help="leave benchmarks/history.jsonl as it is")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="only this checkout's run over that one's")
    arguments = parser.parse_args()
    quick, pairs = arguments.quick, 1 if arguments.quick else arguments.pairs
    wanted = arguments.only or ([names[0], names[2], "faster"] if quick else [*names, "engines", "faster"])
    WORK.mkdir(parents=True, exist_ok=True)
    print(
        f"{machine()}; load before {load():.1f}; {SIZE:,}² pixels, 4 bands, uint16; {pairs} rounds; median (least to most)\n"
    )
    if arguments.against:
        against(arguments.against.resolve(), wanted, pairs)
        return
    results = []
    for scenario in SCENARIOS:
        if scenario.name in wanted:
            results.append(compare(scenario, pairs, quick=quick))
            keep(results)
            print(limit_table(results[-1]), flush=True)
    if "engines" in wanted:
        for name in ENGINE_GOALS:
            results.append(engines(name, pairs, quick=quick))
            keep(results)
            print(engines_table(results[-1]), flush=True)
        print(example_table(engines_on_the_example()), flush=True)
    if "faster" in wanted:
        results.append(faster(pairs, quick=quick))
        keep(results)
        print(faster_table(results[-1]), flush=True)
    if not (arguments.no_history or quick):
        history.append("limit", {row["scenario"]: figures(row) for row in results})


def against(checkout: Path, wanted: Sequence[str], pairs: int) -> None:
    """What a change costs: this checkout's run over another's."""
    for scenario in (scenario for scenario in SCENARIOS if scenario.name in wanted):
        model, source = network(scenario.network), scene(SIZE, scenario.nodata)
        outs = {"this": WORK / "this", "other": WORK / "other"}
        new = Contender("this", segpipe(model, source, outs["this"]), outs["this"] / "scene.tif")
        old = Contender("other", segpipe(model, source, outs["other"], checkout=checkout), outs["other"] / "scene.tif")
        alternate([new, old], pairs, quick=False)
        middle = ratios(new, old)
        whole = spread(a.wall / b.wall for a, b in zip(new.goes, old.goes, strict=True))
        cores = spread(a.busy / b.busy for a, b in zip(new.goes, old.goes, strict=True))
        same = equal(outs["this"] / "scene.tif", outs["other"] / "scene.tif")
        print(f"**{scenario.name}**: this over other: {shown(middle, 3)}; {verdict(middle[1], AGAINST_GOAL)}")
        print(f"- whole process {shown(whole, 3)}, core-seconds {shown(cores, 3)}, equal labels {same:.3%}", flush=True)


def keep(results: list[dict[str, Any]]) -> None:
    """Save the results after every scenario, in case the run is stopped."""
    report = {"machine": machine(), "versions": versions(), "load": load(), "commit": history.commit(), "results": results}
    (SCRATCH / "limit.json").write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
