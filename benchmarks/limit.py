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
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import history
import onnx
from bare import valid_tiles
from bundled import AS_IT_IS, CHOICES, engines_on_the_example, mosaic, small_model
from contenders import (
    BARE,
    PLAIN,
    RUN,
    SIZE,
    SLIDING,
    WORK,
    Contender,
    alternate,
    bare,
    best_bare,
    best_sliding,
    equal,
    ratios,
    record,
    script,
    segpipe,
    spread,
    summary,
)
from limit_tables import ENGINE_GOALS, engines_table, example_table, faster_table, figures, limit_table, shown, verdict
from machine import load, machine, versions
from precision import EXAMPLES
from scenes import SCRATCH, network, scene
from stages import stages

from segpipe.export.precision import converted

NODATA_SHARE = 0.3
AGAINST_GOAL = 1.02


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
