"""Workers as jobs of a real SLURM beside processes of this machine, undisturbed and disturbed: seconds, and the same bytes.

One scene in twelve parts, two workers of one processor each. In a disturbed run the first job is cancelled, or put back into
the queue, once the first part is there. Needs ``sbatch`` and a node; without, it says so.
"""

import argparse
import filecmp
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import history
from machine import load, machine
from scenes import SCRATCH, network, scene

ROOT = Path(__file__).parents[1]
WORK = SCRATCH / "slurm"
NAME = "segpipe-bench"
SIZE, PARTS = 4096, "12"

LOCAL, JOBS, CANCELLED, REQUEUED = "processes of this machine", "jobs", "jobs, one cancelled", "jobs, one requeued"
HOW: dict[str, list[str]] = {
    LOCAL: ["--workers", "2"],
    JOBS: [],
    CANCELLED: ["scancel"],
    REQUEUED: ["scontrol", "requeue"],
}


def running() -> list[str]:
    """Numbers of the jobs that run."""
    words = ["squeue", "--noheader", "--name", NAME, "--states", "RUNNING", "--format", "%i"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()


def cluster() -> Path:
    """The file that is shipped, with a job name of its own."""
    path = WORK / "slurm.toml"
    path.write_text((ROOT / "configs" / "slurm.toml").read_text().replace("[job]", f'[job]\njob_name = "{NAME}"'))
    return path


def go(name: str) -> dict[str, float]:
    """One run: seconds to its end, and to its first part."""
    out = WORK / name.replace(" ", "_").replace(",", "")
    shutil.rmtree(out, ignore_errors=True)
    words = ["--input", scene(SIZE), "--model", network("0.1M"), "--output", out, "--parts", PARTS, "--device", "cpu"]
    words += HOW[LOCAL] if name == LOCAL else ["--cluster", cluster()]
    started, first = time.perf_counter(), 0.0
    command = [sys.executable, "-m", "segpipe.cli", "run", *map(str, words)]
    log = WORK / "stderr.txt"
    with log.open("w") as stream, subprocess.Popen(command, cwd=WORK, stdout=subprocess.DEVNULL, stderr=stream) as process:
        while process.poll() is None:
            time.sleep(0.05)
            if not first and next(out.glob(".parts/*/*.npz"), None):
                first = time.perf_counter() - started
                if name in (CANCELLED, REQUEUED):
                    subprocess.run([*HOW[name], *running()[:1]], check=True)
        if process.returncode:
            raise SystemExit(f"exit code {process.returncode}: {log.read_text()}")
        if not first:
            raise SystemExit(f"no part was seen of {name}: it was not disturbed")
        ended = time.perf_counter() - started
    while running():
        time.sleep(0.2)
    return {"seconds": ended, "first part": first, "same": float(_same(out))}


def _same(out: Path) -> bool:
    """As the processes of this machine have left it."""
    return all(
        filecmp.cmp(out / name, WORK / LOCAL.replace(" ", "_") / name, shallow=False) for name in ("scene.tif", "areas.csv")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-history", action="store_true", help="leave benchmarks/history.jsonl as it is")
    arguments = parser.parse_args()
    if shutil.which("sbatch") is None:
        raise SystemExit("no SLURM here: start one first")
    WORK.mkdir(parents=True, exist_ok=True)
    print(f"{machine()}; load before {load():.1f}; {SIZE:,}² pixels in {PARTS} parts; {arguments.rounds} rounds, medians\n")
    goes: dict[str, list[dict[str, float]]] = {name: [] for name in HOW}
    for _ in range(arguments.rounds):
        for name in HOW:
            goes[name].append(go(name))
            print(f"  {name}: {goes[name][-1]}", file=sys.stderr, flush=True)
    results: dict[str, dict[str, Any]] = {
        name: {key: statistics.median(one[key] for one in own) for key in ("seconds", "first part")}
        | {"same": all(one["same"] for one in own)}
        for name, own in goes.items()
    }
    print(
        "| two workers of one processor | whole command, s | to the first part, s | same bytes |\n| --- | --- | --- | --- |"
    )
    for name, own in results.items():
        print(f"| {name} | {own['seconds']:.1f} | {own['first part']:.1f} | {own['same']} |")
    if not arguments.no_history:
        history.append("slurm", {name: {k: float(v) for k, v in own.items()} for name, own in results.items()})


if __name__ == "__main__":
    main()
