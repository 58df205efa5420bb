"""Peak memory of a run against the size of its scene: the sum of PSS over all its processes, 16,384² against 4,096².

PSS counts a page that n processes share as 1/n in each, so that the sum is what the machine really gives. GDAL's cache is
fixed by segpipe. Limit: within 15 %. Or, with ``--planes 1200``, of a volume of 512 x 512 x 1,200 int16 voxels and a network
of 30 classes: limit 6 GiB.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import history
from children import watched
from machine import machine
from scans import volume, volumetric
from scenes import SCRATCH, islands, network, scene

LIMIT = 1.15
VOLUME_LIMIT_MB, CLASSES = 6 * 2**10, 30


def run(model: Path, source: Path, executor: str) -> tuple[float, float]:
    """Peak PSS in MB over the run's processes, and its seconds."""
    out = SCRATCH / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "segpipe.cli", "run", "--input", source, "--model", model, "--output", out]
    child = watched([*command, "--device", "cpu", "--executor", executor])
    return child.peak_mb, child.seconds


def run_volume(planes: int, executor: str) -> None:
    """Print the peak of a packed volume."""
    peak, seconds = run(volumetric(CLASSES), volume(planes), executor)
    told = f"512 x 512 x {planes:,}, int16, .nii.gz, {CLASSES} classes, executor {executor}"
    print(f"{told}: peak PSS {peak:,.0f} MB (limit {VOLUME_LIMIT_MB:,}) in {seconds:.0f} s")
    history.append("memory", {f"volume of {planes} planes": {"peak, MB": peak}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs=2, default=[4096, 16384])
    parser.add_argument("--network", default="0.1M")
    parser.add_argument("--islands", type=int, help="one sparse scene of this size instead")
    parser.add_argument("--planes", type=int, help="one volume of so many planes instead")
    parser.add_argument("--executor", default="dask", choices=["serial", "dask"])
    arguments = parser.parse_args()
    print(machine())
    if arguments.planes:
        run_volume(arguments.planes, arguments.executor)
        return
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
