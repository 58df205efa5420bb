"""What earlier runs of the benchmarks gave: one line of JSON per result, and a comparison on the same kind of machine.

As a script: the last results of this kind of machine beside those before them.
"""

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from machine import kind, load, versions

PATH = Path(__file__).parent / "history.jsonl"


@dataclass(frozen=True, slots=True)
class Entry:
    """One result: what was measured, on what, and the figures."""

    date: str
    commit: str
    machine: str
    load: float
    """Processes that wanted a processor in the minute before: others' work is in the figures."""
    versions: dict[str, str]
    benchmark: str
    result: str
    figures: dict[str, float]

    @property
    def key(self) -> tuple[str, str, str]:
        """What can be compared: the same result of the same benchmark on the same kind of machine."""
        return self.machine, self.benchmark, self.result


def append(benchmark: str, results: Mapping[str, Mapping[str, float]], path: Path = PATH) -> list[Entry]:
    """Add one line per result, and print each beside the last of this kind of machine."""
    before, date = read(path), datetime.now(UTC).isoformat(timespec="seconds")
    added = [
        Entry(
            date,
            commit(),
            kind(),
            round(load(), 2),
            versions(),
            benchmark,
            result,
            {k: float(v) for k, v in figures.items()},
        )
        for result, figures in results.items()
    ]
    with path.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in added)
    print(table(before, added), flush=True)
    return added


def read(path: Path = PATH) -> list[Entry]:
    """All lines, oldest first."""
    if not path.exists():
        return []
    return [Entry(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def commit() -> str:
    """The commit that is checked out, with a plus where files differ from it."""
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=PATH.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() or "unknown"


def table(before: Iterable[Entry], now: Sequence[Entry]) -> str:
    """Markdown: each figure, that of the last entry that can be compared with it, and the change."""
    last = {entry.key: entry for entry in before}
    lines = ["| benchmark | result | figure | before | now | change |", "| --- | --- | --- | --- | --- | --- |"]
    for entry in now:
        old = last.get(entry.key)
        since = f" ({old.commit})" if old else ""
        for figure, value in entry.figures.items():
            was = None if old is None else old.figures.get(figure)
            change = f"{value / was - 1:+.1%}" if was else ""
            shown = "" if was is None else f"{was:.4g}{since}"
            lines.append(f"| {entry.benchmark} | {entry.result} | {figure} | {shown} | {value:.4g} | {change} |")
    return "\n".join(lines)


def latest(entries: Sequence[Entry], machine: str) -> tuple[list[Entry], list[Entry]]:
    """Of one kind of machine: what came before, and the last entry of each result."""
    own = [entry for entry in entries if entry.machine == machine]
    now = {entry.key: entry for entry in own}
    return [entry for entry in own if entry is not now[entry.key]], list(now.values())


def main() -> None:
    print(f"{kind()}\n\n{table(*latest(read(), kind()))}")


if __name__ == "__main__":
    main()
