"""What a figure was measured on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from segpipe.results.device_kind import versions as run_versions

BESIDE = ("torch", "monai")
"""Packages of the benchmarks whose versions count, too."""


def kind() -> str:
    """Processor and how many of them this process may use: figures of one kind can be compared."""
    facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    model = next((value.strip() for key, value in facts.items() if key.strip() == "model name"), platform.machine())
    return f"{model}, {len(os.sched_getaffinity(0))} processors"


def versions() -> dict[str, str]:
    """Of Python, segpipe, what touches pixels, and what it is compared with."""
    found = dict(run_versions())
    for name in BESIDE:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """In one line."""
    found = versions()
    runtime = found.get("onnxruntime-gpu") or found["onnxruntime"]
    return f"{kind()}, Python {found['python']}, ONNX Runtime {runtime}"


def load() -> float:
    """Processes that want a processor, over the last minute: above 1 or so, somebody else is at work here."""
    return os.getloadavg()[0]
