"""Peak memory of a run against the size of its scene: the sum of PSS over all its processes, 16,384² against 4,096².

PSS counts a page that n processes share as 1/n in each, so that the sum is what the machine really gives. GDAL's cache is
fixed by segpipe. Limit: within 15 %.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from scenes import SCRATCH, islands, machine, network, scene

LIMIT = 1.15
INTERVAL = 0.05


def run(model: Path, source: Path, executor: str) -> tuple[float, float]:
    """Peak PSS in MB over the run's processes, and its seconds."""
    out = SCRATCH / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "segpipe.cli", "run", "--input", source, "--model", model, "--output", out]
    command += ["--device", "cpu", "--executor", executor]
    started, peak = time.perf_counter(), 0.0
    with subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, sum(pss(pid) for pid in family(process.pid)))
            time.sleep(INTERVAL)
    if process.returncode:
        raise SystemExit(f"the run failed with exit code {process.returncode}")
    return peak, time.perf_counter() - started


def family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        children = [int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]
    except OSError:
        return []
    return [pid, *(below for child in children for below in family(child))]


def pss(pid: int) -> float:
    """Proportional set size in MB; 0 for a process that has just ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs=2, default=[4096, 16384])
    parser.add_argument("--network", default="0.1M")
    parser.add_argument("--islands", type=int, help="one sparse scene of this size instead")
    parser.add_argument("--executor", default="dask", choices=["serial", "dask"])
    arguments = parser.parse_args()
    print(machine())
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


if __name__ == "__main__":
    main()
