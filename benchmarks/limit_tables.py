"""What ``benchmarks/limit.py`` prints, and what it keeps."""

from collections.abc import Sequence
from typing import Any

from bundled import CHOSEN
from contenders import BARE, SIZE

PLAIN_GOAL, FASTER_GOAL, LABELS_GOAL = 1.25, 3.0, 0.99
ENGINE_GOALS = {"2M": {"bf16": 0.60, "int8": 0.40}, "0.1M": {"bf16": 0.65, "int8": 0.45}}
"""Most time of a run with OpenVINO over that of ONNX Runtime alone in fp32."""
OWN_GOAL = 1.15
"""Most time of a run over that of its own engine alone, for the larger network."""
ENGINE_LABELS = {"bf16": 0.995, "int8": 0.99}
"""Least share of labels on the example equal to fp32's."""


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


def shown(values: Sequence[float], digits: int = 2) -> str:
    """Median (least to most)."""
    low, middle, high = values
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def verdict(value: float, goal: float, *, least: bool = False) -> str:
    reached = value >= goal if least else value <= goal
    return f"goal {'>=' if least else '<='} {goal:g}: {'reached' if reached else 'MISSED'}"


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
