"""Many small cases: speed against the same pixels in one mosaic, memory over time, a kill half-way, and bookkeeping.

Only the command line is driven; the figures come from its records, its log and the kernel.

1. Pictures of one tile each, and one mosaic of the same pixels at overlap 0, so that both infer the same tiles: megapixels
   per second of whole processes, in alternation; and the resident memory of the first process and of the largest worker over
   a run of the pictures.
2. The same run, every process of it ended by SIGKILL when half of the records are there; then the same command again.
3. Bookkeeping: pictures of 32 x 32 pixels and a network that costs next to nothing. Planning is the time up to the first
   word of the log, tables that after its last case, both less those of a run of a thousand, and everybody waits for them.
   Records are written beside the network, so that their processor time counts, taken from writing a thousand of them again,
   as a share of what all processors give. The whole is a run of as many pictures of part 1.

A part that ``--only`` leaves out is taken from the last time, if it was the same number of cases.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import history
import numpy as np
from children import children_busy, family, rss
from machine import load, machine
from pictures import BANDS, mosaic, pictures
from scenes import SCRATCH, network

WORK = SCRATCH / "many" / f"{datetime.now():%Y%m%d%H%M%S}"
"""A folder of its own: ext4 goes slowly about creating files where many were deleted a little before."""
SPEED_GOAL, SHARE_GOAL, BYTES_GOAL, FLAT_GOAL = 0.8, 0.01, 300, 1.05
"""Bytes a case: 183 for a name and a path of 63 characters, and a hundred or so."""

EVERY = 2.0
"""Seconds between two looks at memory."""
TINY = 32
PARTS = ("speed", "killed", "bookkeeping")
FEW = 1000


@dataclass
class Watched:
    """What is known of a run from outside."""

    code: int
    seconds: float
    log: list[dict[str, Any]]
    began: float
    busy: float
    """Processor seconds of all its processes."""
    memory: list[tuple[float, float, float]] = field(default_factory=list)
    """Seconds, MB of the first process, MB of its largest worker."""

    def at(self, event: str) -> float:
        """Time of the last report of an event, in seconds after the start."""
        times = [datetime.fromisoformat(line["time"]).timestamp() for line in self.log if line["event"] == event]
        return max(times) - self.began

    @property
    def planning(self) -> float:
        return self.at("begun")

    @property
    def tables(self) -> float:
        return self.at("ended") - self.at("done")


def command(source: Path, out: Path, tile: int, name: str) -> list[str]:
    words = ["--input", source, "--model", network(name, BANDS), "--output", out, "--tile", tile, "--overlap", 0]
    return [sys.executable, "-m", "segpipe.cli", "run", *map(str, words), "--device", "cpu", "--log-file", str(log_of(out))]


def log_of(out: Path) -> Path:
    return out.with_suffix(".log")


def run(words: list[str], out: Path, *, look: bool = False, kill_at: int | None = None) -> Watched:
    """A run to its end, or until so many records are there."""
    log = log_of(out)
    log.unlink(missing_ok=True)
    memory, began, started, busy = [], time.time(), time.perf_counter(), children_busy()
    with (WORK / "stderr.txt").open("w") as stream:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=stream, start_new_session=True)
        try:
            while process.poll() is None:
                if look:
                    memory.append((time.perf_counter() - started, *_memory(process.pid)))
                if kill_at is not None and sum(1 for _ in records(out)) >= kill_at:
                    os.killpg(process.pid, signal.SIGKILL)
                _wait(process, EVERY if look or kill_at else 0.05)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return Watched(process.wait(), time.perf_counter() - started, lines, began, children_busy() - busy, memory)


def _wait(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def _memory(pid: int) -> tuple[float, float]:
    return rss(pid), max((rss(child) for child in family(pid)[1:]), default=0.0)


def records(out: Path) -> Iterator[os.DirEntry[str]]:
    """Of all cases."""
    for entry in os.scandir(out) if out.is_dir() else ():
        if entry.is_dir() and not entry.name.startswith("."):
            yield from records(Path(entry.path))
        elif entry.name.endswith(".json") and not entry.name.startswith(".") and entry.name != "run.json":
            yield entry


def whole(words: list[str], out: Path, *, look: bool = False) -> Watched:
    """A run from nothing that must succeed."""
    watched = run(words, out, look=look)
    if watched.code:
        raise SystemExit(f"exit code {watched.code}: {' '.join(words)}\n{(WORK / 'stderr.txt').read_text()[-4000:]}")
    return watched


def speed(count: int, size: int, rounds: int) -> dict[str, Any]:
    """Pictures against their mosaic, and memory over the last run of the pictures."""
    small, large, pixels = pictures(count, size), mosaic(count, size), count * size * size / 1e6
    rates = []
    busy: list[float] = []
    for i in range(rounds):
        goes = {}
        for source in (small, large) if i % 2 == 0 else (large, small):
            out = WORK / f"{source.name}_{i}"
            goes[source] = whole(command(source, out, size, "0.1M"), out, look=source is small)
        rates.append([pixels / goes[source].seconds for source in (small, large)])
        busy.append(goes[small].busy / goes[large].busy)
        print(f"  round {i + 1}: pictures {rates[-1][0]:.2f}, mosaic {rates[-1][1]:.2f} Mpx/s", file=sys.stderr, flush=True)
    ratios = [a / b for a, b in rates]
    return {
        "small": statistics.median(a for a, _ in rates),
        "mosaic": statistics.median(b for _, b in rates),
        "ratio": [min(ratios), statistics.median(ratios), max(ratios)],
        "busy_ratio": statistics.median(busy),
        "seconds_a_case": goes[small].seconds / count,
        **memory(goes[small], count),
    }


def memory(watched: Watched, count: int) -> dict[str, Any]:
    """Of the first process and its largest worker, by quarters of the time from the plan to the last case."""
    begun, done = watched.planning, watched.at("done")
    times, client, worker = np.array(watched.memory).T
    # the last look before each moment
    at = [max(0, int(np.searchsorted(times, begun + (done - begun) * q)) - 1) for q in (0.25, 0.5, 0.75, 1.0)]
    return {
        "client_mb": [round(float(client[i]), 1) for i in at],
        "worker_mb": [round(float(worker[i]), 1) for i in at],
        "client_bytes_a_case": float((client[at[-1]] - client[at[0]]) * 2**20 / (0.75 * count)),
    }


def killed(count: int, size: int) -> dict[str, Any]:
    """Ended half-way by SIGKILL, then done: what was there is left alone, and the masks are those of a whole run."""
    out, small = WORK / "killed", pictures(count, size)
    words, undisturbed = command(small, out, size, "0.1M"), WORK / f"{small.name}_0"
    if not undisturbed.exists():
        whole(command(small, undisturbed, size, "0.1M"), undisturbed)
    first = run(words, out, kill_at=count // 2)
    before = {entry.path: entry.stat().st_mtime_ns for entry in records(out)}
    second = run(words, out)
    if second.code:
        raise SystemExit(f"the second run ended with {second.code}\n{(WORK / 'stderr.txt').read_text()[-4000:]}")
    after = {entry.path: entry.stat().st_mtime_ns for entry in records(out)}
    return {
        "first_code": first.code,
        "first_seconds": first.seconds,
        "second_seconds": second.seconds,
        "kept": len(before),
        "done_again": sum(after[path] != written for path, written in before.items()),
        "records": len(after),
        "same": _masks(out) == _masks(undisturbed),
    }


def _masks(out: Path) -> dict[str, int]:
    """All files but records and what tells of a run, by name, with a hash of their bytes."""
    paths = [p for p in out.rglob("*") if p.is_file() and p.suffix != ".json"]
    return {p.relative_to(out).as_posix(): hash(p.read_bytes()) for p in paths}


def bookkeeping(count: int, seconds_a_case: float) -> dict[str, Any]:
    """Planning, records and tables of many tiny cases, beside what the network would take for real ones."""
    few, many = (_tiny(n) for n in (FEW, count))
    planning, tables = (max(0.0, getattr(many, what) - getattr(few, what)) for what in ("planning", "tables"))
    writing, waiting = _writing(WORK / f"tiny_{count}")
    peaks = [max(row[1] for row in watched.memory) for watched in (few, many)]
    total = seconds_a_case * count
    return {
        "cases": count,
        "planning": planning,
        "tables": tables,
        "records": writing * count,
        "record_ms": waiting * 1000,
        "share": (planning + tables + writing * count / (os.cpu_count() or 1)) / total,
        "client_bytes_a_case": (peaks[1] - peaks[0]) * 2**20 / (count - FEW),
        "client_mb": peaks,
        "all_seconds_a_case": (many.seconds - few.seconds) / (count - FEW),
    }


def _tiny(count: int) -> Watched:
    out = WORK / f"tiny_{count}"
    return whole(command(pictures(count, TINY), out, TINY, "tiny"), out, look=True)


def _writing(out: Path) -> tuple[float, float]:
    """Processor time and time to write a record, from writing a thousand of them again."""
    from segpipe.storage.folder import Folder

    found = [json.loads(Path(entry.path).read_text()) for entry, _ in zip(records(out), range(FEW), strict=False)]
    folder = Folder(WORK / "records")
    folder.make()
    started, busy = time.perf_counter(), time.process_time()
    for number, record in enumerate(found):
        folder.write_json(f"{number}.json", record, flush=False)  # as those of small cases are
    busy, spent = time.process_time() - busy, time.perf_counter() - started
    return busy / len(found), spent / len(found)


def verdict(reached: bool) -> str:
    return "reached" if reached else "MISSED"


def show(results: dict[str, Any]) -> None:
    """Markdown."""
    print("| what | figure | goal |\n| --- | --- | --- |")
    if fast := results.get("speed"):
        low, ratio, high = fast["ratio"]
        reached = verdict(ratio >= SPEED_GOAL)
        print(f"| pictures, Mpx/s | {fast['small']:.2f} | |\n| mosaic, Mpx/s | {fast['mosaic']:.2f} | |")
        print(f"| pictures over mosaic | {ratio:.3f} ({low:.3f} to {high:.3f}) | {SPEED_GOAL}: {reached} |")
        print(f"| processor time of the pictures over the mosaic's | {fast['busy_ratio']:.3f} | |")
        for who in ("client", "worker"):
            quarters = fast[f"{who}_mb"]
            steady = verdict(quarters[-1] <= FLAT_GOAL * quarters[0])
            print(f"| RSS of the {who} at 25, 50, 75, 100 %, MB | {quarters} | within {FLAT_GOAL - 1:.0%}: {steady} |")
        print(f"| client meanwhile, bytes a case | {fast['client_bytes_a_case']:.0f} | |")
    if dead := results.get("killed"):
        good = dead["same"] and not dead["done_again"] and dead["first_code"] == -signal.SIGKILL
        print(f"| killed after {dead['kept']} records; done again | {dead['done_again']} | 0 |")
        print(f"| the same {dead['records']} masks and tables as undisturbed | {dead['same']} | True: {verdict(good)} |")
        print(f"| seconds, first and second run | {dead['first_seconds']:.1f}, {dead['second_seconds']:.1f} | |")
    if books := results.get("bookkeeping"):
        parts = ", ".join(f"{what} {books[what]:.2f}" for what in ("planning", "records", "tables"))
        print(f"| seconds for {books['cases']:,} cases, records of a processor | {parts} | |")
        print(f"| one record to the disk, ms | {books['record_ms']:.2f} | |")
        share = verdict(books["share"] <= SHARE_GOAL)
        print(f"| their share of a run of such pictures | {books['share']:.2%} | {SHARE_GOAL:.0%}: {share} |")
        few = verdict(books["client_bytes_a_case"] <= BYTES_GOAL)
        print(f"| client at its peak, bytes a case | {books['client_bytes_a_case']:.0f} | {BYTES_GOAL}: {few} |")
        print(f"| all that a case costs beside the network, ms | {books['all_seconds_a_case'] * 1000:.2f} | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=256, help="of a picture, and the tile")
    parser.add_argument("--books", type=int, default=100_000, help="cases whose bookkeeping is measured")
    parser.add_argument("--pairs", type=int, default=2, help="rounds of pictures against mosaic [2]")
    parser.add_argument("--quick", action="store_true", help="a tenth of the cases, one round")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these alone")
    parser.add_argument("--no-history", action="store_true", help="leave benchmarks/history.jsonl as it is")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a run ends with this process
    count, books, rounds = arguments.cases, arguments.books, arguments.pairs
    if arguments.quick:
        count, books, rounds = count // 10, books // 10, 1
    wanted = arguments.only or list(PARTS)
    WORK.mkdir(parents=True, exist_ok=True)
    print(f"{machine()}; load before {load():.1f}; {count:,} pictures of {arguments.size}²\n", flush=True)
    results, remembered = _last(count, arguments.size), not (arguments.no_history or arguments.quick)
    parts = {
        "speed": lambda: speed(count, arguments.size, rounds),
        "killed": lambda: killed(count, arguments.size),
        "bookkeeping": lambda: bookkeeping(books, results["speed"]["seconds_a_case"]),
    }
    for part in PARTS:
        if part in wanted or (part == "speed" and "speed" not in results):
            keep(results, part, parts[part]())
            if remembered:
                history.append("many", figures(results, part))
    show(results)
    shutil.rmtree(WORK)


def _last(count: int, size: int) -> dict[str, Any]:
    """What was found the last time, if it was the same."""
    fresh = {"machine": machine(), "cases": count, "size": size}
    path = SCRATCH / "many.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return results if fresh.items() <= results.items() else dict(fresh)


def keep(results: dict[str, Any], part: str, found: dict[str, Any]) -> None:
    """Save the results after every part, in case the benchmark is stopped."""
    results[part] = found
    (SCRATCH / "many.json").write_text(json.dumps(results, indent=2))
    print(f"  {part}: {found}", file=sys.stderr, flush=True)


def figures(results: dict[str, Any], part: str) -> dict[str, dict[str, float]]:
    """What the history keeps of a part."""
    found = results[part]
    if part == "bookkeeping":
        names = ("share", "client_bytes_a_case", "planning", "tables", "all_seconds_a_case")
        return {f"bookkeeping of {found['cases']} cases": {name: found[name] for name in names}}
    if part == "speed":
        kept = {"Mpx/s": found["small"], "mosaic, Mpx/s": found["mosaic"], "over mosaic": found["ratio"][1]}
        kept |= {"client, MB": found["client_mb"][-1], "worker, MB": found["worker_mb"][-1]}
        return {f"{results['cases']} pictures of {results['size']}²": kept}
    return {f"{results['cases']} pictures, killed half-way": {"done again": found["done_again"]}}


if __name__ == "__main__":
    main()
