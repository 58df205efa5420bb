"""Peak memory of a run against the size of its scene: the sum of PSS over all its processes, 16,384² against 4,096².

PSS counts a page that n processes share as 1/n in each, so that the sum is the memory that the machine really uses. segpipe
fixes the size of GDAL's cache. The two peaks may differ by 15 %.

With ``--planes 1200``, measure a volume of 512 x 512 x 1,200 int16 voxels and a network of 30 classes instead: limit 6 GiB.
``--lesions`` measures every component of its classes, too, with confidence and intensities; ``--percentiles`` clips it at
percentiles of its own, for which it is read twice before.

With ``--whole-body 800``, measure a volume of 512 x 512 x 800 voxels of 0.75 x 0.75 x 1 mm and a network of 117 classes and
patches of 128³, half of which overlap: at 1.5 mm and at the volume's own spacing. Limit 8 GiB, and 25 % for the estimate.

With ``--estimates``, compare what ``--dry-run`` expects with the peak of one process instead, for a scene, a low wide scene
and that volume with and without both: the estimate must lie within 25 % of the peak.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

import history
from children import watched
from machine import machine
from scans import volume, volumetric, whole_body
from scenes import SCRATCH, islands, network, scene, wide

LIMIT = 1.15
VOLUME_LIMIT_MB, CLASSES = 6 * 2**10, 30
WHOLE_BODY_LIMIT_MB, FINE = 8 * 2**10, (0.75, 0.75, 1.0)
ESTIMATE_WITHIN = 0.25
LOW_WIDE = (700, 60_000)
LESIONS = ("--lesions", "--confidence")


def run(model: Path, source: Path, executor: str, *more: str) -> tuple[float, float]:
    """Run once; return the peak PSS of all its processes in MiB, and the wall time in seconds."""
    shutil.rmtree(SCRATCH / "out", ignore_errors=True)
    child = watched(command(model, source, executor, *more))
    return child.peak_mb, child.seconds


def command(model: Path, source: Path, executor: str, *more: str) -> list[object]:
    """The command line of a run."""
    words = [sys.executable, "-m", "segpipe.cli", "run", "--input", source, "--model", model, "--output", SCRATCH / "out"]
    return [*words, "--device", "cpu", "--executor", executor, *more]


def estimate(model: Path, source: Path, *more: str) -> float:
    """Memory per worker that ``--dry-run`` expects, in MiB."""
    printed = watched(command(model, source, "serial", "--dry-run", *more), every=None).printed
    found = re.search(r"about ([\d,]+) MB of memory", printed)
    if found is None:
        raise SystemExit(printed)
    return float(found[1].replace(",", "")) * 1e6 / 2**20


def compare(size: int, name: str, planes: int) -> bool:
    """Print estimates and peaks; return whether all estimates are within the limit."""
    cases: dict[str, tuple[Path, Path, tuple[str, ...]]] = {
        f"scene of {size:,}²": (network(name), scene(size), ()),
        "low wide scene of {:,} x {:,}".format(*LOW_WIDE): (network(name), wide(*LOW_WIDE), ()),
        f"volume of {planes:,} planes": (volumetric(CLASSES), volume(planes), ()),
        "the same with lesions and percentiles": (volumetric(CLASSES, percentiles=True), volume(planes), LESIONS),
    }
    ratios = {}
    for what, (model, source, more) in cases.items():
        expected, (peak, seconds) = estimate(model, source, *more), run(model, source, "serial", *more)
        ratios[what] = expected / peak
        summary = f"{what}: expected {expected:,.0f} MiB, peak PSS {peak:,.0f} MiB in {seconds:.0f} s"
        print(f"{summary}, ratio {ratios[what]:.2f} (limit 1 +- {ESTIMATE_WITHIN})", flush=True)
        history.append("memory", {f"estimate, {what}": {"expected, MiB": expected, "peak, MiB": peak}})
    return all(abs(ratio - 1) <= ESTIMATE_WITHIN for ratio in ratios.values())


def run_volume(planes: int, executor: str, *, lesions: bool, percentiles: bool) -> bool:
    """Run a packed volume and print the peak memory; return whether it is within the limit."""
    model, more = volumetric(CLASSES, percentiles=percentiles), LESIONS if lesions else ()
    peak, seconds = run(model, volume(planes), executor, *more)
    extras = ", lesions" * lesions + ", percentiles" * percentiles
    summary = f"512 x 512 x {planes:,}, int16, .nii.gz, {CLASSES} classes{extras}, executor {executor}"
    print(f"{summary}: peak PSS {peak:,.0f} MB (limit {VOLUME_LIMIT_MB:,}) in {seconds:.0f} s")
    history.append("memory", {f"volume of {planes} planes{extras}": {"peak, MB": peak}})
    return peak <= VOLUME_LIMIT_MB


def run_whole_body(planes: int, spacing: float | None, executor: str) -> bool:
    """Run a network of 117 classes; return whether peak and estimate are within their limits."""
    model, source = whole_body(spacing), volume(planes, FINE)
    expected, (peak, seconds) = estimate(model, source), run(model, source, executor)
    where = "its own spacing" if spacing is None else f"{spacing} mm"
    speed = 512 * 512 * planes / seconds / 1e6
    summary = f"512 x 512 x {planes:,}, int16, .nii.gz, 117 classes at {where}, executor {executor}"
    print(f"{summary}: expected {expected:,.0f} MiB, peak PSS {peak:,.0f} MiB (limit {WHOLE_BODY_LIMIT_MB:,})", flush=True)
    print(f"{seconds:.0f} s, {speed:.2f} Mvox/s", flush=True)
    figures = {"expected, MiB": expected, "peak, MiB": peak, "Mvox/s": speed}
    history.append("memory", {f"117 classes, {planes} planes, {where}": figures})
    return peak <= WHOLE_BODY_LIMIT_MB and abs(expected / peak - 1) <= ESTIMATE_WITHIN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs=2, default=[4096, 16384])
    parser.add_argument("--network", default="0.1M")
    parser.add_argument("--islands", type=int, help="one sparse scene of this size instead")
    parser.add_argument("--planes", type=int, help="one volume of so many planes instead")
    parser.add_argument("--whole-body", type=int, help="one volume of so many planes and 117 classes instead")
    parser.add_argument("--lesions", action="store_true", help="measure the components of that volume, too")
    parser.add_argument("--percentiles", action="store_true", help="clip that volume at percentiles of its own")
    parser.add_argument("--executor", default="dask", choices=["serial", "dask"])
    parser.add_argument("--estimates", action="store_true", help="what --dry-run expects beside peaks instead")
    arguments = parser.parse_args()
    print(machine())
    if arguments.estimates:
        sys.exit(not compare(arguments.sizes[0], arguments.network, arguments.planes or 1200))
    if arguments.whole_body:
        both = [run_whole_body(arguments.whole_body, spacing, arguments.executor) for spacing in (1.5, None)]
        sys.exit(not all(both))
    if arguments.planes:
        kept = run_volume(arguments.planes, arguments.executor, lesions=arguments.lesions, percentiles=arguments.percentiles)
        sys.exit(not kept)
    if arguments.islands:
        peak, seconds = run(network(arguments.network), islands(arguments.islands), arguments.executor)
        print(f"{arguments.islands} x {arguments.islands}, sparse: peak PSS {peak:,.0f} MB in {seconds:.0f} s")
        return
    peaks = []
    for size in arguments.sizes:
        peak, seconds = run(network(arguments.network), scene(size), arguments.executor)
        peaks.append(peak)
        print(f"{size} x {size}: peak PSS {peak:,.0f} MB in {seconds:.0f} s", flush=True)
    ratio = peaks[1] / peaks[0]
    print(f"ratio {ratio:.3f} (limit {LIMIT}), network {arguments.network}, 5 classes, executor {arguments.executor}")
    (SCRATCH / "memory.json").write_text(json.dumps({"machine": machine(), "peak_mb": peaks, "ratio": ratio}, indent=2))
    figures = {f"{size}², MB": peak for size, peak in zip(arguments.sizes, peaks, strict=True)}
    history.append("memory", {f"network {arguments.network}": {**figures, "ratio": ratio}})


if __name__ == "__main__":
    main()
